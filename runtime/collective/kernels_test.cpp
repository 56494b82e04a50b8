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
#include "collective/kernels_oracle.hpp"

namespace regroup::collective {
namespace {

// ---- the fixture

template <class CallFn>
void for_each_defined(const CallFn& call) {
  for (int type = 0; type < kDTypeCount; ++type) {
    for (int op = 0; op < kReduceOpCount; ++op) {
      if (is_defined(static_cast<ReduceOp>(op), static_cast<DType>(type)))
        call(static_cast<DType>(type), static_cast<ReduceOp>(op));
    }
  }
}

constexpr DType kFloats[] = {DType::F64,  DType::F32,    DType::F16,
                             DType::BF16, DType::F8E4M3, DType::F8E5M2};
constexpr ReduceOp kFloatOps[] = {ReduceOp::Sum, ReduceOp::Avg, ReduceOp::Prod,
                                  ReduceOp::Min, ReduceOp::Max, ReduceOp::PremulSum};
constexpr ReduceOp kIntegerOps[] = {ReduceOp::Sum,  ReduceOp::Prod, ReduceOp::Min, ReduceOp::Max,
                                    ReduceOp::BAnd, ReduceOp::BOr,  ReduceOp::BXor};

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
  static void compare(DType type, ReduceOp op, const std::vector<Bytes>& inputs,
                      const Scaling& scaling = {3, 0.3}, std::size_t misalign = 0) {
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
    oracle(type, {op, expected.data(), pointers.data(), inputs_count, count, scaling});

    constexpr std::size_t kGuard = 64;
    Bytes out(misalign + bytes + kGuard, std::byte{0xA5});
    reduce(type, op, out.data() + misalign, pointers.data(), inputs_count, count, scaling);
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

std::vector<std::uint8_t> all_bytes() {
  std::vector<std::uint8_t> bytes(256);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::uint8_t>(i);
  return bytes;
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
      for (const ReduceOp op : kFloatOps) compare(type, op, inputs, {7, 1.7});
    }
  });
}

TEST_F(KernelsTest, CombinesAllPairsOf8BitFloats) {
  const auto pairs = all_pairs(all_bytes());
  on_every_target([&] {
    for (const DType type : {DType::F8E4M3, DType::F8E5M2}) {
      for (const ReduceOp op : kFloatOps) {
        compare(type, op, {pairs[0]});
        compare(type, op, pairs);
        compare(type, op, {pairs[0], pairs[1], pairs[0]}, {3, 0.01});
      }
    }
  });
}

