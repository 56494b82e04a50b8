#include "control/channel.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

// GCC 12 takes the members of a variant's other alternatives for uninitialised reads when moves are
// inlined.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace regroup::control {
namespace {

/// Begins every frame. Same host, same build of the kernel: native byte order.
struct FrameHeader {
  std::uint32_t magic = kMagic;
  std::uint32_t total_bytes = 0;  ///< of the whole message
  std::uint32_t offset = 0;       ///< of this frame in it
  std::uint32_t descriptors = 0;  ///< that come with this frame (the first only)
  static constexpr std::uint32_t kMagic = 0x31464752;  // "RGF1"
};
static_assert(sizeof(FrameHeader) == 16);

constexpr std::size_t kControlBytes = CMSG_SPACE(sizeof(int) * Channel::kDescriptorsMax);
constexpr int kSocketBufferBytes = 512 * 1024;

Status failed(const char* what, int error) {
  return Status(Code::Internal,
                fmt::format("control channel: {}: {}", what,
                            std::strerror(error)));  // NOLINT(concurrency-mt-unsafe)
}

Status closed() {
  return Status(Code::Cancelled, "control channel closed: the process at its other end is gone");
}

Status descriptor_limit(const char* where) {
  return Status(
      Code::ResourceExhausted,
      fmt::format("descriptor limit reached {}: raise it with ulimit -n (see also RLIMIT_NOFILE)",
                  where));
}

void make_nonblocking(int fd) {
  ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK);
  ::fcntl(fd, F_SETFD, FD_CLOEXEC);
  // As much as the system allows: fewer turns for large messages. Without it the channel still
  // works.
  ::setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &kSocketBufferBytes, sizeof(kSocketBufferBytes));
}

// Milliseconds for poll(), rounded up so that it never returns just before the deadline again and
// again.
int milliseconds_until(TimePoint until) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
  return static_cast<int>(std::clamp<std::int64_t>(left, 0, 60'000));
}

Status await(int fd, short events, TimePoint until, const char* what) {
  for (;;) {
    pollfd entry{fd, events, 0};
    const int ready = ::poll(&entry, 1, milliseconds_until(until));
    if (ready > 0) return {};
    if (ready < 0 && errno != EINTR) return failed("poll", errno);
    if (Clock::now() >= until) {
      return Status(Code::DeadlineExceeded,
                    fmt::format("control channel: nothing could be {} in time", what));
    }
  }
}

std::vector<base::Fd> take_descriptors(msghdr& header) {
  std::vector<base::Fd> fds;
  for (cmsghdr* one = CMSG_FIRSTHDR(&header); one != nullptr; one = CMSG_NXTHDR(&header, one)) {
    if (one->cmsg_level != SOL_SOCKET || one->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (one->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(one) + i * sizeof(int), sizeof(int));
      fds.emplace_back(fd);
    }
  }
  return fds;
}

}  // namespace

Result<std::pair<Channel, Channel>> Channel::pair() {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0) {
    if (errno == EMFILE || errno == ENFILE)
      return descriptor_limit("while making a control channel");
    return failed("socketpair", errno);
  }
  return std::pair(Channel(base::Fd(ends[0])), Channel(base::Fd(ends[1])));
}

Channel::Channel(base::Fd fd) : fd_(std::move(fd)) {
  if (fd_) make_nonblocking(fd_.get());
}

template <class M>
Status Channel::send_encoded(const M& message, std::span<const int> fds) {
  const Result<Bytes> bytes = encode(message);
  return bytes ? send(*bytes, fds) : bytes.error();
}
Status Channel::send(const RankMessage& message, std::span<const int> fds) {
  return send_encoded(message, fds);
}
Status Channel::send(const AgentToRank& message, std::span<const int> fds) {
  return send_encoded(message, fds);
}
Status Channel::send(const ShimMessage& message, std::span<const int> fds) {
  return send_encoded(message, fds);
}
Status Channel::send(const AgentToShim& message, std::span<const int> fds) {
  return send_encoded(message, fds);
}
Status Channel::send(const membership::AgentMessage& message, std::span<const int> fds) {
  return send_encoded(message, fds);
}
Status Channel::send(const membership::CoordinatorMessage& message, std::span<const int> fds) {
  return send_encoded(message, fds);
}

