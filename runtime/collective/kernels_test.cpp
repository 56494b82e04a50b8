#include "collective/kernels.hpp"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "base/check.hpp"

namespace regroup::collective {
namespace {

// ---- the oracle: one element at a time, no vectors, conversions written differently

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
    case ReduceOp::Avg: return static_cast<T>(static_cast<Wide>(a) + static_cast<Wide>(b));
    case ReduceOp::Prod: return static_cast<T>(static_cast<Wide>(a) * static_cast<Wide>(b));
    case ReduceOp::Min:
    case ReduceOp::Max: return combine_min_max(op, a, b);
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
void fold(ReduceOp op, void* out, const void* const* inputs, int inputs_count, std::size_t count,
          int divisor) {
  for (std::size_t i = 0; i < count; ++i) {
    T value = load<T>(inputs[0], i);
    for (int k = 1; k < inputs_count; ++k) value = combine(op, value, load<T>(inputs[k], i));
    store<T>(out, i, finish(op, value, divisor));
  }
}

template <class T>
void fold_16(ReduceOp op, void* out, const void* const* inputs, int inputs_count, std::size_t count,
             int divisor) {
  for (std::size_t i = 0; i < count; ++i) {
    float value = widen(load<T>(inputs[0], i));
    for (int k = 1; k < inputs_count; ++k) value = combine(op, value, widen(load<T>(inputs[k], i)));
    store<T>(out, i, narrow<T>(finish(op, value, divisor)));
  }
}

void oracle(DType type, ReduceOp op, void* out, const void* const* inputs, int inputs_count,
            std::size_t count, int divisor) {
  switch (type) {
    case DType::F64: return fold<double>(op, out, inputs, inputs_count, count, divisor);
    case DType::F32: return fold<float>(op, out, inputs, inputs_count, count, divisor);
    case DType::F16: return fold_16<Half>(op, out, inputs, inputs_count, count, divisor);
    case DType::BF16: return fold_16<BFloat16>(op, out, inputs, inputs_count, count, divisor);
    case DType::I32: break;
    case DType::I64: break;
    case DType::U8: break;
  }
  if (type == DType::I32) return fold<std::int32_t>(op, out, inputs, inputs_count, count, divisor);
  if (type == DType::I64) return fold<std::int64_t>(op, out, inputs, inputs_count, count, divisor);
  fold<std::uint8_t>(op, out, inputs, inputs_count, count, divisor);
}

// ---- the fixture

constexpr DType kFloats[] = {DType::F64, DType::F32, DType::F16, DType::BF16};
constexpr DType kIntegers[] = {DType::I32, DType::I64, DType::U8};
constexpr ReduceOp kFloatOps[] = {ReduceOp::Sum, ReduceOp::Avg, ReduceOp::Prod, ReduceOp::Min,
                                  ReduceOp::Max};
constexpr ReduceOp kIntegerOps[] = {ReduceOp::Sum, ReduceOp::Prod, ReduceOp::Min, ReduceOp::Max};

using Bytes = std::vector<std::byte>;

std::string label(DType type, ReduceOp op, std::size_t inputs, std::size_t count) {
  return "type " + std::to_string(static_cast<int>(type)) + " op " +
         std::to_string(static_cast<int>(op)) + " inputs " + std::to_string(inputs) + " count " +
         std::to_string(count);
}

/// Every instruction set that was compiled and that this processor has, one after the other.
class KernelsTest : public ::testing::Test {
 protected:
  void TearDown() override { use(0); }

  template <class Body>
  void on_every_target(Body body) {
    const auto targets = hwy::SupportedAndGeneratedTargets();
    ASSERT_FALSE(targets.empty());
    for (const std::int64_t target : targets) {
      SCOPED_TRACE(hwy::TargetName(target));
      use(target);
      body();
      if (HasFatalFailure()) return;
    }
  }

  /// Runs kernel and oracle over the same inputs: same bits, and nothing around the result changes.
  static void compare(DType type, ReduceOp op, const std::vector<Bytes>& inputs, int divisor = 3,
                      std::size_t misalign = 0) {
    const std::size_t bytes = inputs[0].size();
    const std::size_t count = bytes / size_of(type);
    std::vector<Bytes> placed;
    std::vector<const void*> pointers;
    for (const Bytes& input : inputs) {
      placed.emplace_back(bytes + misalign);
      std::copy(input.begin(), input.end(), placed.back().data() + misalign);
      pointers.push_back(placed.back().data() + misalign);
    }
    const int inputs_count = static_cast<int>(inputs.size());
    Bytes expected(bytes);
    oracle(type, op, expected.data(), pointers.data(), inputs_count, count, divisor);

    constexpr std::size_t kGuard = 64;
    Bytes out(misalign + bytes + kGuard, std::byte{0xA5});
    reduce(type, op, out.data() + misalign, pointers.data(), inputs_count, count, divisor);
    expect_equal(type, expected, out.data() + misalign, label(type, op, inputs.size(), count));
    for (std::size_t i = 0; i < misalign; ++i) ASSERT_EQ(out[i], std::byte{0xA5}) << i;
    for (std::size_t i = misalign + bytes; i < out.size(); ++i) {
      ASSERT_EQ(out[i], std::byte{0xA5}) << label(type, op, inputs.size(), count);
    }
  }

