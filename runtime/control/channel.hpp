/// A message channel between two processes of one host that also carries descriptors.
#pragma once

#include <cstddef>
#include <deque>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <regroup/status.hpp>
#include <regroup/types.hpp>

#include "base/fd.hpp"
#include "control/codec.hpp"
#include "control/messages.hpp"

namespace regroup::control {

/// One received message.
struct Packet {
  Bytes bytes;
  std::vector<base::Fd> fds;  ///< close-on-exec
};
/// One received and decoded message.
template <class M>
struct Received {
  M message;
  std::vector<base::Fd> fds;
};

/// One end of a SOCK_SEQPACKET pair. Messages arrive whole, in order, with their descriptors, or
/// the channel fails. Messages larger than the socket takes at once travel in several frames. After
/// an error other than ResourceExhausted (of send) and DeadlineExceeded the channel is of no
/// further use. Thread safety: one thread may send while another receives; each side from one
/// thread at a time.
class Channel {
 public:
  static constexpr std::size_t kFrameBytesMax = 32 * 1024;
  static constexpr std::size_t kDescriptorsMax =
      250;  ///< of one message; the kernel's own limit is 253
  static constexpr std::size_t kQueuedBytesMax = 4 * kMessageBytesMax;
  static constexpr std::size_t kQueuedMessagesMax = 1024;

  /// Two connected ends, close-on-exec, non-blocking. Errors: ResourceExhausted.
  static Result<std::pair<Channel, Channel>> pair();
  /// Takes over one end, inherited or received; makes it non-blocking and close-on-exec.
  explicit Channel(base::Fd fd);
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;
  Channel(Channel&&) noexcept = default;
  Channel& operator=(Channel&&) noexcept = default;
  ~Channel() = default;

  /// For poll(): readable means try_recv() has something; wait for writable while wants_write().
  [[nodiscard]] int fd() const { return fd_.get(); }
  /// Gives the descriptor away, to be inherited by a child; queued messages are lost.
  [[nodiscard]] base::Fd release() { return std::move(fd_); }

  /// Sends one message, or queues what the socket does not take now. Never blocks.
  /// Memory: bytes may be reused, descriptors closed, when this returns.
  /// Errors: ResourceExhausted (queue full, too many or no more descriptors, message too large:
  /// nothing was sent; try again after flush()), Cancelled (the other side is gone), Internal.
  Status send(std::span<const std::byte> bytes, std::span<const int> fds = {});
  Status send(const RankMessage& message, std::span<const int> fds = {});
  Status send(const AgentToRank& message, std::span<const int> fds = {});
  Status send(const ShimMessage& message, std::span<const int> fds = {});
  Status send(const AgentToShim& message, std::span<const int> fds = {});
  Status send(const membership::AgentMessage& message, std::span<const int> fds = {});
  Status send(const membership::CoordinatorMessage& message, std::span<const int> fds = {});

  [[nodiscard]] bool wants_write() const { return !out_.empty(); }
  /// Sends what is queued as far as the socket takes it. Never blocks; call when fd() is writable.
  Status flush();
  /// Blocks until everything queued is sent. Errors: as send(), DeadlineExceeded.
  Status flush(TimePoint until);

  /// The next message, or nothing when none has arrived whole. Never blocks.
  /// Errors: Cancelled (closed by the other side), ResourceExhausted (descriptor limit: descriptors
  /// were lost), InvalidArgument (not our frames).
  Result<std::optional<Packet>> try_recv();
  /// Blocks for the next message. Errors: as try_recv(), DeadlineExceeded.
  Result<Packet> recv(TimePoint until);

  /// The same, decoded; M is one of the six message variants. Errors: those of decode() too.
  template <class M>
  Result<std::optional<Received<M>>> try_recv_as();
  template <class M>
  Result<Received<M>> recv_as(TimePoint until);

 private:
  struct Outgoing {
    Bytes bytes;
    std::size_t sent = 0;
    std::vector<base::Fd> fds;
  };
  template <class M>
  Status send_encoded(const M& message, std::span<const int> fds);
  Status transmit(std::span<const std::byte> bytes, std::size_t& sent, std::span<const int> fds);
  Status enqueue(std::span<const std::byte> bytes, std::size_t sent, std::span<const int> fds);
  Result<bool> receive_frame();

  base::Fd fd_;
  std::deque<Outgoing> out_;
  std::size_t queued_bytes_ = 0;
  Packet in_;                       ///< the message being put together
  std::size_t in_bytes_total_ = 0;  ///< its announced size; 0 between messages
  bool in_started_ = false;
};

}  // namespace regroup::control
