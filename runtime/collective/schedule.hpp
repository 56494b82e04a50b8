/// Plans of collective operations, as data: what one rank does, step by step, over shared slots.
/// Pure.
///
/// The runner executes plans, the tests simulate them. Rules that every plan keeps:
///   I1  A rank publishes turn t only after its last read of any turn < t.
///   I2  Turn t touches only line(me, t) and slot(me, t); Reclaim(t) comes before the first store
///   into them.
///   I3  The number of turns depends on the arguments alone (of all_to_all_v: and on the counts
///   that its first turn exchanges), so it is equal on all ranks; non-senders skip theirs. I4  The
///   first Await of a plan checks the awaited members' digests, before any output is written.
/// From I1 and I2 follows when a buffer of turn t may be stored into again: once each of its
/// readers has published a later turn, or has said that it read up to t, or has completed the
/// operation of t in a word that is not wedged.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "spi/operation.hpp"
#include "spi/shared_slots.hpp"

namespace regroup::collective {

using spi::OpDescriptor;
using spi::OpKind;

enum class Algorithm : std::uint8_t {
  Inline,   ///< payload in the flag's own line; one turn
  OneShot,  ///< payload in the slot, everybody reads everybody's; one turn a chunk
  TwoShot,  ///< all_reduce: each rank combines one slice, then shares it; two turns a chunk
  // Over messages only; docs/adr/0036-every-schedule-folds-in-seat-order.md.
  Rails,     ///< all_reduce: sums go from host to host, by several ranks at a time
  Doubling,  ///< each message brings as much as its receiver has already
  Halving,   ///< reduce_scatter by messages that become smaller; all_reduce: then Doubling
  Ring,      ///< each rank sends to the next one only
  Tree,      ///< results go down two binary trees, half of them each
};
inline constexpr int kAlgorithmCount = 8;
[[nodiscard]] const char* name(Algorithm algorithm);

enum class StepKind : std::uint8_t {
  Reclaim,     ///< wait until my buffers of `turn`'s parity are no longer needed
  CopyIn,      ///< input[in_offset, +bytes) -> my buffer of `turn` at `slot_offset`
  Publish,     ///< make my buffer of `turn` visible
  AwaitAll,    ///< wait until all members (but me) that send have published `turn`
  AwaitOne,    ///< wait until `member` has published `turn`
  Reduce,      ///< fold over all members' buffers of `turn` at `slot_offset`: `bytes` bytes -> see
               ///< `into_slot`
  CopyOut,     ///< `member`'s buffer of `turn` at `slot_offset` -> output[out_offset, +bytes)
  CopyOwn,     ///< input[in_offset, +bytes) -> output[out_offset, +bytes)
  CopyCounts,  ///< all_to_all_v: the call's counts -> my buffer of `turn`, sent and received ones
  ReadCounts,  ///< compares everybody's counts of `turn`; then Plan::learn() says what comes next
  SaidRead,    ///< tell that I have read everything up to `turn`
};

struct Step {
  StepKind kind = StepKind::Publish;
  std::uint64_t turn = 0;  ///< relative to the operation's first turn
  int member = 0;
  std::size_t in_offset = 0;   ///< bytes into the caller's input
  std::size_t out_offset = 0;  ///< bytes into the caller's output
  std::size_t slot_offset = 0;
  std::size_t bytes = 0;
  bool check = false;      ///< the awaited digests are compared with mine
  bool into_slot = false;  ///< Reduce: into my buffer of turn + 1 at 0; else to out_offset
  bool mine_from_input =
      false;  ///< Reduce: my own contribution is input at in_offset, not in my slot
  std::uint64_t chunk = 0;
};

/// How many elements each rank gives or gets, where that differs; of as many ranks as the group
/// has. Memory: the caller's, for as long as the operation.
struct Counts {
  const std::size_t* shares = nullptr;  ///< by rank; all_to_all_v: that I send to it
  const std::size_t* recv = nullptr;    ///< all_to_all_v: that I receive from it
  int ranks = 0;                        ///< how many each of them has
};

/// What a plan depends on, beyond the descriptor.
struct PlanShape {
  int members = 1;
  int me = 0;
  std::size_t slot_bytes = 0;
  std::optional<Algorithm> forced;  ///< ignored where it cannot carry the operation
  bool own_from_input = false;  ///< one-shot all_reduce: my contribution is not read from my slot
  Counts counts;                ///< where the kind has them
  bool coalesced = false;       ///< other plans of the same operation follow
};

/// The steps of one rank in one operation, generated one after the other without allocation.
/// Thread safety: a value.
class Plan {
 public:
  Plan(const OpDescriptor& descriptor, const PlanShape& shape);
  [[nodiscard]] Algorithm algorithm() const { return algorithm_; }
  /// Turns that the operation takes, on every rank; of all_to_all_v those known so far.
  [[nodiscard]] std::uint64_t turns() const {
    return first_turn_ + chunks_ * (algorithm_ == Algorithm::TwoShot ? 2 : 1);
  }
  /// After ReadCounts: the largest number of elements that any rank sends to any other. Returns how
  /// many turns more that takes.
  std::uint64_t learn(std::size_t largest_count);
  [[nodiscard]] std::uint64_t chunks() const { return chunks_; }
  [[nodiscard]] bool inline_payload() const { return algorithm_ == Algorithm::Inline; }
  /// Relative turn of the last contribution of `member`; empty when it contributes nothing.
  [[nodiscard]] std::optional<std::uint64_t> last_send_turn(int member) const;
  /// Writes the next step; false when there is none.
  bool next(Step& step);

