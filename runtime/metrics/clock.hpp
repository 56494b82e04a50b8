/// Time for the ledger at the price of one instruction where the processor offers it.
#pragma once

#include <cstdint>

#include "metrics/beacon_page.hpp"

namespace regroup::metrics {

/// CLOCK_MONOTONIC in nanoseconds. On x86 with an invariant time stamp counter it is computed from
/// the counter and anchored anew to the clock every kAnchorPeriodNs, so that it stays within about
/// a microsecond of it and can be compared with other processes' readings. Elsewhere every reading
/// asks the clock. Readings never go back. Thread safety: none; one object per thread, or guarded
/// by its owner.
class FastClock {
 public:
  static constexpr std::uint64_t kAnchorPeriodNs = 16'000'000;

  FastClock();
  [[nodiscard]] std::uint64_t now_ns();
  /// Whether the counter is in use; known from the second anchor on.
  [[nodiscard]] bool fast() const { return period_ticks_ != 0; }

 private:
  std::uint64_t anchor(std::uint64_t ticks);

  bool usable_;
  std::uint64_t anchor_ticks_ = 0;
  std::uint64_t anchor_ns_ = 0;
  std::uint64_t period_ticks_ = 0;  ///< after so many ticks anchor again; 0: rate not known yet
  double ns_per_tick_ = 0;
  std::uint64_t last_ns_ = 0;
};

}  // namespace regroup::metrics
