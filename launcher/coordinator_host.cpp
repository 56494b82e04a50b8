#include "launcher/coordinator_host.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

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

  static Result<std::unique_ptr<Port>> open(const CoordinatorOptions::Tcp& tcp) {
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
        secure::Listener::make(std::move(listening), *context, port->refusals, {.agents = 1});
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
        machine(ms::timeouts_for(options.detect_budget)) {
    (port ? lifeline : agent) = make_wire(std::move(channel_in));
  }

  Status start();
  Status step(const ms::Event& event);
  Status perform(const ms::SendTo& effect);
  Status perform(const ms::Persist& effect);
  Status perform(const ms::SetTimer& effect);
  Status wait();
  [[nodiscard]] std::optional<TimePoint> awake_at() const;
  Status receive();
  Status receive_all();
  Status lost_agent(const Status& why);
  Status tell_loss();
  Status admit();

  Wal wal;
  std::unique_ptr<Port> port;                 ///< none: over the inherited channel
  std::unique_ptr<CoordinatorWire> lifeline;  ///< with a port: the inherited channel
  std::unique_ptr<CoordinatorWire> agent;     ///< none: it is away
  CoordinatorOptions options;
  Probe probe;
  ms::Membership machine;
  std::optional<TimePoint> timer;
  std::optional<metrics::PageMapping> page;  ///< none: nobody watches
  bool closed = false;
  bool agent_lost = false;  ///< and the machine has not heard of it
};

Status CoordinatorHost::Impl::start() {
  ms::Started started{.config = options.config, .agents = {kLocalAgent}};
  if (wal.newest()) {
    Result<ms::DurableState> state = control::decode<ms::DurableState>(*wal.newest());
    if (!state) {
      return {state.error().code(), fmt::format("E-STATE-2 the record in {} cannot be read: {}",
                                                options.state.string(), state.error().text())};
    }
    started.durable = std::move(*state);
  }
  if (Status status = step(started); !status) return status;
  return agent ? step(ms::AgentConnected{kLocalAgent}) : Status();
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
  // An agent that is away says hello when it comes back, and is then told where the job stands.
  if (!agent) return {};
  const Result<control::Bytes> message = control::encode(effect.message);
  if (!message) return message.error();
  const TimePoint until = Clock::now() + kSendTime;
  Status sent = agent->send(*message);
  while (sent.code() == Code::ResourceExhausted) {
    // The machine has no memory of a message that was not sent: wait for room rather than drop it.
    pollfd ready{agent->fd(), POLLOUT, 0};
    if (Clock::now() >= until || ::poll(&ready, 1, timeout_until(until)) == 0) {
      return {Code::DeadlineExceeded, "the agent takes no messages"};
    }
    if (Status status = agent->progress(); !status) return lost_agent(status);
    sent = agent->send(*message);
  }
  return sent ? sent : lost_agent(sent);
}

/// Over the inherited channel there is no other agent to wait for, and over TCP there is. The
/// machine hears of it in run(): effects never call back into it.
Status CoordinatorHost::Impl::lost_agent(const Status& why) {
  if (!port) {
    closed = why.code() == Code::Cancelled;
    return closed ? Status() : why;
  }
  if (const std::optional<secure::Refusal> cause = agent->refusal()) port->refusals.count(*cause);
  agent.reset();
  agent_lost = true;
  return {};
}

Status CoordinatorHost::Impl::tell_loss() {
  return std::exchange(agent_lost, false) ? step(ms::AgentDisconnected{kLocalAgent}) : Status();
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
  if (!page) return timer;
  const TimePoint beat = Clock::now() + coordinator_beat_every(options.detect_budget);
  return timer ? std::min(*timer, beat) : beat;
}

Status CoordinatorHost::Impl::wait() {
  std::array<pollfd, 3> ready{};
  ready.fill({-1, POLLIN, 0});  // poll() passes over negative numbers
  std::optional<TimePoint> until = awake_at();
  if (agent) {
    ready[0].fd = agent->fd();
    if (agent->wants_write()) ready[0].events |= POLLOUT;
  }
  if (port) {
    ready[1].fd = lifeline->fd();
    ready[2].fd = port->listener->fd();
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
    if (agent) {
      agent.reset();
      agent_lost = true;
    }
    if (Status status = tell_loss(); !status) return status;
    agent = make_wire(std::move(one));
    if (Status status = step(ms::AgentConnected{kLocalAgent}); !status) return status;
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
  return agent ? receive_all() : Status();
}

Status CoordinatorHost::Impl::receive_all() {
  const Status progressed = agent->progress();
  // What arrived whole before an end still counts.
  while (!closed && agent) {
    Result<std::optional<control::Bytes>> bytes = agent->next();
    if (!bytes) return lost_agent(bytes.error());
    if (!bytes->has_value()) return progressed ? Status() : lost_agent(progressed);
    Result<ms::AgentMessage> message = control::decode<ms::AgentMessage>(**bytes);
    if (!message) {
      if (port) port->refusals.count(refusal_of(message.error()));
      return lost_agent(message.error());
    }
    if (Status status = step(ms::FromAgent{kLocalAgent, std::move(*message)}); !status)
      return status;
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
    Result<std::unique_ptr<Port>> opened = Port::open(*options.tcp);
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
    if (Status status = self.tell_loss(); !status) return status;
    if (self.timer && Clock::now() >= *self.timer) {
      self.timer.reset();
      if (Status status = self.step(ms::Timer{}); !status) return status;
    }
  }
  return {};
}

}  // namespace regroup::launcher