 private:
  bool next_of_counts(Step& step);
  bool next_of_symmetric(Step& step);
  bool next_of_two_shot(Step& step);
  bool next_to_root(Step& step);
  bool next_from_root(Step& step);
  bool next_copy_in(Step& step, bool own);
  bool next_shares(Step& step, StepKind kind, bool own);
  bool copy_own(Step& step);
  bool reduce_chunk(Step& step);
  bool said_read(Step& step) const;
  void enter(int phase);
  void make(Step& step, StepKind kind, std::uint64_t turn) const;
  [[nodiscard]] std::size_t chunk_bytes(std::uint64_t chunk) const;
  [[nodiscard]] std::size_t share_bytes(const std::size_t* counts, int member) const;
  [[nodiscard]] std::size_t part_of(std::size_t share_bytes) const;
  [[nodiscard]] std::size_t slot_place(int member) const;

  OpDescriptor descriptor_;
  PlanShape shape_;
  Algorithm algorithm_ = Algorithm::Inline;
  std::size_t bytes_total_ = 0;  ///< the unit that chunks cut: the largest share of a rank
  std::size_t chunk_bytes_max_ = 0;
  std::uint64_t chunks_ = 1;
  std::uint64_t first_turn_ = 0;  ///< of the chunks: 1 behind an exchange of counts
  std::uint64_t chunk_ = 0;
  bool counting_ = false;  ///< all_to_all_v: before learn()
  int phase_ = 0;          ///< position within the chunk
  int member_ = 0;         ///< loop over members within a phase
  std::size_t place_ = 0;  ///< where the share of member_ begins in the caller's buffer
};

/// Bytes of the caller's input and output of one rank.
struct OpExtent {
  std::size_t in_bytes = 0;
  std::size_t out_bytes = 0;
};
[[nodiscard]] OpExtent extent_of(const OpDescriptor& descriptor, const Counts& counts, int members,
                                 int me);
/// Bytes of rank `member`'s share; of calls without counts all shares are `count`.
[[nodiscard]] std::size_t share_of(const OpDescriptor& descriptor, const std::size_t* counts,
                                   int member);
/// Where rank `member`'s share begins in a buffer that holds all of them, in bytes.
[[nodiscard]] std::size_t share_offset(const OpDescriptor& descriptor, const std::size_t* counts,
                                       int member);

}  // namespace regroup::collective
