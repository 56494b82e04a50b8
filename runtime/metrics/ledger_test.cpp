#include "metrics/ledger.hpp"

#include <gtest/gtest.h>

#include <random>

#include "metrics/clock.hpp"

namespace regroup::metrics {
namespace {

class LedgerTest : public testing::Test {
 protected:
  PageMapping mapping_ = PageMapping::create(Incarnation(1)).value();
  BeaconPage& page_ = mapping_.page();
};

TEST_F(LedgerTest, EachCategoryGetsItsTime) {
  Ledger ledger(page_, Category::Rendezvous, 1000);
  ledger.enter(Category::Connect, 1100);
  ledger.enter(Category::Compute, 1150);
  const Snapshot snapshot = read_ledger(page_, 1500);
  EXPECT_EQ(snapshot[Category::Rendezvous], 100U);
  EXPECT_EQ(snapshot[Category::Connect], 50U);
  EXPECT_EQ(snapshot[Category::Compute], 350U);  // the tail belongs to the category in force
  EXPECT_EQ(snapshot.sum(), 500U);
  EXPECT_EQ(snapshot.wall_ns, 500U);
}

TEST_F(LedgerTest, BlockedTimeIsSplitAtTheSlowestArrival) {
  Ledger ledger(page_, Category::Compute, 100);
  ledger.enter(Category::CommExposed, 200);
  EXPECT_EQ(ledger.end_blocked(260, 300), 60U);
  ledger.enter(Category::CommExposed, 400);
  EXPECT_EQ(ledger.end_blocked(350, 430), 0U);  // I was the slowest
  ledger.enter(Category::CommExposed, 500);
  EXPECT_EQ(ledger.end_blocked(900, 540),
            40U);  // a clock a little ahead cannot make more of it than there is
  const Snapshot snapshot = read_ledger(page_, 540);
  EXPECT_EQ(snapshot[Category::StragglerWait], 100U);
  EXPECT_EQ(snapshot[Category::CommExposed], 70U);
  EXPECT_EQ(snapshot[Category::Compute], 270U);
}

TEST_F(LedgerTest, RedoneWorkIsReplay) {
  Ledger ledger(page_, Category::Compute, 100);
  ledger.begin_replay(200);
  ledger.enter(Category::CommExposed, 250);
  ledger.end_blocked(260, 280);
  ledger.enter(Category::Heal, 300);  // what is not productive keeps its name
  ledger.enter(Category::Compute, 330);
  ledger.end_replay(350);
  const Snapshot snapshot = read_ledger(page_, 400);
  EXPECT_EQ(snapshot[Category::Compute], 150U);
  EXPECT_EQ(snapshot[Category::Replay], 120U);
  EXPECT_EQ(snapshot[Category::Heal], 30U);
  EXPECT_EQ(snapshot.sum(), 300U);
}

TEST_F(LedgerTest, AnySequenceSumsToWallTime) {
  std::mt19937_64 random(20240817);
  for (int run = 0; run < 200; ++run) {
    const std::uint64_t start = 1 + random() % 1'000'000;
    std::uint64_t now = start;
    Ledger ledger(page_, Category::Launch, start);
    for (int i = 0; i < 200; ++i) {
      now += random() % 50'000;
      switch (random() % 6) {
        case 0: ledger.begin_replay(now); break;
        case 1: ledger.end_replay(now); break;
        case 2: (void)ledger.end_blocked(now - random() % 60'000, now); break;
        case 3:
          ledger.enter(Category::Compute, now - random() % 100);
          break;  // clock of another thread
        case 4:
        case 5: ledger.enter(static_cast<Category>(random() % kCategories), now); break;
      }
      const Snapshot snapshot = read_ledger(page_, now + 5);
      ASSERT_EQ(snapshot.sum(), now + 5 - start)
          << "seed 20240817, run " << run << ", change " << i;
      ASSERT_EQ(snapshot.wall_ns, snapshot.sum());
    }
  }
}

TEST_F(LedgerTest, KillBetweenTwoStoresLosesNothing) {
  Ledger ledger(page_, Category::Compute, 1000);
  ledger.enter(Category::CommExposed, 1200);
  // Killed inside enter(): the total was stored, the new category not yet.
  page_.ledger.totals_ns[static_cast<std::size_t>(Category::CommExposed)] += 300;
  const Snapshot snapshot = read_ledger(page_, 1600);
  EXPECT_EQ(snapshot[Category::CommExposed], 400U);
  EXPECT_EQ(snapshot.sum(), 600U);
}

TEST_F(LedgerTest, DamagedPageCannotClaimMoreThanWallTime) {
  const Ledger ledger(page_, Category::Compute, 1000);
  page_.ledger.totals_ns[2] = ~std::uint64_t{0};
  page_.ledger.category = 99;
  EXPECT_EQ(read_ledger(page_, 1600).sum(), 600U);
  EXPECT_EQ(read_ledger(page_, 10).sum(), 0U);
}

TEST(Ett, CountsRanksAskedFor) {
  Snapshot total;
  total[Category::Compute] = 800;
  total[Category::CommExposed] = 100;
  total[Category::StragglerWait] = 50;
  const Ett figures = ett(total, 2, 500);
  EXPECT_DOUBLE_EQ(figures.strict, 0.8);
  EXPECT_DOUBLE_EQ(figures.progress, 0.95);
  EXPECT_DOUBLE_EQ(ett(total, 2, 0).strict, 0);
}

TEST(SeatLedger, GapOfAColdReplacementIsFullyAttributed) {
  const Gap gap{.died_ns = 100,
                .detected_ns = 110,
                .decided_ns = 130,
                .launched_ns = 150,
                .attached_ns = 400};
  const Snapshot snapshot = attribute(gap);
  EXPECT_EQ(snapshot[Category::Detect], 10U);
  EXPECT_EQ(snapshot[Category::Reform], 20U);
  EXPECT_EQ(snapshot[Category::ReplaceWait], 20U);
  EXPECT_EQ(snapshot[Category::Launch], 250U);
  EXPECT_EQ(snapshot.sum(), snapshot.wall_ns);
}

TEST(SeatLedger, AnyOrderOfTimesStillSums) {
  std::mt19937_64 random(7);
  for (int i = 0; i < 2000; ++i) {
    const auto at = [&] { return random() % 4 == 0 ? 0 : random() % 1000; };
    const Gap gap{.died_ns = random() % 500,
                  .detected_ns = at(),
                  .decided_ns = at(),
                  .launched_ns = at(),
                  .attached_ns = at()};
    const Snapshot snapshot = attribute(gap);
    ASSERT_EQ(snapshot.sum(), gap.attached_ns > gap.died_ns ? gap.attached_ns - gap.died_ns : 0);
    ASSERT_EQ(snapshot.sum(), snapshot.wall_ns);
  }
}

TEST(SeatLedger, SpareTimeIsNotTheSeats) {
  const PageMapping first = PageMapping::create(Incarnation(1)).value();
  const PageMapping spare = PageMapping::create(Incarnation(2)).value();
  const Ledger first_ledger(first.page(), Category::Compute, 100);
  Ledger spare_ledger(spare.page(), Category::Spare, 150);
  spare_ledger.enter(Category::Heal, 560);
  spare_ledger.enter(Category::Compute, 600);

  SeatLedger seat;
  seat.add_life(read_ledger(first.page(), 500));
  seat.add_gap({.died_ns = 500,
                .detected_ns = 510,
                .decided_ns = 530,
                .launched_ns = 0,
                .attached_ns = 560});
  seat.add_life(read_ledger(spare.page(), 1100));
  seat.add_vacant(7);
  EXPECT_EQ(seat.spare_ns(), 410U);
  EXPECT_EQ(seat.total()[Category::Compute], 900U);
  EXPECT_EQ(seat.total()[Category::ReplaceWait], 30U);
  EXPECT_EQ(seat.total().sum(), 1100U - 100U + 7U);
  EXPECT_EQ(seat.total().wall_ns, seat.total().sum());
}

TEST(FastClock, FollowsTheMonotonicClockAndNeverGoesBack) {
  FastClock clock;
  std::uint64_t last = 0;
  std::uint64_t samples = 0;
  std::uint64_t far = 0;
  const std::uint64_t end = monotonic_ns() + 100'000'000;
  while (monotonic_ns() < end) {
    const std::uint64_t before = monotonic_ns();
    const std::uint64_t now = clock.now_ns();
    const std::uint64_t after = monotonic_ns();
    ASSERT_GE(now, last);
    last = now;
    ++samples;
    // Being interrupted between rate readings can bend the rate for one period: most readings must
    // be close.
    if (now + 20'000 < before || now > after + 20'000) ++far;
  }
  EXPECT_LT(far, samples / 2);
}

}  // namespace
}  // namespace regroup::metrics
