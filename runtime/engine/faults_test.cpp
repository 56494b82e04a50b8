#include "engine/faults.hpp"

#include <gtest/gtest.h>
#include <signal.h>

namespace regroup::engine {
namespace {

TEST(FaultScript, KeepsTheRulesOfThisLifeOnly) {
  const auto script = FaultScript::parse("rank=1,inc=0,phase=enter:kill;rank=2:kill", Rank(0), 0);
  ASSERT_TRUE(script);
  EXPECT_TRUE(script->empty());
  EXPECT_TRUE(FaultScript::parse("rank=1,inc=0:kill", Rank(1), 1)->empty());
  EXPECT_FALSE(FaultScript::parse("rank=1,inc=1:kill", Rank(1), 1)->empty());
}

TEST(FaultScriptDeathTest, KillsAtTheNamedPointOnly) {
  const auto run = [](std::string_view phase, std::uint64_t sequence) {
    auto script =
        FaultScript::parse("op=all_reduce,seq=3,phase=after_copy_in:kill", Rank(0), 0).value();
    script.hit({.op = "all_reduce", .phase = phase, .sequence = sequence});
    ::_exit(7);
  };
  EXPECT_EXIT(run("after_copy_in", 3), testing::KilledBySignal(SIGKILL), "");
  EXPECT_EXIT(run("after_copy_in", 2), testing::ExitedWithCode(7), "");
  EXPECT_EXIT(run("enter", 3), testing::ExitedWithCode(7), "");
}

TEST(FaultScript, SaysWhatItCannotRead) {
  EXPECT_EQ(FaultScript::parse("rank=x:kill", Rank(0), 0).error().code(), Code::InvalidArgument);
  EXPECT_NE(FaultScript::parse("rank=1:explode", Rank(0), 0).error().text().find("explode"),
            std::string_view::npos);
  EXPECT_FALSE(FaultScript::parse("colour=1:kill", Rank(0), 0));
  EXPECT_FALSE(FaultScript::parse("rank=1", Rank(0), 0));
}

}  // namespace
}  // namespace regroup::engine
