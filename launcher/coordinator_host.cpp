#include "launcher/coordinator_host.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include <poll.h>

#include <fmt/format.h>

#include "control/channel.hpp"
#include "control/codec.hpp"
#include "launcher/coordinator_watch.hpp"
#include "launcher/wal.hpp"
#include "membership/membership.hpp"

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

}  // namespace

struct CoordinatorHost::Impl {
  Impl(Wal wal_in, control::Channel channel_in, CoordinatorOptions options_in, Probe probe_in)
      : wal(std::move(wal_in)),
        channel(std::move(channel_in)),
        options(std::move(options_in)),
        probe(std::move(probe_in)),
        machine(ms::timeouts_for(options.detect_budget)) {}

  Status start();
  Status step(const ms::Event& event);
  Status perform(const ms::SendTo& effect);
  Status perform(const ms::Persist& effect);
  Status perform(const ms::SetTimer& effect);
  Status wait();
  [[nodiscard]] std::optional<TimePoint> awake_at() const;
  Status receive();

  Wal wal;
  control::Channel channel;
  CoordinatorOptions options;
  Probe probe;
  ms::Membership machine;
  std::optional<TimePoint> timer;
  std::optional<metrics::PageMapping> page;  ///< none: nobody watches
  bool closed = false;
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
  return step(ms::AgentConnected{kLocalAgent});
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
  Status sent = channel.send(effect.message);
  if (sent.code() == Code::ResourceExhausted) {
    // The machine has no memory of a message that was not sent: wait for room rather than drop it.
    if (Status status = channel.flush(Clock::now() + kSendTime); !status) return status;
    sent = channel.send(effect.message);
  }
  if (sent.code() == Code::Cancelled) {
    closed = true;
    return {};
  }
  return sent;
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
  pollfd ready{channel.fd(), static_cast<short>(channel.wants_write() ? POLLIN | POLLOUT : POLLIN),
               0};
  if (::poll(&ready, 1, timeout_until(awake_at())) < 0 && errno != EINTR) {
    return {Code::Internal, fmt::format("poll: {}", std::strerror(errno))};
  }
  if ((ready.revents & POLLOUT) == 0) return {};
  const Status flushed = channel.flush();
  closed = flushed.code() == Code::Cancelled;
  return flushed || closed ? Status() : flushed;
}

Status CoordinatorHost::Impl::receive() {
  while (!closed) {
    auto received = channel.try_recv_as<ms::AgentMessage>();
    if (!received) {
      if (received.error().code() != Code::Cancelled) return received.error();
      closed = true;
      return {};
    }
    if (!received->has_value()) return {};
    if (Status status = step(ms::FromAgent{kLocalAgent, std::move((*received)->message)}); !status)
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
  Result<Wal> wal = Wal::open(options.state);
  if (!wal) return wal.error();
  auto impl = std::make_unique<Impl>(std::move(*wal), control::Channel(std::move(fd)),
                                     std::move(options), std::move(probe));
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
    if (self.timer && Clock::now() >= *self.timer) {
      self.timer.reset();
      if (Status status = self.step(ms::Timer{}); !status) return status;
    }
  }
  return {};
}

}  // namespace regroup::launcher
