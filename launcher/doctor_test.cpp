#include "launcher/doctor.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "launcher/options.hpp"

namespace regroup::launcher {
namespace {

TEST(Doctor, ReadsQuotas) {
  EXPECT_EQ(quota_of("150000 100000"), 1.5);
  EXPECT_EQ(quota_of("max 100000"), 0);
  EXPECT_EQ(quota_of(""), 0);
  EXPECT_EQ(quota_of("100 0"), 0);
}

TEST(Doctor, CoresThatAQuotaTakesAwayAreNotCounted) {
  const Finding limited = judge_cores(8, 4, 1.5);
  EXPECT_EQ(limited.health, Health::Hint);
  EXPECT_NE(limited.meaning.find("up to 1 rank "), std::string::npos) << limited.meaning;
  const Finding free = judge_cores(8, 4, 0);
  EXPECT_EQ(free.health, Health::Good);
  EXPECT_NE(free.meaning.find("up to 4 ranks "), std::string::npos) << free.meaning;
}

TEST(Doctor, CoreDumpsDelayTheNoticeOfACrash) {
  EXPECT_EQ(judge_core_dumps("core", true).health, Health::Good);
  EXPECT_EQ(judge_core_dumps("core", false).health, Health::Hint);
  // A pipe gets the dump even where the limit is 0.
  EXPECT_EQ(judge_core_dumps("|/usr/lib/handler %p", true).health, Health::Hint);
}

TEST(Doctor, TooFewDescriptorsForAnyRankMeanNoJob) {
  EXPECT_EQ(judge_descriptors(10).health, Health::Missing);
  EXPECT_EQ(judge_descriptors(200).health, Health::Hint);
  EXPECT_EQ(judge_descriptors(1 << 20).health, Health::Good);
}

TEST(Doctor, FindsWhatTheTestsThemselvesNeed) {
  const std::vector<Finding> found = examine_machine();
  for (const char* needed : {"robust futex", "memfd sealing", "pidfd"}) {
    const auto at = std::find_if(found.begin(), found.end(),
                                 [&](const Finding& finding) { return finding.name == needed; });
    ASSERT_NE(at, found.end()) << needed;
    EXPECT_EQ(at->health, Health::Good) << needed;
  }
}

}  // namespace
}  // namespace regroup::launcher
