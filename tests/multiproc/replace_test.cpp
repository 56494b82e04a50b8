/// Serving without steps under --on-loss replace: whatever dies in whatever phase, each request is
/// answered once on every rank, rightly, and nothing hangs.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tests/multiproc/rank_job.hpp"

namespace regroup::test {
namespace {

constexpr const char* kRequests = "20";

struct Tally {
  int jobs = 0;
  int losses = 0;
};

void keeps_serving(int ranks, const std::string& faults, Tally& tally,
                   const std::vector<std::string>& more = {"--spares", "1"}) {
  std::vector<std::string> flags{"-n", std::to_string(ranks), "--on-loss", "replace"};
  flags.insert(flags.end(), more.begin(), more.end());
  const auto job = run_job(flags, {"serve", kRequests}, {{"REGROUP_FAULTS", faults}}, 40);
  EXPECT_FALSE(job.timed_out) << faults << "\n" << story(job);
  EXPECT_EQ(job.exit_code, 0) << faults << "\n" << story(job);
  const auto served = fmt::format("served={} wrong=0 Ok", kRequests);
  EXPECT_EQ(job.lines_with(served).size(), static_cast<std::size_t>(ranks)) << faults << "\n"
                                                                            << story(job);
  ++tally.jobs;
  if (job.err.find("SIGKILL") != std::string::npos) ++tally.losses;
}

class Replace : public testing::TestWithParam<int> {};

TEST_P(Replace, NoWrongAnswerWhereverARankDies) {
  const int ranks = GetParam();
  Tally tally;
  for (const char* op : {"broadcast", "all_gather", "all_reduce"}) {
    for (const char* phase :
         {"enter", "after_copy_in", "after_publish", "before_complete", "after_complete"}) {
      const int victim = tally.jobs % ranks;
      const int first = 2 + 3 * (tally.jobs % 7 + 1);  // behind the entry's exchange
      const int number = first + (std::string(op) == "broadcast"    ? 0
                                  : std::string(op) == "all_gather" ? 1
                                                                    : 2);
      keeps_serving(
          ranks, fmt::format("rank={},inc=0,op={},seq={},phase={}:kill", victim, op, number, phase),
          tally);
    }
  }
  EXPECT_GT(tally.losses, tally.jobs * 3 / 4) << "too few of the faults were reached";
}

INSTANTIATE_TEST_SUITE_P(Ranks, Replace, testing::ValuesIn(test::kRankCounts));

TEST(ReplaceMore, LossesWhileTheGroupReforms) {
  Tally tally;
  const std::string first = "rank=1,inc=0,op=all_gather,seq=9,phase=after_publish:kill;";
  for (const char* second :
       {"rank=1,inc=1,op=join,phase=after_publish:kill", "rank=0,inc=0,op=heal,phase=give:kill",
        "rank=1,inc=1,op=heal,phase=take:kill", "rank=2,inc=0,op=join:kill",
        "rank=1,inc=1,op=all_reduce,phase=before_complete:kill"}) {
    keeps_serving(3, first + second, tally);
  }
  EXPECT_EQ(tally.losses, tally.jobs);
}

TEST(ReplaceMore, WithoutASpareAndManyTimes) {
  Tally tally;
  keeps_serving(3, "rank=2,inc=0,op=all_reduce,seq=7,phase=after_publish:kill", tally, {});
  // More losses of one seat than would poison a step.
  std::string faults;
  for (int life = 0; life < 5; ++life)
    faults += fmt::format("rank=0,inc={},op=broadcast,phase=after_publish:kill;", life);
  faults.pop_back();
  keeps_serving(2, faults, tally);
  EXPECT_EQ(tally.losses, tally.jobs);
}

}  // namespace
}  // namespace regroup::test