Status Channel::send(std::span<const std::byte> bytes, std::span<const int> fds) {
  if (bytes.empty())
    return Status(Code::InvalidArgument, "control channel: a message has at least one byte");
  if (bytes.size() > kMessageBytesMax || fds.size() > kDescriptorsMax) {
    return Status(
        Code::ResourceExhausted,
        fmt::format("control channel: {} bytes with {} descriptors exceed the limits of {} and {}",
                    bytes.size(), fds.size(), kMessageBytesMax, kDescriptorsMax));
  }
  if (Status flushed = flush(); !flushed) return flushed;
  if (!out_.empty()) return enqueue(bytes, 0, fds);
  std::size_t sent = 0;
  if (Status status = transmit(bytes, sent, fds); !status) return status;
  return sent == bytes.size() ? Status()
                              : enqueue(bytes, sent, sent == 0 ? fds : std::span<const int>());
}

// Sends frames from `sent` on until all are gone or the socket is full; moves `sent`.
Status Channel::transmit(std::span<const std::byte> bytes, std::size_t& sent,
                         std::span<const int> fds) {
  while (sent < bytes.size()) {
    const std::span<const int> with = sent == 0 ? fds : std::span<const int>();
    const std::span<const std::byte> part =
        bytes.subspan(sent).first(std::min(bytes.size() - sent, kFrameBytesMax));
    FrameHeader frame{.total_bytes = static_cast<std::uint32_t>(bytes.size()),
                      .offset = static_cast<std::uint32_t>(sent),
                      .descriptors = static_cast<std::uint32_t>(with.size())};
    std::array<iovec, 2> pieces{
        {{&frame, sizeof(frame)}, {const_cast<std::byte*>(part.data()), part.size()}}};
    alignas(cmsghdr) std::array<std::byte, kControlBytes> control{};
    msghdr header{};
    header.msg_iov = pieces.data();
    header.msg_iovlen = pieces.size();
    if (!with.empty()) {
      header.msg_control = control.data();
      header.msg_controllen = CMSG_SPACE(with.size_bytes());
      cmsghdr* const rights = CMSG_FIRSTHDR(&header);
      rights->cmsg_level = SOL_SOCKET;
      rights->cmsg_type = SCM_RIGHTS;
      rights->cmsg_len = CMSG_LEN(with.size_bytes());
      std::memcpy(CMSG_DATA(rights), with.data(), with.size_bytes());
    }
    if (::sendmsg(fd_.get(), &header, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) {
      sent += part.size();
      continue;
    }
    switch (errno) {
      case EINTR: continue;
      case EAGAIN:
      case ENOBUFS: return {};
      case EPIPE:
      case ECONNRESET: return closed();
      // Descriptors in flight between the processes of one user are limited; they come free as the
      // others receive.
      case ETOOMANYREFS:
        return descriptor_limit("by descriptors that were sent and not yet received");
      case EBADF:
        return Status(Code::InvalidArgument,
                      "control channel: a descriptor to be sent, or the channel's, is not open");
    }
    return failed("sendmsg", errno);
  }
  return {};
}

Status Channel::enqueue(std::span<const std::byte> bytes, std::size_t sent,
                        std::span<const int> fds) {
  // A message that is partly sent has to follow, whatever the queue holds; the queue is empty then.
  if (sent == 0 &&
      (queued_bytes_ + bytes.size() > kQueuedBytesMax || out_.size() >= kQueuedMessagesMax)) {
    return Status(
        Code::ResourceExhausted,
        fmt::format(
            "control channel: {} messages of {} bytes wait for the other side, which does not read",
            out_.size(), queued_bytes_));
  }
  Outgoing message{Bytes(bytes.begin(), bytes.end()), sent, {}};
  for (const int fd : fds) {
    base::Fd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    if (!copy && errno == EBADF) {
      return Status(Code::InvalidArgument,
                    fmt::format("control channel: descriptor {} is not open", fd));
    }
    if (!copy) return descriptor_limit("while queueing descriptors for sending");
    message.fds.push_back(std::move(copy));
  }
  queued_bytes_ += bytes.size();
  out_.push_back(std::move(message));
  return {};
}

Status Channel::flush() {
  while (!out_.empty()) {
    Outgoing& first = out_.front();
    std::vector<int> fds;
    fds.reserve(first.fds.size());
    for (const base::Fd& fd : first.fds) fds.push_back(fd.get());
    if (Status status = transmit(first.bytes, first.sent, fds); !status) return status;
    if (first.sent > 0) first.fds.clear();
    if (first.sent < first.bytes.size()) return {};
    queued_bytes_ -= first.bytes.size();
    out_.pop_front();
  }
  return {};
}

Status Channel::flush(TimePoint until) {
  for (;;) {
    if (Status status = flush(); !status) return status;
    if (out_.empty()) return {};
    if (Status status = await(fd_.get(), POLLOUT, until, "sent"); !status) return status;
  }
}

// Takes one frame from the socket into in_. False: none there.
Result<bool> Channel::receive_frame() {
  FrameHeader frame;
  std::array<std::byte, kFrameBytesMax> part;
  alignas(cmsghdr) std::array<std::byte, kControlBytes> control;
  std::array<iovec, 2> pieces{{{&frame, sizeof(frame)}, {part.data(), part.size()}}};
  msghdr header{};
  header.msg_iov = pieces.data();
  header.msg_iovlen = pieces.size();
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  const ssize_t got = ::recvmsg(fd_.get(), &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (got < 0) {
    if (errno == EAGAIN || errno == EINTR) return false;
    return errno == ECONNRESET ? closed() : failed("recvmsg", errno);
  }
  std::vector<base::Fd> fds =
      take_descriptors(header);  // owned from here on, whatever else is wrong
  if (got == 0) return closed();
  if ((header.msg_flags & MSG_CTRUNC) != 0)
    return descriptor_limit("while receiving: descriptors were lost");
  const std::size_t bytes =
      static_cast<std::size_t>(got) - std::min<std::size_t>(got, sizeof(frame));
  const bool first = !in_started_;
  const bool fits =
      first ? frame.offset == 0 && frame.total_bytes > 0 && frame.total_bytes <= kMessageBytesMax
            : frame.offset == in_.bytes.size() && frame.total_bytes == in_bytes_total_;
  if (static_cast<std::size_t>(got) <= sizeof(frame) || (header.msg_flags & MSG_TRUNC) != 0 ||
      frame.magic != FrameHeader::kMagic || !fits || bytes > frame.total_bytes - frame.offset ||
      frame.descriptors != fds.size()) {
    return Status(Code::InvalidArgument,
                  "control channel: received a frame that is not ours; is the other end a "
                  "regroup process of the same version?");
  }
  if (first) in_bytes_total_ = frame.total_bytes;
  in_started_ = true;
  in_.bytes.insert(in_.bytes.end(), part.begin(),
                   part.begin() + static_cast<std::ptrdiff_t>(bytes));
  for (base::Fd& fd : fds) in_.fds.push_back(std::move(fd));
  return true;
}

Result<std::optional<Packet>> Channel::try_recv() {
  for (;;) {
    const Result<bool> received = receive_frame();
    if (!received) return received.error();
    if (!*received) return std::optional<Packet>();
    if (in_.bytes.size() < in_bytes_total_) continue;
    in_started_ = false;
    return std::optional<Packet>(std::exchange(in_, Packet()));
  }
}

Result<Packet> Channel::recv(TimePoint until) {
  for (;;) {
    Result<std::optional<Packet>> packet = try_recv();
    if (!packet) return packet.error();
    if (packet->has_value()) return std::move(**packet);
    if (Status status = await(fd_.get(), POLLIN, until, "received"); !status) return status;
  }
}

namespace {

template <class M>
Result<Received<M>> decoded(Packet packet) {
  Result<M> message = decode<M>(packet.bytes);
  if (!message) return message.error();
  Received<M> received;
  received.message = *std::move(message);
  received.fds = std::move(packet.fds);
  return received;
}

}  // namespace

template <class M>
Result<std::optional<Received<M>>> Channel::try_recv_as() {
  Result<std::optional<Packet>> packet = try_recv();
  if (!packet) return packet.error();
  if (!packet->has_value()) return std::optional<Received<M>>();
  Result<Received<M>> received = decoded<M>(std::move(**packet));
  if (!received) return received.error();
  return std::optional<Received<M>>(*std::move(received));
}

template <class M>
Result<Received<M>> Channel::recv_as(TimePoint until) {
  Result<Packet> packet = recv(until);
  if (!packet) return packet.error();
  return decoded<M>(*std::move(packet));
}

template Result<std::optional<Received<RankMessage>>> Channel::try_recv_as();
template Result<std::optional<Received<AgentToRank>>> Channel::try_recv_as();
template Result<std::optional<Received<ShimMessage>>> Channel::try_recv_as();
template Result<std::optional<Received<AgentToShim>>> Channel::try_recv_as();
template Result<std::optional<Received<membership::AgentMessage>>> Channel::try_recv_as();
template Result<std::optional<Received<membership::CoordinatorMessage>>> Channel::try_recv_as();
template Result<Received<RankMessage>> Channel::recv_as(TimePoint until);
template Result<Received<AgentToRank>> Channel::recv_as(TimePoint until);
template Result<Received<ShimMessage>> Channel::recv_as(TimePoint until);
template Result<Received<AgentToShim>> Channel::recv_as(TimePoint until);
template Result<Received<membership::AgentMessage>> Channel::recv_as(TimePoint until);
template Result<Received<membership::CoordinatorMessage>> Channel::recv_as(TimePoint until);

}  // namespace regroup::control
