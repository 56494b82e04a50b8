/// Whole jobs: real launcher, real ranks, SIGKILL at exact points; same bits as a job in which
/// nobody died.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "tests/multiproc/rank_job.hpp"

namespace regroup::test {
namespace {

constexpr const char* kSteps = "6";

/// The digest of `ranks` undisturbed ranks, computed once.
std::string undisturbed(int ranks) {
  static std::map<int, std::string> known;
  auto& digest = known[ranks];
  if (digest.empty()) {
    const auto job = run_job({"-n", std::to_string(ranks)}, {"train", kSteps});
    EXPECT_EQ(job.exit_code, 0) << story(job);
    EXPECT_EQ(digests(job).size(), 1U) << story(job);
    digest = job.value_of("digest=");
  }
  return digest;
}

void expect_healed(const Ended& job, int ranks, const std::string& what) {
  EXPECT_FALSE(job.timed_out) << what << "\n" << story(job);
  EXPECT_EQ(job.exit_code, 0) << what << "\n" << story(job);
  EXPECT_EQ(job.lines_with("digest=").size(), static_cast<std::size_t>(ranks)) << what << "\n"
                                                                               << story(job);
  EXPECT_EQ(digests(job), std::set<std::string>{undisturbed(ranks)}) << what << "\n" << story(job);
}

TEST(Job, TrainsUndisturbed) { EXPECT_FALSE(undisturbed(3).empty()); }

TEST(Job, SameBitsWhereverARankDies) {
  int cells = 0;
  for (const char* op : {"all_reduce", "broadcast", "reduce", "all_gather"}) {
    for (const char* phase :
         {"after_copy_in", "after_publish", "before_complete", "after_complete"}) {
      const int victim = cells++ % 3;
      const auto faults =
          fmt::format("rank={},inc=0,op={},step=2,phase={}:kill", victim, op, phase);
      const auto job =
          run_job({"-n", "3", "--spares", "1"}, {"train", kSteps}, {{"REGROUP_FAULTS", faults}});
      expect_healed(job, 3, faults);
    }
  }
}

/// The digest of an undisturbed job of mode `shares`.
std::string undisturbed_shares() {
  const auto job = run_job({"-n", "3"}, {"shares", "3"});
  EXPECT_EQ(job.exit_code, 0) << story(job);
  EXPECT_EQ(job.lines_with("wrong=0 digest=").size(), 3U) << story(job);
  EXPECT_EQ(digests(job).size(), 1U) << story(job);
  return job.value_of("digest=");
}

TEST(Job, EveryOperationWithSharesOutlivesADeath) {
  const std::set<std::string> expected{undisturbed_shares()};
  int cells = 0;
  for (const char* op : {"all_to_all", "all_to_all_v", "gather", "scatter", "all_gather_v",
                         "reduce_scatter_v", "gather_v", "scatter_v", "coalesced"}) {
    const auto faults = fmt::format("rank={},inc=0,op={},step=1,phase={}:kill", cells % 3, op,
                                    cells % 2 == 0 ? "before_complete" : "enter");
    ++cells;
    const auto job =
        run_job({"-n", "3", "--spares", "1"}, {"shares", "3"}, {{"REGROUP_FAULTS", faults}});
    EXPECT_EQ(job.exit_code, 0) << faults << "\n" << story(job);
    EXPECT_EQ(job.lines_with("wrong=0").size(), 3U) << faults << "\n" << story(job);
    EXPECT_EQ(job.lines_with("newcomer=true").size(), 1U) << faults << "\n" << story(job);
    EXPECT_EQ(digests(job), expected) << faults << "\n" << story(job);
  }
}

TEST(Job, SameBitsWhenARankDiesInCommit) {
  for (int victim = 0; victim < 3; ++victim) {
    for (const char* phase : {"before_prepare", "after_prepare"}) {
      const auto faults =
          fmt::format("rank={},inc=0,op=commit,step=3,phase={}:kill", victim, phase);
      const auto job =
          run_job({"-n", "3", "--spares", "1"}, {"train", kSteps}, {{"REGROUP_FAULTS", faults}});
      expect_healed(job, 3, faults);
    }
  }
}

TEST(Job, SeatIsRestartedColdWithoutASpare) {
  const std::string faults = "rank=1,inc=0,op=all_reduce,step=2,phase=after_publish:kill";
  expect_healed(run_job({"-n", "3"}, {"train", kSteps}, {{"REGROUP_FAULTS", faults}}), 3, faults);
}

TEST(Job, NewcomerAndDonorMayDieWhileHealing) {
  for (const char* second :
       {"rank=1,inc=1,op=heal,phase=take:kill", "rank=2,inc=0,op=heal,phase=give:kill"}) {
    const auto faults =
        fmt::format("rank=1,inc=0,op=all_reduce,step=2,phase=after_publish:kill;{}", second);
    const auto job =
        run_job({"-n", "3", "--spares", "1"}, {"train", kSteps}, {{"REGROUP_FAULTS", faults}});
    expect_healed(job, 3, faults);
  }
}

TEST(Job, TwoRanksDieAtOnce) {
  const std::string faults =
      "rank=0,inc=0,op=all_reduce,step=2,phase=after_publish:kill;rank=2,inc=0,op=all_reduce,step="
      "2,phase=enter:kill";
  expect_healed(
      run_job({"-n", "4", "--spares", "2"}, {"train", kSteps}, {{"REGROUP_FAULTS", faults}}), 4,
      faults);
}

TEST(Job, ShrinkGoesOnWithFewerRanks) {
  const std::string faults = "rank=1,inc=0,op=all_reduce,step=2,phase=after_publish:kill";
  const auto job = run_job({"-n", "3", "--min", "1", "--on-loss", "shrink"}, {"train", kSteps},
                           {{"REGROUP_FAULTS", faults}});
  EXPECT_EQ(job.exit_code, 0) << story(job);
  EXPECT_EQ(job.lines_with("size 2").size(), 2U) << story(job);
  EXPECT_EQ(digests(job).size(), 1U) << story(job);
}

TEST(Job, AbortEndsWithTheFirstCause) {
  const std::string faults = "rank=1,inc=0,op=all_reduce,step=2,phase=after_publish:kill";
  const auto job =
      run_job({"-n", "3", "--on-loss", "abort"}, {"train", kSteps}, {{"REGROUP_FAULTS", faults}});
  EXPECT_EQ(job.exit_code, 137) << story(job);
  EXPECT_NE(job.err.find("rank 1"), std::string::npos) << story(job);
}

TEST(Job, NobodyToHealFromEndsTheJobAndSaysSo) {
  // The only donor dies while it gives.
  const std::string faults =
      "rank=1,inc=0,op=all_reduce,step=2,phase=after_publish:kill;rank=0,inc=0,op=heal,phase=give:"
      "kill";
  const auto job =
      run_job({"-n", "2", "--spares", "2"}, {"train", kSteps}, {{"REGROUP_FAULTS", faults}});
  EXPECT_FALSE(job.timed_out) << story(job);
  EXPECT_NE(job.exit_code, 0) << story(job);
  EXPECT_EQ(digests(job).size(), 0U) << story(job);
  EXPECT_NE(job.err.find("heal"), std::string::npos) << story(job);
}

TEST(Job, MismatchIsNamedOnAllRanks) {
  for (const char* what : {"count", "type", "operation", "kind", "root"}) {
    const auto job = run_job({"-n", "3"}, {"mismatch", what});
    EXPECT_FALSE(job.timed_out) << what << story(job);
    const auto lines = job.lines_with("InvalidArgument");
    EXPECT_EQ(lines.size(), 3U) << what << story(job);
    for (const auto& line : lines) EXPECT_NE(line.find("rank 1"), std::string::npos) << line;
  }
}

TEST(Job, AStepThatFailsWithoutALossEndsTheLoop) {
  const auto job = run_job({"-n", "2"}, {"mismatch_in_step"}, {}, 20);
  EXPECT_FALSE(job.timed_out) << story(job);
  // Who leaves first with code 1 is a loss to the other, and is replaced until the step counts as
  // poisoned; if both leave at once, nobody holds the state any more.
  EXPECT_EQ(job.exit_code, 1) << story(job);
  const bool poisoned = job.err.find(
                            "the program itself exited with code 1, 3 times at the same "
                            "step") != std::string::npos;
  const bool all_left = job.err.find("nobody is left to heal from") != std::string::npos;
  EXPECT_TRUE(poisoned || all_left) << story(job);
  EXPECT_FALSE(job.lines_with("InvalidArgument").empty()) << story(job);
}

TEST(Job, StateThatChangesBeforeCommitIsNamedWhenAskedFor) {
  const auto checked =
      run_job({"-n", "2"}, {"early_change", "commit"}, {{"REGROUP_CHECK_STATE", "1"}}, 20);
  EXPECT_NE(checked.exit_code, 0) << story(checked);
  EXPECT_NE(checked.out.find("FailedPrecondition: registered state \"params\" was changed in step "
                             "2"),
            std::string::npos)
      << story(checked);
  const auto right = run_job({"-n", "2"}, {"train", kSteps}, {{"REGROUP_CHECK_STATE", "1"}});
  EXPECT_EQ(right.exit_code, 0) << story(right);
  // It changed nothing in the result, and nobody looks when nobody asked.
  EXPECT_EQ(right.value_of("digest="), undisturbed(2));
  const auto off =
      run_job({"-n", "2"}, {"early_change", "commit"}, {{"REGROUP_CHECK_STATE", "0"}}, 20);
  EXPECT_EQ(off.exit_code, 0) << story(off);
}

TEST(Job, StateThatAFailedAttemptChangedIsNamedToo) {
  const auto job = run_job(
      {"-n", "2", "--spares", "1"}, {"early_change", "attempt"},
      {{"REGROUP_CHECK_STATE", "1"}, {"REGROUP_FAULTS", "rank=1,inc=0,op=all_reduce,step=2:kill"}},
      20);
  EXPECT_NE(job.out.find("rank 0: FailedPrecondition: registered state \"params\""),
            std::string::npos)
      << story(job);
}

TEST(Job, GroupsMayStartTheirAsynchronousOperationsInAnyOrder) {
  const auto job = run_job({"-n", "4"}, {"crossed"}, {}, 30);
  EXPECT_EQ(job.exit_code, 0) << story(job);
  EXPECT_EQ(job.lines_with("Ok 4 8").size(), 4U) << story(job);
  const std::string faults = "rank=1,inc=0,op=all_reduce,step=1,phase=after_publish:kill";
  const auto lost =
      run_job({"-n", "4", "--spares", "1"}, {"crossed"}, {{"REGROUP_FAULTS", faults}}, 30);
  EXPECT_EQ(lost.exit_code, 0) << story(lost);
  EXPECT_EQ(lost.lines_with("Ok 4 8").size(), 4U) << story(lost);
}

TEST(Job, BlockingOperationsInCrossedOrderEndAtTheirDeadline) {
  const auto job = run_job({"-n", "2"}, {"deadlocked"}, {}, 30);
  EXPECT_EQ(job.exit_code, 1) << story(job);
  EXPECT_FALSE(job.lines_with("DeadlineExceeded").empty()) << story(job);
}

TEST(TenSeconds, WaitingForARankThatHasLeftEndsTheJob) {
  const auto job = run_job({"-n", "2"}, {"leave"}, {}, 40);
  EXPECT_FALSE(job.timed_out) << story(job);
  EXPECT_EQ(job.exit_code, 1) << story(job);
  EXPECT_NE(job.err.find("E-LEFT-1"), std::string::npos) << story(job);
}

TEST(Job, BadArgumentsAreRefusedAndLoseNothing) {
  const auto job = run_job({"-n", "2"}, {"bad_arguments"});
  EXPECT_EQ(job.exit_code, 0) << story(job);
  EXPECT_EQ(job.lines_with("InvalidArgument").size(), 24U) << story(job);
  EXPECT_EQ(job.lines_with("FailedPrecondition").size(), 8U) << story(job);
  EXPECT_EQ(job.lines_with("Unsupported").size(), 4U) << story(job);
  EXPECT_EQ(job.lines_with("good: Ok").size(), 2U) << story(job);
}

TEST(Job, OperationsAfterDestroyAndAfterForkAreRefused) {
  const auto destroyed = run_job({"-n", "2"}, {"after_destroy"});
  EXPECT_EQ(destroyed.lines_with("FailedPrecondition").size(), 2U) << story(destroyed);
  const auto forked = run_job({"-n", "2"}, {"after_fork"});
  EXPECT_EQ(forked.exit_code, 0) << story(forked);
  EXPECT_EQ(forked.lines_with("child: FailedPrecondition").size(), 2U) << story(forked);
  EXPECT_EQ(forked.lines_with(": Ok").size(), 2U) << story(forked);
}

TEST(Job, ADeadlineEndsTheEpochAndTheNextOneWorks) {
  const auto job = run_job({"-n", "2"}, {"deadline"});
  EXPECT_EQ(job.exit_code, 0) << story(job);
  EXPECT_EQ(job.lines_with("rank 0: DeadlineExceeded").size(), 1U) << story(job);
  EXPECT_EQ(job.lines_with("input 1").size(), 1U) << story(job);
  EXPECT_EQ(job.lines_with("again: Ok").size(), 2U) << story(job);
}

TEST(Job, ARankMayEndTheEpochAndTheNextOneWorks) {
  const auto job = run_job({"-n", "2"}, {"end_epoch"});
  EXPECT_EQ(job.exit_code, 0) << story(job);
  EXPECT_EQ(job.lines_with("rank 0: Ok").size(), 1U) << story(job);
  EXPECT_EQ(job.lines_with("rank 0 afterwards: Revoked").size(), 1U) << story(job);
  const auto waiting = job.lines_with("rank 1: Revoked");
  ASSERT_EQ(waiting.size(), 1U) << story(job);
  EXPECT_NE(waiting[0].find("enough of it"), std::string::npos) << story(job);
  EXPECT_EQ(job.lines_with("again: Ok sum 2 epoch 2").size(), 2U) << story(job);
}

TEST(Job, DescriptorLimitIsNamed) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "the sanitizer itself needs the descriptors that this test takes away";
#endif
  const auto job = run_job({"-n", "2"}, {"descriptors"});
  EXPECT_FALSE(job.timed_out) << story(job);
  EXPECT_EQ(job.lines_with("ResourceExhausted").size(), 2U) << story(job);
}

TEST(Job, MemoryForSegmentsNotToBeHadIsNamed) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's own memory needs the address space that this test takes away";
#endif
  const auto job = run_job({"-n", "2"}, {"memory"});
  EXPECT_FALSE(job.timed_out) << story(job);
  EXPECT_EQ(job.lines_with("ResourceExhausted").size(), 2U) << story(job);
}

TEST(Job, AJobOfOneNeedsNoLauncher) {
  const auto job = run_job({"-n", "1"}, {"train", kSteps});
  EXPECT_EQ(job.exit_code, 0) << story(job);
  EXPECT_EQ(job.lines_with("digest=").size(), 1U) << story(job);
}

}  // namespace
}  // namespace regroup::test
