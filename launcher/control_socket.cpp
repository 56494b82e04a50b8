#include "launcher/control_socket.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <list>
#include <utility>
#include <vector>

#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/fd.hpp"
#include "launcher/control_address.hpp"
#include "launcher/event_log.hpp"

namespace regroup::launcher {
namespace {

using nlohmann::json;

/// Armed actions look at the beacon pages this often: below the length of a phase that a person
/// would name, and not measurable as load. Deadlines of connections are looked at on the same
/// occasion.
constexpr std::chrono::microseconds kLookEvery{200};
constexpr std::chrono::milliseconds kDeadlineEvery{250};

json refusal(std::string_view code, const std::string& text) {
  return {{"v", kStatusSchema}, {"ok", false}, {"code", code}, {"text", text}};
}
json refusal(const Status& status) {
  return refusal(name(status.code()), std::string(status.text()));
}

std::optional<std::uint64_t> unsigned_field(const json& object, const char* key) {
  const auto at = object.find(key);
  if (at == object.end() || !at->is_number_unsigned()) return std::nullopt;
  return at->get<std::uint64_t>();
}

std::string text_field(const json& object, const char* key) {
  const auto at = object.find(key);
  return at != object.end() && at->is_string() ? at->get<std::string>() : std::string();
}

json doing_json(const metrics::Doing& doing) {
  return {{"operation", metrics::name(doing.operation)},
          {"phase", metrics::name(doing.phase)},
          {"group", doing.group},
          {"epoch", doing.epoch},
          {"seq", doing.sequence},
          {"step", doing.step},
          {"attempt", doing.attempt},
          {"bytes", doing.bytes}};
}

/// An action that waits for its instant.
struct Armed {
  std::string action;
  std::optional<Rank> rank;
  Trigger trigger;
};

struct Connection {
  base::Fd fd;
  TimePoint until;
  std::string in;
  std::string out;
  bool answered = false;
  bool closed = false;
};

}  // namespace

nlohmann::json to_json(const Wish& wish) {
  return {{"answered", wish.answered},
          {"accepted", wish.accepted},
          {"done", wish.done},
          {"dropped", wish.dropped},
          {"text", wish.text}};
}

nlohmann::json to_json(const JobStatus& status) {
  json processes = json::array();
  for (const ProcessStatus& process : status.processes) {
    json entry = doing_json(process.doing);
    if (process.rank) entry["rank"] = process.rank->value();
    entry["incarnation"] = process.incarnation.value();
    entry["pid"] = process.pid;
    entry["state"] = process.state;
    entry["host"] = process.host;
    const std::uint64_t started = process.doing.started_ns;
    if (started != 0 && started <= status.now_ns) entry["age_ns"] = status.now_ns - started;
    processes.push_back(std::move(entry));
  }
  return {{"v", kStatusSchema},
          {"job", status.job},
          {"state", status.state},
          {"log_dir", status.log_dir},
          {"pid", status.pid},
          {"ranks", status.ranks},
          {"spares_wanted", status.spares_wanted},
          {"epoch", status.epoch.value()},
          {"replaced", status.replaced},
          {"uptime_ns", status.uptime_ns},
          {"coordinator",
           {{"pid", status.coordinator_pid},
            {"restarts", status.coordinator_restarts},
            {"port", status.coordinator_port}}},
          {"refused", status.refused},
          {"processes", std::move(processes)}};
}

bool Trigger::holds(const metrics::Doing& doing) const {
  if (step && doing.step < *step) return false;
  const bool in_operation = doing.operation != metrics::Operation::None;
  if (sequence && (!in_operation || doing.sequence < *sequence)) return false;
  return phase.empty() || (in_operation && metrics::name(doing.phase) == phase);
}

std::string Trigger::text() const {
  std::vector<std::string> parts;
  if (step) parts.push_back(fmt::format("step={}", *step));
  if (sequence) parts.push_back(fmt::format("seq={}", *sequence));
  if (!phase.empty()) parts.push_back("phase=" + phase);
  return fmt::format("{}", fmt::join(parts, ","));
}

Result<Trigger> Trigger::parse(std::string_view text) {
  Trigger out;
  const auto bad = [&](std::string_view what) {
    std::vector<std::string_view> phases;
    for (std::size_t i = 0; i < metrics::kPhases; ++i)
      phases.push_back(metrics::name(static_cast<metrics::Phase>(i)));
    return Status(
        Code::InvalidArgument,
        fmt::format(
            "E-INJ-1 cannot read \"{}\" in --at: expected step=K, seq=K or phase=P, several with "
            "commas; phases are {}",
            what, fmt::join(phases, ", ")));
  };
  while (!text.empty()) {
    const std::string_view part = text.substr(0, text.find(','));
    text.remove_prefix(std::min(text.size(), part.size() + 1));
    const std::size_t equals = part.find('=');
    if (equals == std::string_view::npos) return bad(part);
    const std::string_view key = part.substr(0, equals);
    const std::string value(part.substr(equals + 1));
    if (key == "phase") {
      for (std::size_t i = 0; i < metrics::kPhases; ++i) {
        if (metrics::name(static_cast<metrics::Phase>(i)) == value) out.phase = value;
      }
      if (out.phase.empty()) return bad(part);
      continue;
    }
    if ((key != "step" && key != "seq") || value.empty() || value.size() > 18 ||
        value.find_first_not_of("0123456789") != std::string::npos) {
      return bad(part);
    }
    (key == "step" ? out.step : out.sequence) = std::stoull(value);
  }
  return out;
}

struct ControlSocket::Impl {
  std::string job;
  JobControl* control = nullptr;
  EventLog* log = nullptr;
  base::Fd epoll;
  base::Fd listener;
  base::Fd timer;
  std::list<Connection> connections;
  std::vector<Armed> armed;
  std::chrono::nanoseconds timer_every{0};
  bool listening = true;

