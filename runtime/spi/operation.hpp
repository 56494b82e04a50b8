/// What an operation of a group is: the part that every rank of the group must call alike.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include <regroup/types.hpp>

namespace regroup::spi {

enum class OpKind : std::uint8_t {
  AllReduce,
  Reduce,
  Broadcast,
  AllGather,
  ReduceScatter,
  Barrier,
  AllGatherV,
  ReduceScatterV,
  AllToAll,
  AllToAllV,
  Gather,
  Scatter,
  GatherV,
  ScatterV,
  Coalesced,  ///< several of those before it, with one outcome
};
inline constexpr int kOpKindCount = 15;
inline constexpr int kSingleKindCount = 14;  ///< all but Coalesced
[[nodiscard]] const char* name(OpKind kind);
[[nodiscard]] const char* name(DType type);
[[nodiscard]] const char* name(ReduceOp op);

/// Kinds as bits: every operation asks several of these questions.
using KindSet = std::uint32_t;
template <class... Kinds>
[[nodiscard]] constexpr KindSet kinds(Kinds... each) {
  return (... | (KindSet{1} << static_cast<int>(each)));
}
[[nodiscard]] constexpr bool is_in(KindSet set, OpKind kind) {
  return (set >> static_cast<int>(kind) & 1) != 0;
}
inline constexpr KindSet kToRoot = kinds(OpKind::Reduce, OpKind::Gather, OpKind::GatherV);
inline constexpr KindSet kFromRoot = kinds(OpKind::Broadcast, OpKind::Scatter, OpKind::ScatterV);

/// Who gives and who gets; of ToRoot and FromRoot the root only gets, or only gives.
enum class Flow : std::uint8_t { Symmetric, ToRoot, FromRoot };
[[nodiscard]] constexpr Flow flow_of(OpKind kind) {
  if (is_in(kToRoot, kind)) return Flow::ToRoot;
  return is_in(kFromRoot, kind) ? Flow::FromRoot : Flow::Symmetric;
}
/// In a symmetric kind every rank contributes and every rank awaits all of them.
[[nodiscard]] constexpr bool is_symmetric(OpKind kind) { return !is_in(kToRoot | kFromRoot, kind); }
/// Whether group rank `member` contributes to (receives from) an operation of this kind and root.
/// What the root of a gather or scatter gives itself does not count.
[[nodiscard]] constexpr bool sends(OpKind kind, int root, int member) {
  const Flow flow = flow_of(kind);
  return flow == Flow::Symmetric || (flow == Flow::FromRoot) == (member == root);
}
[[nodiscard]] constexpr bool receives(OpKind kind, int root, int member) {
  const Flow flow = flow_of(kind);
  return flow == Flow::Symmetric || (flow == Flow::ToRoot) == (member == root);
}
/// Whether contributions are combined, by a ReduceOp.
[[nodiscard]] constexpr bool reduces(OpKind kind) {
  return is_in(
      kinds(OpKind::AllReduce, OpKind::Reduce, OpKind::ReduceScatter, OpKind::ReduceScatterV),
      kind);
}
/// Whether the ranks' shares differ in size, as the call's counts say.
[[nodiscard]] constexpr bool has_counts(OpKind kind) {
  return is_in(kinds(OpKind::AllGatherV, OpKind::ReduceScatterV, OpKind::AllToAllV, OpKind::GatherV,
                     OpKind::ScatterV),
               kind);
}
/// Whether a call takes more than one count.
[[nodiscard]] constexpr bool has_lists(OpKind kind) {
  return is_in(kinds(OpKind::AllGatherV, OpKind::ReduceScatterV, OpKind::AllToAllV, OpKind::GatherV,
                     OpKind::ScatterV, OpKind::Coalesced),
               kind);
}
/// Whether what a rank gives is cut into a share for each rank.
[[nodiscard]] constexpr bool scatters(OpKind kind) {
  return is_in(kinds(OpKind::ReduceScatter, OpKind::ReduceScatterV, OpKind::AllToAll,
                     OpKind::AllToAllV, OpKind::Scatter, OpKind::ScatterV),
               kind);
}
/// Whether what a rank gets is one share of each rank behind the other.
[[nodiscard]] constexpr bool gathers(OpKind kind) {
  return is_in(kinds(OpKind::AllGather, OpKind::AllGatherV, OpKind::AllToAll, OpKind::AllToAllV,
                     OpKind::Gather, OpKind::GatherV),
               kind);
}

/// Compared between the ranks. `count` is in elements: as in the public API, or of all ranks'
/// shares together where the call has counts (0 for all_to_all_v, whose counts may differ); of a
/// coalesced one it is how many operations it has.
struct OpDescriptor {
  OpKind kind = OpKind::Barrier;
  DType dtype = DType::U8;
  ReduceOp op = ReduceOp::Sum;
  std::int32_t root = 0;
  std::uint64_t count = 0;
  /// PremulSum: the factor, as the bits of a double. With counts: a hash of them (and of the
  /// factor). Coalesced: a hash of the operations.
  std::uint64_t detail = 0;
  bool operator==(const OpDescriptor&) const = default;
};
/// "all_reduce of 8 f32, sum".
[[nodiscard]] std::string describe(const OpDescriptor& descriptor);

/// All but count and detail in one integer, as it lies in shared memory. unpack_descriptor accepts
/// any bits.
[[nodiscard]] constexpr std::uint64_t pack_meta(const OpDescriptor& d) {
  return static_cast<std::uint64_t>(d.kind) | static_cast<std::uint64_t>(d.dtype) << 8 |
         static_cast<std::uint64_t>(d.op) << 16 |
         static_cast<std::uint64_t>(static_cast<std::uint32_t>(d.root)) << 32;
}
[[nodiscard]] constexpr OpDescriptor unpack_descriptor(std::uint64_t meta, std::uint64_t count,
                                                       std::uint64_t detail) {
  return {static_cast<OpKind>((meta & 0xff) % kOpKindCount),
          static_cast<DType>((meta >> 8 & 0xff) % kDTypeCount),
          static_cast<ReduceOp>((meta >> 16 & 0xff) % kReduceOpCount),
          static_cast<std::int32_t>(static_cast<std::uint32_t>(meta >> 32)),
          count,
          detail};
}

/// When a call must have ended; kNoDeadline: it ends with the operation or with a loss.
using Deadline = TimePoint;
inline constexpr Deadline kNoDeadline = TimePoint::max();

}  // namespace regroup::spi
