#include "secure/secure_channel.hpp"

#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

namespace regroup::secure {
namespace {

constexpr std::size_t kReadBytes = 16 * 1024;

Status failed(const char* what, int error) {
  return {Code::Internal, fmt::format("control channel: {}: {}", what, std::strerror(error))};
}

Status gone(int error) {
  return {Code::Cancelled, fmt::format("control channel: {}", std::strerror(error))};
}

bool is_gone(int error) {
  return error == EPIPE || error == ECONNRESET || error == ECONNREFUSED || error == ETIMEDOUT ||
         error == ECONNABORTED || error == EHOSTUNREACH || error == ENETUNREACH ||
         error == ENETDOWN || error == EHOSTDOWN || error == EADDRNOTAVAIL;
}

/// Has connect() come to its end? The error that it ended with, EINPROGRESS while it goes on.
int connect_result(int fd) {
  pollfd ready{fd, POLLOUT, 0};
  if (::poll(&ready, 1, 0) <= 0) return EINPROGRESS;
  int error = 0;
  socklen_t bytes = sizeof error;
  if (::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &bytes) != 0) return errno;
  return error;
}

void no_delay(int fd) {
  const int on = 1;
  (void)::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

}  // namespace

Result<SecureChannel> SecureChannel::connect(const TlsContext& context, const SocketAddress& to,
                                             membership::AgentId agent) {
  Result<TlsSession> session = TlsSession::make(context, agent);
  if (!session) return session.error();
  base::Fd fd(::socket(to.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  // A kernel without this family has no way there either.
  if (!fd && errno == EAFNOSUPPORT) return gone(ENETUNREACH);
  if (!fd) return Status(Code::ResourceExhausted, std::string(failed("socket", errno).text()));
  no_delay(fd.get());
  if (::connect(fd.get(), to.get(), to.bytes()) != 0 && errno != EINPROGRESS) {
    return is_gone(errno) ? gone(errno) : failed("connect", errno);
  }
  SecureChannel channel(std::move(fd), std::move(*session));
  channel.connected_ = false;
  return channel;
}

Result<SecureChannel> SecureChannel::accept(const TlsContext& context, base::Fd fd,
                                            std::span<const std::byte> hello) {
  Result<TlsSession> session = TlsSession::make(context, {});
  if (!session) return session.error();
  no_delay(fd.get());
  SecureChannel channel(std::move(fd), std::move(*session));
  if (Status taken = channel.take(hello); !taken) {
    // The caller reads the cause from the channel; progress() gives the same error again.
    channel.refusal_ = channel.refusal_.value_or(channel.session_.refusal());
  }
  return channel;
}

Status SecureChannel::ended() {
  if (established()) {
    refusal_ = Refusal::Truncated;
  } else {
    refusal_ = Refusal::Left;
  }
  return {Code::Cancelled, "control channel: the stream ended without a farewell"};
}

Status SecureChannel::take(std::span<const std::byte> bytes) {
  if (!established()) unproven_bytes_ += bytes.size();
  if (Status fed = session_.feed(bytes); !fed) return fed;
  const Status advanced = session_.advance();
  session_.take_output(out_);
  if (!advanced) {
    refusal_ = session_.refusal();
    return advanced;
  }
  return established() ? read_plain() : Status();
}

Status SecureChannel::read_plain() {
  std::array<std::byte, kReadBytes> plain{};
  while (true) {
    const Result<std::size_t> got = session_.read(plain);
    if (!got) {
      if (got.error().code() != Code::Cancelled) refusal_ = session_.refusal();
      return got.error();
    }
    if (*got == 0) return {};
    if (Status fed = frames_.feed(std::span(plain).first(*got)); !fed) {
      refusal_ = fed.code() == Code::ResourceExhausted ? Refusal::Oversized : Refusal::BadMessage;
      return fed;
    }
  }
}

Status SecureChannel::read_socket() {
  std::array<std::byte, kReadBytes> bytes{};
  // At most one message beyond a whole one: nobody keeps the others waiting by sending for ever.
  while (!frames_.whole()) {
    // Messages may follow the proof at once: before it, no more is read than the limit has left.
    const std::size_t room =
        established() ? bytes.size()
                      : kHandshakeBytesMax - std::min(unproven_bytes_, kHandshakeBytesMax);
    if (room == 0) {
      refusal_ = Refusal::Oversized;
      return {Code::ResourceExhausted,
              fmt::format("control channel: {} bytes and still no proof of the job's secret",
                          kHandshakeBytesMax)};
    }
    const ssize_t n = ::recv(fd_.get(), bytes.data(), std::min(room, bytes.size()), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return {};
    if (n < 0 && !is_gone(errno)) return failed("recv", errno);
    if (n <= 0) return ended();
    if (Status taken = take(std::span(bytes).first(static_cast<std::size_t>(n))); !taken)
      return taken;
  }
  return {};
}

Status SecureChannel::write_socket() {
  while (out_begin_ != out_.size()) {
    const ssize_t n = ::send(fd_.get(), out_.data() + out_begin_, out_.size() - out_begin_,
                             MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS)) return {};
    if (n < 0) return is_gone(errno) ? gone(errno) : failed("send", errno);
    out_begin_ += static_cast<std::size_t>(n);
  }
  out_ = {};
  out_begin_ = 0;
  return {};
}

Status SecureChannel::progress() {
  if (refusal_) return {Code::Unauthenticated, "control channel: refused before"};
  if (!connected_) {
    const int error = connect_result(fd_.get());
    if (error == EINPROGRESS) return {};
    if (error != 0) return is_gone(error) ? gone(error) : failed("connect", error);
    connected_ = true;
    if (Status begun = take({}); !begun) return begun;
  }
  const Status read = read_socket();
  // An alert tells the other end why; it is worth one attempt.
  const Status written = write_socket();
  return read ? written : read;
}

Status SecureChannel::send(std::span<const std::byte> message) {
  if (!established())
    return {Code::FailedPrecondition, "control channel: the handshake is not complete"};
  if (message.empty() || message.size() > control::kMessageBytesMax ||
      out_.size() - out_begin_ + message.size() > kQueuedBytesMax) {
    return {Code::ResourceExhausted,
            fmt::format("control channel: {} bytes do not fit: {} wait for the other end, at most "
                        "{} a message and {} in all",
                        message.size(), out_.size() - out_begin_, control::kMessageBytesMax,
                        kQueuedBytesMax)};
  }
  control::Bytes frame;
  frame.reserve(kFrameHeaderBytes + message.size());
  append_frame(frame, message);
  if (Status written = session_.write(frame); !written) return written;
  session_.take_output(out_);
  return write_socket();
}

void SecureChannel::close() {
  session_.close();
  session_.take_output(out_);
  (void)write_socket().ok();
}

}  // namespace regroup::secure
