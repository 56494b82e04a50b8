// What no single transcript shows: every order of events, repeated and stale messages, the figures
// of a decision.
#include "membership/membership.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "membership/world_for_tests.hpp"

namespace regroup::membership {
namespace {

using testing::World;

World formed(const std::string& job) {
  World world;
  for (const std::string& line :
       {"job " + job, std::string("start"), std::string("join all"), std::string("heal all")}) {
    world.line(line);
  }
  return world;
}

/// Whatever the order in which two deaths, a crash of the coordinator and answers come, the job
/// ends up in one view whose members are alive, with the step that everybody had prepared.
TEST(Orders, EveryOrderOfLossesCrashAndHeldAnswersConverges) {
  const std::array<std::string, 6> happenings = {"kill r0", "kill r1",     "crash",
                                                 "restart", "hold Wedged", "hold DecisionStored"};
  std::array<std::size_t, 6> order = {0, 1, 2, 3, 4, 5};
  do {
    const auto at = [&order](std::size_t what) {
      return std::find(order.begin(), order.end(), what) - order.begin();
    };
    if (at(3) < at(2)) continue;  // a restart follows the crash
    World world = formed("ranks=3 spares=2");
    world.line("words epoch=1 prepared=4 done=9");
    for (const std::size_t index : order) world.line(happenings[index]);
    world.line("release");
    world.line("wait 3000");
    for (int newcomer = 6; newcomer < 200; ++newcomer)
      world.line("join " + std::to_string(newcomer));
    world.line("wait 3000");
    const View& view = world.coordinator().view();
    ASSERT_EQ(world.coordinator().state(), State::Steady) << world.coordinator().explain() << "\n"
                                                          << world.transcript();
    ASSERT_EQ(view.resume_step, 5U) << world.transcript();
    ASSERT_LE(view.epoch.value(), 3U) << world.transcript();
    for (const Incarnation seat : view.seats) {
      const ProcessState state = world.agent(0).processes().at(seat).state;
      ASSERT_TRUE(state == ProcessState::Joined || state == ProcessState::Healed)
          << world.transcript();
    }
    ASSERT_TRUE(world.failures().empty()) << world.failures().front();
  } while (std::next_permutation(order.begin(), order.end()));
}

/// One machine, spoken to directly.
class Machine : public ::testing::Test {
 protected:
  Effects from(std::uint32_t agent, AgentMessage message) {
    return machine_.step(FromAgent{AgentId{agent}, std::move(message)}, now_);
  }
  /// Ranks 0..n-1 on n agents, all members of epoch 1.
  void form(std::uint32_t ranks) {
    Started started{.config = {.ranks = ranks}};
    for (std::uint32_t id = 0; id < ranks; ++id) started.agents.push_back(AgentId{id});
    (void)machine_.step(started, now_);
    for (std::uint32_t id = 0; id < ranks; ++id) from(id, AgentHello{.agent = AgentId{id}});
    for (std::uint32_t id = 0; id < ranks; ++id) from(id, ProcessJoined{Incarnation{id + 1}});
    for (std::uint32_t id = 0; id < ranks; ++id) from(id, Installed{Epoch{1}});
    for (std::uint32_t id = 0; id < ranks; ++id) from(id, ProcessHealed{Incarnation{id + 1}});
    ASSERT_EQ(machine_.state(), State::Steady);
  }
  /// Rank 0 dies; the round that this begins.
  Round lose_first() { return lose(0); }
  Round lose(std::uint32_t rank) {
    const Effects effects =
        from(rank, ProcessLost{Incarnation{rank + 1}, {.kind = EvidenceKind::Reaped, .signal = 9}});
    for (const Effect& effect : effects) {
      const auto* send = std::get_if<SendTo>(&effect);
      if (send == nullptr) continue;
      if (const auto* wedge = std::get_if<WedgeEpoch>(&send->message)) return wedge->round;
    }
    ADD_FAILURE() << "no WedgeEpoch";
    return Round{};
  }
  static WedgeReport report(std::uint64_t done, std::uint64_t prepared) {
    return {.epoch = Epoch{1}, .groups = {{0, done}}, .prepared = prepared};
  }
  static const StoreDecision* decision(const Effects& effects) {
    for (const Effect& effect : effects) {
      const auto* send = std::get_if<SendTo>(&effect);
      if (send != nullptr && std::holds_alternative<StoreDecision>(send->message)) {
        return &std::get<StoreDecision>(send->message);
      }
    }
    return nullptr;
  }

