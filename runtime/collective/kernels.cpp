#include "collective/kernels.hpp"

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "base/check.hpp"

namespace regroup::collective {
namespace {

template <class T>
T load(const void* base, std::size_t index) {
  T value;
  std::memcpy(&value, static_cast<const std::byte*>(base) + index * sizeof(T), sizeof(T));
  return value;
}

template <class T>
void store(void* base, std::size_t index, T value) {
  std::memcpy(static_cast<std::byte*>(base) + index * sizeof(T), &value, sizeof(T));
}

float widen(BFloat16 value) { return std::bit_cast<float>(std::uint32_t{value.bits} << 16); }

float widen(Half value) {
  const std::uint32_t sign = (value.bits & 0x8000u) << 16;
  const std::uint32_t exponent = (value.bits >> 10) & 0x1Fu;
  const std::uint32_t mantissa = value.bits & 0x3FFu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000u | (mantissa << 13));
  if (exponent == 0) {
    const float magnitude = std::ldexp(static_cast<float>(mantissa), -24);
    return sign != 0 ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

template <class T>
T narrow(float value);

template <>
BFloat16 narrow<BFloat16>(float value) {
  if (std::isnan(value)) return {0x7FC0};
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return {static_cast<std::uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16)};
}

template <>
Half narrow<Half>(float value) {
  if (std::isnan(value)) return {0x7E00};
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const float magnitude = std::fabs(value);
  std::uint32_t half = 0x7C00;
  if (magnitude < 0x1p-14F) {
    half = static_cast<std::uint32_t>(std::nearbyint(std::ldexp(magnitude, 24)));
  } else if (magnitude < 65520.0F) {
    const std::uint32_t rebased = (bits & 0x7FFFFFFFu) - (112u << 23);
    half = (rebased + 0xFFFu + ((rebased >> 13) & 1u)) >> 13;
  }
  return {static_cast<std::uint16_t>(sign | half)};
}

template <class T>
T combine_min_max(ReduceOp op, T a, T b) {
  const bool smaller = op == ReduceOp::Min;
  if constexpr (std::is_floating_point_v<T>) {
    if (std::isnan(a)) return a;
    if (std::isnan(b)) return b;
    if (a == b) return std::signbit(a) == smaller ? a : b;
  }
  return (a < b) == smaller ? a : b;
}

template <class T>
T combine(ReduceOp op, T a, T b) {
  using Wide = std::conditional_t<std::is_integral_v<T>, std::uint64_t, T>;
  switch (op) {
    case ReduceOp::Sum:
    case ReduceOp::Avg:
      return static_cast<T>(static_cast<Wide>(a) + static_cast<Wide>(b));
    case ReduceOp::Prod:
      return static_cast<T>(static_cast<Wide>(a) * static_cast<Wide>(b));
    case ReduceOp::Min:
    case ReduceOp::Max:
      return combine_min_max(op, a, b);
  }
  REGROUP_UNREACHABLE("reduce operation");
}

template <class T>
T finish(ReduceOp op, T value, int divisor) {
  if constexpr (std::is_floating_point_v<T>) {
    if (op == ReduceOp::Avg) value /= static_cast<T>(divisor);
    if (std::isnan(value)) return std::numeric_limits<T>::quiet_NaN();
  }
  return value;
}

template <class T>
void fold(ReduceOp op, void* out, const void* const* inputs, int inputs_count, std::size_t count, int divisor) {
  for (std::size_t i = 0; i < count; ++i) {
    T value = load<T>(inputs[0], i);
    for (int k = 1; k < inputs_count; ++k) value = combine(op, value, load<T>(inputs[k], i));
    store<T>(out, i, finish(op, value, divisor));
  }
}

template <class T>
void fold_16(ReduceOp op, void* out, const void* const* inputs, int inputs_count, std::size_t count, int divisor) {
  for (std::size_t i = 0; i < count; ++i) {
    float value = widen(load<T>(inputs[0], i));
    for (int k = 1; k < inputs_count; ++k) value = combine(op, value, widen(load<T>(inputs[k], i)));
    store<T>(out, i, narrow<T>(finish(op, value, divisor)));
  }
}

}  // namespace

void reduce(DType type, ReduceOp op, void* out, const void* const* inputs, int inputs_count, std::size_t count,
            int divisor) {
  REGROUP_ASSERT(inputs_count >= 1);
  switch (type) {
    case DType::F64: return fold<double>(op, out, inputs, inputs_count, count, divisor);
    case DType::F32: return fold<float>(op, out, inputs, inputs_count, count, divisor);
    case DType::F16: return fold_16<Half>(op, out, inputs, inputs_count, count, divisor);
    case DType::BF16: return fold_16<BFloat16>(op, out, inputs, inputs_count, count, divisor);
    case DType::I32: break;
    case DType::I64: break;
    case DType::U8: break;
  }
  REGROUP_ASSERT(op != ReduceOp::Avg);
  if (type == DType::I32) return fold<std::int32_t>(op, out, inputs, inputs_count, count, divisor);
  if (type == DType::I64) return fold<std::int64_t>(op, out, inputs, inputs_count, count, divisor);
  fold<std::uint8_t>(op, out, inputs, inputs_count, count, divisor);
}

void copy(void* out, const void* in, std::size_t bytes) {
  if (bytes != 0 && out != in) std::memcpy(out, in, bytes);
}

}  // namespace regroup::collective
