#include "launcher/coordinator_watch.hpp"

#include <gtest/gtest.h>

namespace regroup::launcher {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr nanoseconds kBudget = milliseconds(1500);

class Watched : public ::testing::Test {
 protected:
  Watched()
      : watch(CoordinatorWatch::make(kBudget).value()),
        page(metrics::PageMapping::map(watch.fd()).value()) {}

  /// Looks whenever it is due. How long until the verdict; none within `time`.
  std::optional<nanoseconds> run(nanoseconds time, bool beats) {
    const TimePoint from = now;
    while (now - from < time) {
      now = watch.due().value();
      if (beats) metrics::beat(page.page(), 1);
      if (watch.look(now)) return now - from;
    }
    return std::nullopt;
  }

  TimePoint now{seconds(100)};
  CoordinatorWatch watch;
  metrics::PageMapping page;
};

TEST_F(Watched, WhoMovesIsLeftAlone) {
  watch.begin(now);
  EXPECT_FALSE(run(seconds(60), true));
}

TEST_F(Watched, WhoStandsStillIsOutWithinTwiceTheBudget) {
  watch.begin(now);
  ASSERT_FALSE(run(seconds(20), true));
  const auto out = run(seconds(20), false);
  ASSERT_TRUE(out);
  EXPECT_GT(*out, kBudget);
  EXPECT_LE(*out, 2 * kBudget);
  EXPECT_FALSE(watch.due());
}

TEST_F(Watched, OneAfterTheOtherGetsMoreTimeUntilOneProvesItself) {
  watch.begin(now);
  const auto first = run(seconds(100), false);
  watch.begin(now);
  const auto second = run(seconds(100), false);
  ASSERT_TRUE(first && second);
  EXPECT_GT(*second, *first * 3 / 2);
  watch.begin(now);
  ASSERT_FALSE(run(seconds(60), true));
  watch.end();
  watch.begin(now);
  const auto later = run(seconds(100), false);
  ASSERT_TRUE(later);
  EXPECT_LE(*later, 2 * kBudget);
}

TEST_F(Watched, SilenceThatNobodyLookedAtDoesNotCount) {
  watch.begin(now);
  ASSERT_FALSE(run(seconds(10), true));
  now += seconds(60);  // this process itself was stopped
  EXPECT_FALSE(watch.look(now));
  EXPECT_FALSE(run(seconds(60), true));
}

}  // namespace
}  // namespace regroup::launcher
