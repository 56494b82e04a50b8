/// The simulator itself: a seed decides everything, and its checkers see what they are there for.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "tests/sim/checkers.hpp"
#include "tests/sim/world.hpp"

namespace regroup::sim {
namespace {

using ::testing::HasSubstr;

TEST(Sim, OneSeedOneTrace) {
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    const Outcome first = run_schedule(seed, {});
    const Outcome second = run_schedule(seed, {.keeps_text = true});
    EXPECT_EQ(first.hash, second.hash) << "replay: regroup-sim --replay " << seed;
    EXPECT_EQ(first.events, second.events);
  }
}

TEST(Sim, SeedsDiffer) {
  std::set<std::uint64_t> hashes;
  for (std::uint64_t seed = 1; seed <= 40; ++seed) hashes.insert(run_schedule(seed, {}).hash);
  EXPECT_EQ(hashes.size(), 40u);
}

TEST(Sim, ReplayKeepsTheLines) {
  const Outcome outcome = run_schedule(3, {.keeps_text = true});
  ASSERT_GT(outcome.lines.size(), 100u);
  EXPECT_THAT(outcome.lines.front(), HasSubstr("coordinator-start"));
}

TEST(Random, StaysTheSame) {
  // Seeds in commit messages and bug reports must keep their meaning.
  Random random(42);
  EXPECT_EQ(random.next(), 6667968346354703667u);
}

// ---- checkers: each sees a trace that breaks its promise, and says so by its number ---------

class CheckersTest : public ::testing::Test {
 protected:
  void enter(std::uint64_t incarnation, std::int32_t rank, std::uint64_t applied_next) {
    checks.on({.what = What::Enter,
               .rank = Rank{rank},
               .incarnation = Incarnation{incarnation},
               .epoch = view.epoch,
               .number = view.resume_step,
               .other = applied_next,
               .view = &view});
  }
  void choose() {
    checks.on(
        {.what = What::Choose, .epoch = view.epoch, .number = view.resume_step, .view = &view});
  }
  void act(What what, std::uint64_t incarnation, std::int32_t rank, std::uint64_t number,
           std::uint64_t digest = 7, std::uint64_t other = 7) {
    checks.on({.what = what,
               .rank = Rank{rank},
               .incarnation = Incarnation{incarnation},
               .epoch = view.epoch,
               .number = number,
               .digest = digest,
               .seats = 3,
               .other = other});
  }
  void next_view(std::vector<Incarnation> seats, std::uint64_t resume) {
    view.parent = digest(view);
    view.epoch = Epoch{view.epoch.value() + 1};
    view.seats = std::move(seats);
    view.resume_step = resume;
  }
  [[nodiscard]] std::string seen() const {
    return checks.violation() ? checks.violation()->property : "nothing";
  }