  Status watch(int fd, std::uint32_t events, void* who);
  void arm_timer();
  void listen_if(bool room);
  void accept_all();
  void serve(Connection& connection);
  void read(Connection& connection);
  void flush(Connection& connection);
  void answer(Connection& connection);
  json reply(const std::string& request);
  json inject(const json& request);
  json change(const json& request);
  json wish(const json& request);
  json flight(const json& request);
  Status act(const Armed& what);
  void look();
  void drop_closed();
};

Status ControlSocket::Impl::watch(int fd, std::uint32_t events, void* who) {
  epoll_event event{};
  event.events = events;
  event.data.ptr = who;
  if (::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, fd, &event) == 0) return {};
  return {Code::ResourceExhausted, fmt::format("control socket: epoll: {}", std::strerror(errno))};
}

void ControlSocket::Impl::arm_timer() {
  std::chrono::nanoseconds every{0};
  if (!connections.empty()) every = kDeadlineEvery;
  if (!armed.empty()) every = kLookEvery;
  if (every == std::exchange(timer_every, every)) return;
  itimerspec when{};
  when.it_value.tv_nsec = when.it_interval.tv_nsec = every.count();
  (void)::timerfd_settime(timer.get(), 0, &when, nullptr);
}

/// Without room the listener stays out of fd(), or the launcher would turn for nothing.
void ControlSocket::Impl::listen_if(bool room) {
  if (room == std::exchange(listening, room)) return;
  epoll_event event{};
  event.events = room ? std::uint32_t{EPOLLIN} : 0U;
  event.data.ptr = &listener;
  (void)::epoll_ctl(epoll.get(), EPOLL_CTL_MOD, listener.get(), &event);
}

void ControlSocket::Impl::accept_all() {
  while (connections.size() < kConnectionsMax) {
    base::Fd fd(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd) return;
    // Anybody on this machine can name an abstract socket: who it is decides, not what is said.
    const std::optional<std::uint32_t> uid = uid_behind(fd.get());
    if (!uid || (*uid != ::getuid() && *uid != 0)) {
      control->refused_other_user();
      continue;
    }
    Connection& connection = connections.emplace_back();
    connection.until = Clock::now() + kRequestTime;
    connection.fd = std::move(fd);
    if (!watch(connection.fd.get(), EPOLLIN, &connection)) connections.pop_back();
  }
}

