#include "membership/table.hpp"

#include <gtest/gtest.h>

#include <set>
#include <string>

namespace regroup::membership {
namespace {

TEST(Table, EveryPairIsWrittenOut) {
  for (std::size_t state = 0; state < kStates; ++state) {
    for (std::size_t event = 0; event < kEventKinds; ++event) {
      const Cell& entry = cell(static_cast<State>(state), static_cast<EventKind>(event));
      ASSERT_NE(entry.what, nullptr);
      EXPECT_GT(std::string(entry.what).size(), 5U)
          << name(static_cast<State>(state)) << " x " << name(static_cast<EventKind>(event));
    }
  }
}

TEST(Table, OnlyASecondStartIsImpossible) {
  for (std::size_t state = 0; state < kStates; ++state) {
    for (std::size_t event = 0; event < kEventKinds; ++event) {
      const auto s = static_cast<State>(state);
      const auto e = static_cast<EventKind>(event);
      EXPECT_EQ(cell(s, e).possible, e != EventKind::Started || s == State::Gathering)
          << name(s) << " x " << name(e);
    }
  }
}

TEST(Table, NamesAreDistinct) {
  std::set<std::string> names;
  for (std::size_t state = 0; state < kStates; ++state) {
    names.insert(name(static_cast<State>(state)));
  }
  EXPECT_EQ(names.size(), kStates);
  names.clear();
  for (std::size_t event = 0; event < kEventKinds; ++event) {
    names.insert(name(static_cast<EventKind>(event)));
  }
  EXPECT_EQ(names.size(), kEventKinds);
}

TEST(Table, MarkdownHasOneRowAnEventAndOneColumnAState) {
  const std::string text = table_markdown();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), static_cast<long>(kEventKinds + 2));
  const std::string first = text.substr(0, text.find('\n'));
  EXPECT_EQ(std::count(first.begin(), first.end(), '|'), static_cast<long>(kStates + 2));
}

TEST(Table, TheMachineCountsTheCellsItReaches) {
  Membership machine;
  const Started started{.config = {.ranks = 1}, .agents = {AgentId{0}}};
  (void)machine.step(started, TimePoint{});
  (void)machine.step(AgentConnected{AgentId{0}}, TimePoint{});
  (void)machine.step(FromAgent{AgentId{0}, AgentHello{.agent = AgentId{0}}}, TimePoint{});
  const auto gathering = static_cast<std::size_t>(State::Gathering);
  EXPECT_EQ(machine.cells_reached()[gathering][static_cast<std::size_t>(EventKind::Started)], 1U);
  EXPECT_EQ(machine.cells_reached()[gathering][static_cast<std::size_t>(EventKind::Hello)], 1U);
  EXPECT_EQ(machine.state(), State::Forming);
}

TEST(TableDeathTest, ASecondStartIsADefect) {
  Membership machine;
  const Started started{.config = {.ranks = 1}, .agents = {AgentId{0}}};
  (void)machine.step(started, TimePoint{});
  (void)machine.step(FromAgent{AgentId{0}, AgentHello{.agent = AgentId{0}}}, TimePoint{});
  (void)machine.step(AgentConnected{AgentId{0}}, TimePoint{});
  (void)machine.step(FromAgent{AgentId{0}, AgentHello{.agent = AgentId{0}}}, TimePoint{});
  EXPECT_DEATH((void)machine.step(started, TimePoint{}), "delivered once");
}

}  // namespace
}  // namespace regroup::membership
