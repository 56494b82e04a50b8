#include "engine/state_check.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstdlib>

namespace regroup::engine {
namespace {

TEST(StateCheck, NamesTheTensorAndTheStep) {
  std::array<float, 3> params{1, 2, 3}, moments{};
  int position = 0;
  RegisteredState state;
  state.add("params", params.data(), sizeof params);
  state.add("moments", moments.data(), sizeof moments);
  state.add_volatile("position", &position, sizeof position);
  ASSERT_TRUE(state.seal());
  StateCheck check;
  check.take(state);
  position = 1;
  EXPECT_TRUE(check.check(state, 4)) << "volatile state may change";
  moments[1] = 1;
  const auto status = check.check(state, 4);
  EXPECT_EQ(status.code(), Code::FailedPrecondition);
  EXPECT_NE(status.text().find("\"moments\" was changed in step 4"), std::string_view::npos);
  check.take(state);
  EXPECT_TRUE(check.check(state, 5));
}

TEST(StateCheck, TheVariableDecides) {
  ::setenv("REGROUP_CHECK_STATE", "1", 1);
  EXPECT_TRUE(StateCheck::wanted());
  ::setenv("REGROUP_CHECK_STATE", "0", 1);
  EXPECT_FALSE(StateCheck::wanted());
  ::unsetenv("REGROUP_CHECK_STATE");
}

}  // namespace
}  // namespace regroup::engine
