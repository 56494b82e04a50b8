#include <gtest/gtest.h>

#include <regroup/status.hpp>

namespace regroup {
namespace {

TEST(Status, SuccessIsTrueAndHasNoText) {
  const Status status;
  EXPECT_TRUE(status);
  EXPECT_EQ(status.code(), Code::Ok);
  EXPECT_EQ(status.to_string(), "Ok");
}

TEST(Status, KeepsWhereAFailureBelongs) {
  const Status status(Code::RankLost, "rank 2 was killed", {.rank = Rank(2), .epoch = Epoch(4)});
  EXPECT_FALSE(status);
  EXPECT_EQ(status.to_string(), "RankLost: rank 2 was killed");
  EXPECT_EQ(status.where().rank, Rank(2));
  EXPECT_EQ(status.where().epoch, Epoch(4));
  EXPECT_FALSE(status.where().sequence);
}

TEST(Result, HoldsAValueOrTheReason) {
  const Result<int> good = 3;
  const Result<int> bad = Status(Code::InvalidArgument, "no");
  EXPECT_EQ(good.value(), 3);
  EXPECT_TRUE(good.error());
  EXPECT_FALSE(bad.has_value());
  EXPECT_EQ(bad.error().code(), Code::InvalidArgument);
}

TEST(ResultDeathTest, ValueOfAnErrorSaysWhy) {
  const Result<int> bad = Status(Code::InvalidArgument, "count is 0");
  EXPECT_DEATH((void)bad.value(), "InvalidArgument: count is 0");
}

}  // namespace
}  // namespace regroup
