/// `--on-loss carry_on` on real jobs: whatever dies in whatever phase, the step is finished inside
/// the calls that were lost, every result is that of the contributors which it reports, and all
/// ranks, newcomers too, hold the same state in the end.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/multiproc/rank_job.hpp"

namespace regroup::test {
namespace {

using testing::AllOf;
using testing::Each;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;
using Words = std::vector<std::string>;

const Words kSpare = {"--spares", "1"};

/// "until_full" ends once a rank was lost and all of them have been there again for some steps.
Ended carry_on(int ranks, const std::string& mode, const std::string& faults,
               const Words& more = kSpare,
               const std::map<std::string, std::string>& environment = {},
               const std::string& policy = "carry_on") {
  Words flags{"-n", std::to_string(ranks), "--on-loss", policy};
  flags.insert(flags.end(), more.begin(), more.end());
  auto variables = environment;
  variables["REGROUP_FAULTS"] = faults;
  return run_program(REGROUP_CARRY_ON_RANK, flags, {mode, "20"}, variables, 25);
}

void expect_right(const Ended& job, int ranks, const std::string& what) {
  EXPECT_FALSE(job.timed_out) << what << "\n" << story(job);
  EXPECT_EQ(job.exit_code, 0) << what << "\n" << story(job);
  const auto ended = job.lines_with(" ended wrong=0 ");
  EXPECT_THAT(ended, SizeIs(ranks)) << what << "\n" << story(job);
  EXPECT_THAT(ended, Each(HasSubstr(fmt::format("size={} Ok", ranks)))) << what << "\n"
                                                                        << story(job);
  EXPECT_THAT(digests(job), SizeIs(1)) << what << "\n" << story(job);
}

/// Nobody's call failed and nobody began a step twice.
void expect_carried_on(const Ended& job, int ranks, const std::string& what) {
  expect_right(job, ranks, what);
  EXPECT_THAT(job.lines_with(" ended "), Each(HasSubstr("repeats=0 errors=0"))) << what << "\n"
                                                                                << story(job);
  EXPECT_THAT(job.err, HasSubstr("SIGKILL")) << what;
}

class CarryOn : public testing::TestWithParam<int> {};

TEST_P(CarryOn, ReductionsGoOnWhereverARankDies) {
  const int ranks = GetParam();
  int jobs = 0;
  for (const char* op : {"all_reduce", "barrier", "commit"}) {
    for (const char* phase :
         {"enter", "after_copy_in", "after_publish", "after_await", "before_complete",
          "after_complete", "before_prepare", "after_prepare"}) {
      const bool prepares = std::string(phase).ends_with("prepare");
      const bool copies = std::string(phase) == "after_copy_in";
      if (prepares != (std::string(op) == "commit")) continue;
      if (copies && std::string(op) == "barrier") continue;
      const int victim = jobs++ % ranks;
      const auto faults =
          fmt::format("rank={},inc=0,op={},step=6,phase={}:kill", victim, op, phase);
      expect_carried_on(carry_on(ranks, "sums_until_full", faults), ranks, faults);
    }
  }
}

TEST_P(CarryOn, AChunkInTheMiddleOfALargeOperation) {
  const int ranks = GetParam();
  for (const char* phase : {"after_copy_in", "after_publish", "after_reduce"}) {
    const auto faults =
        fmt::format("rank={},inc=0,op=all_reduce,step=6,chunk=1,phase={}:kill", ranks - 1, phase);
    expect_carried_on(carry_on(ranks, "wide_until_full", faults), ranks, faults);
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, CarryOn, testing::ValuesIn(test::kRankCounts));

TEST(CarryOnMore, AReduceAndABroadcastWhoseRootLives) {
  for (const char* op : {"reduce", "broadcast", "confirm"}) {
    const auto faults = fmt::format("rank=1,inc=0,op={},step=6:kill", op);
    expect_carried_on(carry_on(4, "rooted_until_full", faults), 4, faults);
  }
}

TEST(CarryOnMore, WhatNeedsTheLostRankIsRankLostOnAllAlike) {
  for (const auto& [mode, faults] : std::map<std::string, std::string>{
           {"gather_until_full", "rank=2,inc=0,op=all_gather,step=6,phase=before_copy_in:kill"},
           {"rooted_until_full", "rank=3,inc=0,op=broadcast,step=6,phase=before_copy_in:kill"}}) {
    const auto job = carry_on(4, mode, faults);
    expect_right(job, 4, faults);
    const auto errors = job.lines_with(" error ");
    EXPECT_THAT(errors, SizeIs(3)) << story(job);
    EXPECT_THAT(errors,
                Each(AllOf(HasSubstr("step 6 error RankLost: "), HasSubstr("was lost in this step"),
                           HasSubstr("cannot be carried on without it"))));
  }
}

TEST(CarryOnMore, AGatherBehindALossInTheSameStep) {
  const auto job =
      carry_on(3, "gather_until_full", "rank=1,inc=0,op=all_reduce,step=6,phase=after_await:kill");
  expect_right(job, 3, "gather");
  EXPECT_THAT(job.lines_with("error RankLost: rank 1 was lost in this step"), SizeIs(2))
      << story(job);
}

TEST(CarryOnMore, MessagesAreNotCarriedOn) {
  // Of the step that is over nothing is under way any more.
  const char* before = "rank=2,inc=0,op=all_reduce,step=6:kill";
  expect_carried_on(carry_on(3, "messages_until_full", before), 3, before);
  const char* behind = "rank=2,inc=0,op=commit,step=6:kill";
  const auto job = carry_on(3, "messages_until_full", behind);
  expect_right(job, 3, behind);
  EXPECT_THAT(job.lines_with("step 6 error RankLost: rank 2"), SizeIs(2)) << story(job);
  EXPECT_THAT(job.lines_with(" repeats=1 errors=1 "), SizeIs(2)) << story(job);
}

TEST(CarryOnMore, WhoWaitsForAnybodyMayWaitForTheLostRank) {
  const auto job =
      carry_on(3, "anybody_until_full", "rank=2,inc=0,op=all_reduce,step=6,phase=after_await:kill");
  expect_right(job, 3, "anybody");
  EXPECT_THAT(
      job.lines_with("rank 0 step 6 error RankLost: rank 2 was lost in this step, and recv"),
      SizeIs(1))
      << story(job);
}

TEST(CarryOnMore, TwoGroupsAtOnce) {
  for (int victim = 0; victim < 4; ++victim) {
    const auto faults =
        fmt::format("rank={},inc=0,op=all_reduce,step=6,phase=after_publish:kill", victim);
    expect_carried_on(carry_on(4, "groups_until_full", faults), 4, faults);
  }
}

TEST(CarryOnMore, FurtherLossesDuringTheRecovery) {
  const std::string first = "rank=0,inc=0,op=all_reduce,step=6,phase=after_publish:kill;";
  for (const char* second :
       {"rank=1,inc=0,op=join:kill", "rank=1,inc=0,op=join,phase=after_publish:kill",
        "rank=2,inc=0,op=heal,phase=give:kill", "rank=0,inc=1,op=heal,phase=take:kill",
        "rank=0,inc=1,op=join:kill", "rank=1,inc=0,op=commit,step=6,phase=after_prepare:kill",
        "rank=3,inc=0,op=all_reduce,step=6,phase=before_complete:kill"}) {
    expect_right(carry_on(4, "sums_until_full", first + second), 4, second);
  }
}

/// Two newcomers come at once, and one dies as it meets the others: the calls that the other one
/// makes before its first step are answered as its predecessor's were, by as many ranks.
TEST(CarryOnMore, ANewcomersPrologueCountsTheRanksOfTheBeginning) {
  const auto job = carry_on(3, "groups_until_full",
                            "rank=1,inc=0,op=all_reduce,step=6:kill;rank=2,inc=0,op=all_reduce,"
                            "step=6:kill;rank=2,inc=1,op=join:kill",
                            {"--spares", "2"});
  expect_right(job, 3, "two newcomers");
  EXPECT_THAT(job.err, Not(HasSubstr("lost: killed by SIGABRT"))) << story(job);
}

TEST(CarryOnMore, AllButOneAreLostAtOnce) {
  const auto job = carry_on(4, "sums_until_full",
                            "rank=0,inc=0,op=all_reduce,step=6:kill;rank=1,inc=0,op=all_reduce,"
                            "step=6:kill;rank=3,inc=0,op=all_reduce,step=6:kill");
  expect_carried_on(job, 4, "three of four");
}

TEST(CarryOnMore, WithoutASpareAProcessIsStarted) {
  const auto job = carry_on(3, "sums_until_full",
                            "rank=0,inc=0,op=all_reduce,step=6,phase=after_await:kill", {});
  expect_carried_on(job, 3, "cold");
}

TEST(CarryOnMore, FewerThanMinEndTheJob) {
  const auto job = carry_on(3, "sums_until_full", "rank=1,inc=0,op=all_reduce,step=6:kill",
                            {"--min", "3", "--spares", "1"});
  EXPECT_EQ(job.exit_code, 75) << story(job);
  EXPECT_THAT(job.err, HasSubstr("--on-loss carry_on, and 2 ranks are fewer than --min 3"));
}

TEST(CarryOnMore, BeforeTheFirstStepTheSeatIsFilledFirst) {
  const auto job = carry_on(3, "groups", "rank=1,inc=0,op=split,phase=after_publish:kill");
  expect_carried_on(job, 3, "prologue");
  EXPECT_THAT(job.lines_with(" missing=0 "), SizeIs(3)) << story(job);
}

TEST(CarryOnMore, InTheFirstStep) {
  for (const char* faults : {"rank=1,inc=0,op=all_reduce,step=0,phase=after_publish:kill",
                             "rank=1,inc=0,op=commit,step=0,phase=after_prepare:kill"}) {
    const auto job = carry_on(3, "sums_until_full", faults);
    expect_right(job, 3, faults);
  }
}

TEST(CarryOnMore, ComparedResultsToo) {
  const auto job =
      carry_on(3, "rooted_until_full", "rank=0,inc=0,op=verify,step=6,phase=after_publish:kill",
               kSpare, {{"REGROUP_VERIFY", "1"}});
  expect_carried_on(job, 3, "verify");
}

TEST(CarryOnMore, AStepThatOneRankGaveUpIsBegunAgainByAll) {
  // The deadline of one call passes, and nobody is lost.
  const auto job = carry_on(3, "deadline", "");
  expect_right(job, 3, "deadline");
  EXPECT_THAT(job.lines_with("error DeadlineExceeded"), SizeIs(1)) << story(job);
  EXPECT_THAT(job.lines_with(" repeats=1 errors=1 "), SizeIs(3)) << story(job);
}

TEST(CarryOnMore, TheCoordinatorDiesAsWell) {
  const TempDir temp;
  Job job({"run", "-n", "3", "--spares", "1", "--on-loss", "carry_on", "--log-dir",
           (temp.path() / "logs").string(), "--", REGROUP_CARRY_ON_RANK, "sums_until_full", "20"});
  ASSERT_TRUE(job.wait_for("rank 0 makes steps")) << job.out() << job.err();
  const auto ask = [&](Words words) {
    words.insert(words.end(), {"--job", job.id()});
    return run(words);
  };
  EXPECT_EQ(ask({"inject", "coordinator-kill"}).exit_code, 0);
  EXPECT_EQ(ask({"inject", "kill", "--rank", "1"}).exit_code, 0);
  EXPECT_EQ(ask({"inject", "coordinator-kill"}).exit_code, 0);
  EXPECT_EQ(job.wait(), 0) << job.out() << job.err();
  const Ended all{.out = job.out(), .err = job.err()};
  EXPECT_THAT(all.lines_with("ended wrong=0 repeats=0 errors=0"), SizeIs(3)) << story(all);
  EXPECT_THAT(digests(all), SizeIs(1)) << story(all);
  EXPECT_THAT(job.left_behind(), IsEmpty());
}

/// Who contributed is told under every policy.
TEST(Contributors, UnderOtherPolicies) {
  const std::string faults = "rank=1,inc=0,op=all_reduce,step=6,phase=after_await:kill";
  const auto replayed = carry_on(3, "rooted", faults, kSpare, {}, "replay");
  expect_right(replayed, 3, "replay");
  EXPECT_THAT(replayed.lines_with(" missing=0 "), SizeIs(3)) << story(replayed);
  const auto shrunk = carry_on(3, "rooted", faults, {}, {}, "shrink");
  EXPECT_EQ(shrunk.exit_code, 0) << story(shrunk);
  EXPECT_THAT(shrunk.lines_with("ended wrong=0 repeats=1 errors=1"), SizeIs(2)) << story(shrunk);
  EXPECT_THAT(shrunk.lines_with(" missing=0 "), IsEmpty()) << story(shrunk);
  EXPECT_THAT(digests(shrunk), SizeIs(1)) << story(shrunk);
}

}  // namespace
}  // namespace regroup::test
