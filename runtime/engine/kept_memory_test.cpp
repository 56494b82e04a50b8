#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "engine/mirror.hpp"
#include "engine/prologue.hpp"

namespace regroup::engine {
namespace {

TEST(Mirror, KeepsTheLastTwoGenerations) {
  std::uint64_t position = 10;
  RegisteredState state;
  state.add_volatile("position", &position, sizeof position);
  ASSERT_TRUE(state.seal());
  std::vector<std::byte> memory(Mirror::bytes_needed(state.volatile_bytes()));
  auto mirror = Mirror::format(memory, state.volatile_bytes());
  for (std::uint64_t step = 1; step <= 3; ++step) {
    position = 10 * step;
    mirror.write(step, state);
  }
  const auto heir = Mirror::open(memory, state.volatile_bytes()).value();
  EXPECT_FALSE(heir.read(1, state));
  ASSERT_TRUE(heir.read(2, state));
  EXPECT_EQ(position, 20U);
  ASSERT_TRUE(heir.read(3, state));
  EXPECT_EQ(position, 30U);
  EXPECT_FALSE(Mirror::open(memory, state.volatile_bytes() - 1));
}

class Prologue : public testing::Test {
 protected:
  static PrologueCall call(std::uint64_t count) {
    return {.kind = 1, .count = count, .group = "world"};
  }
  std::vector<std::byte> memory_ = std::vector<std::byte>(4096);
};

TEST_F(Prologue, AnswersInOrderThenLetsTheNewcomerGoOn) {
  auto record = PrologueRecord::format(memory_);
  const std::array<std::byte, 3> result{std::byte{1}, std::byte{2}, std::byte{3}};
  record.append(call(3), result, false);
  record.append(call(3), result, true);
  auto heir = PrologueRecord::open(memory_).value();
  std::array<std::byte, 3> got{};
  EXPECT_TRUE(heir.answer(call(3), got).value());
  EXPECT_EQ(got, result);
  got = {};
  EXPECT_TRUE(heir.answer(call(3), got).value());
  EXPECT_EQ(got[0], std::byte{0}) << "heal brings it";
  EXPECT_FALSE(heir.answer(call(3), got).value());
  record.close();
  EXPECT_EQ(heir.answer(call(3), got).error().code(), Code::InvalidArgument);
}

TEST_F(Prologue, RefusesAnotherCallThanThePredecessors) {
  auto record = PrologueRecord::format(memory_);
  record.append(call(3), {}, false);
  auto heir = PrologueRecord::open(memory_).value();
  EXPECT_EQ(heir.answer(call(4), {}).error().code(), Code::InvalidArgument);
}

TEST_F(Prologue, SaysWhenItRanOverItsCap) {
  auto record = PrologueRecord::format(memory_);
  const std::vector<std::byte> large(8192);
  record.append(call(8192), large, false);
  std::vector<std::byte> got(8192);
  auto heir = PrologueRecord::open(memory_).value();
  EXPECT_EQ(heir.answer(call(8192), got).error().code(), Code::ResourceExhausted);
}

}  // namespace
}  // namespace regroup::engine
