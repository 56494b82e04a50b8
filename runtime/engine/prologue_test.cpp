#include "engine/prologue.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "engine/prologue_progress.hpp"

namespace regroup::engine {
namespace {

PrologueCall call(std::uint64_t count, std::string_view group = "world") {
  return {.kind = 1, .count = count, .group = group, .members = 3};
}
const std::uint64_t kWorld = group_key("world", false);

class Record : public testing::Test {
 protected:
  std::vector<std::byte> memory_ = std::vector<std::byte>(4096);
};

TEST_F(Record, AnswersEachGroupInOrder) {
  auto record = PrologueRecord::format(memory_);
  const std::array<std::byte, 3> result{std::byte{1}, std::byte{2}, std::byte{3}};
  record.append(call(3), result, false);
  record.append(call(1, "half"), std::span(result).first(1), false);
  record.append(call(3), {}, false);
  auto heir = PrologueRecord::open(memory_).value();
  EXPECT_EQ(heir.calls(kWorld), 2U);
  std::array<std::byte, 3> got{};
  EXPECT_EQ(heir.answer(call(1, "half"), 0, std::span(got).first(1)).value(),
            PrologueRecord::Answer::Given);
  EXPECT_EQ(got[0], result[0]);
  EXPECT_TRUE(heir.answer(call(3), 0, got));
  EXPECT_EQ(got, result);
  EXPECT_TRUE(heir.answer(call(3), 1, {}));
}

TEST_F(Record, TheNextLifeWritesOnBehindWhatItTookBack) {
  auto record = PrologueRecord::format(memory_);
  const std::array<std::byte, 1> old{std::byte{1}}, fresh{std::byte{2}};
  record.append(call(1), {}, false);
  record.append(call(1), old, false);
  auto heir = PrologueRecord::open(memory_).value();
  heir.drop_last(kWorld);
  EXPECT_EQ(heir.calls(kWorld), 1U);
  heir.append(call(1), fresh, false);
  auto next = PrologueRecord::open(memory_).value();
  ASSERT_EQ(next.calls(kWorld), 2U);
  std::array<std::byte, 1> got{};
  EXPECT_TRUE(next.answer(call(1), 1, got));
  EXPECT_EQ(got, fresh);
}

TEST_F(Record, OfASeatThatMovedIsTakenFromTheOthers) {
  auto giver = PrologueRecord::format(memory_);
  const std::array<std::byte, 2> sum{std::byte{1}, std::byte{2}}, own{std::byte{3}, std::byte{4}};
  auto shared = call(2);
  shared.shared = true;
  giver.append(shared, sum, false);
  giver.append(call(2), own, false);         // a share of its own
  giver.append(call(7, "half"), {}, false);  // not asked for
  giver.append(shared, sum, false);
  giver.drop_last(kWorld);
  const std::array<std::uint64_t, 1> groups{kWorld};
  std::vector<std::byte> room(4096);
  auto taker = PrologueRecord::format(room);
  ASSERT_TRUE(taker.take_over(giver.entries_of(groups)));
  EXPECT_EQ(taker.calls(kWorld), 2U);
  EXPECT_EQ(taker.calls(group_key("half", false)), 0U);
  // Its next life reads the same.
  const auto heir = PrologueRecord::open(room).value();
  std::array<std::byte, 2> got{};
  EXPECT_EQ(heir.answer(shared, 0, got).value(), PrologueRecord::Answer::Given);
  EXPECT_EQ(got, sum);
  EXPECT_TRUE(heir.answer(shared, 0, {})) << "a root gives, and needs no result";
  EXPECT_EQ(heir.answer(call(2), 1, got).error().code(), Code::ResourceExhausted);
  EXPECT_TRUE(heir.answer(call(2), 1, {})) << "a rank that gets nothing";
  EXPECT_EQ(heir.answer(call(5), 0, got).error().code(), Code::InvalidArgument);
}

TEST_F(Record, ALoanIsTheSameOnAllRanksAndOfEachGroupFromOne) {
  std::vector<PrologueInfo> all(4);
  const std::uint64_t half = group_key("half", false);
  all[0].lacks = all[3].lacks = 1;
  all[1].groups[0] = {kWorld, 3, 4};
  all[2].groups[0] = {kWorld, 3, 4};
  all[2].groups[1] = {half, 1, 2};
  all[2].groups[2] = {group_key("none", false), 0, 2};
  const auto loans = lend_records(all);
  ASSERT_EQ(loans.size(), 4U);
  for (std::size_t i = 0; i < loans.size(); ++i) {
    EXPECT_EQ(loans[i].to, i < 2 ? 0U : 3U);
    EXPECT_EQ(loans[i].from, 1 + i % 2);
    EXPECT_EQ(loans[i].groups, std::vector<std::uint64_t>{i % 2 == 0 ? kWorld : half});
  }
  all[1].too_large = all[2].too_large = 1;
  EXPECT_TRUE(lend_records(all).empty());
}

TEST_F(Record, RefusesAnotherCallThanThePredecessors) {
  auto record = PrologueRecord::format(memory_);
  record.append(call(3), {}, false);
  auto heir = PrologueRecord::open(memory_).value();
  EXPECT_EQ(heir.answer(call(4), 0, {}).error().code(), Code::InvalidArgument);
}

TEST_F(Record, SaysWhenItRanOverItsCap) {
  auto record = PrologueRecord::format(memory_);
  const std::vector<std::byte> large(8192);
  record.append(call(8192), large, false);
  auto heir = PrologueRecord::open(memory_).value();
  EXPECT_TRUE(heir.overflowed());
  EXPECT_EQ(heir.calls(kWorld), 0U);
}

TEST_F(Record, ADamagedOneIsRefused) {
  auto record = PrologueRecord::format(memory_);
  record.append(call(3), {}, false);
  const std::uint64_t used = 1U << 20;
  std::memcpy(memory_.data() + sizeof(std::uint64_t), &used, sizeof used);
  EXPECT_FALSE(PrologueRecord::open(memory_));
}

PrologueInfo says(bool resolved, std::vector<ProloguePosition> positions) {
  PrologueInfo info{.resolved = resolved ? 1U : 0U};
  std::ranges::copy(positions, info.groups.begin());
  return info;
}

std::uint64_t agreed(const std::vector<PrologueInfo>& all, std::uint64_t group) {
  return agree_on_prologue(all).value().calls.at(group);
}

TEST(Agreement, SurvivorsKnowWhatIsDone) {
  EXPECT_EQ(agreed({says(true, {{7, 4, 3}}), says(true, {{7, 4, 3}}), says(false, {{7, 5, 3}})}, 7),
            4U);
}

TEST(Agreement, ASurvivorThatDoesNotListAGroupHasNoCallOfItBehindItself) {
  EXPECT_EQ(agreed({says(true, {}), says(false, {{7, 1, 2}})}, 7), 0U);
}

TEST(Agreement, AGroupOfTheDeadIsAsFarAsAllOfThemRecorded) {
  EXPECT_EQ(agreed({says(true, {}), says(false, {{7, 2, 2}}), says(false, {{7, 1, 2}})}, 7), 1U);
  EXPECT_EQ(agreed({says(true, {}), says(false, {{7, 1, 1}})}, 7), 1U);
}

TEST(Agreement, SurvivorsThatDifferAreADefect) {
  const std::vector all{says(true, {{7, 4, 2}}), says(true, {{7, 5, 2}})};
  EXPECT_EQ(agree_on_prologue(all).error().code(), Code::Internal);
}

TEST(Agreement, MessagesCannotBePairedAgain) {
  std::vector all{says(true, {}), says(false, {})};
  all[0].messages = 1;
  EXPECT_EQ(agree_on_prologue(all).error().code(), Code::Unsupported);
  all[1].over = 1;
  EXPECT_TRUE(agree_on_prologue(all).value().over) << "they are behind everybody";
}

TEST(Agreement, NobodyWaitsForANewcomerThatCannotFollow) {
  std::vector all{says(true, {{7, 4, 2}}), says(false, {{7, 1, 2}})};
  all[1].too_large = 1;
  EXPECT_EQ(agree_on_prologue(all).error().code(), Code::ResourceExhausted);
  all[0].over = 1;
  EXPECT_TRUE(agree_on_prologue(all).value().over) << "it gets the state, and no answers";
}

Status no_agent(void* /*context*/, int /*fd*/, std::uint64_t /*bytes*/) { return {}; }

TEST(Progress, ACallThatWasNotConfirmedIsNoPosition) {
  PrologueProgress progress;
  ASSERT_TRUE(progress.append(call(1), {}, false, no_agent, nullptr));
  EXPECT_EQ(progress.info().groups[0].group, 0U);
  progress.confirm(call(1));
  EXPECT_EQ(progress.info().groups[0].calls, 1U);
}

TEST(Progress, ALiveCallBehindALeftOutAnswerIsRefused) {
  PrologueProgress progress;
  const std::vector<std::byte> large(PrologueRecord::kHealedBytesMax + 1);
  auto wide = call(large.size());
  ASSERT_TRUE(progress.append(wide, large, true, no_agent, nullptr));
  std::vector<std::byte> got(large.size());
  EXPECT_TRUE(progress.answer(wide, 0, got).value());
  EXPECT_EQ(got.front(), std::byte{0xFF});
  EXPECT_EQ(got.back(), std::byte{0xFF});
  EXPECT_EQ(progress.answer(call(1), 1, {}).error().code(), Code::FailedPrecondition);
}

}  // namespace
}  // namespace regroup::engine
