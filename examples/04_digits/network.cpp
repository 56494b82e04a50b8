#include "network.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

namespace digits {

Network::Network(std::size_t hidden, std::uint64_t seed)
    : hidden_(hidden),
      parameters_(kPixels * hidden + hidden + kClasses * hidden + kClasses),
      activations_(hidden),
      errors_(hidden),
      scores_(kClasses) {
  // Uniform with He's variance 2 / inputs; biases stay 0.
  const auto fill = [&](std::size_t begin, std::size_t end, std::size_t inputs) {
    const float limit = std::sqrt(6.0F / static_cast<float>(inputs));
    for (std::size_t i = begin; i < end; ++i) {
      const auto unit = static_cast<float>(random_bits(seed, i) >> 40) * 0x1p-24F;
      parameters_[i] = limit * (2.0F * unit - 1.0F);
    }
  };
  fill(0, hidden_bias(), kPixels);
  fill(output_weights(), output_bias(), hidden);
}

void Network::forward(const Sample& sample) {
  const float* weights = parameters_.data();
  std::copy_n(weights + hidden_bias(), hidden_, activations_.begin());
  for (std::size_t i = 0; i < kPixels; ++i) {
    const float pixel = sample.pixels[i];
    if (pixel == 0.0F) continue;  // about half of them
    const float* row = weights + i * hidden_;
    for (std::size_t j = 0; j < hidden_; ++j) activations_[j] += pixel * row[j];
  }
  for (float& activation : activations_) activation = std::max(activation, 0.0F);
  for (std::size_t k = 0; k < kClasses; ++k) {
    const float* row = weights + output_weights() + k * hidden_;
    float score = weights[output_bias() + k];
    for (std::size_t j = 0; j < hidden_; ++j) score += activations_[j] * row[j];
    scores_[k] = score;
  }
}

float Network::soften(std::size_t digit) {
  const float highest = *std::max_element(scores_.begin(), scores_.end());
  float sum = 0;
  for (float& score : scores_) {
    score = std::exp(score - highest);
    sum += score;
  }
  for (float& score : scores_) score /= sum;
  return -std::log(std::max(scores_[digit], 1e-30F));
}

void Network::backward(const Sample& sample, std::span<float> gradient) {
  const float* weights = parameters_.data();
  scores_[sample.digit] -= 1.0F;  // the cross entropy's derivative by the scores
  std::fill(errors_.begin(), errors_.end(), 0.0F);
  for (std::size_t k = 0; k < kClasses; ++k) {
    const float error = scores_[k];
    const float* row = weights + output_weights() + k * hidden_;
    float* row_gradient = gradient.data() + output_weights() + k * hidden_;
    for (std::size_t j = 0; j < hidden_; ++j) {
      errors_[j] += error * row[j];
      row_gradient[j] += error * activations_[j];
    }
    gradient[output_bias() + k] += error;
  }
  for (std::size_t j = 0; j < hidden_; ++j) {
    if (activations_[j] == 0.0F) errors_[j] = 0.0F;
    gradient[hidden_bias() + j] += errors_[j];
  }
  for (std::size_t i = 0; i < kPixels; ++i) {
    const float pixel = sample.pixels[i];
    if (pixel == 0.0F) continue;
    float* row_gradient = gradient.data() + i * hidden_;
    for (std::size_t j = 0; j < hidden_; ++j) row_gradient[j] += pixel * errors_[j];
  }
}

void Network::accumulate(std::span<const Sample* const> samples, std::span<float> sums) {
  const std::size_t statistics = parameters_.size();
  for (const Sample* sample : samples) {
    forward(*sample);
    if (best() == sample->digit) sums[statistics + 1] += 1.0F;
    sums[statistics] += soften(sample->digit);
    backward(*sample, sums.first(statistics));
  }
}

std::size_t Network::best() const {
  return static_cast<std::size_t>(std::max_element(scores_.begin(), scores_.end()) -
                                  scores_.begin());
}

double Network::accuracy(std::span<const Sample> samples) {
  std::size_t correct = 0;
  for (const Sample& sample : samples) {
    forward(sample);
    if (best() == sample.digit) ++correct;
  }
  return static_cast<double>(correct) / static_cast<double>(samples.size());
}

std::uint64_t random_bits(std::uint64_t seed, std::uint64_t counter) {
  // splitmix64: its state after `counter` draws is known without drawing them.
  std::uint64_t bits = seed * 0xD1342543DE82EF95u + (counter + 1) * 0x9E3779B97F4A7C15u;
  bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9u;
  bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EBu;
  return bits ^ (bits >> 31);
}

std::vector<std::size_t> shuffled(std::size_t count, std::uint64_t seed, std::uint64_t epoch) {
  std::vector<std::size_t> order(count);
  std::iota(order.begin(), order.end(), std::size_t{0});
  const std::uint64_t stream = random_bits(seed, ~epoch);
  for (std::size_t i = count; i > 1; --i) {
    std::swap(order[i - 1], order[random_bits(stream, i) % i]);
  }
  return order;
}

}  // namespace digits
