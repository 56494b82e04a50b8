#include "metrics/clock.hpp"

#include <algorithm>

#if defined(__x86_64__)
#include <cpuid.h>
#include <x86intrin.h>
#endif

namespace regroup::metrics {
namespace {

#if defined(__x86_64__)
std::uint64_t read_ticks() { return __rdtsc(); }

bool counter_is_invariant() {
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  // Advanced power management leaf: bit 8 says that the counter runs at one rate in every power
  // state.
  return __get_cpuid(0x80000007, &a, &b, &c, &d) != 0 && (d >> 8 & 1) != 0;
}
#else
std::uint64_t read_ticks() { return 0; }
bool counter_is_invariant() { return false; }
#endif

}  // namespace

FastClock::FastClock() : usable_(counter_is_invariant()) {
  anchor_ticks_ = read_ticks();
  anchor_ns_ = last_ns_ = monotonic_ns();
}

std::uint64_t FastClock::now_ns() {
  if (!usable_) return monotonic_ns();
  const std::uint64_t ticks = read_ticks();
  const std::uint64_t elapsed =
      ticks - anchor_ticks_;  // a counter that went back is huge here and anchors anew
  if (elapsed >= period_ticks_) return anchor(ticks);
  const auto ns = static_cast<std::uint64_t>(static_cast<double>(elapsed) * ns_per_tick_);
  return last_ns_ = std::max(last_ns_, anchor_ns_ + ns);
}

std::uint64_t FastClock::anchor(std::uint64_t ticks) {
  const std::uint64_t ns = monotonic_ns();
  last_ns_ = std::max(last_ns_, ns);
  const std::uint64_t passed_ns = ns - anchor_ns_;
  // Too short a window would make the rate inexact (a reading is uncertain by some 50 ns): until
  // then ask the clock.
  if (passed_ns < kAnchorPeriodNs / 2) return last_ns_;
  if (ticks > anchor_ticks_) {
    const std::uint64_t passed_ticks = ticks - anchor_ticks_;
    ns_per_tick_ = static_cast<double>(passed_ns) / static_cast<double>(passed_ticks);
    period_ticks_ = static_cast<std::uint64_t>(static_cast<double>(kAnchorPeriodNs) / ns_per_tick_);
  }
  anchor_ticks_ = ticks;
  anchor_ns_ = ns;
  return last_ns_;
}

}  // namespace regroup::metrics
