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

/// Element types. Sizes in bytes: see size_of().
enum class DType : std::uint8_t { F64, F32, F16, BF16, I32, I64, U8 };
inline constexpr int kDTypeCount = 7;

/// Bytes of one element.
[[nodiscard]] constexpr std::size_t size_of(DType type) {
  switch (type) {
    case DType::F64:
    case DType::I64: return 8;
    case DType::F32:
    case DType::I32: return 4;
    case DType::F16:
    case DType::BF16: return 2;
    case DType::U8: return 1;
  }
  return 0;
}

/// IEEE binary16 and bfloat16 as storage: arithmetic happens in float, inside the reduction.
struct Half {
  std::uint16_t bits = 0;
  constexpr bool operator==(const Half&) const = default;
};
struct BFloat16 {
  std::uint16_t bits = 0;
  constexpr bool operator==(const BFloat16&) const = default;
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
struct DTypeOf<std::int32_t> {
  static constexpr DType value = DType::I32;
};
template <>
struct DTypeOf<std::int64_t> {
  static constexpr DType value = DType::I64;
};
template <>
struct DTypeOf<std::uint8_t> {
  static constexpr DType value = DType::U8;
};

/// How contributions are combined: folded over the seats 0..N-1 in that order, Avg then divided by
/// the number of contributors. Avg of integers is InvalidArgument. Min and Max propagate NaN and
/// order -0 below +0.
enum class ReduceOp : std::uint8_t { Sum, Avg, Prod, Min, Max };
inline constexpr int kReduceOpCount = 5;

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
