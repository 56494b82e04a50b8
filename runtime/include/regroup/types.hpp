/// Identities, element types and options shared by the whole API.
#pragma once

#include <chrono>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <type_traits>

namespace regroup {

/// An integer that cannot be mistaken for another kind of integer. Thread safety: a plain value.
template <class Tag, class Rep>
class StrongId {
 public:
  using rep = Rep;
  constexpr StrongId() = default;
  constexpr explicit StrongId(Rep value) : value_(value) {}
  [[nodiscard]] constexpr Rep value() const { return value_; }
  constexpr auto operator<=>(const StrongId&) const = default;

 private:
  Rep value_{};
};

/// A seat 0..N-1. Seats are never renumbered.
using Rank = StrongId<struct RankTag, std::int32_t>;
/// Which life of a seat: issued once for the whole job, never reused. 0 means none.
using Incarnation = StrongId<struct IncarnationTag, std::uint64_t>;
/// Number of one membership, strictly growing. 0 means none yet.
using Epoch = StrongId<struct EpochTag, std::uint64_t>;
/// Order of operations in one group within one epoch; the first is 1.
using Sequence = StrongId<struct SequenceTag, std::uint64_t>;
static_assert(!std::is_convertible_v<Rank, int> && !std::is_convertible_v<Epoch, Incarnation>);

/// One life of one seat.
struct Member {
  Rank rank;
  Incarnation incarnation;
  constexpr auto operator<=>(const Member&) const = default;
};

/// Element types. F16 and BF16: IEEE binary16 and bfloat16. F8E4M3: 4 bits of exponent, no
/// infinity, largest number 448 (the FN variant: PyTorch's float8_e4m3fn). F8E5M2: 5 bits of
/// exponent, the upper byte of binary16. Bool: one byte; 0 is false, any other value true.
enum class DType : std::uint8_t {
  F64,
  F32,
  F16,
  BF16,
  I32,
  I64,
  U8,
  F8E4M3,
  F8E5M2,
  I8,
  I16,
  U32,
  U64,
  Bool,
};
inline constexpr int kDTypeCount = 14;

/// Bytes of one element; 0 for a number that is no type.
[[nodiscard]] constexpr std::size_t size_of(DType type) {
  constexpr std::uint8_t kBytes[kDTypeCount] = {8, 4, 2, 2, 4, 8, 1, 1, 1, 1, 2, 4, 8, 1};
  const auto index = static_cast<std::size_t>(type);
  return index < kDTypeCount ? kBytes[index] : 0;
}
static_assert(size_of(DType::F64) == 8 && size_of(DType::BF16) == 2 && size_of(DType::I64) == 8 &&
              size_of(DType::F8E5M2) == 1 && size_of(DType::I16) == 2 && size_of(DType::U32) == 4 &&
              size_of(DType::U64) == 8 && size_of(DType::Bool) == 1);

[[nodiscard]] constexpr bool is_float(DType type) {
  switch (type) {
    case DType::F64:
    case DType::F32:
    case DType::F16:
    case DType::BF16:
    case DType::F8E4M3:
    case DType::F8E5M2: return true;
    case DType::I32:
    case DType::I64:
    case DType::U8:
    case DType::I8:
    case DType::I16:
    case DType::U32:
    case DType::U64:
    case DType::Bool: return false;
  }
  return false;
}

/// Narrow floats as storage: arithmetic happens in float, inside the reduction.
struct Half {
  std::uint16_t bits = 0;
  constexpr bool operator==(const Half&) const = default;
};
struct BFloat16 {
  std::uint16_t bits = 0;
  constexpr bool operator==(const BFloat16&) const = default;
};
struct Float8E4M3 {
  std::uint8_t bits = 0;
  constexpr bool operator==(const Float8E4M3&) const = default;
};
struct Float8E5M2 {
  std::uint8_t bits = 0;
  constexpr bool operator==(const Float8E5M2&) const = default;
};

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::F64;
};
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::F32;
};
template <>
struct DTypeOf<Half> {
  static constexpr DType value = DType::F16;
};
template <>
struct DTypeOf<BFloat16> {
  static constexpr DType value = DType::BF16;
};
template <>
struct DTypeOf<Float8E4M3> {
  static constexpr DType value = DType::F8E4M3;
};
template <>
struct DTypeOf<Float8E5M2> {
  static constexpr DType value = DType::F8E5M2;
};
template <>
struct DTypeOf<std::int8_t> {
  static constexpr DType value = DType::I8;
};
template <>
struct DTypeOf<std::uint8_t> {
  static constexpr DType value = DType::U8;
};
template <>
struct DTypeOf<std::int16_t> {
  static constexpr DType value = DType::I16;
};
template <>
struct DTypeOf<std::int32_t> {
  static constexpr DType value = DType::I32;
};
template <>
struct DTypeOf<std::uint32_t> {
  static constexpr DType value = DType::U32;
};
template <>
struct DTypeOf<std::int64_t> {
  static constexpr DType value = DType::I64;
};
template <>
struct DTypeOf<std::uint64_t> {
  static constexpr DType value = DType::U64;
};
template <>
struct DTypeOf<bool> {
  static constexpr DType value = DType::Bool;
};

/// How contributions are combined: folded over the seats 0..N-1 in that order.
enum class ReduceOp : std::uint8_t {
  Sum,
  Avg,  ///< Sum, then divided by the number of contributors; floats only
  Prod,
  Min,   ///< NaN if any is NaN; -0 is below +0
  Max,   ///< likewise
  BAnd,  ///< bitwise; integers and Bool
  BOr,
  BXor,
  PremulSum,  ///< each contribution times OpOptions::factor, then Sum; floats only
};
inline constexpr int kReduceOpCount = 9;

/// Whether `op` is defined for `type`; where it is not, the call is InvalidArgument. Of Bool, Sum,
/// Max and BOr are "or", Prod, Min and BAnd are "and", BXor is "exclusive or", and every result is
/// 0 or 1. Integers wrap modulo 2^n.
[[nodiscard]] constexpr bool is_defined(ReduceOp op, DType type) {
  switch (op) {
    case ReduceOp::Sum:
    case ReduceOp::Prod:
    case ReduceOp::Min:
    case ReduceOp::Max: return true;
    case ReduceOp::Avg:
    case ReduceOp::PremulSum: return is_float(type);
    case ReduceOp::BAnd:
    case ReduceOp::BOr:
    case ReduceOp::BXor: return !is_float(type);
  }
  return false;
}

/// What happens when a rank is lost.
enum class OnLoss : std::uint8_t {
  Replay,   ///< survivors stop at the step's start, the newcomer heals to it, all redo the step
  CarryOn,  ///< survivors finish the step without the lost contribution; a newcomer joins after it
  /// The operation fails fast, the group re-forms with a spare, the caller reruns the request
  Replace,
  Shrink,  ///< the seat stays vacant
  Abort,   ///< the job ends and names the first cause
};

using Clock = std::chrono::steady_clock;
using TimePoint = Clock::time_point;
using std::chrono::nanoseconds;

}  // namespace regroup

template <class Tag, class Rep>
struct std::hash<regroup::StrongId<Tag, Rep>> {
  std::size_t operator()(regroup::StrongId<Tag, Rep> id) const noexcept {
    return std::hash<Rep>{}(id.value());
  }
};
