#include "collective/algorithm_rules.hpp"

#include <gmock/gmock.h>

namespace regroup::collective {
namespace {

using testing::HasSubstr;

AlgorithmRules rules(std::string_view text) { return AlgorithmRules::parse(text).value(); }

TEST(AlgorithmRules, EmptyTextLeavesTheChoice) {
  EXPECT_TRUE(rules("").empty());
  EXPECT_EQ(rules("").pick(OpKind::AllReduce, 8), std::nullopt);
}

TEST(AlgorithmRules, RangesAreHalfOpenAndTheOperationCarriesOver) {
  const auto r = rules("all_reduce:0-32k:oneshot;32k-:twoshot");
  EXPECT_EQ(r.pick(OpKind::AllReduce, 0), Algorithm::OneShot);
  EXPECT_EQ(r.pick(OpKind::AllReduce, (32 << 10) - 1), Algorithm::OneShot);
  EXPECT_EQ(r.pick(OpKind::AllReduce, 32 << 10), Algorithm::TwoShot);
  EXPECT_EQ(r.pick(OpKind::AllReduce, std::size_t{1} << 40), Algorithm::TwoShot);
  EXPECT_EQ(r.pick(OpKind::AllGather, 8), std::nullopt);
}

TEST(AlgorithmRules, ARuleBeforeAnyOperationIsOfAll) {
  const auto r = rules("0-1m:oneshot;broadcast:1m-:oneshot");
  EXPECT_EQ(r.pick(OpKind::AllGather, 9), Algorithm::OneShot);
  EXPECT_EQ(r.pick(OpKind::AllReduce, 1 << 20), std::nullopt);
  EXPECT_EQ(r.pick(OpKind::Broadcast, 1 << 20), Algorithm::OneShot);
}

TEST(AlgorithmRules, TheFirstThatFitsCounts) {
  EXPECT_EQ(rules("0-:twoshot;0-:oneshot").pick(OpKind::AllReduce, 5), Algorithm::TwoShot);
}

TEST(AlgorithmRules, EveryAlgorithmHasAName) {
  for (int i = 0; i < kAlgorithmCount; ++i) {
    const auto algorithm = static_cast<Algorithm>(i);
    EXPECT_EQ(rules(std::string("reduce:0-:") + name(algorithm)).pick(OpKind::Reduce, 9),
              algorithm);
  }
  const auto refused = AlgorithmRules::parse("0-:butterfly");
  ASSERT_FALSE(refused);
  EXPECT_THAT(std::string(refused.error().text()),
              HasSubstr("none of inline, oneshot, twoshot, rails, doubling, halving, ring, tree"));
}

TEST(AlgorithmRules, ErrorsNameTheRuleAndShowTheForm) {
  for (const char* const bad :
       {"all_reduce", "all_reduce:0-:fast", "sum:0-:oneshot", "0:oneshot", "0-x:oneshot",
        "-5:oneshot", "0-99999999999999999999:oneshot", "0-18446744073709551615k:oneshot"}) {
    const auto r = AlgorithmRules::parse(bad);
    ASSERT_FALSE(r) << bad;
    EXPECT_EQ(r.error().code(), Code::InvalidArgument);
    EXPECT_THAT(std::string(r.error().text()), HasSubstr(bad));
    EXPECT_THAT(std::string(r.error().text()), HasSubstr("32k-:twoshot"));
  }
}

TEST(Tuning, OfTheNetworkIsReadFromWordsOrAFilesLines) {
  const auto cost =
      parse_tuning("# measured\nnet_gbps=1.5\n  net_latency_us=12 net_message_us=0.4\n").value();
  EXPECT_EQ(cost.latency_us, 12);
  EXPECT_EQ(cost.message_us, 0.4);
  EXPECT_EQ(cost.bytes_per_us, 1500);
  EXPECT_EQ(parse_tuning("").value().latency_us, NetworkCost{}.latency_us);
  for (const char* wrong : {"net_gbps=", "net_gbps=0", "net_gbps=-1", "net_gbps=1x", "speed=3",
                            "net_gbps", "net_latency_us=nan"}) {
    const auto refused = parse_tuning(wrong);
    ASSERT_FALSE(refused) << wrong;
    EXPECT_NE(refused.error().text().find(wrong), std::string::npos) << refused.error().text();
  }
}

}  // namespace
}  // namespace regroup::collective
