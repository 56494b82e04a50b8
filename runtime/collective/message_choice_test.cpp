// The choice between plans over messages.
#include "collective/message_choice.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

namespace regroup::collective {
namespace {

/// Bytes that the ranks of each host send to other hosts.
std::map<int, std::size_t> crossing(const spi::OpDescriptor& d, MessageShape shape) {
  std::map<int, std::size_t> sent;
  for (shape.me = 0; shape.me < shape.members; ++shape.me) {
    MessagePlan plan;
    make_message_plan(d, shape, plan);
    const int here = shape.hosts[static_cast<std::size_t>(shape.me)];
    for (const MessageStep& step : plan.steps) {
      if (step.kind == MessageStepKind::Send &&
          shape.hosts[static_cast<std::size_t>(step.member)] != here)
        sent[here] += step.bytes;
    }
  }
  return sent;
}

TEST(MessageChoice, TheChoiceIsWhatSendsLessBetweenHosts) {
  const spi::OpDescriptor d{.kind = OpKind::AllReduce, .dtype = DType::F32, .count = 1 << 20};
  const std::size_t bytes = d.count * 4;
  const std::vector<int> two_by_two{0, 0, 1, 1}, mixed{0, 1, 0, 1}, alone{0, 1, 2, 3},
      four_by_two{0, 0, 1, 1, 2, 2, 3, 3};
  MessageShape shape{.members = 4, .hosts = two_by_two};
  EXPECT_EQ(choose(d, shape), Algorithm::Rails);
  for (const auto& [host, sent] : crossing(d, shape)) EXPECT_EQ(sent, bytes) << "the least";
  // Ranks 0 and 2 have a host, 1 and 3: halving's longer way stays within them.
  shape.hosts = mixed;
  EXPECT_EQ(choose(d, shape), Algorithm::Halving);
  for (const auto& [host, sent] : crossing(d, shape)) EXPECT_EQ(sent, bytes / 2 * 3);
  shape.hosts = alone;
  EXPECT_EQ(choose(d, shape), Algorithm::TwoShot);
  shape.hosts = four_by_two;
  shape.members = 8;
  EXPECT_EQ(choose(d, shape), Algorithm::Rails);
  for (const auto& [host, sent] : crossing(d, shape)) EXPECT_LE(sent, 2 * bytes);
  // Where a message takes its time, fewer of them follow each other.
  shape.cost.latency_us = 1e6;
  EXPECT_EQ(choose(d, shape), Algorithm::TwoShot);
  shape.cost = {};
  shape.forced = Algorithm::TwoShot;
  EXPECT_EQ(choose(d, shape), Algorithm::TwoShot);
  shape.forced = Algorithm::Inline;  // cannot carry it
  EXPECT_EQ(choose(d, shape), Algorithm::Rails);
}

MessageShape four_hosts_of_four() {
  static const std::vector<int> hosts{0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
  return {.members = 16, .hosts = hosts};
}

// Sums of narrow floats are passed on in f32, twice their size; results are not.
TEST(MessageChoice, NarrowFloatsTakeTheRailsWhereThatSendsLess) {
  const MessageShape shape = four_hosts_of_four();
  const spi::OpDescriptor d{.kind = OpKind::AllReduce, .dtype = DType::BF16, .count = 8 << 20};
  EXPECT_EQ(choose(d, shape), Algorithm::Rails);
  const std::size_t bytes = d.count * 2;
  for (const auto& [host, sent] : crossing(d, shape)) EXPECT_LE(sent, 3 * bytes);
  MessageShape slices = shape;
  slices.forced = Algorithm::TwoShot;
  for (const auto& [host, sent] : crossing(d, slices)) EXPECT_EQ(sent, 6 * bytes);
}

TEST(MessageChoice, WhatTheModelExpectsIsWhatThePlansSend) {
  const MessageShape layouts[] = {four_hosts_of_four(), {.members = 7}, {.members = 16}};
  for (MessageShape shape : layouts) {
    shape.cost = {.latency_us = 1e-9, .message_us = 1e-9, .bytes_per_us = 1};
    std::vector<int> alone(static_cast<std::size_t>(shape.members));
    for (std::size_t i = 0; i < alone.size(); ++i) alone[i] = static_cast<int>(i);
    for (const OpKind kind : {OpKind::AllReduce, OpKind::Reduce, OpKind::Broadcast,
                              OpKind::AllGather, OpKind::ReduceScatter}) {
      for (const DType type : {DType::F32, DType::F16}) {
        const spi::OpDescriptor d{
            .kind = kind, .dtype = type, .root = 3, .count = std::uint64_t{8} << 20};
        for (int i = 0; i < kAlgorithmCount; ++i) {
          const auto algorithm = static_cast<Algorithm>(i);
          if (algorithm == Algorithm::Inline || !can_carry(algorithm, d, shape)) continue;
          shape.forced = algorithm;
          const double expected = expected_us(algorithm, d, shape);
          MessageShape counted = shape;
          if (counted.hosts.empty()) counted.hosts = alone;
          double most = 0;
          for (const auto& [host, sent] : crossing(d, counted))
            most = std::max(most, static_cast<double>(sent));
          // Who gets it all, in reduce, sends nothing; and chunks that fill a chain come on top.
          if (kind == OpKind::Reduce && algorithm == Algorithm::OneShot) continue;
          EXPECT_NEAR(expected, most, 0.25 * most)
              << spi::describe(d) << " by " << name(algorithm) << ", " << shape.members;
        }
      }
    }
  }
}

TEST(MessageChoice, OfEachOperationFollowsWhatTheNetworkIsLike) {
  MessageShape shape{.members = 16};
  const auto chosen = [&](OpKind kind, std::uint64_t count) {
    return choose({.kind = kind, .dtype = DType::F32, .count = count}, shape);
  };
  // Messages are cheap: as few of them as can follow each other.
  EXPECT_EQ(chosen(OpKind::AllReduce, 2), Algorithm::OneShot);
  EXPECT_EQ(chosen(OpKind::Barrier, 0), Algorithm::OneShot);
  EXPECT_EQ(chosen(OpKind::AllReduce, 16 << 20), Algorithm::TwoShot);
  EXPECT_EQ(chosen(OpKind::Broadcast, 2), Algorithm::OneShot);
  EXPECT_EQ(chosen(OpKind::Broadcast, 16 << 20), Algorithm::Tree);
  EXPECT_EQ(chosen(OpKind::Reduce, 16 << 20), Algorithm::Ring);
  // They are dear: as few of them as possible.
  shape.cost = {.latency_us = 5, .message_us = 20, .bytes_per_us = 10'000};
  EXPECT_EQ(chosen(OpKind::AllReduce, 2), Algorithm::Doubling);
  EXPECT_EQ(chosen(OpKind::Barrier, 0), Algorithm::Doubling);
  EXPECT_EQ(chosen(OpKind::AllGather, 2), Algorithm::Doubling);
  EXPECT_EQ(chosen(OpKind::AllReduce, 8192), Algorithm::Halving);
  EXPECT_EQ(chosen(OpKind::ReduceScatter, 64), Algorithm::Halving);
  // Where hosts have several ranks, shares that go around enter each host once.
  EXPECT_EQ(choose({.kind = OpKind::AllGather, .dtype = DType::F32, .count = 1 << 20},
                   four_hosts_of_four()),
            Algorithm::Ring);
}

TEST(MessageChoice, WhatCannotCarryAnOperationIsIgnored) {
  const std::vector<int> hosts{0, 1, 2};
  MessageShape shape{.members = 3, .hosts = hosts};
  for (int kind = 0; kind < spi::kSingleKindCount; ++kind) {
    const spi::OpDescriptor d{.kind = static_cast<OpKind>(kind), .dtype = DType::F32, .count = 100};
    shape.forced.reset();
    const Algorithm choice = choose(d, shape);
    EXPECT_TRUE(can_carry(choice, d, shape));
    for (int i = 0; i < kAlgorithmCount; ++i) {
      shape.forced = static_cast<Algorithm>(i);
      EXPECT_EQ(choose(d, shape), can_carry(*shape.forced, d, shape) ? *shape.forced : choice);
    }
  }
}

}  // namespace
}  // namespace regroup::collective
