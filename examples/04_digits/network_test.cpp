#include "network.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace digits {
namespace {

std::vector<const Sample*> pointers(const std::vector<Sample>& samples, std::size_t count) {
  std::vector<const Sample*> out;
  for (std::size_t i = 0; i < count; ++i) out.push_back(&samples[i]);
  return out;
}

TEST(Digits, HoldsOutEveryFifthImage) {
  const DataSet data = load();
  EXPECT_EQ(data.training.size(), 1438u);
  EXPECT_EQ(data.held_out.size(), 359u);
  for (const Sample& sample : data.held_out) {
    EXPECT_LT(sample.digit, kClasses);
    EXPECT_GE(*std::min_element(sample.pixels.begin(), sample.pixels.end()), 0.0F);
    EXPECT_LE(*std::max_element(sample.pixels.begin(), sample.pixels.end()), 1.0F);
  }
}

TEST(Network, GradientIsTheSlopeOfTheLoss) {
  const DataSet data = load();
  const auto samples = pointers(data.training, 8);
  Network network(16, 3);
  auto& parameters = network.parameters();
  const auto sums_at = [&] {
    std::vector<float> sums(parameters.size() + kStatistics);
    network.accumulate(samples, sums);
    return sums;
  };
  const std::vector<float> gradient = sums_at();
  constexpr float kStep = 1e-3F;  // small, since a rectifier that changes sides bends the slope
  std::size_t nonzero = 0;
  for (std::size_t i = 0; i < parameters.size(); i += 7) {
    const float kept = parameters[i];
    parameters[i] = kept + kStep;
    const float above = sums_at()[parameters.size()];
    parameters[i] = kept - kStep;
    const float below = sums_at()[parameters.size()];
    parameters[i] = kept;
    EXPECT_NEAR(gradient[i], (above - below) / (2 * kStep), 0.02 + 0.02 * std::fabs(gradient[i]));
    if (gradient[i] != 0.0F) ++nonzero;
  }
  EXPECT_GT(nonzero, parameters.size() / 20);
}

TEST(Network, LearnsToReadWhatItNeverSaw) {
  const DataSet data = load();
  const auto samples = pointers(data.training, data.training.size());
  Network network(32, 1);
  const double before = network.accuracy(data.held_out);
  auto& parameters = network.parameters();
  std::vector<float> sums(parameters.size() + kStatistics);
  for (int step = 0; step < 150; ++step) {
    std::fill(sums.begin(), sums.end(), 0.0F);
    network.accumulate(samples, sums);
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      parameters[i] -= 0.5F * sums[i] / static_cast<float>(samples.size());
    }
  }
  EXPECT_LT(before, 0.5);
  EXPECT_GT(network.accuracy(data.held_out), 0.9);
}

TEST(Network, FirstWeightsDependOnTheSeedOnly) {
  EXPECT_EQ(Network(16, 1).parameters(), Network(16, 1).parameters());
  EXPECT_NE(Network(16, 1).parameters(), Network(16, 2).parameters());
}

TEST(Shuffled, IsAPermutationThatDependsOnSeedAndEpoch) {
  const auto order = shuffled(1000, 1, 5);
  EXPECT_EQ(order, shuffled(1000, 1, 5));
  EXPECT_NE(order, shuffled(1000, 1, 6));
  EXPECT_NE(order, shuffled(1000, 2, 5));
  auto sorted = order;
  std::sort(sorted.begin(), sorted.end());
  for (std::size_t i = 0; i < sorted.size(); ++i) ASSERT_EQ(sorted[i], i);
}

}  // namespace
}  // namespace digits
