#include "secure/listener.hpp"

#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <list>
#include <string_view>
#include <utility>

namespace regroup::secure {
namespace {

constexpr std::size_t kRecordHeaderBytes = 5;
constexpr std::size_t kMessageHeaderBytes = 4;
constexpr int kBacklog = 128;

Status failed(std::string_view what) {
  return {Code::ResourceExhausted, fmt::format("control port: {}: {}", what, std::strerror(errno))};
}

/// One that has connected and proved nothing.
struct Unproven {
  base::Fd fd;  ///< until there is a channel
  TimePoint until;
  std::array<std::byte, Listener::kHelloBytesMax> hello{};
  std::size_t hello_bytes = 0;
  std::optional<SecureChannel> channel;  ///< once the hello is whole
  bool done = false;                     ///< refused, or handed out

  [[nodiscard]] int number() const { return channel ? channel->fd() : fd.get(); }
};

}  // namespace

HelloState look_at_hello(std::span<const std::byte> bytes) {
  const auto at = [&](std::size_t i) { return std::to_integer<std::size_t>(bytes[i]); };
  constexpr std::array<std::size_t, 2> kBegin = {0x16, 0x03};  // handshake record, TLS
  for (std::size_t i = 0; i < std::min(bytes.size(), kBegin.size()); ++i) {
    if (at(i) != kBegin.at(i)) return HelloState::NotTls;
  }
  // The type is looked at before the length: however the bytes arrive, a refusal has one name.
  if (bytes.size() <= kRecordHeaderBytes) return HelloState::Incomplete;
  if (at(kRecordHeaderBytes) != 0x01) return HelloState::NotTls;  // ClientHello
  const std::size_t record = at(3) << 8 | at(4);
  if (record < kMessageHeaderBytes) return HelloState::NotTls;
  if (kRecordHeaderBytes + record > Listener::kHelloBytesMax) return HelloState::Oversized;
  if (bytes.size() < kRecordHeaderBytes + kMessageHeaderBytes) return HelloState::Incomplete;
  // One message in one record: OpenSSL never gathers pieces by a length that a stranger wrote.
  const std::size_t message = at(6) << 16 | at(7) << 8 | at(8);
  if (message + kMessageHeaderBytes != record) {
    return message > Listener::kHelloBytesMax ? HelloState::Oversized : HelloState::NotTls;
  }
  return bytes.size() < kRecordHeaderBytes + record ? HelloState::Incomplete : HelloState::Whole;
}

Result<ListeningPort> ListeningPort::make(const SocketAddress& on) {
  ListeningPort out;
  out.fd.reset(::socket(on.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const SocketAddress any = on.with_port(0);
  sockaddr_storage bound{};
  socklen_t bytes = sizeof bound;
  if (!out.fd || ::bind(out.fd.get(), any.get(), any.bytes()) != 0 ||
      ::listen(out.fd.get(), kBacklog) != 0 ||
      ::getsockname(out.fd.get(), reinterpret_cast<sockaddr*>(&bound), &bytes) != 0) {
    return failed(fmt::format("cannot listen on {}", on.host()));
  }
  Result<SocketAddress> address = SocketAddress::from(reinterpret_cast<sockaddr*>(&bound), bytes);
  if (!address) return address.error();
  out.address = *address;
  return out;
}

struct Listener::Impl {
  Impl(base::Fd listening_in, base::Fd epoll_in, TlsContext context_in,
       const RefusalCounters& counters_in, Options options_in)
      : listening(std::move(listening_in)),
        epoll(std::move(epoll_in)),
        context(std::move(context_in)),
        counters(&counters_in),
        options(options_in) {}

  bool watch(int fd, std::uint32_t events, void* who, int operation);
  void accept_some();
  void make_room();
  void hear(Unproven& one);
  void hear_hello(Unproven& one);
  void refuse(Unproven& one, Refusal cause);
  void expire();

  base::Fd listening;
  base::Fd epoll;
  TlsContext context;
  const RefusalCounters* counters;
  Options options;
  std::list<Unproven> unproven;  ///< the oldest first
  std::vector<SecureChannel> admitted;
};

bool Listener::Impl::watch(int fd, std::uint32_t events, void* who, int operation) {
  epoll_event event{};
  event.events = events;
  event.data.ptr = who;
  return ::epoll_ctl(epoll.get(), operation, fd, &event) == 0;
}

void Listener::Impl::refuse(Unproven& one, Refusal cause) {
  if (one.done) return;
  one.done = true;
  counters->count(cause);
}

void Listener::Impl::make_room() {
  Unproven* victim = nullptr;
  for (Unproven& one : unproven) {
    if (one.done) continue;
    const bool offered = one.channel && one.channel->offered();
    if (victim == nullptr) victim = &one;
    if (offered) continue;
    victim = &one;
    break;
  }
  if (victim != nullptr) refuse(*victim, Refusal::Crowded);
}

void Listener::Impl::accept_some() {
  for (std::size_t i = 0; i < kAcceptsMax; ++i) {
    base::Fd fd(::accept4(listening.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd) {
      // Out of descriptors: those of strangers are the ones to give back.
      if (errno == EMFILE || errno == ENFILE) make_room();
      break;
    }
    std::erase_if(unproven, [](const Unproven& one) { return one.done; });
    if (unproven.size() >= kUnprovenMax) {
      make_room();
      std::erase_if(unproven, [](const Unproven& one) { return one.done; });
    }
    Unproven& one = unproven.emplace_back();
    one.fd = std::move(fd);
    one.until = Clock::now() + kHandshakeTime;
    if (!watch(one.fd.get(), EPOLLIN, &one, EPOLL_CTL_ADD)) {
      unproven.pop_back();
      break;
    }
    hear(one);  // its hello is usually here already
  }
  std::erase_if(unproven, [](const Unproven& one) { return one.done; });
}

void Listener::Impl::hear_hello(Unproven& one) {
  while (true) {
    const ssize_t n = ::recv(one.fd.get(), one.hello.data() + one.hello_bytes,
                             one.hello.size() - one.hello_bytes, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
    if (n <= 0) return refuse(one, Refusal::Left);
    one.hello_bytes += static_cast<std::size_t>(n);
    const std::span<const std::byte> so_far(one.hello.data(), one.hello_bytes);
    switch (look_at_hello(so_far)) {
      case HelloState::Incomplete: continue;
      case HelloState::NotTls: return refuse(one, Refusal::NotTls);
      case HelloState::Oversized: return refuse(one, Refusal::Oversized);
      case HelloState::Whole: break;
    }
    Result<SecureChannel> channel = SecureChannel::accept(context, std::move(one.fd), so_far);
    if (!channel) {
      one.done = true;
      return;
    }
    one.channel.emplace(std::move(*channel));
    return;
  }
}

void Listener::Impl::hear(Unproven& one) {
  if (one.done) return;
  if (!one.channel) hear_hello(one);
  if (one.done || !one.channel) return;
  SecureChannel& channel = *one.channel;
  const std::optional<Refusal> at_once = channel.refusal();
  const Status status = channel.progress();
  if (at_once || !status) {
    return refuse(one, at_once.value_or(channel.refusal().value_or(Refusal::Left)));
  }
  (void)watch(channel.fd(), EPOLLIN | (channel.wants_write() ? std::uint32_t{EPOLLOUT} : 0U), &one,
              EPOLL_CTL_MOD);
  if (!channel.established()) return;
  if (channel.agent().value() >= options.agents) return refuse(one, Refusal::UnknownAgent);
  (void)watch(channel.fd(), 0, nullptr, EPOLL_CTL_DEL);
  admitted.push_back(std::move(channel));
  one.done = true;
}

void Listener::Impl::expire() {
  const TimePoint now = Clock::now();
  for (Unproven& one : unproven) {
    if (!one.done && one.until <= now) refuse(one, Refusal::Slow);
  }
  std::erase_if(unproven, [](const Unproven& one) { return one.done; });
}

Listener::Listener(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Listener::Listener(Listener&&) noexcept = default;
Listener& Listener::operator=(Listener&&) noexcept = default;
Listener::~Listener() = default;

Result<Listener> Listener::make(base::Fd listening, TlsContext context,
                                const RefusalCounters& counters, Options options) {
  base::Fd epoll(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll) return failed("epoll");
  auto impl = std::make_unique<Impl>(std::move(listening), std::move(epoll), std::move(context),
                                     counters, options);
  if (!impl->watch(impl->listening.get(), EPOLLIN, nullptr, EPOLL_CTL_ADD)) return failed("epoll");
  return Listener(std::move(impl));
}

int Listener::fd() const { return impl_->epoll.get(); }

std::optional<TimePoint> Listener::due() const {
  if (impl_->unproven.empty()) return std::nullopt;
  return impl_->unproven.front().until;  // all have the same time, so the oldest ends first
}

std::vector<SecureChannel> Listener::turn() {
  std::array<epoll_event, kUnprovenMax + 1> events{};
  const int count =
      ::epoll_wait(impl_->epoll.get(), events.data(), static_cast<int>(events.size()), 0);
  bool newcomers = false;
  for (int i = 0; i < count; ++i) {
    auto* const one = static_cast<Unproven*>(events.at(static_cast<std::size_t>(i)).data.ptr);
    if (one == nullptr) {
      newcomers = true;
    } else {
      impl_->hear(*one);
    }
  }
  if (newcomers) impl_->accept_some();
  impl_->expire();
  return std::exchange(impl_->admitted, {});
}

}  // namespace regroup::secure
