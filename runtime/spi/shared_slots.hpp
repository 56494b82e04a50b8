/// The shared memory of one group in one epoch (its arena): layout, and a view of it that never
/// leaves its bounds.
///
///   Header | MemberBlock[p] | slots[p][2] | rings[p][p]
///
/// Turns. Every rank counts turns alike: each operation takes a number of them that is a pure
/// function of its arguments. In turn t a member publishes through line(member, t), which carries
/// up to 112 bytes itself; more lies in slot(member, t). Both exist twice, by the parity of the
/// turn.
///
/// Everything here can be written by any member, a wrong one too. Sizes are copied out of the
/// header once, when the view is opened; a value read later is only ever compared, or
/// bounds-checked by whoever uses it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include <regroup/status.hpp>
#include <regroup/types.hpp>

#include "base/check.hpp"
#include "spi/agreement.hpp"
#include "spi/operation.hpp"

namespace regroup::spi {

inline constexpr std::size_t kLineBytes =
    128;  // two cache lines: the adjacent-line prefetcher pairs them
inline constexpr std::size_t kInlineBytes = 112;  // beside turn and digest, in such a pair
inline constexpr std::uint32_t kMembersMax = 128;
inline constexpr std::size_t kLedgerEntries = 16;

/// What a member publishes in one turn: a cache line, and its neighbour above 48 bytes. `turn` is
/// stored last.
struct Line {
  std::atomic<std::uint64_t> turn;
  std::atomic<std::uint64_t> digest;  ///< of all operations of the group so far, this one included
  std::byte payload[kInlineBytes];
};
static_assert(sizeof(Line) == kLineBytes);

/// One operation as its member called it. `sequence` is stored last, and is 0 while the rest
/// changes.
struct LedgerEntry {
  std::atomic<std::uint64_t> sequence;
  std::atomic<std::uint64_t> meta;  ///< pack_meta()
  std::atomic<std::uint64_t> count;
  std::atomic<std::uint64_t> detail;
  std::atomic<std::uint64_t> arrival_ns;
};

/// Two calls that do not fit together; written by the member that found them, before it claims
/// Header::poisoned_by.
struct PoisonRecord {
  std::atomic<std::uint64_t> sequence;
  std::atomic<std::uint64_t> rank[2];
  std::atomic<std::uint64_t> meta[2];
  std::atomic<std::uint64_t> count[2];
  std::atomic<std::uint64_t> detail[2];
};

/// What one member owns. Each part that others poll has lines of its own.
struct alignas(kLineBytes) MemberBlock {
  alignas(kLineBytes) Word group_word;
  alignas(kLineBytes) Word step_word;  ///< used in the world's arena only
  /// Of this epoch, as this member announces it (planned_end.hpp); 0: none.
  std::atomic<std::uint64_t> last_step;
  struct alignas(kLineBytes) Bell {
    std::atomic<std::uint32_t> rung;  ///< futex: changes whenever this member is to look again
    std::atomic<std::int32_t> waiting_for;  ///< group rank, kAnyMember or kNobody
  } bell;
  /// All turns up to this one have been read; moved in the middle of operations only.
  alignas(kLineBytes) std::atomic<std::uint64_t> read_up_to;
  alignas(kLineBytes) Line lines[2];
  alignas(kLineBytes) LedgerEntry ledger[kLedgerEntries];
  alignas(kLineBytes) PoisonRecord poison;
};
inline constexpr std::int32_t kNobody = -1;
inline constexpr std::int32_t kAnyMember = -2;

/// Positions of one byte ring; each grows for ever. Written: by the source. Read: by the
/// destination.
struct alignas(kLineBytes) RingHeader {
  alignas(kLineBytes) std::atomic<std::uint64_t> written;
  alignas(kLineBytes) std::atomic<std::uint64_t> read;
};

struct ArenaOptions {
  std::size_t slot_bytes = 0;  ///< 0: by the number of members
  std::size_t ring_bytes = 0;  ///< 0: by the number of members; rounded up to a power of two
};

/// Sizes of an arena; pure functions of (members, options).
struct ArenaGeometry {
  std::uint32_t members = 0;
  std::size_t slot_bytes = 0;
  std::size_t ring_bytes = 0;
  std::size_t slots_offset = 0;
  std::size_t rings_offset = 0;
  std::size_t total_bytes = 0;
  bool operator==(const ArenaGeometry&) const = default;
};
[[nodiscard]] ArenaGeometry arena_geometry(std::uint32_t members, ArenaOptions options = {});
[[nodiscard]] std::size_t arena_bytes(std::uint32_t members, ArenaOptions options = {});

struct alignas(4096) Header {
  std::uint64_t magic;
  std::uint32_t abi;
  std::uint32_t members;
  std::uint64_t epoch;
  std::uint32_t group;
  std::uint32_t reserved;
  std::uint64_t slot_bytes;
  std::uint64_t ring_bytes;
  /// Members that sleep or are about to. Too high costs time only.
  alignas(kLineBytes) std::atomic<std::uint32_t> sleepers;
  /// Group rank + 1 of the member whose PoisonRecord says why this group is unusable; 0: none.
  alignas(kLineBytes) std::atomic<std::uint32_t> poisoned_by;
  /// The agent wants the epoch to end after a step (planned_end.hpp).
  std::atomic<std::uint32_t> end_wanted;
};
inline constexpr std::uint64_t kArenaMagic = 0x3150554f52474552;  // "REGROUP1"
inline constexpr std::uint32_t kArenaAbi = 4;

/// View of one arena. Does not own the memory, which outlives it. Copies are views of the same
/// arena. Thread safety: the view is immutable; the memory behind it is shared by design.
class SharedSlots {
 public:
  SharedSlots() = default;
  /// Checks magic, version, identity and that everything lies within `bytes`. `base` is aligned to
  /// 4096. Errors: InvalidArgument (text says which field).
  static Result<SharedSlots> open(void* base, std::size_t bytes, Epoch epoch, std::uint32_t group);

