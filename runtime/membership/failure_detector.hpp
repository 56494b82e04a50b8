/// Silence: when does a process that shows no sign of life count as lost?
///
/// Two stages. A process whose heartbeat counter stands still for `suspect_after` is suspected; if
/// the counter still stands still `confirm_after` later, it is confirmed as silent. Before either
/// verdict the detector asks whether it is itself the late one: silence that passed while the
/// detector did not look is not counted.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <regroup/types.hpp>

namespace regroup::membership {

/// Every timeout of the control plane, all derived from one budget.
struct Timeouts {
  nanoseconds beat_every{};     ///< each process moves its counter this often
  nanoseconds check_every{};    ///< each agent reads the counters this often
  nanoseconds suspect_after{};  ///< silence until suspicion
  nanoseconds confirm_after{};  ///< further silence until eviction
  nanoseconds agent_lost{};     ///< an agent without a channel counts as lost after this
  nanoseconds resend_every{};   ///< the coordinator repeats an unanswered order this often
  nanoseconds finish_grace{};   ///< how long a loss waits when other seats have already finished
  bool operator==(const Timeouts&) const = default;
};

inline constexpr nanoseconds kDetectBudget = std::chrono::milliseconds(1500);
/// The longest pause that is never punished.
inline constexpr nanoseconds kPauseTolerated = std::chrono::milliseconds(200);

/// Derives all timeouts from the time in which a silent process must be out of the view. Budgets
/// that would punish a tolerated pause are widened to the smallest that does not.
[[nodiscard]] Timeouts timeouts_for(nanoseconds detect_budget);

/// Watches heartbeat counters. Pure: time comes in with each call.
/// Thread safety: one thread. Never blocks. Memory: one entry per watched process.
class FailureDetector {
 public:
  explicit FailureDetector(const Timeouts& timeouts) : timeouts_(timeouts) {}

  enum class Verdict : std::uint8_t {
    Suspected,  ///< first stage
    Cleared,    ///< was suspected, and has moved since
    Confirmed,  ///< silent: evict
  };
  struct Finding {
    Incarnation incarnation;
    Verdict verdict = Verdict::Suspected;
    std::string why;
    bool operator==(const Finding&) const = default;
  };

  /// From now on this process must move its counter. Watching again changes nothing.
  void watch(Incarnation who, TimePoint now);
  void forget(Incarnation who);
  /// The counter as just read. Equal to the last reading: no sign of life.
  void beat(Incarnation who, std::uint64_t counter, TimePoint now);
  /// Judges everybody by the readings so far; call it right after a round of beat(). Each verdict
  /// is given once.
  [[nodiscard]] std::vector<Finding> check(TimePoint now);
  /// When check() wants to run next.
  [[nodiscard]] TimePoint next_check() const { return next_check_; }
  /// How late the last check ran; that much silence was not counted.
  [[nodiscard]] nanoseconds lateness() const { return lateness_; }

 private:
  struct Watched {
    std::uint64_t counter = 0;
    TimePoint moved;                     ///< when the counter was last seen to move
    std::optional<TimePoint> suspected;  ///< since when
    bool confirmed = false;
  };
  Timeouts timeouts_;
  std::map<Incarnation, Watched> watched_;
  TimePoint next_check_{};
  nanoseconds lateness_{0};
  bool started_ = false;
};

}  // namespace regroup::membership