  Membership machine_;
  TimePoint now_{};
};

TEST_F(Machine, TheCutIsTheHighestAndTheStepTheLowest) {
  form(3);
  const Round round = lose_first();
  (void)from(0, Wedged{round, {.epoch = Epoch{1}, .groups = {{0, 9}, {4, 1}}, .prepared = 3}});
  (void)from(1, Wedged{round, report(8, 2)});
  const Effects effects = from(2, Wedged{round, report(7, 3)});
  const StoreDecision* store = decision(effects);
  ASSERT_NE(store, nullptr);
  EXPECT_EQ(store->committed_step, 2U);
  EXPECT_EQ(store->cuts, (std::vector<WedgeReport::GroupCut>{{0, 9}, {4, 1}}));
}

TEST_F(Machine, WhatIsDecidedHoldsInALaterRound) {
  form(3);
  Round round = lose_first();
  (void)from(0, Wedged{round, report(9, 6)});
  (void)from(1, Wedged{round, report(9, 7)});
  ASSERT_NE(decision(from(2, Wedged{round, report(9, 7)})), nullptr);
  round = lose(2);
  (void)from(0, Wedged{round, report(9, 7)});
  (void)from(1, Wedged{round, report(10, 7)});
  const Effects effects = from(2, Wedged{round, report(9, 7)});
  ASSERT_NE(decision(effects), nullptr);
  EXPECT_EQ(decision(effects)->committed_step, 6U);
  EXPECT_EQ(decision(effects)->cuts, (std::vector<WedgeReport::GroupCut>{{0, 9}}));
}

TEST_F(Machine, AnswersOfOtherRoundsAndEpochsDoNotCount) {
  form(2);
  const Round round = lose_first();
  (void)from(0, Wedged{round, report(9, 2)});
  EXPECT_EQ(decision(from(1, Wedged{Round{round.value() - 1}, report(9, 2)})), nullptr);
  EXPECT_EQ(decision(from(1, Wedged{round, {.epoch = Epoch{7}, .prepared = 2}})), nullptr);
  EXPECT_EQ(machine_.state(), State::Wedged);
  ASSERT_NE(decision(from(1, Wedged{round, report(9, 2)})), nullptr);
  (void)from(0, DecisionStored{Epoch{1}, Round{round.value() - 1}});
  (void)from(1, DecisionStored{Epoch{1}, round});
  EXPECT_EQ(machine_.state(), State::Draining);
}

TEST_F(Machine, TheViewIsDurableBeforeItLeaves) {
  form(2);
  const Round round = lose_first();
  (void)from(0, Wedged{round, report(9, 2)});
  (void)from(1, Wedged{round, report(9, 2)});
  (void)from(0, DecisionStored{Epoch{1}, round});
  (void)from(1, DecisionStored{Epoch{1}, round});
  ASSERT_EQ(machine_.state(), State::Replacing);
  bool durable = false;
  bool left = false;
  for (const Effect& effect : from(0, ProcessJoined{Incarnation{3}})) {
    const auto* persist = std::get_if<Persist>(&effect);
    durable = durable || (persist != nullptr && persist->state.view.epoch == Epoch{2});
    const auto* send = std::get_if<SendTo>(&effect);
    if (send == nullptr || !std::holds_alternative<InstallView>(send->message)) continue;
    left = true;
    EXPECT_TRUE(durable);
    EXPECT_EQ(std::get<InstallView>(send->message).view.resume_step, 3U);
  }
  EXPECT_TRUE(left);
}

TEST_F(Machine, IncarnationsAreDurableBeforeTheyAreIssued) {
  Incarnation durable{1};
  const auto check = [&durable](const Effects& effects) {
    for (const Effect& effect : effects) {
      if (const auto* persist = std::get_if<Persist>(&effect))
        durable = persist->state.next_incarnation;
      const auto* send = std::get_if<SendTo>(&effect);
      if (send == nullptr) continue;
      const auto* start = std::get_if<StartProcess>(&send->message);
      if (start == nullptr) continue;
      EXPECT_LT(start->incarnation, durable);
    }
  };
  check(machine_.step(Started{.config = {.ranks = 100}, .agents = {AgentId{0}}}, now_));
  check(from(0, AgentHello{.agent = AgentId{0}}));
  EXPECT_GE(durable.value(), 101U);
}

TEST_F(Machine, AStateFileThatIsOlderThanTheJobEndsIt) {
  const DurableState old{.config = {.ranks = 1},
                         .view = {.epoch = Epoch{1}, .seats = {Incarnation{1}}},
                         .next_incarnation = Incarnation{65}};
  (void)machine_.step(Started{.durable = old, .agents = {AgentId{0}}}, now_);
  (void)from(0, AgentHello{.agent = AgentId{0},
                           .installed = {.epoch = Epoch{2}, .seats = {Incarnation{1}}}});
  EXPECT_EQ(machine_.state(), State::Failed);
  EXPECT_EQ(machine_.end()->exit_code, kExitInternal);
}

TEST_F(Machine, SilenceOfAnAgentIsRepeatedTo) {
  form(2);
  (void)lose_first();
  now_ += timeouts_for(kDetectBudget).resend_every;
  int repeated = 0;
  for (const Effect& effect : machine_.step(Timer{}, now_)) {
    const auto* send = std::get_if<SendTo>(&effect);
    if (send != nullptr && std::holds_alternative<WedgeEpoch>(send->message)) ++repeated;
  }
  EXPECT_EQ(repeated, 2);
}

TEST_F(Machine, ExplainNamesWhoIsMissing) {
  form(2);
  const Round round = lose_first();
  (void)from(0, Wedged{round, report(9, 2)});
  EXPECT_NE(machine_.explain().find("agent 1 has not answered"), std::string::npos)
      << machine_.explain();
}

TEST_F(Machine, ADeadIncarnationNeverComesBack) {
  form(2);
  (void)lose_first();
  (void)from(0, ProcessJoined{Incarnation{1}});
  (void)from(0, ProcessHealed{Incarnation{1}});
  EXPECT_EQ(machine_.state(), State::Wedged);
  const Effects effects = from(0, AgentHello{.agent = AgentId{0},
                                             .installed = machine_.view(),
                                             .processes = {{.incarnation = Incarnation{1},
                                                            .seat = Rank{0},
                                                            .state = ProcessState::Healed}}});
  for (const Effect& effect : effects) {
    const auto* send = std::get_if<SendTo>(&effect);
    if (send == nullptr || !std::holds_alternative<WedgeEpoch>(send->message)) continue;
    EXPECT_EQ(std::get<WedgeEpoch>(send->message).lost.size(), 1U);
  }
}

/// Hosts that differ.
class Hosts : public Machine {
 protected:
  /// Starts a job; agent by agent what it was told to start.
  std::vector<std::string> begin(JobConfig config, std::uint32_t agents) {
    Started started{.config = std::move(config)};
    for (std::uint32_t id = 0; id < agents; ++id) started.agents.push_back(AgentId{id});
    (void)machine_.step(started, now_);
    std::vector<std::string> starts(agents);
    for (std::uint32_t id = 0; id < agents; ++id)
      add_starts(from(id, AgentHello{.agent = AgentId{id}}), starts);
    return starts;
  }
  static void add_starts(const Effects& effects, std::vector<std::string>& starts) {
    for (const Effect& effect : effects) {
      const auto* sent = std::get_if<SendTo>(&effect);
      const auto* start = sent == nullptr ? nullptr : std::get_if<StartProcess>(&sent->message);
      if (start == nullptr) continue;
      std::string& host = starts[sent->agent->value()];
      host += start->seat ? std::to_string(start->seat->value()) : "s";
    }
  }
  static std::vector<SeatPlace> places(const Effects& effects) {
    for (const Effect& effect : effects) {
      const auto* sent = std::get_if<SendTo>(&effect);
      const auto* view = sent == nullptr ? nullptr : std::get_if<InstallView>(&sent->message);
      if (view != nullptr) return view->places;
    }
    return {};
  }
};

TEST_F(Hosts, SeatsFillTheHostsInTheirOrderAndSparesTheEmptiest) {
  EXPECT_EQ(begin({.ranks = 4, .spares = 2, .hosts = {{3, true}, {1, true}, {0, true}}}, 3),
            (std::vector<std::string>{"012", "3s", "s"}));
}

TEST_F(Hosts, NothingIsStartedOnAHostThatIsNotUsed) {
  EXPECT_EQ(begin({.ranks = 2, .spares = 1, .hosts = {{0, false}, {1, true}, {1, true}}}, 3),
            (std::vector<std::string>{"", "0s", "1"}));
}

// Bound to one that never comes back they would be waited for for ever.
TEST_F(Hosts, WhileNoneIsThereNothingIsStartedAndTheFirstToComeBackRunsAll) {
  Started started{.config = {.ranks = 2, .spares = 1, .hosts = {{0, false}, {1, true}, {1, true}}}};
  for (std::uint32_t id = 0; id < 3; ++id) started.agents.push_back(AgentId{id});
  (void)machine_.step(started, now_);
  for (const std::uint32_t id : {1U, 2U}) {
    (void)from(id, AgentHello{.agent = AgentId{id}});
    (void)machine_.step(AgentDisconnected{AgentId{id}}, now_);
  }
  now_ += timeouts_for(kDetectBudget).agent_lost;
  std::vector<std::string> starts(3);
  add_starts(from(0, AgentHello{.agent = AgentId{0}}), starts);
  now_ += timeouts_for(kDetectBudget).agent_lost;
  add_starts(machine_.step(Timer{}, now_), starts);
  EXPECT_EQ(starts, std::vector<std::string>(3));
  EXPECT_NE(machine_.explain().find("waits for a host that may run it"), std::string::npos)
      << machine_.explain();
  add_starts(from(2, AgentHello{.agent = AgentId{2}}), starts);
  EXPECT_EQ(starts, (std::vector<std::string>{"", "", "01s"}));
}

TEST_F(Hosts, EachViewTellsWhereItsMembersAre) {
  begin({.ranks = 2, .hosts = {{1, true}, {1, true}}}, 2);
  const MemberAddress first = {std::byte{1}};
  const MemberAddress second = {std::byte{2}};
  (void)from(0, ProcessJoined{Incarnation{1}, first});
  EXPECT_EQ(places(from(1, ProcessJoined{Incarnation{2}, second})),
            (std::vector<SeatPlace>{{AgentId{0}, 0, first}, {AgentId{1}, 0, second}}));
}

TEST_F(Hosts, ALaterLifeElsewhereIsKnownAsOne) {
  form(3);
  (void)machine_.step(AgentDisconnected{AgentId{2}}, now_);
  now_ += timeouts_for(kDetectBudget).agent_lost;
  const Effects lost = machine_.step(Timer{}, now_);
  Round round;
  for (const Effect& effect : lost) {
    const auto* sent = std::get_if<SendTo>(&effect);
    const auto* wedge = sent == nullptr ? nullptr : std::get_if<WedgeEpoch>(&sent->message);
    if (wedge != nullptr) round = wedge->round;
  }
  for (std::uint32_t id = 0; id < 2; ++id) (void)from(id, Wedged{round, report(0, 0)});
  std::vector<std::uint32_t> lives;
  for (std::uint32_t id = 0; id < 2; ++id) {
    for (const Effect& effect : from(id, DecisionStored{Epoch{1}, round})) {
      const auto* sent = std::get_if<SendTo>(&effect);
      const auto* start = sent == nullptr ? nullptr : std::get_if<StartProcess>(&sent->message);
      if (start != nullptr) lives.push_back(start->life);
    }
  }
  EXPECT_EQ(lives, std::vector<std::uint32_t>{1});
}

}  // namespace
}  // namespace regroup::membership
