/// A perceptron with one hidden layer, in plain loops: each element is computed in one fixed order,
/// so equal inputs give equal bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "digits.hpp"

namespace digits {

/// What one pass over some samples gives; added up over ranks with the gradient.
inline constexpr std::size_t kStatistics = 2;  ///< loss, then correct answers

/// 64 pixels, `hidden` rectified units, 10 classes.
/// Thread safety: one thread at a time (it has scratch memory).
class Network {
 public:
  /// Weights are a function of (hidden, seed).
  Network(std::size_t hidden, std::uint64_t seed);

  /// All weights and biases; the address never changes.
  [[nodiscard]] std::vector<float>& parameters() { return parameters_; }
  [[nodiscard]] const std::vector<float>& parameters() const { return parameters_; }

  /// Adds the gradient of the cross entropy of these samples to `sums`, and the statistics behind
  /// it; `sums` holds parameters().size() + kStatistics elements.
  void accumulate(std::span<const Sample* const> samples, std::span<float> sums);

  /// Share of samples whose digit gets the highest score.
  [[nodiscard]] double accuracy(std::span<const Sample> samples);

 private:
  /// Fills activations_ and scores_.
  void forward(const Sample& sample);
  void backward(const Sample& sample, std::span<float> gradient);
  /// Turns scores_ into probabilities; returns the loss.
  float soften(std::size_t digit);
  [[nodiscard]] std::size_t best() const;

  // Offsets in parameters_ and in gradients.
  [[nodiscard]] std::size_t hidden_bias() const { return kPixels * hidden_; }
  [[nodiscard]] std::size_t output_weights() const { return hidden_bias() + hidden_; }
  [[nodiscard]] std::size_t output_bias() const { return output_weights() + kClasses * hidden_; }

  std::size_t hidden_;
  std::vector<float> parameters_;
  std::vector<float> activations_;
  std::vector<float> errors_;  ///< of the hidden units
  std::vector<float> scores_;
};

/// Random numbers without a state: the value depends on (seed, counter) only.
[[nodiscard]] std::uint64_t random_bits(std::uint64_t seed, std::uint64_t counter);

/// A permutation of 0..count-1 that depends on (count, seed, epoch) only.
[[nodiscard]] std::vector<std::size_t> shuffled(std::size_t count, std::uint64_t seed,
                                                std::uint64_t epoch);

}  // namespace digits
