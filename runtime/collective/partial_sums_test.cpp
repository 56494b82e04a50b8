#include "collective/partial_sums.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

namespace regroup::collective {
namespace {

constexpr int kInputs = 7;

std::vector<std::vector<std::byte>> random_inputs(DType type, std::size_t count,
                                                  std::mt19937_64& random) {
  std::vector<std::vector<std::byte>> inputs(kInputs);
  for (auto& input : inputs) {
    for (std::size_t i = 0; i < count * size_of(type); ++i)
      input.push_back(static_cast<std::byte>(random()));
  }
  return inputs;
}

/// The inputs cut into parts, each folded onto what the ones before came to.
std::vector<std::byte> in_parts(DType type, ReduceOp op, std::size_t count,
                                const std::vector<std::vector<std::byte>>& inputs,
                                const std::vector<int>& parts) {
  const Scaling scaling{kInputs, 0.3};
  std::vector<std::byte> sum;
  std::size_t next = 0;
  for (const int part : parts) {
    std::vector<const void*> sources;
    const bool onto_sum = next > 0;
    if (onto_sum) sources.push_back(sum.data());
    for (int i = 0; i < part; ++i) sources.push_back(inputs[next++].data());
    const bool goes_on = next < inputs.size();
    std::vector<std::byte> out(count * size_of(goes_on ? sum_type(type) : type));
    fold_part(type, op, out.data(), sources.data(), static_cast<int>(sources.size()), count,
              scaling, {.onto_sum = onto_sum, .goes_on = goes_on});
    sum = out;
  }
  return sum;
}

// Any bits: infinities, NaN and subnormal numbers among them.
TEST(PartialSums, AnyCutOfTheMembersGivesTheBitsOfOneFold) {
  std::mt19937_64 random(7);
  for (int t = 0; t < kDTypeCount; ++t) {
    for (int o = 0; o < kReduceOpCount; ++o) {
      const auto type = static_cast<DType>(t);
      const auto op = static_cast<ReduceOp>(o);
      if (!is_defined(op, type)) continue;
      for (const std::size_t count : {std::size_t{1}, std::size_t{511}, std::size_t{1031}}) {
        const auto inputs = random_inputs(type, count, random);
        std::vector<const void*> sources;
        for (const auto& input : inputs) sources.push_back(input.data());
        std::vector<std::byte> whole(count * size_of(type));
        reduce(type, op, whole.data(), sources.data(), kInputs, count, {kInputs, 0.3});
        for (const auto& parts :
             std::vector<std::vector<int>>{{7}, {1, 6}, {6, 1}, {2, 3, 2}, {1, 1, 1, 1, 1, 1, 1}}) {
          EXPECT_EQ(in_parts(type, op, count, inputs, parts), whole)
              << "type " << t << " op " << o << " count " << count << ", " << parts.size()
              << " parts";
        }
      }
    }
  }
}

}  // namespace
}  // namespace regroup::collective
