#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "engine/mirror.hpp"

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

}  // namespace
}  // namespace regroup::engine
