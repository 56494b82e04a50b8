/// What the ranks of a chaos job send each other: every element says by its value which seat sent
/// it, in which step and in which operation, so that a result can be checked without the runtime.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace chaos {

/// One round of splitmix64.
constexpr std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

/// A contribution is the line `base + i * slope` modulo 2^64: sums of lines are lines, so that an
/// expected result costs one multiplication an element, however many ranks took part.
struct Line {
  std::uint64_t base = 0;
  std::uint64_t slope = 0;
  [[nodiscard]] constexpr std::uint64_t at(std::size_t i) const { return base + i * slope; }
  constexpr Line& operator+=(const Line& other) {
    base += other.base;
    slope += other.slope;
    return *this;
  }
};

struct Where {
  std::uint64_t seed;
  std::uint64_t step;
  std::uint64_t operation;  ///< within the step
};

constexpr Line line_of(const Where& where, std::int64_t seat) {
  const std::uint64_t at = mix(mix(mix(where.seed) ^ where.step) ^ (where.operation << 32) ^
                               static_cast<std::uint64_t>(seat));
  return {at, mix(at) | 1};
}

/// Small whole numbers as doubles: their sums are exact, so the mean has one right value.
constexpr double fraction_of(const Where& where, std::int64_t seat, std::size_t i) {
  return static_cast<double>((line_of(where, seat).at(i) >> 40) & 0xfffff);
}

/// What a seat's own generator holds after `draws` draws: its volatile state.
constexpr std::uint64_t generator_of(std::uint64_t seed, std::int64_t seat, std::uint64_t draws) {
  return mix(seed ^ (0x5ea7ULL + static_cast<std::uint64_t>(seat))) + draws * 0x9e3779b97f4a7c15ULL;
}

inline constexpr std::size_t kStateElements = 256;
/// The numbers that operations of a step have in Where; the drawn ones follow.
enum Operation : std::uint64_t { kSumsOfState = 1, kMeansOfState = 2, kFirstDrawn = 8 };

/// The replicated state of a job, and how a step's results move it.
struct Model {
  std::vector<std::uint64_t> chain = std::vector<std::uint64_t>(kStateElements, 1);
  std::vector<double> means = std::vector<double>(kStateElements, 0.5);
  std::uint64_t stop_at = 0;  ///< 0: go on; else the number of steps after which all end

  void apply(const std::vector<std::uint64_t>& sums, const std::vector<double>& mean) {
    for (std::size_t i = 0; i < kStateElements; ++i) {
      chain[i] = chain[i] * 6364136223846793005ULL + sums[i];
      means[i] = means[i] * 0.99 + mean[i] * 0.01;
    }
  }
  /// Of the state alone, byte by byte (FNV-1a).
  [[nodiscard]] std::uint64_t digest() const {
    std::uint64_t hash = 14695981039346656037ULL;
    const auto feed = [&](const void* data, std::size_t bytes) {
      const auto* at = static_cast<const unsigned char*>(data);
      for (std::size_t i = 0; i < bytes; ++i) hash = (hash ^ at[i]) * 1099511628211ULL;
    };
    feed(chain.data(), chain.size() * sizeof(std::uint64_t));
    feed(means.data(), means.size() * sizeof(double));
    return hash;
  }
};

/// What `steps` undisturbed steps of `ranks` ranks make of the state, by arithmetic alone.
inline std::uint64_t undisturbed_digest(std::uint64_t seed, std::int64_t ranks,
                                        std::uint64_t steps) {
  Model model;
  std::vector<std::uint64_t> sums(kStateElements);
  std::vector<double> means(kStateElements);
  for (std::uint64_t step = 0; step < steps; ++step) {
    Line sum;
    for (std::int64_t seat = 0; seat < ranks; ++seat)
      sum += line_of({seed, step, kSumsOfState}, seat);
    for (std::size_t i = 0; i < kStateElements; ++i) {
      sums[i] = sum.at(i);
      double total = 0;
      for (std::int64_t seat = 0; seat < ranks; ++seat)
        total += fraction_of({seed, step, kMeansOfState}, seat, i);
      means[i] = total / static_cast<double>(ranks);
    }
    model.apply(sums, means);
  }
  return model.digest();
}

}  // namespace chaos
