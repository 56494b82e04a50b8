#include "launcher/coordinator_host.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include <poll.h>

#include <fmt/format.h>

#include "control/channel.hpp"
#include "control/codec.hpp"
#include "launcher/coordinator_watch.hpp"
#include "launcher/coordinator_wire.hpp"
#include "launcher/wal.hpp"
#include "membership/membership.hpp"
#include "secure/listener.hpp"

namespace regroup::launcher {
namespace {

namespace ms = membership;

/// An agent that takes nothing for so long is stuck; the coordinator ends and a new one starts from
/// its state.
constexpr std::chrono::seconds kSendTime{10};

int timeout_until(const std::optional<TimePoint>& at) {
  if (!at) return -1;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(*at - Clock::now()).count();
  return static_cast<int>(std::clamp<std::int64_t>(left, 0, 60'000));
}

/// The port that agents come to, and what it takes to admit them.
struct Port {
  secure::RefusalCounters refusals;
  std::optional<secure::Listener> listener;  ///< counts in `refusals`

  static Result<std::unique_ptr<Port>> open(const CoordinatorOptions::Tcp& tcp,
                                            std::uint32_t agents) {
    base::Fd listening(tcp.listening);
    base::Fd secret_fd(tcp.secret);
    Result<secure::RefusalCounters> refusals =
        secure::RefusalCounters::open(base::Fd(tcp.refusals));
    if (!refusals) return refusals.error();
    Result<secure::JobSecret> secret = secure::JobSecret::open(std::move(secret_fd));
    if (!secret) return secret.error();
    Result<secure::TlsContext> context =
        secure::TlsContext::make(secure::Role::Coordinator, *secret, tcp.job);
    if (!context) return context.error();
    auto port = std::make_unique<Port>(Port{std::move(*refusals), std::nullopt});
    Result<secure::Listener> listener =
        secure::Listener::make(std::move(listening), *context, port->refusals, {.agents = agents});
    if (!listener) return listener.error();
    port->listener.emplace(std::move(*listener));
    return port;
  }
};

/// Why an authentic message could not be read.
secure::Refusal refusal_of(const Status& undecoded) {
  return undecoded.code() == Code::Unsupported ? secure::Refusal::Version
                                               : secure::Refusal::BadMessage;
}

}  // namespace

struct CoordinatorHost::Impl {
  Impl(Wal wal_in, control::Channel channel_in, std::unique_ptr<Port> port_in,
       CoordinatorOptions options_in, Probe probe_in)
      : wal(std::move(wal_in)),
        port(std::move(port_in)),
        options(std::move(options_in)),
        probe(std::move(probe_in)),
        timeouts(ms::timeouts_for(options.detect_budget)),
        machine(timeouts),
        detector(timeouts) {
    if (port) {
      lifeline = make_wire(std::move(channel_in));
    } else {
      agents[kLocalAgent] = make_wire(std::move(channel_in));
    }
  }

  Status start();
  Status step(const ms::Event& event);
  Status perform(const ms::SendTo& effect);
  Status perform(const ms::Persist& effect);
  Status perform(const ms::SetTimer& effect);
  Status send(ms::AgentId id, const control::Bytes& message);
  Status wait();
  [[nodiscard]] std::optional<TimePoint> awake_at() const;
  Status receive();
  Status receive_from(ms::AgentId id);
  Status lost_agent(ms::AgentId id, const Status& why);
  Status tell_losses();
  Status admit();
  Status beat();

  Wal wal;
  std::unique_ptr<Port> port;                 ///< none: over the inherited channel
  std::unique_ptr<CoordinatorWire> lifeline;  ///< with a port: the inherited channel
  std::map<ms::AgentId, std::unique_ptr<CoordinatorWire>> agents;  ///< those that are here
  CoordinatorOptions options;
  Probe probe;
  ms::Timeouts timeouts;
  ms::Membership machine;
  ms::FailureDetector detector;  ///< of the agents on other hosts
  std::optional<TimePoint> timer;
  std::optional<TimePoint> beat_due;         ///< none: no agent is on another host
  std::optional<metrics::PageMapping> page;  ///< none: nobody watches
  bool closed = false;
  std::map<ms::AgentId, nanoseconds> losses;  ///< of which the machine has not heard; silent for
};

/// By which the failure detector knows an agent.
Incarnation watched(ms::AgentId id) { return Incarnation{id.value() + std::uint64_t{1}}; }

Status CoordinatorHost::Impl::start() {
  ms::Started started{.config = options.config};
  for (std::uint32_t id = 0; id < options.agents; ++id) started.agents.emplace_back(id);
  if (wal.newest()) {
    Result<ms::DurableState> state = control::decode<ms::DurableState>(*wal.newest());
    if (!state) {
      return {state.error().code(), fmt::format("E-STATE-2 the record in {} cannot be read: {}",
                                                options.state.string(), state.error().text())};
    }
    started.durable = std::move(*state);
  }
  if (options.agents > 1) beat_due = Clock::now();
  if (Status status = step(started); !status) return status;
  return port ? Status() : step(ms::AgentConnected{kLocalAgent});
}

Status CoordinatorHost::Impl::step(const ms::Event& event) {
  for (const ms::Effect& effect : machine.step(event, Clock::now())) {
    if (closed) return {};
    Status status = std::visit([this](const auto& e) { return perform(e); }, effect);
    if (!status) return status;
  }
  return {};
}

Status CoordinatorHost::Impl::perform(const ms::SendTo& effect) {
  const Result<control::Bytes> message = control::encode(effect.message);
  if (!message) return message.error();
  if (effect.agent) return send(*effect.agent, *message);
  std::vector<ms::AgentId> all;
  for (const auto& [id, wire] : agents) all.push_back(id);
  for (const ms::AgentId id : all) {
    if (Status sent = send(id, *message); !sent) return sent;
  }
  return {};
}

Status CoordinatorHost::Impl::send(ms::AgentId id, const control::Bytes& message) {
  const auto found = agents.find(id);
  // An agent that is away says hello when it comes back, and is then told where the job stands.
  if (found == agents.end()) return {};
  CoordinatorWire& wire = *found->second;
  const TimePoint until = Clock::now() + kSendTime;
  Status sent = wire.send(message);
  while (sent.code() == Code::ResourceExhausted) {
    // The other agents do not wait for one that takes nothing: it may come again, and says hello.
    if (port) return lost_agent(id, {Code::Cancelled, "the agent takes no messages"});
    // The machine has no memory of a message that was not sent: wait for room rather than drop it.
    pollfd ready{wire.fd(), POLLOUT, 0};
    if (Clock::now() >= until || ::poll(&ready, 1, timeout_until(until)) == 0) {
      return {Code::DeadlineExceeded, "the agent takes no messages"};
    }
    if (Status status = wire.progress(); !status) return lost_agent(id, status);
    sent = wire.send(message);
  }
  return sent ? sent : lost_agent(id, sent);
}

/// Over the inherited channel there is no other agent to wait for, and over TCP there is. The
/// machine hears of it in run(): effects never call back into it.
Status CoordinatorHost::Impl::lost_agent(ms::AgentId id, const Status& why) {
  if (!port) {
    closed = why.code() == Code::Cancelled;
    return closed ? Status() : why;
  }
  if (const std::optional<secure::Refusal> cause = agents.at(id)->refusal())
    port->refusals.count(*cause);
  agents.erase(id);
  detector.forget(watched(id));
  losses.emplace(id, nanoseconds{0});
  return {};
}

Status CoordinatorHost::Impl::tell_losses() {
  for (const auto& [id, silent_for] : std::exchange(losses, {})) {
    if (Status status = step(ms::AgentDisconnected{id, silent_for}); !status) return status;
  }
  return {};
}

Status CoordinatorHost::Impl::perform(const ms::Persist& effect) {
  Result<control::Bytes> bytes = control::encode(effect.state);
  if (!bytes) return bytes.error();
  const std::uint64_t record = wal.sequence() + 1;
  if (probe.before_persist) probe.before_persist(record);
  // Durable before any later effect: whoever hears of a view or an incarnation may rely on it.
  if (Status status = wal.append(*bytes); !status) return status;
  if (probe.after_persist) probe.after_persist(record);
  return {};
}

Status CoordinatorHost::Impl::perform(const ms::SetTimer& effect) {
  timer = effect.at;
  return {};
}

/// The next timer, or the next sign of life.
std::optional<TimePoint> CoordinatorHost::Impl::awake_at() const {
  std::optional<TimePoint> at = timer;
  if (page) {
    const TimePoint shown = Clock::now() + coordinator_beat_every(options.detect_budget);
    at = at ? std::min(*at, shown) : shown;
  }
  if (beat_due) at = at ? std::min(*at, *beat_due) : beat_due;
  return at;
}

Status CoordinatorHost::Impl::wait() {
  std::vector<pollfd> ready;
  std::optional<TimePoint> until = awake_at();
  for (const auto& [id, wire] : agents) {
    const short events = wire->wants_write() ? POLLIN | POLLOUT : POLLIN;
    ready.push_back({wire->fd(), events, 0});
  }
  if (port) {
    ready.push_back({lifeline->fd(), POLLIN, 0});
    ready.push_back({port->listener->fd(), POLLIN, 0});
    if (const auto due = port->listener->due(); due && (!until || *due < *until)) until = due;
  }
  if (::poll(ready.data(), ready.size(), timeout_until(until)) < 0 && errno != EINTR) {
    return {Code::Internal, fmt::format("poll: {}", std::strerror(errno))};
  }
  return {};
}

/// Takes in the agents that have proved the secret. A new connection of an agent takes the place of
/// its old one: the other end has given that one up, whether or not we have heard so.
Status CoordinatorHost::Impl::admit() {
  for (secure::SecureChannel& one : port->listener->turn()) {
    const ms::AgentId id = one.agent();
    if (agents.erase(id) != 0) losses.emplace(id, nanoseconds{0});
    if (Status status = tell_losses(); !status) return status;
    agents[id] = make_wire(std::move(one));
    detector.forget(watched(id));
    // The launcher's own agent is not judged: this process ends with it.
    if (id != kLocalAgent) detector.watch(watched(id), Clock::now());
    if (Status status = step(ms::AgentConnected{id}); !status) return status;
  }
  return {};
}

/// Shows the agents on other hosts that the coordinator is there, and looks whether they are.
Status CoordinatorHost::Impl::beat() {
  const TimePoint now = Clock::now();
  if (!beat_due || *beat_due > now) return {};
  beat_due = now + timeouts.beat_every;
  std::map<ms::AgentId, Status> broken;
  for (const auto& [id, wire] : agents) {
    if (id == kLocalAgent) continue;
    detector.beat(watched(id), wire->heard() + 1, now);
    if (Status sent = wire->send_beat(); !sent) broken.emplace(id, sent);
  }
  for (const auto& finding : detector.check(now)) {
    if (finding.verdict != ms::FailureDetector::Verdict::Confirmed) continue;
    const ms::AgentId id{static_cast<std::uint32_t>(finding.incarnation.value() - 1)};
    // It has been silent for as long as one may be that lost its connection.
    losses[id] = timeouts.agent_lost;
    agents.erase(id);
    detector.forget(finding.incarnation);
    broken.erase(id);
  }
  for (const auto& [id, why] : broken) {
    if (Status status = lost_agent(id, why); !status) return status;
  }
  return {};
}

Status CoordinatorHost::Impl::receive() {
  if (lifeline) {
    const auto word = lifeline->next();
    closed = !word;
    if (closed) return {};
    if (Status status = admit(); !status) return status;
  }
  std::vector<ms::AgentId> all;
  for (const auto& [id, wire] : agents) all.push_back(id);
  for (const ms::AgentId id : all) {
    if (Status status = receive_from(id); !status) return status;
  }
  return {};
}

Status CoordinatorHost::Impl::receive_from(ms::AgentId id) {
  const auto wire = [&]() -> CoordinatorWire* {
    const auto found = agents.find(id);
    return found == agents.end() ? nullptr : found->second.get();
  };
  if (wire() == nullptr) return {};
  const Status progressed = wire()->progress();
  // What arrived whole before an end still counts.
  while (!closed && wire() != nullptr) {
    Result<std::optional<control::Bytes>> bytes = wire()->next();
    if (!bytes) return lost_agent(id, bytes.error());
    if (!bytes->has_value()) return progressed ? Status() : lost_agent(id, progressed);
    Result<ms::AgentMessage> message = control::decode<ms::AgentMessage>(**bytes);
    if (!message) {
      if (port) port->refusals.count(refusal_of(message.error()));
      return lost_agent(id, message.error());
    }
    if (Status status = step(ms::FromAgent{id, std::move(*message)}); !status) return status;
  }
  return {};
}

CoordinatorHost::CoordinatorHost(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CoordinatorHost::CoordinatorHost(CoordinatorHost&&) noexcept = default;
CoordinatorHost& CoordinatorHost::operator=(CoordinatorHost&&) noexcept = default;
CoordinatorHost::~CoordinatorHost() = default;

Result<CoordinatorHost> CoordinatorHost::open(CoordinatorOptions options) {
  return open(std::move(options), Probe{});
}

Result<CoordinatorHost> CoordinatorHost::open(CoordinatorOptions options, Probe probe) {
  base::Fd fd(options.fd);
  base::Fd beat(options.beat);
  std::unique_ptr<Port> port;
  if (options.tcp) {
    Result<std::unique_ptr<Port>> opened = Port::open(*options.tcp, options.agents);
    if (!opened) return opened.error();
    port = std::move(*opened);
  }
  Result<Wal> wal = Wal::open(options.state);
  if (!wal) return wal.error();
  auto impl = std::make_unique<Impl>(std::move(*wal), control::Channel(std::move(fd)),
                                     std::move(port), std::move(options), std::move(probe));
  if (beat) {
    Result<metrics::PageMapping> page = metrics::PageMapping::map(beat.get());
    if (!page) return page.error();
    impl->page.emplace(std::move(*page));
  }
  return CoordinatorHost(std::move(impl));
}

Status CoordinatorHost::run() {
  Impl& self = *impl_;
  if (Status status = self.start(); !status) return status;
  while (!self.closed) {
    if (self.page) metrics::beat(self.page->page(), metrics::monotonic_ns());
    if (Status status = self.wait(); !status) return status;
    if (Status status = self.receive(); !status) return status;
    if (Status status = self.beat(); !status) return status;
    if (Status status = self.tell_losses(); !status) return status;
    if (self.timer && Clock::now() >= *self.timer) {
      self.timer.reset();
      if (Status status = self.step(ms::Timer{}); !status) return status;
    }
  }
  return {};
}

}  // namespace regroup::launcher
