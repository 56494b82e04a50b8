/// Whether the coordinator still moves: a stopped or stuck one would leave the next loss
/// unrepaired.
#pragma once

#include <optional>
#include <string>

#include <regroup/status.hpp>
#include <regroup/types.hpp>

#include "membership/failure_detector.hpp"
#include "metrics/beacon_page.hpp"

namespace regroup::launcher {

/// How often a coordinator moves its counter: a fraction of the budget for silent ranks.
[[nodiscard]] nanoseconds coordinator_beat_every(nanoseconds detect_budget);

/// Watches the counter that the coordinator keeps moving in memory shared with the launcher. A
/// silent one is out within twice the detect budget; each next one that falls silent without having
/// proved itself gets twice the time of the one before, so that a disk that is slow for a while
/// does not end coordinators for ever. Thread safety: one thread. Never blocks.
class CoordinatorWatch {
 public:
  /// Errors: ResourceExhausted.
  static Result<CoordinatorWatch> make(nanoseconds detect_budget);

  /// The memory, to be inherited by every coordinator.
  [[nodiscard]] int fd() const { return page_.fd(); }
  /// A coordinator has been started.
  void begin(TimePoint now);
  /// It is gone: nobody is awaited.
  void end();
  /// When look() wants to be called; none: nobody is watched.
  [[nodiscard]] std::optional<TimePoint> due() const;
  /// Reads the counter. Why the coordinator counts as stuck; none: it moves, or has time left.
  [[nodiscard]] std::optional<std::string> look(TimePoint now);

 private:
  CoordinatorWatch(nanoseconds detect_budget, metrics::PageMapping page)
      : budget_(detect_budget), page_(std::move(page)) {}

  nanoseconds budget_;
  metrics::PageMapping page_;
  std::optional<membership::FailureDetector> detector_;
  TimePoint proved_at_;  ///< a coordinator that is alive then has proved itself
  int doublings_ = 0;
};

}  // namespace regroup::launcher
