/// Plans of collective operations over messages, as data: what one rank posts, sends, awaits and
/// folds. Pure.
///
/// Rules that every plan keeps:
///   M1  Each part that a rank sends is received by exactly one Receive of the same bytes, and the
///       other way round; (source, part) names it within the operation.
///   M2  Await of a part comes after its Receive, and Fold after the Await of all that it reads.
///   M3  A scratch place is used again only after the Fold that read it, or the AwaitSent of the
///       part that was sent from it.
///   M4  In place (output = input), a result is sent by a rank only after all contributions to that
///       piece have arrived there, so no input is overwritten before it was read. Where a plan
///       cannot (sends_late()), it reads a copy of the input.
///   M5  Copy comes before any Receive, whose place may be what it reads.
/// Each pair of ranks cuts what it exchanges by itself: both know how much that is, of all_to_all_v
/// too. Compare ends the operation on all ranks if they say different things about that.
/// Reductions are folded in seat order, whoever folds: the result's bits do not depend on the plan.
/// So what may be passed on is a contribution as it is, or what the first members come to; of
/// narrow floats that is f32 (partial_sums.hpp).
/// The algorithms: direct exchange, and direct reduce-scatter with all-gather (both all-pairs), as
/// in Thakur, Rabenseifner, Gropp, "Optimization of Collective Communication Operations in MPICH"
/// (2005), section on pairwise exchange. The others: schedule_rails.cpp (all_reduce between hosts),
/// schedule_rounds.cpp (doubling, halving), schedule_chain.cpp (ring, tree).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "collective/schedule.hpp"
#include "spi/operation.hpp"

namespace regroup::collective {

enum class MessageStepKind : std::uint8_t {
  Receive,  ///< name the place of a part of `member`
  Send,     ///< a part to `member`
  Await,    ///< until the part of `member` has arrived
  Fold,  ///< pieces of the members [first, first + count) -> region; mine is input at `in_offset`
  Copy,  ///< input at in_offset, or scratch at offset -> region at out_offset
  Compare,    ///< all_to_all_v: everybody's counts in Scratch, and mine
  AwaitSent,  ///< until the part to `member` has left: its place may be written to
};

/// Counts: all_to_all_v's, what this rank sends to each as 64 bits, then what it receives.
enum class Region : std::uint8_t { Input, Output, Scratch, Counts };

struct MessageStep {
  MessageStepKind kind = MessageStepKind::Send;
  int member = 0;
  std::uint32_t part = 0;
  Region region = Region::Input;  ///< Receive, Fold, Copy: into; Send: from
  /// Into that region; Fold, Compare: of the first member's piece in Scratch.
  std::size_t offset = 0;
  std::size_t bytes = 0;
  std::size_t in_offset = 0;
  std::size_t out_offset = 0;
  /// Fold, Compare: from one member's piece in Scratch to the next one's.
  std::size_t stride = 0;
  int first = 0;
  int count = 0;
  std::size_t prior = kNone;  ///< Fold: in Scratch, what the members before `first` came to
  bool goes_on = false;       ///< Fold: others are folded onto this; nothing is divided yet
  /// Fold: where the pieces lie in Scratch, in MessagePlan::places from this one on, in place of
  /// offset and stride.
  std::size_t places = kNone;
  bool from_scratch = false;  ///< Copy
  static constexpr std::size_t kNone = ~std::size_t{0};
};

/// What the choice between plans reckons with. Equal on all ranks.
struct NetworkCost {
  double latency_us = 30;      ///< of a message to another host
  double message_us = 1;       ///< that a rank has with one message more, sent and received
  double bytes_per_us = 1000;  ///< that a host can send
};

/// Consecutive members of one host.
struct Run {
  int first = 0;
  int count = 0;
};

/// What a plan depends on beyond the descriptor; equal on all ranks but for `me`.
struct MessageShape {
  int members = 1;
  int me = 0;
  std::size_t direct_bytes = std::size_t{8}
                             << 10;  ///< all_reduce: everything to everybody up to it
  std::size_t chunk_bytes = std::size_t{256} << 10;  ///< a multiple of 64
  std::size_t window = 2;             ///< chunks under way before the first of them is folded
  Counts counts{};                    ///< where the kind has them
  std::span<const int> hosts{};       ///< of each member; empty: not known
  std::optional<Algorithm> forced{};  ///< ignored where it cannot carry the operation
  NetworkCost cost{};
};

struct MessagePlan {
  std::vector<MessageStep> steps;
  std::vector<std::size_t> places;
  std::size_t scratch_bytes = 0;
};

/// The plan of one rank in a single operation; a coalesced one is carried out one after the other.
void make_message_plan(const spi::OpDescriptor& descriptor, const MessageShape& shape,
                       MessagePlan& plan);
/// Whether, where output lies over input, a part may leave only after its place was written to.
/// `own_place`: the one buffer is this rank's share in the other.
[[nodiscard]] bool sends_late(OpKind kind, bool own_place);

}  // namespace regroup::collective
