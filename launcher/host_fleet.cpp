#include "launcher/host_fleet.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>

#include "launcher/mpi_launcher.hpp"

namespace regroup::launcher {
namespace {

/// From its start until it says who it is; ssh may ask a slow directory for the user.
constexpr std::chrono::seconds kGreetingTime{60};
constexpr std::chrono::seconds kAgainFirst{1};
constexpr int kAgainDoublingsMax = 5;
/// An agent says something every second.
constexpr std::chrono::seconds kAgentSilenceMax{5};
/// A starter that has said nothing for so long no longer reaches its agent, which has given up
/// by then, too (run_shell_hosts.cpp, kAloneMax).
constexpr std::chrono::seconds kStarterSilenceMax{75};
constexpr std::size_t kToWriteMax = kOrdersBytesMax + 4096;

std::string replaced(std::string word, std::string_view what, const std::string& by) {
  for (std::size_t at = word.find(what); at != std::string::npos; at = word.find(what, at)) {
    word.replace(at, what.size(), by);
    at += by.size();
  }
  return word;
}

}  // namespace

std::vector<std::string> starter_words(const Starter& starter, const HostEntry& host) {
  const std::vector<std::string> agent = {starter.agent, "agent", "--stdio"};
  std::vector<std::string> out;
  if (starter.words.empty()) {
    // No question can be answered: its standard input is the agent's.
    out = {"ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=15"};
    if (host.ssh_port) out.insert(out.end(), {"-p", std::to_string(*host.ssh_port)});
    // The shell over there takes its words apart.
    out.insert(out.end(), {host.target(), shell_line(agent)});
    return out;
  }
  for (const std::string& word : starter.words) {
    out.push_back(replaced(replaced(replaced(word, "{host}", host.name), "{user}", host.user),
                           "{target}", host.target()));
  }
  out.insert(out.end(), agent.begin(), agent.end());
  return out;
}

HostFleet::HostFleet(EventLoop& loop, Starter starter,
                     std::map<membership::AgentId, HostEntry> hosts,
                     std::vector<std::string> environment, Callbacks callbacks)
    : loop_(loop),
      starter_(std::move(starter)),
      environment_(std::move(environment)),
      callbacks_(std::move(callbacks)) {
  for (auto& [id, entry] : hosts) hosts_[id].entry = std::move(entry);
}

HostFleet::~HostFleet() {
  for (auto& [id, host] : hosts_) {
    close(host);
    if (!host.process) continue;
    signal_group(*host.process, SIGKILL);
    while (::waitpid(host.process->pid, nullptr, 0) < 0 && errno == EINTR) {
    }
  }
}

void HostFleet::start(TimePoint now) {
  for (auto& [id, host] : hosts_) start(id, host, now);
}

void HostFleet::start(membership::AgentId id, Host& host, TimePoint now) {
  host.due.reset();
  host.greeted = false;
  host.attempts += 1;
  host.last_error.clear();
  host.lines = LineReader(std::size_t{1} << 20);
  int in[2];
  int out[2];
  int err[2];
  if (::pipe2(in, O_CLOEXEC) != 0) return fail(id, host, now, "no descriptors for its pipes");
  const base::Fd its_in(in[0]);
  host.in.reset(in[1]);
  if (::pipe2(out, O_CLOEXEC) != 0) return fail(id, host, now, "no descriptors for its pipes");
  host.out.reset(out[0]);
  const base::Fd its_out(out[1]);
  if (::pipe2(err, O_CLOEXEC) != 0) return fail(id, host, now, "no descriptors for its pipes");
  host.err.reset(err[0]);
  const base::Fd its_err(err[1]);
  for (const int fd : {host.in.get(), host.out.get(), host.err.get()})
    ::fcntl(fd, F_SETFL, O_NONBLOCK);

  SpawnRequest request;
  request.arguments = starter_words(starter_, host.entry);
  const char* search = std::getenv("PATH");
  const Result<std::string> path =
      find_program(request.arguments.front(), search != nullptr ? search : "/usr/bin:/bin");
  if (!path) return fail(id, host, now, std::string(path.error().text()));
  request.path = *path;
  request.environment = environment_;
  request.in = its_in.get();
  request.out = its_out.get();
  request.err = its_err.get();
  Result<Spawned> spawned = spawn(request);
  if (!spawned) return fail(id, host, now, std::string(spawned.error().text()));
  host.process.emplace(std::move(*spawned));
  host.greeting_until = now + kGreetingTime;
  loop_.watch(host.out.get(), [this, id](std::uint32_t) { read_out(id); });
  loop_.watch(host.err.get(), [this, id](std::uint32_t) { read_err(id); });
}

void HostFleet::close_input(Host& host) {
  if (!host.in) return;
  loop_.forget(host.in.get());
  host.in.reset();
  host.to_write.clear();
}

void HostFleet::close(Host& host) {
  close_input(host);
  for (base::Fd* fd : {&host.out, &host.err}) {
    if (*fd) loop_.forget(fd->get());
    fd->reset();
  }
  host.greeting_until.reset();
}

void HostFleet::fail(membership::AgentId id, Host& host, TimePoint now, const std::string& why) {
  const bool greeted = host.greeted;
  close(host);
  std::optional<nanoseconds> again;
  if (!ending_) {
    if (greeted) host.attempts = 0;
    again = kAgainFirst * (1 << std::clamp(host.attempts - 1, 0, kAgainDoublingsMax));
    host.due = now + *again;
  }
  host.greeted = false;
  callbacks_.gone(id, why, greeted, again);
}

void HostFleet::turn(TimePoint now) {
  for (auto& [id, host] : hosts_) {
    if (host.greeting_until && *host.greeting_until <= now && host.process) {
      host.greeting_until.reset();
      host.last_error = fmt::format("its agent did not answer within {} s", kGreetingTime.count());
      signal_group(*host.process, SIGKILL);
    }
    if (host.greeted && host.process && now - host.heard_at > kStarterSilenceMax) {
      host.last_error =
          fmt::format("nothing came from its agent for {} s", kStarterSilenceMax.count());
      signal_group(*host.process, SIGKILL);
    }
    if (host.due && *host.due <= now && !ending_) start(id, host, now);
  }
}

std::optional<TimePoint> HostFleet::due() const {
  std::optional<TimePoint> out;
  for (const auto& [id, host] : hosts_) {
    for (const auto& at : {host.greeting_until, ending_ ? std::nullopt : host.due}) {
      if (at && (!out || *at < *out)) out = at;
    }
  }
  return out;
}

bool HostFleet::reaped(pid_t pid, const ExitStatus& status, TimePoint now) {
  for (auto& [id, host] : hosts_) {
    if (!host.process || host.process->pid != pid) continue;
    // What it said before its end still counts.
    read_err(id);
    read_out(id);
    host.process.reset();
    fail(id, host, now,
         host.last_error.empty()
             ? fmt::format("its starter {}", status.text())
             : fmt::format("{} (its starter {})", host.last_error, status.text()));
    return true;
  }
  return false;
}

/// Takes what there is now; a stream that has ended is let go.
template <class TakeFn>
void HostFleet::read_all(base::Fd& stream, TakeFn&& take) {
  char buffer[64 * 1024];
  while (stream) {
    const ssize_t got = ::read(stream.get(), buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return;
    if (got == 0) {
      loop_.forget(stream.get());
      stream.reset();
      return;
    }
    take(std::string_view(buffer, static_cast<std::size_t>(got)));
    if (static_cast<std::size_t>(got) < sizeof buffer) return;
  }
}

void HostFleet::read_out(membership::AgentId id) {
  Host& host = hosts_.at(id);
  read_all(host.out, [&](std::string_view bytes) {
    host.heard_at = Clock::now();
    host.lines.feed(bytes);
    while (const std::optional<std::string> line = host.lines.next()) take_line(id, host, *line);
  });
}

void HostFleet::read_err(membership::AgentId id) {
  Host& host = hosts_.at(id);
  read_all(host.err, [&](std::string_view bytes) {
    host.errors.feed(bytes);
    while (const std::optional<std::string> line = host.errors.next()) {
      if (line->empty()) continue;
      host.last_error = *line;
      callbacks_.line(id, LineKind::Text, *line);
    }
  });
}

void HostFleet::take_line(membership::AgentId id, Host& host, const std::string& line) {
  if (!host.greeted) return take_greeting(id, host, line);
  const std::optional<LineKind> kind = line_kind(line);
  if (kind && *kind != LineKind::Greeting && *kind != LineKind::Alive)
    callbacks_.line(id, *kind, std::string_view(line).substr(1));
}

void HostFleet::take_greeting(membership::AgentId id, Host& host, const std::string& line) {
  const std::optional<AgentGreeting> greeting = parse_greeting(line);
  // Shells print what they like before a program begins.
  if (!greeting) return callbacks_.line(id, LineKind::Text, line);
  host.greeting_until.reset();
  if (greeting->protocol != kHostProtocol || greeting->version != REGROUP_VERSION) {
    host.last_error = fmt::format(
        "{} there is regroup {} (protocol {}), here {} ({}): install the same one, or "
        "name another path with --agent",
        starter_.agent, greeting->version, greeting->protocol, REGROUP_VERSION, kHostProtocol);
    return close_input(host);
  }
  host.greeted = true;
  host.attempts = 0;
  host.to_write = orders_line(callbacks_.orders(id)) + "\n";
  write(id, host);
}

void HostFleet::write(membership::AgentId id, Host& host) {
  while (host.in && !host.to_write.empty()) {
    const ssize_t sent = ::write(host.in.get(), host.to_write.data(), host.to_write.size());
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && errno == EAGAIN) {
      loop_.watch(
          host.in.get(), [this, id](std::uint32_t) { write(id, hosts_.at(id)); }, true);
      return;
    }
    if (sent < 0) return close_input(host);  // its end is on its way
    // Orders hold the secret: what is written does not stay in memory.
    std::fill_n(host.to_write.begin(), sent, '\0');
    host.to_write.erase(0, static_cast<std::size_t>(sent));
  }
  if (host.in) loop_.forget(host.in.get());
}

void HostFleet::tell(membership::AgentId id, const HostWord& word) {
  const auto found = hosts_.find(id);
  if (found == hosts_.end()) return;
  Host& host = found->second;
  if (!host.greeted || host.to_write.size() > kToWriteMax) return;
  host.to_write += word_line(word) + "\n";
  write(id, host);
}

void HostFleet::tell_all(const HostWord& word) {
  for (auto& [id, host] : hosts_) tell(id, word);
}

void HostFleet::let_go() {
  for (auto& [id, host] : hosts_) close_input(host);
}

void HostFleet::kill() {
  for (auto& [id, host] : hosts_) {
    if (host.process) signal_group(*host.process, SIGKILL);
  }
}

bool HostFleet::all_gone() const {
  return std::none_of(hosts_.begin(), hosts_.end(),
                      [](const auto& entry) { return entry.second.process.has_value(); });
}

bool HostFleet::only_silent_left(TimePoint now) const {
  return std::all_of(hosts_.begin(), hosts_.end(), [now](const auto& entry) {
    const Host& host = entry.second;
    return !host.process || !host.greeted || now - host.heard_at > kAgentSilenceMax;
  });
}

std::vector<membership::AgentId> HostFleet::missing() const {
  std::vector<membership::AgentId> out;
  for (const auto& [id, host] : hosts_) {
    if (!host.greeted) out.push_back(id);
  }
  return out;
}

const std::string& HostFleet::name(membership::AgentId id) const {
  static const std::string here = "localhost";
  const auto found = hosts_.find(id);
  return found == hosts_.end() ? here : found->second.entry.name;
}

std::vector<pid_t> HostFleet::pids() const {
  std::vector<pid_t> out;
  for (const auto& [id, host] : hosts_) {
    if (host.process) out.push_back(host.process->pid);
  }
  return out;
}

}  // namespace regroup::launcher