// What PyTorch's conversions from float give, in numbers: float8_e4m3fn has no infinity.
TEST_F(KernelsTest, Rounds8BitFloatsAsPyTorchDoes) {
  const auto scaled = [](DType type, std::uint8_t one, double factor) {
    std::uint8_t out = 0xEE;
    const void* inputs[] = {&one};
    reduce(type, ReduceOp::PremulSum, &out, inputs, 1, 1, {1, factor});
    return int{out};
  };
  on_every_target([&] {
    const auto e4m3 = [&](double value) { return scaled(DType::F8E4M3, 0x38, value); };
    EXPECT_EQ(e4m3(1.0), 0x38);
    EXPECT_EQ(e4m3(448.0), 0x7E);
    EXPECT_EQ(e4m3(464.0), 0x7E) << "half way to 480: the even one";
    EXPECT_EQ(e4m3(465.0), 0x7F);
    EXPECT_EQ(e4m3(-465.0), 0xFF) << "overflow keeps the sign";
    EXPECT_EQ(e4m3(1e30), 0x7F);
    EXPECT_EQ(e4m3(-HUGE_VAL), 0xFF);
    EXPECT_EQ(e4m3(-NAN), 0x7F);
    EXPECT_EQ(e4m3(0x1p-9), 0x01);
    EXPECT_EQ(e4m3(0x1p-10), 0x00) << "half of the smallest: the even one";
    EXPECT_EQ(e4m3(-0x1.8p-10), 0x81);
    EXPECT_EQ(e4m3(0x1.fp-7), 0x08) << "half way between the subnormals and 2^-6";
    const auto e5m2 = [&](double value) { return scaled(DType::F8E5M2, 0x3C, value); };
    EXPECT_EQ(e5m2(1.0), 0x3C);
    EXPECT_EQ(e5m2(57344.0), 0x7B);
    EXPECT_EQ(e5m2(61439.0), 0x7B);
    EXPECT_EQ(e5m2(61440.0), 0x7C);
    EXPECT_EQ(e5m2(-1e30), 0xFC);
    EXPECT_EQ(e5m2(NAN), 0x7F);
    EXPECT_EQ(e5m2(0x1p-16), 0x01);
    EXPECT_EQ(e5m2(0x1p-17), 0x00);
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
  constexpr std::uint16_t kOthers[] = {0x0001, 0x7FFF, 0x8000, 0xA5A5, 0xFFFF};
  const auto i32 = all_pairs<std::int32_t>({0, 1, -1, 7, 65537, INT32_MIN, INT32_MAX});
  const auto i64 = all_pairs<std::int64_t>({0, 1, -1, 7, 0x123456789ABCDEF, INT64_MIN, INT64_MAX});
  const auto bytes = all_pairs(all_bytes());
  const Bytes words = bytes_of(all_words());
  on_every_target([&] {
    for (const ReduceOp op : kIntegerOps) {
      for (const DType type : {DType::I32, DType::U32}) compare(type, op, i32);
      for (const DType type : {DType::I64, DType::U64}) compare(type, op, i64);
      for (const DType type : {DType::I8, DType::U8, DType::Bool}) compare(type, op, bytes);
      for (const std::uint16_t other : kOthers) {
        compare(DType::I16, op, {words, bytes_of(std::vector<std::uint16_t>(65536, other))});
      }
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
          compare(type, op, inputs, {static_cast<int>(inputs_count), -0.7}, count % 5);
          if (HasFatalFailure()) return;
        }
      }
    };
    for_each_defined(each);
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
        oracle(type, {ReduceOp::Avg, expected.data(), pointers, 3, kCount, {3}});
        reduce(type, ReduceOp::Avg, inputs[alias].data(), pointers, 3, kCount, {3});
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
  reduce(DType::F32, ReduceOp::Sum, &out, cancel_first, 3, 1);
  EXPECT_EQ(out, 1.0F);
  const void* absorb_first[] = {&first, &third, &second};
  reduce(DType::F32, ReduceOp::Sum, &out, absorb_first, 3, 1);
  EXPECT_EQ(out, 0.0F);
}

TEST_F(KernelsTest, RoundsOnceNotAfterEveryInput) {
  // 256 + 1 needs nine bits of mantissa: rounding after each addition would lose each of the ones.
  const BFloat16 big{0x4380};
  const BFloat16 one{0x3F80};
  const void* inputs[] = {&big, &one, &one, &one, &one};
  BFloat16 out;
  reduce(DType::BF16, ReduceOp::Sum, &out, inputs, 5, 1);
  EXPECT_EQ(out.bits, 0x4382);
}

TEST(KernelsDeathTest, WhatIsNotDefinedIsADefect) {
  const std::int32_t value = 1;
  const void* inputs[] = {&value};
  std::int32_t out = 0;
  EXPECT_DEATH(reduce(DType::I32, ReduceOp::Avg, &out, inputs, 1, 1), "operation on integers");
  EXPECT_DEATH(reduce(DType::F32, ReduceOp::BAnd, &out, inputs, 1, 1), "operation on floats");
  EXPECT_DEATH(reduce(DType::Bool, ReduceOp::Avg, &out, inputs, 1, 1), "operation on bool");
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

TEST(CopyPastCaches, MovesTheseBytesAndNoOthersAtAnyAlignment) {
  constexpr std::size_t kRoom = 512;
  Bytes from(kRoom);
  for (std::size_t i = 0; i < kRoom; ++i) from[i] = static_cast<std::byte>(i * 7 + 1);
  for (const std::size_t bytes : {0, 1, 31, 63, 64, 65, 128, 200, 257}) {
    for (std::size_t to_at = 0; to_at < 65; to_at += 13) {
      for (std::size_t from_at = 0; from_at < 65; from_at += 8) {
        Bytes to(kRoom);
        Bytes wanted(kRoom);
        std::copy_n(from.data() + from_at, bytes, wanted.data() + to_at);
        copy_past_caches(to.data() + to_at, from.data() + from_at, bytes);
        ASSERT_EQ(to, wanted) << bytes << " bytes from " << from_at << " to " << to_at;
      }
    }
  }
}

}  // namespace
}  // namespace regroup::collective
