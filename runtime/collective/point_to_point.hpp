/// Messages between two members of a group over byte rings in the arena.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "spi/shared_slots.hpp"
#include "spi/waiting.hpp"

namespace regroup::collective {

struct Outcome;

/// One rank's end of all rings that start or end at it. Matching: (source, tag), in the order of
/// the sends. Messages that nobody asked for yet are kept here, up to the limits below; beyond them
/// their senders wait. Memory: the arena outlives it. Thread safety: one thread at a time.
class PointToPoint {
 public:
  static constexpr std::size_t kUnexpectedBytesMax = std::size_t{64} << 20;
  static constexpr std::size_t kUnexpectedMessagesMax = 4096;

  /// `find_damage`: what else of this rank's is not as it wrote it; asked once a wait has become
  /// long.
  PointToPoint(spi::SharedSlots slots, int me, int cores, spi::PumpHook pump,
               std::function<std::string()> find_damage);

  /// See SlotRunner::send and SlotRunner::recv.
  Outcome send(const void* data, std::size_t count, DType dtype, int destination, std::uint32_t tag,
               spi::Deadline until);
  Outcome recv(void* data, std::size_t count, DType dtype, int source, std::uint32_t tag,
               spi::Deadline until);
  /// See GroupRunner::find_sender.
  Outcome find_sender(std::uint32_t tag, int& source, spi::Deadline until);
  /// Which of the own positions in the rings is not as this rank wrote it; empty: none.
  [[nodiscard]] std::string find_damage() const;

 private:
  bool notice_damage();
  /// In front of each message in a ring.
  struct Envelope {
    std::uint64_t count = 0;
    std::uint32_t tag = 0;
    std::uint32_t dtype = 0;
    [[nodiscard]] std::size_t bytes() const { return count * size_of(static_cast<DType>(dtype)); }
  };
  /// Thread safety: a value.
  struct Message {
    Envelope envelope;
    std::vector<std::byte> kept;  ///< unless the receiver's own memory takes the bytes
    std::byte* direct = nullptr;  ///< the receiver's own memory, while recv() runs
    bool unexpected = false;      ///< counts against the limits
    std::size_t arrived = 0;
    [[nodiscard]] bool complete() const { return arrived == envelope.bytes(); }
  };
  /// What the running recv() asks for.
  struct Wanted {
    int source = 0;
    Envelope envelope;
    std::byte* data = nullptr;
  };
  enum class Poll : std::uint8_t { Nothing, Moved, Full, Damaged };
  using Queue = std::deque<Message>;

  Poll drain(int source, const Wanted* wanted);
  Poll advance(int source, const Wanted* wanted);
  Poll start_message(int source, const Wanted* wanted);
  Poll peek(int source, Envelope& envelope);
  Poll look_for(int source, std::uint32_t tag);
  Poll look_around(std::uint32_t tag, int& source);
  void drain_all();
  [[nodiscard]] std::optional<std::size_t> readable(int source);
  [[nodiscard]] std::optional<std::size_t> writable(int destination);
  void read_bytes(int source, std::byte* out, std::size_t bytes);
  void write_bytes(int destination, const std::byte* data, std::size_t bytes);
  spi::WaitEnd write_all(int destination, const std::byte* data, std::size_t bytes,
                         spi::Deadline until);
  [[nodiscard]] Queue::iterator find(int source, std::uint32_t tag);
  void keep(Message& message);
  Outcome deliver(int source, Queue::iterator message, const Wanted& wanted);
  Outcome give_up(spi::WaitEnd end, const Wanted& wanted);
  Outcome damaged();
  [[nodiscard]] Outcome too_many(int source, std::uint32_t tag) const;

  spi::SharedSlots slots_;
  int me_;
  spi::Waiter waiter_;
  std::vector<Queue> queues_;           ///< per source; only the last message may be incomplete
  std::vector<bool> cut_;               ///< per destination: a message was left unfinished
  std::vector<std::uint64_t> written_;  ///< per destination, my position
  std::vector<std::uint64_t> read_;     ///< per source, my position
  int first_looked_at_ = 0;             ///< by find_sender()
  std::size_t unexpected_bytes_ = 0;
  std::size_t unexpected_messages_ = 0;
  std::string damage_;
  std::function<std::string()> find_all_damage_;
};

}  // namespace regroup::collective