  static void expect_equal(DType type, const Bytes& expected, const std::byte* actual,
                           const std::string& what) {
    if (expected.empty() || std::memcmp(expected.data(), actual, expected.size()) == 0) return;
    const std::size_t size = size_of(type);
    for (std::size_t i = 0; i < expected.size(); i += size) {
      std::uint64_t want = 0;
      std::uint64_t got = 0;
      std::memcpy(&want, expected.data() + i, size);
      std::memcpy(&got, actual + i, size);
      ASSERT_EQ(want, got) << what << " element " << i / size << std::hex << " want " << want
                           << " got " << got;
    }
  }

 private:
  /// 0 goes back to the best one.
  static void use(std::int64_t target) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
};

template <class T>
Bytes bytes_of(const std::vector<T>& values) {
  Bytes bytes(values.size() * sizeof(T));
  if (!bytes.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

/// Random bits: all exponents, so infinities, NaN and subnormals too.
Bytes random_bytes(std::mt19937_64& random, std::size_t size) {
  Bytes bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random() & 0xFF);
  return bytes;
}

std::vector<std::uint16_t> all_words() {
  std::vector<std::uint16_t> words(65536);
  for (std::size_t i = 0; i < words.size(); ++i) words[i] = static_cast<std::uint16_t>(i);
  return words;
}

/// Both columns of the table of all pairs.
template <class T>
std::vector<Bytes> all_pairs(const std::vector<T>& values) {
  std::vector<T> left;
  std::vector<T> right;
  for (const T a : values) {
    for (const T b : values) {
      left.push_back(a);
      right.push_back(b);
    }
  }
  return {bytes_of(left), bytes_of(right)};
}

template <class T>
std::vector<T> special_floats() {
  using Limits = std::numeric_limits<T>;
  std::vector<T> values = {T(0),
                           T(1),
                           T(3),
                           T(0.1),
                           Limits::min(),
                           Limits::denorm_min(),
                           Limits::max(),
                           Limits::epsilon(),
                           Limits::infinity(),
                           Limits::quiet_NaN(),
                           Limits::signaling_NaN()};
  for (std::size_t i = values.size(); i-- > 0;) values.push_back(-values[i]);
  return values;
}

// ---- the tests

TEST_F(KernelsTest, WidensAndRoundsEvery16BitValue) {
  const Bytes words = bytes_of(all_words());
  on_every_target([&] {
    for (const DType type : {DType::F16, DType::BF16}) {
      for (const ReduceOp op : kFloatOps) compare(type, op, {words});
    }
  });
}

TEST_F(KernelsTest, CombinesEvery16BitValueWithSpecialOnes) {
  constexpr std::uint16_t kOthers[] = {0x0001, 0x8000, 0x3C00, 0x3F80,
                                       0x7BFF, 0x7C00, 0x7F80, 0xFE01};
  const Bytes words = bytes_of(all_words());
  on_every_target([&] {
    for (const DType type : {DType::F16, DType::BF16}) {
      for (const std::uint16_t other : kOthers) {
        const Bytes others = bytes_of(std::vector<std::uint16_t>(65536, other));
        for (const ReduceOp op : kFloatOps) compare(type, op, {words, others});
      }
    }
  });
}

TEST_F(KernelsTest, CombinesRandom16BitValues) {
  std::mt19937_64 random(16);
  std::vector<Bytes> inputs;
  for (int i = 0; i < 3; ++i) inputs.push_back(random_bytes(random, 2 << 16));
  on_every_target([&] {
    for (const DType type : {DType::F16, DType::BF16}) {
      for (const ReduceOp op : kFloatOps) compare(type, op, inputs, 7);
    }
  });
}

TEST_F(KernelsTest, CombinesSpecialFloats) {
  const auto singles = all_pairs(special_floats<float>());
  const auto doubles = all_pairs(special_floats<double>());
  on_every_target([&] {
    for (const ReduceOp op : kFloatOps) {
      compare(DType::F32, op, singles);
      compare(DType::F64, op, doubles);
      compare(DType::F32, op, {singles[1], singles[0], singles[1]});
    }
  });
}

TEST_F(KernelsTest, WrapsIntegers) {
  const auto i32 = all_pairs<std::int32_t>({0, 1, -1, 7, 65537, INT32_MIN, INT32_MAX});
  const auto i64 = all_pairs<std::int64_t>({0, 1, -1, 7, 0x123456789ABCDEF, INT64_MIN, INT64_MAX});
  std::vector<std::uint8_t> all(256);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::uint8_t>(i);
  const auto u8 = all_pairs(all);
  on_every_target([&] {
    for (const ReduceOp op : kIntegerOps) {
      compare(DType::I32, op, i32);
      compare(DType::I64, op, i64);
      compare(DType::U8, op, u8);
    }
  });
}

TEST_F(KernelsTest, HandlesEveryTailCountAndAlignment) {
  std::mt19937_64 random(70);
  on_every_target([&] {
    const auto each = [&](DType type, ReduceOp op) {
      for (std::size_t inputs_count = 1; inputs_count <= 9; ++inputs_count) {
        for (std::size_t count = 0; count <= 70; count += inputs_count == 2 ? 1 : 3) {
          std::vector<Bytes> inputs;
          for (std::size_t k = 0; k < inputs_count; ++k) {
            inputs.push_back(random_bytes(random, count * size_of(type)));
          }
          compare(type, op, inputs, static_cast<int>(inputs_count), count % 5);
          if (HasFatalFailure()) return;
        }
      }
    };
    for (const DType type : kFloats) {
      for (const ReduceOp op : kFloatOps) each(type, op);
    }
    for (const DType type : kIntegers) {
      for (const ReduceOp op : kIntegerOps) each(type, op);
    }
  });
}

TEST_F(KernelsTest, OutMayBeAnyOneInput) {
  std::mt19937_64 random(3);
  constexpr std::size_t kCount = 333;
  on_every_target([&] {
    for (const DType type : kFloats) {
      for (std::size_t alias = 0; alias < 3; ++alias) {
        std::vector<Bytes> inputs;
        for (int k = 0; k < 3; ++k) inputs.push_back(random_bytes(random, kCount * size_of(type)));
        const void* pointers[] = {inputs[0].data(), inputs[1].data(), inputs[2].data()};
        Bytes expected(inputs[0].size());
        oracle(type, ReduceOp::Avg, expected.data(), pointers, 3, kCount, 3);
        reduce(type, ReduceOp::Avg, inputs[alias].data(), pointers, 3, kCount, 3);
        expect_equal(type, expected, inputs[alias].data(), label(type, ReduceOp::Avg, 3, kCount));
      }
    }
  });
}

TEST_F(KernelsTest, FoldsInTheGivenOrder) {
  const float first = 1e8F;
  const float second = -1e8F;
  const float third = 1.0F;
  float out = 0;
  const void* cancel_first[] = {&first, &second, &third};
  reduce(DType::F32, ReduceOp::Sum, &out, cancel_first, 3, 1, 0);
  EXPECT_EQ(out, 1.0F);
  const void* absorb_first[] = {&first, &third, &second};
  reduce(DType::F32, ReduceOp::Sum, &out, absorb_first, 3, 1, 0);
  EXPECT_EQ(out, 0.0F);
}

TEST_F(KernelsTest, RoundsOnceNotAfterEveryInput) {
  // 256 + 1 needs nine bits of mantissa: rounding after each addition would lose each of the ones.
  const BFloat16 big{0x4380};
  const BFloat16 one{0x3F80};
  const void* inputs[] = {&big, &one, &one, &one, &one};
  BFloat16 out;
  reduce(DType::BF16, ReduceOp::Sum, &out, inputs, 5, 1, 0);
  EXPECT_EQ(out.bits, 0x4382);
}

TEST(KernelsDeathTest, AverageOfIntegersIsADefect) {
  const std::int32_t value = 1;
  const void* inputs[] = {&value};
  std::int32_t out = 0;
  EXPECT_DEATH(reduce(DType::I32, ReduceOp::Avg, &out, inputs, 1, 1, 1), "average of integers");
}

TEST(Copy, MovesBytesAndAcceptsNothingOrItself) {
  Bytes from(100, std::byte{7});
  Bytes to(100);
  collective::copy(to.data(), from.data(), from.size());
  EXPECT_EQ(to, from);
  collective::copy(to.data(), to.data(), to.size());
  EXPECT_EQ(to, from);
  collective::copy(nullptr, nullptr, 0);
}

}  // namespace
}  // namespace regroup::collective
