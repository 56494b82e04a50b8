#include "engine/registered_state.hpp"

#include <gtest/gtest.h>

#include <array>

namespace regroup::engine {
namespace {

TEST(RegisteredState, SavesAndRestoresVolatileStateOnly) {
  std::array<float, 3> params{1, 2, 3};
  int position = 5;
  RegisteredState state;
  state.add("params", params.data(), sizeof params);
  state.add_volatile("position", &position, sizeof position);
  ASSERT_TRUE(state.seal());
  std::vector<std::byte> saved(state.volatile_bytes());
  state.save_volatile(saved.data());
  position = 9;
  params[0] = 7;
  state.restore_volatile(saved.data());
  EXPECT_EQ(position, 5);
  EXPECT_EQ(params[0], 7);
}

TEST(RegisteredState, RefusesNamesUsedTwiceAndLateRegistration) {
  int a = 0;
  RegisteredState twice;
  twice.add("a", &a, sizeof a);
  twice.add_volatile("a", &a, sizeof a);
  EXPECT_EQ(twice.seal().code(), Code::InvalidArgument);
  RegisteredState late;
  ASSERT_TRUE(late.seal());
  late.add("a", &a, sizeof a);
  EXPECT_EQ(late.seal().code(), Code::FailedPrecondition);
}

TEST(RegisteredState, LayoutDigestTellsNamesAndSizesApart) {
  std::array<std::byte, 8> memory{};
  RegisteredState one, other, volatile_one;
  one.add("a", memory.data(), 4);
  other.add("a", memory.data(), 8);
  volatile_one.add_volatile("a", memory.data(), 4);
  EXPECT_NE(one.layout_digest(), other.layout_digest());
  EXPECT_NE(one.layout_digest(), volatile_one.layout_digest());
  EXPECT_TRUE(other.covers(memory.data() + 2, 6));
  EXPECT_FALSE(other.covers(memory.data() + 2, 7));
}

}  // namespace
}  // namespace regroup::engine
