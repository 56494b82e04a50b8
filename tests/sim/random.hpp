/// The only source of chance in the simulator: one 64-bit seed decides everything.
#pragma once

#include <array>
#include <cstdint>

namespace regroup::sim {

using Nanos = std::int64_t;
inline constexpr Nanos kMicrosecond = 1000;
inline constexpr Nanos kMillisecond = 1000 * kMicrosecond;
inline constexpr Nanos kSecond = 1000 * kMillisecond;

/// SplitMix64's finisher: spreads any 64-bit value, good enough as a hash of small structs.
[[nodiscard]] constexpr std::uint64_t spread(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}
[[nodiscard]] constexpr std::uint64_t combine(std::uint64_t a, std::uint64_t b) {
  return spread(a ^ (spread(b) + 0x9e3779b97f4a7c15ULL + (a << 6) + (a >> 2)));
}

/// xoshiro256**, seeded by SplitMix64. Equal on every compiler: no std distribution is used.
/// Thread safety: none, one thread owns it.
class Random {
 public:
  explicit Random(std::uint64_t seed) {
    for (auto& word : state_) word = seed = spread(seed);
  }
  std::uint64_t next() {
    const std::uint64_t result = rotl(state_[1] * 5, 7) * 9;
    const std::uint64_t t = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= t;
    state_[3] = rotl(state_[3], 45);
    return result;
  }
  /// Uniform in 0..n-1; n is at least 1. The bias of the modulo is of no concern here.
  std::uint64_t below(std::uint64_t n) { return next() % n; }
  /// Uniform in low..high, both included.
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(below(static_cast<std::uint64_t>(high - low + 1)));
  }
  double unit() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }
  bool chance(double probability) { return unit() < probability; }
  /// Mostly near `mean`, now and then up to sixteen times as long: what delays look like.
  Nanos delay(Nanos mean) {
    const std::uint64_t bits = next();
    const int shift = static_cast<int>(bits & 7) == 0 ? static_cast<int>((bits >> 3) & 3) + 1 : 0;
    const auto span = static_cast<std::uint64_t>(mean) << shift;
    return static_cast<Nanos>((bits >> 8) % (span + 1));
  }

 private:
  static constexpr std::uint64_t rotl(std::uint64_t x, int k) { return (x << k) | (x >> (64 - k)); }
  std::array<std::uint64_t, 4> state_{};
};

}  // namespace regroup::sim
