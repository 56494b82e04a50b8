/// A message channel between an agent and the coordinator over TCP, encrypted and authenticated by
/// the job's secret.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include <regroup/status.hpp>
#include <regroup/types.hpp>

#include "base/fd.hpp"
#include "control/codec.hpp"
#include "secure/frame_reader.hpp"
#include "secure/socket_address.hpp"
#include "secure/tls_session.hpp"

namespace regroup::secure {

/// Until both ends have proved the secret, no more than this is taken from the other one.
inline constexpr std::size_t kHandshakeBytesMax = 4096;
/// Whoever has not proved the secret by then is cut off.
inline constexpr std::chrono::seconds kHandshakeTime{2};

/// One end of a connection. Messages arrive whole and in order, or the channel fails. After an
/// error other than ResourceExhausted of send() it is of no further use.
/// Thread safety: one thread. Never blocks.
class SecureChannel {
 public:
  static constexpr std::size_t kQueuedBytesMax = 4 * control::kMessageBytesMax;

  /// An agent's end: begins to connect. Errors: ResourceExhausted, Cancelled (no way there),
  /// Internal.
  static Result<SecureChannel> connect(const TlsContext& context, const SocketAddress& to,
                                       membership::AgentId agent);
  /// A coordinator's end of an accepted connection, with what was read from it so far. Errors:
  /// Internal.
  static Result<SecureChannel> accept(const TlsContext& context, base::Fd fd,
                                      std::span<const std::byte> hello);

  /// For poll(): call progress() when it is readable, and while wants_write() when it is writable.
  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] bool wants_write() const { return !connected_ || out_begin_ != out_.size(); }

  /// Reads and writes what can be read and written now, the handshake included. Errors:
  /// Unauthenticated, Cancelled (the other end is gone), ResourceExhausted (more than the limits),
  /// InvalidArgument, Internal.
  Status progress();
  /// Both ends proved that they hold the job's secret; messages may be sent.
  [[nodiscard]] bool established() const { return session_.established(); }
  [[nodiscard]] bool offered() const { return session_.offered(); }
  /// Whom the other end proved to be; a coordinator's end, once established.
  [[nodiscard]] membership::AgentId agent() const { return session_.agent(); }

  /// Sends a message or queues it. Errors: ResourceExhausted (queue full or message too large:
  /// nothing was sent), FailedPrecondition (not established), Cancelled, Internal.
  Status send(std::span<const std::byte> message);
  /// The next message that progress() has read, if there is one.
  [[nodiscard]] std::optional<control::Bytes> next() { return frames_.next(); }
  /// Tells the other end that nothing follows, as far as the socket takes it now.
  void close();

  /// Why it failed; none when the other end closed in order or no secret was at stake.
  [[nodiscard]] std::optional<Refusal> refusal() const { return refusal_; }

 private:
  SecureChannel(base::Fd fd, TlsSession session)
      : fd_(std::move(fd)), session_(std::move(session)) {}
  Status take(std::span<const std::byte> bytes);
  Status read_plain();
  Status read_socket();
  Status write_socket();
  Status ended();

  base::Fd fd_;
  TlsSession session_;
  FrameReader frames_;
  control::Bytes out_;
  std::size_t out_begin_ = 0;
  std::size_t unproven_bytes_ = 0;  ///< taken before the handshake was complete
  bool connected_ = true;
  std::optional<Refusal> refusal_;
};

}  // namespace regroup::secure