  membership::View view{.epoch = Epoch{1}, .seats = {Incarnation{1}, Incarnation{2}}};
  Checks checks{Swarm{}};
};

TEST_F(CheckersTest, ReadmittedIncarnation) {
  choose();
  next_view({Incarnation{1}, Incarnation{3}}, 1);
  choose();
  next_view({Incarnation{1}, Incarnation{2}}, 1);
  choose();
  EXPECT_THAT(seen(), HasSubstr("S1 "));
}
TEST_F(CheckersTest, TwoHistories) {
  choose();
  view.resume_step = 2;
  choose();
  EXPECT_THAT(seen(), HasSubstr("S2 "));
}
TEST_F(CheckersTest, MinorityView) {
  view.seats = {Incarnation{1}, Incarnation{2}, Incarnation{3}};
  choose();
  next_view({Incarnation{1}, Incarnation{4}, Incarnation{5}}, 1);
  choose();
  EXPECT_THAT(seen(), HasSubstr("S3 "));
}
TEST_F(CheckersTest, OutcomesDiffer) {
  enter(1, 0, 1);
  enter(2, 1, 1);
  act(What::Crash, 3, 2, 0);
  act(What::Done, 1, 0, 1);
  act(What::Lost, 2, 1, 1);
  EXPECT_THAT(seen(), HasSubstr("S5a "));
}
TEST_F(CheckersTest, OperationIsLostForNothing) {
  enter(1, 0, 1);
  act(What::Lost, 1, 0, 1);
  EXPECT_THAT(seen(), HasSubstr("S23 "));
}
TEST_F(CheckersTest, MembersStopAfterDifferentSteps) {
  act(What::Park, 1, 0, 3);
  act(What::Park, 2, 1, 4);
  EXPECT_THAT(seen(), HasSubstr("S23 "));
}
TEST_F(CheckersTest, CommittedStepIsForgotten) {
  choose();
  enter(1, 0, 1);
  act(What::Committed, 1, 0, 1);
  next_view({Incarnation{1}, Incarnation{2}}, 1);
  choose();
  EXPECT_THAT(seen(), HasSubstr("S5b "));
}
TEST_F(CheckersTest, ResultsDiffer) {
  enter(1, 0, 1);
  enter(2, 1, 1);
  act(What::Done, 1, 0, 1, 7);
  act(What::Done, 2, 1, 1, 8);
  EXPECT_THAT(seen(), HasSubstr("S7 "));
}
TEST_F(CheckersTest, ForeignByte) {
  act(What::Reduce, 1, 0, 1, 7, kForeign);
  EXPECT_THAT(seen(), HasSubstr("S8 "));
}
TEST_F(CheckersTest, ContributionMissing) {
  act(What::Reduce, 1, 0, 1, 7, kNotAll);
  EXPECT_THAT(seen(), HasSubstr("S6 "));
}
TEST_F(CheckersTest, ContributionTwice) {
  act(What::Reduce, 1, 0, 1, 7, kTwice);
  EXPECT_THAT(seen(), HasSubstr("S12 "));
}
TEST_F(CheckersTest, InputChanged) {
  act(What::Crash, 3, 2, 0);
  act(What::Lost, 1, 0, 1, 7, 8);
  EXPECT_THAT(seen(), HasSubstr("S9 "));
}
TEST_F(CheckersTest, ZombieCommits) {
  choose();
  act(What::Prepare, 9, 1, 1);
  EXPECT_THAT(seen(), HasSubstr("S11 "));
}
TEST_F(CheckersTest, StateFromNowhere) {
  choose();
  act(What::HealEnd, 2, 1, 0, 99);
  EXPECT_THAT(seen(), HasSubstr("S13 "));
}
TEST_F(CheckersTest, AnotherRestartPoint) {
  view.resume_step = 5;
  enter(1, 0, 4);
  EXPECT_THAT(seen(), HasSubstr("S14 "));
}
TEST_F(CheckersTest, IncarnationIssuedTwice) {
  act(What::Spawn, 4, 0, 0);
  act(What::Spawn, 4, 0, 0);
  EXPECT_THAT(seen(), HasSubstr("S16 "));
}
TEST_F(CheckersTest, BeginsAgainInSilence) {
  choose();
  act(What::HealedHeard, 1, 0, 0);
  act(What::Crash, 1, 0, 0);
  act(What::Crash, 2, 1, 0);
  next_view({Incarnation{3}, Incarnation{4}}, 1);
  choose();
  EXPECT_THAT(seen(), HasSubstr("S13 "));
}
TEST_F(CheckersTest, TwoEnds) {
  act(What::EndJob, 0, -1, 0, 7);
  act(What::EndJob, 0, -1, 0, 7);
  EXPECT_EQ(seen(), "nothing");
  act(What::EndJob, 0, -1, 1, 8);
  EXPECT_THAT(seen(), HasSubstr("S16 "));
}
TEST_F(CheckersTest, ViewAfterTheEnd) {
  act(What::EndJob, 0, -1, 0);
  choose();
  EXPECT_THAT(seen(), HasSubstr("S16 "));
}
TEST_F(CheckersTest, StopIsNotHeard) {
  checks.on({.at = 0, .what = What::StopAsked, .host = 1});
  checks.on({.at = kSecond, .what = What::Quiet});
  EXPECT_EQ(seen(), "nothing");
  checks.on({.at = kSecond, .what = What::ChannelUp, .host = 1});
  checks.on({.at = 2 * kSecond, .what = What::Quiet});
  EXPECT_THAT(seen(), HasSubstr("L9 "));
}
TEST_F(CheckersTest, InnocentIsBlamed) {
  choose();
  act(What::Removed, 2, 1, 0);
  EXPECT_THAT(seen(), HasSubstr("S18 "));
}
TEST_F(CheckersTest, Endings) {
  const auto judged = [](const Ending& ending) {
    Checks fresh{Swarm{}};
    fresh.at_end(ending);
    return fresh.violation() ? fresh.violation()->property : std::string("nothing");
  };
  const Ending good{.job_ended = true, .orderly = true, .coordinators = 1};
  EXPECT_EQ(judged(good), "nothing");
  Ending bad = good;
  bad.blocked = "rank 1 waits";
  EXPECT_THAT(judged(bad), HasSubstr("L1 "));
  bad = good;
  bad.job_ended = false;
  EXPECT_THAT(judged(bad), HasSubstr("L4 "));
  bad = good;
  bad.views = 3;
  EXPECT_THAT(judged(bad), HasSubstr("L5 "));
  bad = good;
  bad.rounds = 3;
  EXPECT_THAT(judged(bad), HasSubstr("L6 "));
  bad = good;
  bad.zombie = "rank 1 runs on";
  EXPECT_THAT(judged(bad), HasSubstr("L8 "));
}

}  // namespace
}  // namespace regroup::sim
