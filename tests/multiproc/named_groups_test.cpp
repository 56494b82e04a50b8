/// Groups by name and the job's store: made by whoever asks first, found by newcomers.
#include <gtest/gtest.h>

#include "tests/multiproc/rank_job.hpp"

namespace regroup::test {
namespace {

Ended named(const std::vector<std::string>& flags, const std::string& faults) {
  return run_program(REGROUP_NAMED_GROUPS_RANK, flags, {}, {{"REGROUP_FAULTS", faults}});
}

void expect_ended(const Ended& job, std::size_t ranks) {
  EXPECT_FALSE(job.timed_out) << story(job);
  EXPECT_EQ(job.exit_code, 0) << story(job);
  EXPECT_EQ(job.lines_with("digest=").size(), ranks) << story(job);
  EXPECT_EQ(digests(job).size(), 1U) << story(job);
}

TEST(NamedGroups, AreFoundByNewcomersAndTheStoreOutlivesRankZero) {
  const auto undisturbed = named({"-n", "3"}, "");
  expect_ended(undisturbed, 3);
  for (const char* faults :
       {"rank=0,inc=0,op=all_reduce,step=2,phase=after_publish:kill",
        "rank=1,inc=0,op=all_reduce,step=0,phase=before_complete:kill",
        "rank=0,inc=0,op=commit,step=3,phase=after_prepare:kill;rank=2,inc=0,op=all_reduce,step=4,"
        "phase=after_publish:kill"}) {
    const auto job = named({"-n", "3", "--spares", "1"}, faults);
    expect_ended(job, 3);
    EXPECT_NE(job.err.find("SIGKILL"), std::string::npos) << story(job);
    EXPECT_EQ(digests(job), digests(undisturbed)) << faults << "\n" << story(job);
  }
}

TEST(NamedGroups, MisuseIsNamed) {
  const auto job = named({"-n", "3"}, "");
  const std::string expected =
      "misuse: InvalidArgument InvalidArgument InvalidArgument ResourceExhausted InvalidArgument";
  EXPECT_EQ(job.lines_with(expected).size(), 3U) << story(job);
}

}  // namespace
}  // namespace regroup::test
