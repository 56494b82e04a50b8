#include "membership/failure_detector.hpp"

#include <gtest/gtest.h>

namespace regroup::membership {
namespace {

using std::chrono::milliseconds;
using Verdict = FailureDetector::Verdict;

constexpr Incarnation kWho{7};

/// Runs the detector on time while the counter moves in [0, alive_for), stands still for `pause`,
/// then moves again.
std::vector<Verdict> watch_pause(nanoseconds budget, milliseconds pause, milliseconds total) {
  const Timeouts t = timeouts_for(budget);
  FailureDetector detector(t);
  std::vector<Verdict> verdicts;
  TimePoint now{};
  const TimePoint pause_from = now + milliseconds(200) + t.beat_every - milliseconds(1);
  detector.watch(kWho, now);
  std::uint64_t counter = 1;
  while (now < TimePoint{} + total) {
    now = detector.next_check();
    const bool paused = now >= pause_from && now < pause_from + pause;
    if (!paused) ++counter;
    detector.beat(kWho, counter, now);
    for (const auto& finding : detector.check(now)) verdicts.push_back(finding.verdict);
  }
  return verdicts;
}

TEST(FailureDetector, APauseOf200MillisecondsIsNotEvenSuspected) {
  for (const int budget_ms : {1, 100, 300, 600, 1500, 5000}) {
    EXPECT_TRUE(watch_pause(milliseconds(budget_ms), milliseconds(200), milliseconds(3000)).empty())
        << "budget " << budget_ms;
  }
}

TEST(FailureDetector, SilenceIsSuspectedThenConfirmedWithinTheBudget) {
  const Timeouts t = timeouts_for(kDetectBudget);
  FailureDetector detector(t);
  detector.watch(kWho, TimePoint{});
  detector.beat(kWho, 1, TimePoint{});
  std::vector<Verdict> verdicts;
  TimePoint now{};
  while (verdicts.size() < 2 && now < TimePoint{} + std::chrono::seconds(10)) {
    now = detector.next_check();
    detector.beat(kWho, 1, now);
    for (const auto& finding : detector.check(now)) verdicts.push_back(finding.verdict);
  }
  EXPECT_EQ(verdicts, (std::vector{Verdict::Suspected, Verdict::Confirmed}));
  EXPECT_LE(now - TimePoint{}, kDetectBudget);
}

TEST(FailureDetector, ALongerPauseIsSuspectedAndCleared) {
  EXPECT_EQ(watch_pause(kDetectBudget, milliseconds(750), milliseconds(3000)),
            (std::vector{Verdict::Suspected, Verdict::Cleared}));
}

TEST(FailureDetector, SilenceThatItDidNotWatchIsNotCounted) {
  const Timeouts t = timeouts_for(kDetectBudget);
  FailureDetector detector(t);
  detector.watch(kWho, TimePoint{});
  detector.beat(kWho, 1, TimePoint{});
  // The whole machine stood still for a minute: the detector woke first, the watched process has
  // not beaten yet.
  TimePoint now = TimePoint{} + std::chrono::minutes(1);
  EXPECT_TRUE(detector.check(now).empty());
  EXPECT_GT(detector.lateness(), nanoseconds{0});
  now = detector.next_check();
  detector.beat(kWho, 2, now);
  EXPECT_TRUE(detector.check(now).empty());
}

TEST(FailureDetector, LastingOverloadDelaysEvictionAndDoesNotPreventIt) {
  const Timeouts t = timeouts_for(kDetectBudget);
  FailureDetector detector(t);
  detector.watch(kWho, TimePoint{});
  detector.beat(kWho, 1, TimePoint{});
  bool confirmed = false;
  TimePoint now{};
  for (int check = 0; check < 100 && !confirmed; ++check) {
    now = detector.next_check() + 4 * t.check_every;  // every check comes late
    for (const auto& finding : detector.check(now)) {
      confirmed = confirmed || finding.verdict == Verdict::Confirmed;
    }
  }
  EXPECT_TRUE(confirmed);
  EXPECT_GT(now - TimePoint{}, kDetectBudget);
}

TEST(FailureDetector, AForgottenProcessIsNotJudged) {
  FailureDetector detector(timeouts_for(kDetectBudget));
  detector.watch(kWho, TimePoint{});
  detector.forget(kWho);
  TimePoint now{};
  for (int check = 0; check < 100; ++check) {
    now = detector.next_check();
    EXPECT_TRUE(detector.check(now).empty());
  }
}

TEST(Timeouts, EveryBudgetToleratesThePause) {
  for (const int budget_ms : {0, 1, 50, 500, 1500, 60'000}) {
    const Timeouts t = timeouts_for(milliseconds(budget_ms));
    EXPECT_GE(t.suspect_after, kPauseTolerated + t.beat_every + t.check_every);
    EXPECT_GT(t.confirm_after, nanoseconds{0});
    EXPECT_GE(t.agent_lost, t.suspect_after + t.confirm_after);
    EXPECT_GT(t.resend_every, nanoseconds{0});
  }
}

}  // namespace
}  // namespace regroup::membership