  [[nodiscard]] int members() const { return static_cast<int>(geometry_.members); }
  [[nodiscard]] std::size_t slot_bytes() const { return geometry_.slot_bytes; }
  [[nodiscard]] std::size_t ring_bytes() const { return geometry_.ring_bytes; }
  [[nodiscard]] std::size_t total_bytes() const { return geometry_.total_bytes; }
  [[nodiscard]] Epoch epoch() const { return epoch_; }
  [[nodiscard]] std::uint32_t group() const { return group_; }

  [[nodiscard]] Header& header() const { return *reinterpret_cast<Header*>(base_); }
  [[nodiscard]] MemberBlock& member(int rank) const {
    return reinterpret_cast<MemberBlock*>(base_ + sizeof(Header))[checked(rank)];
  }
  [[nodiscard]] Word& group_word(int rank) const { return member(rank).group_word; }
  [[nodiscard]] Word& step_word(int rank) const { return member(rank).step_word; }
  [[nodiscard]] Line& line(int rank, std::uint64_t turn) const {
    return member(rank).lines[turn & 1];
  }
  [[nodiscard]] LedgerEntry& ledger(int rank, std::uint64_t sequence) const {
    return member(rank).ledger[sequence % kLedgerEntries];
  }
  [[nodiscard]] std::byte* slot(int rank, std::uint64_t turn) const {
    return base_ + geometry_.slots_offset + (2 * checked(rank) + (turn & 1)) * geometry_.slot_bytes;
  }
  [[nodiscard]] RingHeader& ring(int source, int destination) const {
    return *reinterpret_cast<RingHeader*>(ring_base(source, destination));
  }
  [[nodiscard]] std::byte* ring_data(int source, int destination) const {
    return ring_base(source, destination) + sizeof(RingHeader);
  }

 private:
  friend Result<SharedSlots> format_arena(void*, std::size_t, Epoch, std::uint32_t, std::uint32_t,
                                          ArenaOptions);
  SharedSlots(std::byte* base, ArenaGeometry geometry, Epoch epoch, std::uint32_t group)
      : base_(base), geometry_(geometry), epoch_(epoch), group_(group) {}
  [[nodiscard]] std::size_t checked(int rank) const {
    REGROUP_ASSERT(static_cast<std::uint32_t>(rank) < geometry_.members);
    return static_cast<std::size_t>(rank);
  }
  [[nodiscard]] std::byte* ring_base(int source, int destination) const {
    const std::size_t index = checked(source) * geometry_.members + checked(destination);
    return base_ + geometry_.rings_offset + index * (sizeof(RingHeader) + geometry_.ring_bytes);
  }

  std::byte* base_ = nullptr;
  ArenaGeometry geometry_;
  Epoch epoch_;
  std::uint32_t group_ = 0;
};

/// Makes fresh zeroed memory an arena. `base` is aligned to 4096, `bytes` >= arena_bytes(members,
/// options). Errors: InvalidArgument.
Result<SharedSlots> format_arena(void* base, std::size_t bytes, Epoch epoch, std::uint32_t group,
                                 std::uint32_t members, ArenaOptions options = {});

/// A ledger entry as it was at one instant; empty when it is not of this operation (any more).
struct LedgerReading {
  OpDescriptor descriptor;
  std::uint64_t arrival_ns = 0;
};
[[nodiscard]] std::optional<LedgerReading> read_ledger(const SharedSlots& slots, int rank,
                                                       std::uint64_t sequence);

/// Why this arena is unusable, the same text on every rank; empty when it is usable.
[[nodiscard]] std::optional<std::string> read_poison(const SharedSlots& slots);

}  // namespace regroup::spi