void ControlSocket::Impl::read(Connection& connection) {
  std::array<char, 4096> buffer{};
  while (!connection.answered) {
    const ssize_t n = ::recv(connection.fd.get(), buffer.data(), buffer.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
    if (n <= 0) {
      connection.closed = true;
      return;
    }
    connection.in.append(buffer.data(), static_cast<std::size_t>(n));
    if (connection.in.find('\n') != std::string::npos) {
      answer(connection);
    } else if (connection.in.size() > kRequestBytesMax) {
      connection.out = refusal("InvalidArgument", "the request is too long").dump() + "\n";
      connection.answered = true;
    }
  }
}

void ControlSocket::Impl::answer(Connection& connection) {
  connection.answered = true;
  const std::string request = connection.in.substr(0, connection.in.find('\n'));
  connection.out = reply(request).dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
}

void ControlSocket::Impl::flush(Connection& connection) {
  while (!connection.out.empty()) {
    const ssize_t n =
        ::send(connection.fd.get(), connection.out.data(), connection.out.size(), MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      epoll_event event{};
      event.events = EPOLLOUT;
      event.data.ptr = &connection;
      (void)::epoll_ctl(epoll.get(), EPOLL_CTL_MOD, connection.fd.get(), &event);
      return;
    }
    if (n <= 0) break;
    connection.out.erase(0, static_cast<std::size_t>(n));
  }
  connection.closed = true;
}

void ControlSocket::Impl::serve(Connection& connection) {
  if (!connection.answered) read(connection);
  if (connection.answered && !connection.closed) flush(connection);
}

json ControlSocket::Impl::reply(const std::string& text) {
  const json request = json::parse(text, nullptr, false);
  if (!request.is_object()) return refusal("InvalidArgument", "the request is not a JSON object");
  const std::string what = text_field(request, "do");
  if (what == "inject") return inject(request);
  if (what == "drain" || what == "scale") return change(request);
  if (what == "wish") return wish(request);
  if (what == "flight") return flight(request);
  if (what != "status") {
    return refusal("Unsupported",
                   fmt::format("this launcher knows the requests status, inject, drain, scale, "
                               "wish and flight, not \"{}\"",
                               what));
  }
  json status = to_json(control->status());
  status["ok"] = true;
  json waiting = json::array();
  for (const Armed& one : armed) {
    json entry = {{"action", one.action}, {"at", one.trigger.text()}};
    if (one.rank) entry["rank"] = one.rank->value();
    waiting.push_back(std::move(entry));
  }
  status["armed"] = std::move(waiting);
  return status;
}

json ControlSocket::Impl::change(const json& request) {
  const bool now = request.contains("now") && request["now"] == true;
  Result<std::uint64_t> id = std::uint64_t{0};
  if (request["do"] == "scale") {
    const std::optional<std::uint64_t> seats = unsigned_field(request, "seats");
    if (!seats || *seats > control->status().ranks) {
      return refusal("InvalidArgument",
                     fmt::format("E-PLAN-2 scale needs a number of ranks, at most {} (-n): seats "
                                 "are never added",
                                 control->status().ranks));
    }
    id = control->scale(static_cast<std::uint32_t>(*seats), now);
  } else {
    const std::uint32_t seats = control->status().ranks;
    std::vector<Rank> ranks;
    const auto named = request.find("ranks");
    for (const json& one : named != request.end() && named->is_array() ? *named : json::array()) {
      const bool known = one.is_number_unsigned() && one.get<std::uint64_t>() < seats;
      const Rank rank(known ? one.get<std::int32_t>() : -1);
      if (!known || std::find(ranks.begin(), ranks.end(), rank) != ranks.end()) {
        return refusal("InvalidArgument",
                       fmt::format("E-PLAN-2 there is no rank {} to drain: name distinct ranks of "
                                   "0..{}",
                                   one.dump(), seats - 1));
      }
      ranks.push_back(rank);
    }
    if (ranks.empty()) return refusal("InvalidArgument", "E-PLAN-2 drain needs a rank");
    id = control->drain(ranks, now);
  }
  if (!id) return refusal(id.error());
  return {{"v", kStatusSchema}, {"ok", true}, {"wish", *id}};
}

json ControlSocket::Impl::wish(const json& request) {
  const std::optional<std::uint64_t> id = unsigned_field(request, "wish");
  const std::optional<Wish> known = id ? control->wish(*id) : std::nullopt;
  if (!known) return refusal("FailedPrecondition", "E-PLAN-3 nobody knows of this wish any more");
  json answer = to_json(*known);
  answer["v"] = kStatusSchema;
  answer["ok"] = true;
  return answer;
}

json ControlSocket::Impl::flight(const json& request) {
  const std::optional<std::uint64_t> rank = unsigned_field(request, "rank");
  if (!rank || *rank >= control->status().ranks)
    return refusal("InvalidArgument", "a flight record is that of one rank");
  Result<json> answer = control->flight(Rank(static_cast<std::int32_t>(*rank)));
  if (!answer) return refusal(answer.error());
  (*answer)["ok"] = true;
  return *answer;
}

json ControlSocket::Impl::inject(const json& request) {
  Armed what{.action = text_field(request, "action")};
  constexpr std::array<std::string_view, 5> kActions = {"kill", "stop", "cont", "evict",
                                                        "coordinator-kill"};
  if (std::find(kActions.begin(), kActions.end(), what.action) == kActions.end()) {
    return refusal("InvalidArgument", fmt::format("E-INJ-2 no such action \"{}\": one of {}",
                                                  what.action, fmt::join(kActions, ", ")));
  }
  const std::uint32_t ranks = control->status().ranks;
  const std::optional<std::uint64_t> rank = unsigned_field(request, "rank");
  if (rank && *rank < ranks) what.rank = Rank(static_cast<std::int32_t>(*rank));
  if (what.action != "coordinator-kill" && !what.rank) {
    return refusal("InvalidArgument",
                   fmt::format("E-INJ-3 {} needs --rank R, one of 0..{}", what.action, ranks - 1));
  }
  Result<Trigger> trigger = Trigger::parse(text_field(request, "at"));
  if (!trigger) return refusal(trigger.error());
  what.trigger = std::move(*trigger);
  if (!what.trigger.immediate() && !what.rank) {
    return refusal("InvalidArgument",
                   "E-INJ-3 --at looks at what a rank is doing: name it with --rank R");
  }
  if (what.trigger.immediate()) {
    if (const Status status = act(what); !status) return refusal(status);
    return {{"v", kStatusSchema}, {"ok", true}, {"done", true}};
  }
  if (armed.size() >= kArmedMax) {
    return refusal("ResourceExhausted",
                   fmt::format("E-INJ-4 {} actions wait for their instant already", kArmedMax));
  }
  armed.push_back(std::move(what));
  return {{"v", kStatusSchema}, {"ok", true}, {"done", false}};
}

Status ControlSocket::Impl::act(const Armed& what) {
  Status status;
  if (what.action == "coordinator-kill") {
    status = control->kill_coordinator();
  } else if (what.action == "evict") {
    status = control->evict(*what.rank, "asked for with regroup inject evict");
  } else {
    const int signal = what.action == "kill" ? SIGKILL : what.action == "stop" ? SIGSTOP : SIGCONT;
    status = control->signal(*what.rank, signal);
  }
  if (status && log != nullptr)
    log->write(events::Injected{what.action, what.rank, what.trigger.text()});
  return status;
}

void ControlSocket::Impl::look() {
  std::vector<Armed> waiting;
  std::vector<Armed> due;
  for (Armed& one : armed) {
    const std::optional<metrics::Doing> doing = control->doing(*one.rank);
    (doing && one.trigger.holds(*doing) ? due : waiting).push_back(std::move(one));
  }
  armed = std::move(waiting);
  for (const Armed& one : due) {
    if (const Status status = act(one); !status && log != nullptr) {
      log->write(events::Note{"inject", fmt::format("{} at {} did not happen: {}", one.action,
                                                    one.trigger.text(), status.to_string())});
    }
  }
}

void ControlSocket::Impl::drop_closed() {
  const TimePoint now = Clock::now();
  connections.remove_if([&](const Connection& one) { return one.closed || one.until <= now; });
}

ControlSocket::ControlSocket(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ControlSocket::ControlSocket(ControlSocket&&) noexcept = default;
ControlSocket& ControlSocket::operator=(ControlSocket&&) noexcept = default;
ControlSocket::~ControlSocket() = default;

Result<ControlSocket> ControlSocket::open(const std::string& job, JobControl& control,
                                          EventLog* log) {
  Result<ControlAddress> address = control_address({::getuid(), job});
  if (!address) return address.error();
  auto impl = std::make_unique<Impl>();
  impl->job = job;
  impl->control = &control;
  impl->log = log;
  impl->epoll.reset(::epoll_create1(EPOLL_CLOEXEC));
  impl->timer.reset(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  impl->listener.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!impl->epoll || !impl->timer || !impl->listener) {
    return Status(Code::ResourceExhausted, fmt::format("control socket: {}", std::strerror(errno)));
  }
  if (::bind(impl->listener.get(), address->get(), address->bytes) != 0) {
    const int error = errno;
    return Status(
        Code::FailedPrecondition,
        fmt::format(
            "E-CTL-1 cannot listen for commands on {}: {}. Is a job named {} running already?",
            control_name({::getuid(), job}), std::strerror(error), job));
  }
  if (::listen(impl->listener.get(), 64) != 0) {
    return Status(Code::ResourceExhausted,
                  fmt::format("control socket: listen: {}", std::strerror(errno)));
  }
  if (Status status = impl->watch(impl->listener.get(), EPOLLIN, &impl->listener); !status)
    return status;
  if (Status status = impl->watch(impl->timer.get(), EPOLLIN, &impl->timer); !status) return status;
  return ControlSocket(std::move(impl));
}

int ControlSocket::fd() const { return impl_->epoll.get(); }

void ControlSocket::turn() {
  Impl& self = *impl_;
  std::array<epoll_event, kConnectionsMax + 2> ready{};
  const int count = ::epoll_wait(self.epoll.get(), ready.data(), static_cast<int>(ready.size()), 0);
  for (int i = 0; i < count; ++i) {
    void* const who = ready[static_cast<std::size_t>(i)].data.ptr;
    if (who == &self.timer) {
      std::uint64_t expirations = 0;
      (void)!::read(self.timer.get(), &expirations, sizeof expirations);
    } else if (who != &self.listener) {
      self.serve(*static_cast<Connection*>(who));
    }
  }
  self.drop_closed();
  self.accept_all();
  self.listen_if(self.connections.size() < kConnectionsMax);
  self.look();
  self.arm_timer();
}

}  // namespace regroup::launcher
