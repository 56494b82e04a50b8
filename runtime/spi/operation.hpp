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
  Barrier
};
inline constexpr int kOpKindCount = 6;
[[nodiscard]] const char* name(OpKind kind);
[[nodiscard]] const char* name(DType type);
[[nodiscard]] const char* name(ReduceOp op);

/// In a symmetric kind every rank contributes and every rank awaits all of them.
[[nodiscard]] constexpr bool is_symmetric(OpKind kind) {
  switch (kind) {
    case OpKind::AllReduce:
    case OpKind::AllGather:
    case OpKind::ReduceScatter:
    case OpKind::Barrier: return true;
    case OpKind::Reduce:
    case OpKind::Broadcast: return false;
  }
  return false;
}
/// Whether group rank `member` contributes to (receives from) an operation of this kind and root.
[[nodiscard]] constexpr bool sends(OpKind kind, int root, int member) {
  if (kind == OpKind::Broadcast) return member == root;
  if (kind == OpKind::Reduce) return member != root;
  return true;
}
[[nodiscard]] constexpr bool receives(OpKind kind, int root, int member) {
  if (kind == OpKind::Broadcast) return member != root;
  if (kind == OpKind::Reduce) return member == root;
  return true;
}

/// Compared between the ranks. `count` is in elements, as in the public API.
struct OpDescriptor {
  OpKind kind = OpKind::Barrier;
  DType dtype = DType::U8;
  ReduceOp op = ReduceOp::Sum;
  std::int32_t root = 0;
  std::uint64_t count = 0;
  std::uint64_t detail = 0;  ///< PremulSum: the factor, as the bits of a double
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
