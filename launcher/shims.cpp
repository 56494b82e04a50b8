#include "launcher/shims.hpp"

#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "launcher/control_address.hpp"

namespace regroup::launcher {
namespace {

constexpr std::size_t kStrangersMax = 256;
constexpr std::chrono::seconds kHelloTime{5};

}  // namespace

Shims::Shims(EventLoop loop, base::Fd listener, std::uint32_t places)
    : loop_(std::move(loop)), listener_(std::move(listener)), places_(places) {}

Result<std::unique_ptr<Shims>> Shims::create(base::Fd listener, std::uint32_t places) {
  Result<EventLoop> loop = EventLoop::create();
  if (!loop) return loop.error();
  std::unique_ptr<Shims> out(new Shims(std::move(*loop), std::move(listener), places));
  out->loop_.watch(out->listener_.get(), [self = out.get()](std::uint32_t) { self->accept_all(); });
  return out;
}

void Shims::accept_all() {
  const TimePoint now = Clock::now();
  for (auto at = strangers_.begin(); at != strangers_.end();) {
    const auto next = std::next(at);
    if (at->until <= now) {
      loop_.forget(at->channel.fd());
      strangers_.erase(at);
    }
    at = next;
  }
  while (true) {
    base::Fd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd) return;
    // Anybody on this host can connect to an abstract socket: who it is decides, not what it says.
    if (uid_behind(fd.get()) != ::getuid() || strangers_.size() >= kStrangersMax) continue;
    strangers_.push_back({control::Channel(std::move(fd)), now + kHelloTime});
    listen_to(std::prev(strangers_.end()));
  }
}

void Shims::listen_to(std::list<Stranger>::iterator stranger) {
  loop_.watch(stranger->channel.fd(), [this, stranger](std::uint32_t) { on_hello(stranger); });
}

void Shims::on_hello(std::list<Stranger>::iterator stranger) {
  auto received = stranger->channel.try_recv_as<control::ShimMessage>();
  if (received && !received->has_value()) return;
  loop_.forget(stranger->channel.fd());
  control::Channel channel = std::move(stranger->channel);
  strangers_.erase(stranger);
  if (!received) return;
  const auto* hello = std::get_if<control::ShimHello>(&(*received)->message);
  if (hello == nullptr || hello->place >= hello->places) return;
  if (places_ == 0) places_ = hello->places;
  const bool fits = hello->places == places_ && !shims_.contains(hello->place);
  if (!fits) {
    (void)channel.send(control::AgentToShim(control::ShimBusy{fmt::format(
        "another job of {} places, started by the same launcher, is not over", places_)}));
    return;
  }
  Shim& shim = shims_[hello->place];
  shim.hello = *hello;
  shim.channel.emplace(std::move(channel));
  watch(hello->place, shim);
}

void Shims::watch(std::uint32_t place, Shim& shim) {
  loop_.watch(
      shim.channel->fd(), [this, place](std::uint32_t events) { on_shim(place, events); },
      shim.channel->wants_write());
}

void Shims::on_shim(std::uint32_t place, std::uint32_t events) {
  Shim& shim = shims_.at(place);
  if (shim.channel && (events & EPOLLOUT) != 0) {
    if (!shim.channel->flush()) return lose(place, shim);
    watch(place, shim);
  }
  while (shim.channel) {
    auto received = shim.channel->try_recv_as<control::ShimMessage>();
    if (!received) return lose(place, shim);
    if (!received->has_value()) return;
    std::visit([&](const auto& m) { on(place, shim, m, std::move((*received)->fds)); },
               (*received)->message);
  }
}

void Shims::on(std::uint32_t, Shim& shim, const control::ShimStarted& message,
               std::vector<base::Fd> fds) {
  if (fds.size() != 1 || shim.starting.erase(message.incarnation) == 0) return;
  shim.hosts.insert(message.incarnation);
  callbacks_.started(message.incarnation, {message.pid, std::move(fds[0])});
}

void Shims::on(std::uint32_t, Shim& shim, const control::ShimRefused& message,
               std::vector<base::Fd>) {
  if (shim.starting.erase(message.incarnation) == 0) return;
  callbacks_.refused(message.incarnation, message.why, message.again);
}

void Shims::on(std::uint32_t place, Shim& shim, const control::ShimExited& message,
               std::vector<base::Fd>) {
  if (shim.hosts.erase(message.incarnation) == 0) return;
  const bool keep =
      callbacks_.exited(message.incarnation, {message.exit_code, message.signal, message.core});
  send(place, shim, control::ShimReap{message.incarnation, keep});
}

