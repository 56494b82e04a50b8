/// A rank dies before the first step: the ranks' constructors must not notice, and everybody ends
/// with the bits of an undisturbed job.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <map>
#include <set>

#include "tests/multiproc/rank_job.hpp"

namespace regroup::test {
namespace {

std::string undisturbed(int ranks) {
  static std::map<int, std::string> known;
  auto& digest = known[ranks];
  if (digest.empty()) {
    const auto job = run_job({"-n", std::to_string(ranks)}, {"prologue"});
    EXPECT_EQ(job.exit_code, 0) << story(job);
    EXPECT_EQ(digests(job).size(), 1U) << story(job);
    digest = job.value_of("digest=");
  }
  return digest;
}

struct Tally {
  int jobs = 0;
  int losses = 0;
};

void survive(int ranks, const std::string& faults, Tally& tally, const std::string& what = "",
             const std::vector<std::string>& more = {"--spares", "1"}) {
  std::vector<std::string> flags{"-n", std::to_string(ranks)};
  flags.insert(flags.end(), more.begin(), more.end());
  const auto job = run_job(flags, {"prologue", what}, {{"REGROUP_FAULTS", faults}});
  EXPECT_FALSE(job.timed_out) << faults << "\n" << story(job);
  EXPECT_EQ(job.exit_code, 0) << faults << "\n" << story(job);
  EXPECT_EQ(job.lines_with("prologue:").size(), 0U) << faults << "\n" << story(job);
  EXPECT_EQ(job.lines_with("digest=").size(), static_cast<std::size_t>(ranks)) << faults << "\n"
                                                                               << story(job);
  EXPECT_EQ(digests(job), std::set<std::string>{undisturbed(ranks)}) << faults << "\n"
                                                                     << story(job);
  ++tally.jobs;
  if (job.err.find("SIGKILL") != std::string::npos) ++tally.losses;
}

constexpr std::array<const char*, 4> kPhases{"after_copy_in", "after_publish", "before_complete",
                                             "after_complete"};

class Phases : public testing::TestWithParam<int> {};

TEST_P(Phases, OfEachOperation) {
  const int ranks = GetParam();
  Tally tally;
  for (const char* op :
       {"broadcast", "all_reduce", "all_gather", "split", "reduce", "reduce_scatter"}) {
    for (const char* phase : kPhases) {
      const int victim = tally.jobs % ranks;
      survive(ranks, fmt::format("rank={},inc=0,op={},phase={}:kill", victim, op, phase), tally);
    }
  }
  EXPECT_GT(tally.losses, tally.jobs * 3 / 4) << "too few of the faults were reached";
}

TEST_P(Phases, OfTheConfirmationAndOfTheEntry) {
  const int ranks = GetParam();
  Tally tally;
  for (int number = 0; number < 3; ++number) {
    const int victim = number % ranks;
    for (const char* phase : {"enter", "after_publish", "after_complete"}) {
      survive(ranks,
              fmt::format("rank={},inc=0,op=confirm,seq={},phase={}:kill", victim, number * 2 + 2,
                          phase),
              tally);
    }
    // All others stand in next() or on their way to it.
    survive(ranks, fmt::format("rank={},inc=0,op=heal,phase=after_publish:kill", victim), tally);
  }
  EXPECT_EQ(tally.losses, tally.jobs);
}

INSTANTIATE_TEST_SUITE_P(Ranks, Phases, testing::ValuesIn(test::kRankCounts));

TEST(Prologue, ANewcomerMayDieWhileItCatchesUp) {
  Tally tally;
  const std::string first = "rank=1,inc=0,op=all_reduce,phase=after_publish:kill;";
  for (const char* second :
       {"rank=1,inc=1,op=join,phase=after_publish:kill", "rank=0,inc=0,op=join:kill",
        "rank=1,inc=1,op=all_reduce,phase=after_publish:kill",
        "rank=2,inc=0,op=split,phase=before_complete:kill",
        "rank=1,inc=1,op=reduce_scatter,phase=after_publish:kill"}) {
    survive(3, first + second, tally);
  }
  EXPECT_EQ(tally.losses, tally.jobs);
}

TEST(Prologue, TwoRanksMayDieAtOnce) {
  Tally tally;
  survive(4,
          "rank=0,inc=0,op=broadcast,phase=after_publish:kill;"
          "rank=2,inc=0,op=broadcast,phase=enter:kill",
          tally, "", {"--spares", "2"});
  // All members of one half: only the dead knew how far it was.
  survive(4,
          "rank=1,inc=0,op=all_reduce,seq=1,phase=after_complete:kill;"
          "rank=3,inc=0,op=all_reduce,seq=1,phase=after_publish:kill",
          tally, "", {"--spares", "2"});
  EXPECT_EQ(tally.losses, tally.jobs);
}

TEST(Prologue, WithoutASpareAndWithRegisteredBuffers) {
  Tally tally;
  survive(3, "rank=2,inc=0,op=broadcast,phase=after_publish:kill", tally, "", {});
  survive(3, "rank=0,inc=0,op=all_reduce,phase=before_complete:kill", tally, "registered");
  EXPECT_EQ(tally.losses, tally.jobs);
}

TEST(Prologue, MessagesBeforeALossAreANamedError) {
  const auto job =
      run_job({"-n", "2", "--spares", "1"}, {"prologue", "messages"},
              {{"REGROUP_FAULTS", "rank=1,inc=0,op=barrier,phase=after_publish:kill"}}, 40);
  EXPECT_FALSE(job.timed_out) << story(job);
  EXPECT_NE(job.exit_code, 0) << story(job);
  EXPECT_FALSE(job.lines_with("Unsupported").empty()) << story(job);
}

TEST(Prologue, ANewcomerHearsWhomItsPredecessorHeard) {
  const auto job = run_job({"-n", "3", "--spares", "1"}, {"prologue", "anybody"},
                           {{"REGROUP_FAULTS", "rank=0,inc=0,op=all_reduce,step=1:kill"}}, 40);
  EXPECT_FALSE(job.timed_out) << story(job);
  EXPECT_EQ(job.exit_code, 0) << story(job);
  const auto heard = job.lines_with("rank 0 heard");
  ASSERT_EQ(heard.size(), 2U) << story(job);
  EXPECT_EQ(heard[0], heard[1]);
  for (const char* each : {" 1:10", " 1:11", " 2:20", " 2:21"})
    EXPECT_NE(heard[0].find(each), std::string::npos) << heard[0];
}

}  // namespace
}  // namespace regroup::test
