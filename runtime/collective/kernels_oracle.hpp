/// What reduce() must give: one element at a time, no vectors, conversions written differently. For
/// the kernels' tests.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "base/check.hpp"
#include "collective/kernels.hpp"

namespace regroup::collective {

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

inline float widen(BFloat16 value) { return std::bit_cast<float>(std::uint32_t{value.bits} << 16); }

inline float widen(Half value) {
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

/// All numbers of an 8-bit format, by their definition: sign, exponent, mantissa.
inline float widen_8(std::uint8_t bits, int mantissa_bits, int bias) {
  const int exponent = (bits & 0x7F) >> mantissa_bits;
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const int whole = exponent == 0 ? mantissa : mantissa + (1 << mantissa_bits);
  const float magnitude =
      std::ldexp(static_cast<float>(whole), std::max(exponent, 1) - bias - mantissa_bits);
  return (bits & 0x80) != 0 ? -magnitude : magnitude;
}

inline constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline float widen(Float8E4M3 value) {
  return (value.bits & 0x7F) == 0x7F ? kNaN : widen_8(value.bits, 3, 7);
}

inline float widen(Float8E5M2 value) {
  const int magnitude = value.bits & 0x7F;
  if (magnitude > 0x7C) return kNaN;
  if (magnitude == 0x7C) return value.bits == 0x7C ? kInfinity : -kInfinity;
  return widen_8(value.bits, 2, 15);
}

/// The nearest of the format's numbers up to `above`, which stands for all that is too large; of
/// two equally near ones the even. By search, not by arithmetic on bits.
template <class T>
std::uint8_t nearest_8(float magnitude, std::uint8_t above, double above_value) {
  static const std::vector<double> numbers = [&] {
    std::vector<double> all;
    for (int bits = 0; bits < above; ++bits) {
      all.push_back(double{widen(T{static_cast<std::uint8_t>(bits)})});
    }
    all.push_back(above_value);
    return all;
  }();
  const auto up = std::ranges::lower_bound(numbers, double{magnitude});
  const auto bits = up - numbers.begin();
  if (bits == 0) return 0;
  const double below = magnitude - numbers[static_cast<std::size_t>(bits - 1)];
  const double to_up = *up - magnitude;
  const bool is_up = to_up < below || (to_up == below && bits % 2 == 0);
  return static_cast<std::uint8_t>(is_up ? bits : bits - 1);
}

template <class T>
T narrow(float value);

template <>
inline Float8E4M3 narrow<Float8E4M3>(float value) {
  if (std::isnan(value)) return {0x7F};
  // 480 would be the next number; the NaN stands there.
  const float magnitude = std::min(std::fabs(value), 480.0F);
  const auto bits = nearest_8<Float8E4M3>(magnitude, 0x7F, 480);
  return {static_cast<std::uint8_t>(bits | (std::signbit(value) ? 0x80 : 0))};
}

template <>
inline Float8E5M2 narrow<Float8E5M2>(float value) {
  if (std::isnan(value)) return {0x7F};
  const float magnitude = std::min(std::fabs(value), 65536.0F);
  const auto bits = nearest_8<Float8E5M2>(magnitude, 0x7C, 65536);
  return {static_cast<std::uint8_t>(bits | (std::signbit(value) ? 0x80 : 0))};
}

template <>
inline BFloat16 narrow<BFloat16>(float value) {
  if (std::isnan(value)) return {0x7FC0};
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return {static_cast<std::uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16)};
}

template <>
inline Half narrow<Half>(float value) {
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
T combine_bits(ReduceOp op, T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    if (op == ReduceOp::BAnd) return static_cast<T>(a & b);
    if (op == ReduceOp::BOr) return static_cast<T>(a | b);
    return static_cast<T>(a ^ b);
  }
  REGROUP_UNREACHABLE("bits of floats");
}

template <class T>
T combine(ReduceOp op, T a, T b) {
  using Wide = std::conditional_t<std::is_integral_v<T>, std::uint64_t, T>;
  switch (op) {
    case ReduceOp::Sum:
    case ReduceOp::PremulSum:
    case ReduceOp::Avg: return static_cast<T>(static_cast<Wide>(a) + static_cast<Wide>(b));
    case ReduceOp::Prod: return static_cast<T>(static_cast<Wide>(a) * static_cast<Wide>(b));
    case ReduceOp::Min:
    case ReduceOp::Max: return combine_min_max(op, a, b);
    case ReduceOp::BAnd:
    case ReduceOp::BOr:
    case ReduceOp::BXor: return combine_bits(op, a, b);
  }
  REGROUP_UNREACHABLE("reduce operation");
}

template <class T>
T begin(ReduceOp op, T value, const Scaling& scaling) {
  if constexpr (std::is_floating_point_v<T>) {
    if (op == ReduceOp::PremulSum) return value * static_cast<T>(scaling.factor);
  }
  return value;
}

template <class T>
T finish(ReduceOp op, T value, const Scaling& scaling) {
  if constexpr (std::is_floating_point_v<T>) {
    if (op == ReduceOp::Avg) value /= static_cast<T>(scaling.divisor);
    if (std::isnan(value)) return std::numeric_limits<T>::quiet_NaN();
  }
  return value;
}

/// What a call of reduce() is told.
struct Call {
  ReduceOp op;
  void* out;
  const void* const* inputs;
  int inputs_count;
  std::size_t count;
  Scaling scaling;
};

template <class T>
void fold(const Call& call) {
  for (std::size_t i = 0; i < call.count; ++i) {
    T value = begin(call.op, load<T>(call.inputs[0], i), call.scaling);
    for (int k = 1; k < call.inputs_count; ++k) {
      value = combine(call.op, value, begin(call.op, load<T>(call.inputs[k], i), call.scaling));
    }
    store<T>(call.out, i, finish(call.op, value, call.scaling));
  }
}

template <class T>
void fold_narrow(const Call& call) {
  for (std::size_t i = 0; i < call.count; ++i) {
    float value = begin(call.op, widen(load<T>(call.inputs[0], i)), call.scaling);
    for (int k = 1; k < call.inputs_count; ++k) {
      value =
          combine(call.op, value, begin(call.op, widen(load<T>(call.inputs[k], i)), call.scaling));
    }
    store<T>(call.out, i, narrow<T>(finish(call.op, value, call.scaling)));
  }
}

inline bool combine_truth(ReduceOp op, bool a, bool b) {
  if (op == ReduceOp::BXor) return a != b;
  const bool all = op == ReduceOp::Prod || op == ReduceOp::Min || op == ReduceOp::BAnd;
  return all ? a && b : a || b;
}

inline void fold_truth(const Call& call) {
  for (std::size_t i = 0; i < call.count; ++i) {
    bool value = load<std::uint8_t>(call.inputs[0], i) != 0;
    for (int k = 1; k < call.inputs_count; ++k) {
      value = combine_truth(call.op, value, load<std::uint8_t>(call.inputs[k], i) != 0);
    }
    store<std::uint8_t>(call.out, i, value ? 1 : 0);
  }
}

inline void oracle(DType type, const Call& call) {
  switch (type) {
    case DType::F64: return fold<double>(call);
    case DType::F32: return fold<float>(call);
    case DType::F16: return fold_narrow<Half>(call);
    case DType::BF16: return fold_narrow<BFloat16>(call);
    case DType::F8E4M3: return fold_narrow<Float8E4M3>(call);
    case DType::F8E5M2: return fold_narrow<Float8E5M2>(call);
    case DType::I8: return fold<std::int8_t>(call);
    case DType::U8: return fold<std::uint8_t>(call);
    case DType::I16: return fold<std::int16_t>(call);
    case DType::I32: return fold<std::int32_t>(call);
    case DType::U32: return fold<std::uint32_t>(call);
    case DType::I64: return fold<std::int64_t>(call);
    case DType::U64: return fold<std::uint64_t>(call);
    case DType::Bool: return fold_truth(call);
  }
}

}  // namespace regroup::collective
