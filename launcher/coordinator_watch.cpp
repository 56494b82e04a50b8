#include "launcher/coordinator_watch.hpp"

#include <algorithm>
#include <utility>

namespace regroup::launcher {
namespace {

using membership::FailureDetector;

constexpr Incarnation kIt{1};  // the detector's name for whoever it is now
constexpr int kDoublingsMax = 6;

}  // namespace

nanoseconds coordinator_beat_every(nanoseconds detect_budget) { return detect_budget / 6; }

Result<CoordinatorWatch> CoordinatorWatch::make(nanoseconds detect_budget) {
  Result<metrics::PageMapping> page = metrics::PageMapping::create(kIt);
  if (!page) return page.error();
  return CoordinatorWatch(detect_budget, std::move(*page));
}

void CoordinatorWatch::begin(TimePoint now) {
  const nanoseconds patience = budget_ * (1 << doublings_);
  membership::Timeouts timeouts;
  timeouts.beat_every = coordinator_beat_every(budget_);
  timeouts.check_every = timeouts.beat_every;
  timeouts.suspect_after = patience;
  timeouts.confirm_after = patience / 2;
  detector_.emplace(timeouts);
  detector_->watch(kIt, now);
  proved_at_ = now + 4 * patience;
}

void CoordinatorWatch::end() { detector_.reset(); }

std::optional<TimePoint> CoordinatorWatch::due() const {
  if (!detector_) return std::nullopt;
  return detector_->next_check();
}

std::optional<std::string> CoordinatorWatch::look(TimePoint now) {
  if (!detector_ || now < detector_->next_check()) return std::nullopt;
  detector_->beat(kIt, page_.page().beat.count.load(std::memory_order_acquire), now);
  for (const FailureDetector::Finding& finding : detector_->check(now)) {
    if (finding.verdict != FailureDetector::Verdict::Confirmed) continue;
    doublings_ = std::min(doublings_ + 1, kDoublingsMax);
    detector_.reset();
    return finding.why;
  }
  if (now >= proved_at_) doublings_ = 0;
  return std::nullopt;
}

}  // namespace regroup::launcher
