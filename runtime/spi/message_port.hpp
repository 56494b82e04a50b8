/// Bytes between members that share no memory: what a transport between hosts offers.
///
/// A message is a header and bytes. Small ones are posted: copied at once, delivered whole. Larger
/// ones are sent: the receiver names a place when the header arrives, and the bytes move there
/// without a copy. A message arrives once, whole, or not at all; messages of one channel may
/// overtake each other. A channel that the network reports as broken delivers nothing more.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <regroup/status.hpp>

namespace regroup::spi {

/// What a message is for; its fields mean what the comments say.
enum class MessageKind : std::uint8_t {
  Data,        ///< a part of a collective operation
  Enter,       ///< "I am in operation `sequence`"
  Ready,       ///< "send me `part` of operation `sequence`"
  Holds,       ///< "I hold all that I need of the operations up to `sequence`"
  Call,        ///< "in operation `sequence` I called ...": payload is a CalledOperation
  Prepared,    ///< step `sequence` is prepared; `digest`: the epoch's last step, 0: none
  Letter,      ///< point to point, the whole message: `sequence` th to this receiver, `tag`
  Offer,       ///< the same without its bytes, which are large
  Accept,      ///< "send me the bytes of your letter `sequence`"
  LetterData,  ///< these bytes
  Keepsake     ///< `part` of what is kept for its source as of step `sequence`; `digest`: all bytes
};
inline constexpr int kMessageKindCount = 11;

/// In front of each message. Plain numbers of this machine's byte order: all members run one build.
struct MessageHeader {
  std::uint64_t epoch = 0;
  std::uint64_t incarnation = 0;  ///< of the source
  std::uint64_t sequence = 0;     ///< operation, step or letter
  std::uint64_t digest = 0;       ///< of the operation's arguments; Letter, Offer: elements
  std::uint32_t group = 0;
  std::uint32_t part = 0;    ///< which piece of the operation
  std::uint32_t tag = 0;     ///< of a letter; of a piece: which of the coalesced operations
  std::uint16_t source = 0;  ///< group rank
  MessageKind kind = MessageKind::Data;
  std::uint8_t dtype = 0;  ///< Letter, Offer
};
static_assert(sizeof(MessageHeader) == 48);

/// Posted at most; above, the receiver is asked first. Equal on all members.
inline constexpr std::size_t kPostedBytesMax = std::size_t{8} << 10;

/// Where a port delivers. Called from within MessagePort::progress(), close(), post() and send().
class MessageSink {
 public:
  MessageSink() = default;
  MessageSink(const MessageSink&) = delete;
  MessageSink& operator=(const MessageSink&) = delete;
  virtual ~MessageSink() = default;
  /// A posted message. `data` is valid during the call.
  virtual void on_message(const MessageHeader& header, const std::byte* data,
                          std::size_t bytes) = 0;
  /// A sent message waits: where its bytes shall go; null: it is dropped, and its sender is told
  /// that it was sent. The place belongs to the port until on_placed() or withdraw().
  virtual std::byte* place_for(const MessageHeader& header, std::size_t bytes) = 0;
  /// The place is filled, or (`whole` false) never will be.
  virtual void on_placed(const MessageHeader& header, const std::byte* place, bool whole) = 0;
  /// The bytes of send() are the caller's again.
  virtual void on_sent(std::uint64_t token, bool whole) = 0;
  /// The network reports an error of this channel. Evidence, not proof.
  virtual void on_broken(int channel, const std::string& why) = 0;
};

/// One process's end. Thread safety: one thread at a time, but for wake(). Nothing here blocks but
/// close(), for 100 ms at most.
class MessagePort {
 public:
  MessagePort() = default;
  MessagePort(const MessagePort&) = delete;
  MessagePort& operator=(const MessagePort&) = delete;
  virtual ~MessagePort() = default;

  /// Once, before anything else. The sink outlives the port's last call of it.
  virtual void deliver_to(MessageSink& sink) = 0;
  /// Where others reach this process; any bytes.
  [[nodiscard]] virtual std::vector<std::byte> address() const = 0;
  /// A channel to whoever has this address. One that cannot be reached, or is gone already, is a
  /// channel that breaks, now or later. Errors: InvalidArgument, ResourceExhausted, Internal.
  virtual Result<int> connect(std::span<const std::byte> address) = 0;
  /// By force: all that is under way on the channel ends, as not whole. Closed twice: nothing.
  virtual void close(int channel) = 0;

  /// Copies and sends; at most kPostedBytesMax. Into a closed or broken channel: nothing happens.
  virtual void post(int channel, const MessageHeader& header, const void* data,
                    std::size_t bytes) = 0;
  /// `data` belongs to the port until on_sent(token).
  virtual void send(int channel, const MessageHeader& header, const void* data, std::size_t bytes,
                    std::uint64_t token) = 0;

  /// Nobody writes to this place of place_for() any more, at once; on_placed() does not come. What
  /// is still on its way there is dropped. Not within a call of the sink.
  virtual void withdraw(const std::byte* place) = 0;

  /// Moves what can be moved; how much happened.
  virtual int progress() = 0;
  /// Readable once there is something to do, provided that arm() returned true after the last
  /// progress().
  [[nodiscard]] virtual int descriptor() const = 0;
  /// False: call progress() again instead of waiting.
  virtual bool arm() = 0;
  /// Makes the descriptor readable. Any thread.
  virtual void wake() = 0;
};

/// What a transport's module exports as regroup_open_message_port: a new port, or null and why not.
/// `abi`: kMessagePortAbi of whoever asks.
using OpenMessagePort = MessagePort*(std::uint32_t abi, char* why, std::size_t why_bytes);
inline constexpr std::uint32_t kMessagePortAbi = 2;

}  // namespace regroup::spi