void Shims::on(std::uint32_t, Shim& shim, const control::ShimSignalled& message,
               std::vector<base::Fd>) {
  // The launcher may speak while the places are still being filled.
  if (callbacks_.signalled)
    callbacks_.signalled(message.signal, std::exchange(shim.signalled, true));
}

void Shims::on(std::uint32_t place, Shim& shim, const control::ShimHello&, std::vector<base::Fd>) {
  lose(place, shim);  // said twice: it is not one of ours
}

void Shims::lose(std::uint32_t place, Shim& shim) {
  if (!shim.channel) return;
  loop_.forget(shim.channel->fd());
  shim.channel.reset();
  const std::set<Incarnation> hosts = std::exchange(shim.hosts, {});
  const std::set<Incarnation> starting = std::exchange(shim.starting, {});
  if (callbacks_.lost) callbacks_.lost(place, {hosts.begin(), hosts.end()});
  for (const Incarnation one : starting)
    callbacks_.refused(one, fmt::format("the shim of place {} is gone", place), true);
}

void Shims::send(std::uint32_t place, Shim& shim, const control::AgentToShim& message,
                 const std::vector<int>& fds) {
  if (!shim.channel) return;
  // One that takes nothing any more cannot be told to end either; its channel's end does that.
  if (!shim.channel->send(message, fds)) return lose(place, shim);
  watch(place, shim);
}

std::vector<std::uint32_t> Shims::missing() const {
  std::vector<std::uint32_t> out;
  for (std::uint32_t place = 0; place < places_; ++place) {
    if (!shims_.contains(place)) out.push_back(place);
  }
  return out;
}

std::optional<std::uint32_t> Shims::first_lost() const {
  for (const auto& [place, shim] : shims_) {
    if (!shim.channel) return place;
  }
  return std::nullopt;
}

std::size_t Shims::alive() const {
  return static_cast<std::size_t>(
      std::count_if(shims_.begin(), shims_.end(),
                    [](const auto& entry) { return entry.second.channel.has_value(); }));
}

std::optional<std::uint32_t> Shims::place_for(std::optional<Rank> seat, std::uint32_t ranks) const {
  std::optional<std::uint32_t> best;
  std::size_t fewest = 0;
  for (const auto& [place, shim] : shims_) {
    if (!shim.channel) continue;
    if (seat && place == static_cast<std::uint32_t>(seat->value())) return place;
    // The places behind the seats are the spares'; a seat without its own place fits anywhere.
    const std::size_t own = seat || place >= ranks ? 0 : 1;
    const std::size_t load = shim.hosts.size() + shim.starting.size() + own * places_;
    if (best && load >= fewest) continue;
    best = place;
    fewest = load;
  }
  return best;
}

Status Shims::start(
    Incarnation incarnation, std::optional<Rank> seat, std::uint32_t ranks,
    const std::function<std::vector<std::string>(const std::vector<std::string>& outer)>&
        environment,
    int control_fd) {
  const std::optional<std::uint32_t> place = place_for(seat, ranks);
  if (!place) return {Code::FailedPrecondition, "no shim is left to start it"};
  Shim& shim = shims_.at(*place);
  // A seat keeps its own program and environment, wherever it is started.
  const auto own = seat ? shims_.find(static_cast<std::uint32_t>(seat->value())) : shims_.end();
  const control::ShimHello& hello = own != shims_.end() ? own->second.hello : shim.hello;
  control::ShimStart message{incarnation, hello.program, hello.descriptors_soft};
  message.program.environment = environment(hello.program.environment);
  message.input = own == shims_.find(*place);
  if (Status sent = shim.channel->send(control::AgentToShim(std::move(message)),
                                       std::span<const int>(&control_fd, 1));
      !sent) {
    return {Code::ResourceExhausted, std::string(sent.text())};
  }
  shim.starting.insert(incarnation);
  watch(*place, shim);
  return {};
}

void Shims::print(std::string_view line) {
  for (auto& [place, shim] : shims_) {
    if (!shim.channel) continue;
    return send(place, shim, control::ShimPrint{std::string(line)});
  }
}

void Shims::finish(int exit_code, const std::string& reason, TimePoint until) {
  // The next job of the same launcher may meet from now on.
  loop_.forget(listener_.get());
  listener_.reset();
  callbacks_.lost = nullptr;
  callbacks_.signalled = nullptr;
  callbacks_.exited = [](Incarnation, const ExitStatus&) { return false; };
  callbacks_.refused = [](Incarnation, const std::string&, bool) {};
  callbacks_.started = [](Incarnation, const Spawned&) {};
  for (auto& [place, shim] : shims_) send(place, shim, control::ShimEnd{exit_code, reason});
  while (alive() > 0 && Clock::now() < until) turn(until);
}

}  // namespace regroup::launcher
