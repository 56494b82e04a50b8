#include "membership/host_agent.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "membership/text.hpp"

namespace regroup::membership {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

/// Two members, 1 and 2, of epoch 1 on this host, and a joined spare 3.
class Agent : public ::testing::Test {
 protected:
  void SetUp() override {
    step(host::ChannelUp{});
    for (std::uint64_t i = 1; i <= 3; ++i) {
      std::optional<Rank> seat;
      if (i < 3) seat = Rank{static_cast<std::int32_t>(i - 1)};
      order(StartProcess{Incarnation{i}, seat});
      step(host::Joined{Incarnation{i}});
    }
    order(InstallView{view(1, {1, 2}, 1), {}, {}});
    step(host::ViewMade{Epoch{1}});
  }

  static View view(std::uint64_t epoch, const std::vector<std::uint64_t>& seats,
                   std::uint64_t resume) {
    View made{.epoch = Epoch{epoch}, .resume_step = resume};
    for (const std::uint64_t seat : seats) made.seats.push_back(Incarnation{seat});
    return made;
  }

  /// Performs the event; what follows, as text, without timers.
  std::vector<std::string> step(const host::Event& event) {
    std::vector<std::string> lines;
    for (const host::Effect& effect : agent_.step(event, now_)) {
      if (!std::holds_alternative<host::SetTimer>(effect)) lines.push_back(to_text(effect));
    }
    return lines;
  }
  std::vector<std::string> order(CoordinatorMessage message) {
    return step(host::FromCoordinator{std::move(message)});
  }
  std::vector<std::string> kill(std::uint64_t incarnation) {
    return step(
        host::Lost{Incarnation{incarnation}, {.kind = EvidenceKind::Beacon, .text = "beacon"}});
  }
  std::vector<std::string> wedged(std::uint64_t epoch, std::uint64_t done, std::uint64_t prepared) {
    return step(
        host::WordsWedged{{.epoch = Epoch{epoch}, .groups = {{0, done}}, .prepared = prepared}});
  }

  HostAgent agent_{AgentId{0}};
  TimePoint now_{};
};

TEST_F(Agent, ProofWedgesAtOnceEvenWithoutACoordinator) {
  step(host::ChannelDown{});
  EXPECT_THAT(kill(2), ElementsAre("WedgeWords 1", "Kill 2 (beacon)"));
  EXPECT_THAT(wedged(1, 5, 2),
              ElementsAre("TellRanks 1 lost=[1:2] (rank 1 (incarnation 2) lost: beacon)"));
  EXPECT_THAT(step(host::ChannelUp{}),
              ElementsAre("-> coordinator: AgentHello installed=1 1=rank 0/joined 2=rank 1/gone "
                          "3=spare/joined wedged: epoch=1 done=[0:5] prepared=2"));
}

TEST_F(Agent, ALostSpareWedgesNothing) {
  EXPECT_THAT(kill(3),
              ElementsAre("Kill 3 (beacon)", "-> coordinator: ProcessLost 3 Beacon (beacon)"));
}

TEST_F(Agent, NothingIsReportedBeforeTheWordsAreWedged) {
  EXPECT_THAT(order(WedgeEpoch{Epoch{1}, Round{1}, {}}), ElementsAre("WedgeWords 1"));
  EXPECT_THAT(wedged(1, 4, 1),
              ElementsAre("TellRanks 1 lost=[] ()",
                          "-> coordinator: Wedged round=0.1 epoch=1 done=[0:4] prepared=1"));
}

TEST_F(Agent, ADecisionThatComesFirstIsWrittenAfterTheWedge) {
  EXPECT_THAT(order(StoreDecision{Epoch{1}, Round{1}, {{0, 4}}, 1, {}}),
              ElementsAre("WedgeWords 1"));
  EXPECT_THAT(wedged(1, 4, 1), ElementsAre("TellRanks 1 lost=[] ()",
                                           "WriteDecision 1 cuts=[0:4] committed=1 lost=[]"));
  EXPECT_THAT(step(host::DecisionWritten{Epoch{1}}),
              ElementsAre("-> coordinator: DecisionStored epoch=1 round=0.1"));
}

TEST_F(Agent, ALaterRoundHearsTheSameReport) {
  order(WedgeEpoch{Epoch{1}, Round{1}, {}});
  wedged(1, 4, 3);
  order(StoreDecision{Epoch{1}, Round{1}, {{0, 6}}, 2, {}});
  step(host::DecisionWritten{Epoch{1}});
  EXPECT_THAT(order(WedgeEpoch{Epoch{1}, Round{2}, {}}),
              ElementsAre("-> coordinator: Wedged round=0.2 epoch=1 done=[0:4] prepared=3"));
}

TEST_F(Agent, OrdersOfEarlierRoundsAndEpochsAreDropped) {
  order(WedgeEpoch{Epoch{1}, Round{5}, {}});
  wedged(1, 4, 3);
  EXPECT_THAT(order(StoreDecision{Epoch{1}, Round{4}, {{0, 1}}, 0, {}}), IsEmpty());
  EXPECT_THAT(order(WedgeEpoch{Epoch{1}, Round{4}, {}}), IsEmpty());
  EXPECT_THAT(order(InstallView{view(0, {}, 1), {}, {}}), IsEmpty());
}

TEST_F(Agent, AViewWaitsUntilTheSurvivorsHereWereToldTheDecision) {
  order(WedgeEpoch{Epoch{1}, Round{1}, {}});
  wedged(1, 4, 1);
  EXPECT_THAT(order(InstallView{view(2, {1, 3}, 2), {}, {}}), IsEmpty());
  order(StoreDecision{Epoch{1}, Round{1}, {{0, 4}}, 1, {{Rank{1}, Incarnation{2}}}});
  EXPECT_THAT(step(host::DecisionWritten{Epoch{1}}),
              ElementsAre("-> coordinator: DecisionStored epoch=1 round=0.1",
                          "MakeView 2 seats=[1 3] resume=2 local=[0:1 1:3] assigned=[1:3] "
                          "cause=rank 1 (incarnation 2) lost: removed from the job"));
}

TEST_F(Agent, TheRemovedAreKilledBeforeTheDecisionIsWritten) {
  order(WedgeEpoch{Epoch{1}, Round{1}, {}});
  wedged(1, 4, 1);
  const auto effects = order(StoreDecision{Epoch{1}, Round{1}, {}, 1, {{Rank{1}, Incarnation{2}}}});
  ASSERT_EQ(effects.size(), 4U);
  EXPECT_EQ(effects[1], "Kill 2 (removed from the job)");
  EXPECT_EQ(effects[3], "WriteDecision 1 cuts=[] committed=1 lost=[1:2]");
}

TEST_F(Agent, AnEpochThatWasWedgedUnseenIsNeverMade) {
  order(WedgeEpoch{Epoch{1}, Round{1}, {}});
  wedged(1, 4, 1);
  order(StoreDecision{Epoch{1}, Round{1}, {{0, 4}}, 1, {}});
  step(host::DecisionWritten{Epoch{1}});
  EXPECT_THAT(order(WedgeEpoch{Epoch{2}, Round{2}, {}}),
              ElementsAre("-> coordinator: Wedged round=0.2 epoch=2 done=[] prepared=0"));
  EXPECT_THAT(order(InstallView{view(2, {1, 2}, 2), {}, {}}),
              ElementsAre("-> coordinator: Wedged round=0.0 epoch=2 done=[] prepared=0"));
  EXPECT_THAT(order(StoreDecision{Epoch{2}, Round{2}, {}, 1, {}}),
              ElementsAre("-> coordinator: DecisionStored epoch=2 round=0.2"));
  EXPECT_THAT(order(InstallView{view(3, {1, 2}, 2), {}, {}}),
              ElementsAre("MakeView 3 seats=[1 2] resume=2 local=[0:1 1:2] assigned=[] cause="));
}

TEST_F(Agent, MembersThatAllWaitAreReportedToWhicheverCoordinatorComes) {
  EXPECT_THAT(order(ParkEpoch{Epoch{1}}), ElementsAre("AskPark 1"));
  EXPECT_THAT(step(host::Parked{Incarnation{1}, Epoch{1}}), IsEmpty());
  EXPECT_THAT(step(host::Parked{Incarnation{2}, Epoch{1}}),
              ElementsAre("-> coordinator: Parked 1"));
  step(host::ChannelDown{});
  EXPECT_THAT(step(host::ChannelUp{}), Contains("-> coordinator: Parked 1"));
}

TEST_F(Agent, MembersThatLeaveTheJobByThemselvesArePartOfNoPlannedEnd) {
  EXPECT_THAT(step(host::Parked{Incarnation{1}, Epoch{1}}), IsEmpty());
  EXPECT_THAT(step(host::Parked{Incarnation{2}, Epoch{1}}), IsEmpty());
  EXPECT_THAT(order(ParkEpoch{Epoch{1}}), ElementsAre("AskPark 1", "-> coordinator: Parked 1"));
}

TEST_F(Agent, AMemberThatDiesWhileItsViewIsMadeWedgesItAsSoonAsItExists) {
  order(WedgeEpoch{Epoch{1}, Round{1}, {{Rank{1}, Incarnation{2}}}});
  wedged(1, 4, 1);
  order(StoreDecision{Epoch{1}, Round{1}, {}, 1, {{Rank{1}, Incarnation{2}}}});
  step(host::DecisionWritten{Epoch{1}});
  order(InstallView{view(2, {1, 3}, 2), {}, {}});
  EXPECT_THAT(kill(3),
              ElementsAre("Kill 3 (beacon)", "-> coordinator: ProcessLost 3 Beacon (beacon)"));
  EXPECT_THAT(step(host::ViewMade{Epoch{2}}),
              ElementsAre("-> coordinator: Installed 2", "WedgeWords 2"));
}

TEST_F(Agent, LaterEvidenceAddsTheExitStatus) {
  kill(2);
  EXPECT_EQ(step(host::Lost{Incarnation{2}, {.kind = EvidenceKind::Reaped, .signal = 11}}).size(),
            1U);
  EXPECT_EQ(agent_.processes().at(Incarnation{2}).evidence.signal, 11);
  EXPECT_THAT(step(host::Lost{Incarnation{2}, {.kind = EvidenceKind::Reaped, .signal = 9}}),
              IsEmpty());
}

TEST_F(Agent, SilenceIsConfirmedBeforeItCounts) {
  std::vector<std::string> all;
  for (int check = 0; check < 200 && all.empty(); ++check) {
    now_ += timeouts_for(kDetectBudget).check_every;
    const auto beat = static_cast<std::uint64_t>(check);
    for (std::string& line :
         step(host::BeatsRead{{{Incarnation{1}, beat}, {Incarnation{3}, beat}}})) {
      if (line.starts_with("Log suspected")) continue;
      all.push_back(std::move(line));
    }
  }
  ASSERT_EQ(all.size(), 3U);
  EXPECT_EQ(all[0], "WedgeWords 1");
  EXPECT_TRUE(all[1].starts_with("Kill 2 (no heartbeat for ")) << all[1];
  EXPECT_TRUE(all[2].starts_with("-> coordinator: ProcessLost 2 Silence")) << all[2];
}

TEST_F(Agent, RequestsOutliveTheCoordinatorUpToALimit) {
  step(host::ChannelDown{});
  for (std::size_t i = 0; i < kPendingRequestsMax; ++i) {
    EXPECT_THAT(step(host::Evict{Incarnation{1}, "asked"}), IsEmpty());
  }
  EXPECT_EQ(step(host::Evict{Incarnation{1}, "asked"}).size(), 1U);  // says that it is dropped
  EXPECT_EQ(step(host::ChannelUp{}).size(), 1 + kPendingRequestsMax);
}

TEST_F(Agent, RepeatedOrdersAreAnsweredAndDoneOnce) {
  EXPECT_THAT(order(StartProcess{Incarnation{1}, Rank{0}}), IsEmpty());
  EXPECT_THAT(order(InstallView{view(1, {1, 2}, 1), {}, {}}),
              ElementsAre("-> coordinator: Installed 1"));
  EXPECT_THAT(order(EndJob{3, "over"}), ElementsAre("EndAll EndJob 3 (over)"));
  EXPECT_THAT(order(EndJob{3, "over"}), IsEmpty());
  EXPECT_TRUE(agent_.is_ending());
}

TEST_F(Agent, ARankThatEndsTheEpochIsReportedWithoutBeingAsked) {
  EXPECT_THAT(step(host::WedgeWanted{Epoch{1}, "deadline"}), ElementsAre("WedgeWords 1"));
  EXPECT_THAT(wedged(1, 4, 1),
              ElementsAre("TellRanks 1 lost=[] (deadline)",
                          "-> coordinator: Wedged round=0.0 epoch=1 done=[0:4] prepared=1"));
}

TEST_F(Agent, ExplainSaysWhatItWaitsFor) {
  kill(2);
  wedged(1, 4, 1);
  EXPECT_NE(agent_.explain().find("waits for the decision"), std::string::npos) << agent_.explain();
}

TEST_F(Agent, AnAddressGoesToTheCoordinatorAndComesBackWithTheView) {
  const MemberAddress address = {std::byte{1}, std::byte{2}};
  order(StartProcess{Incarnation{4}, std::nullopt});
  const host::Effects joined = agent_.step(host::Joined{Incarnation{4}, address}, now_);
  const host::Effect said = host::SendCoordinator{ProcessJoined{Incarnation{4}, address}};
  EXPECT_THAT(joined, Contains(said));
  EXPECT_EQ(agent_.processes().at(Incarnation{4}).address, address);
  kill(2);
  wedged(1, 0, 0);
  order(StoreDecision{Epoch{1}, Round{1}, {}, 0, {{Rank{1}, Incarnation{2}}}});
  step(host::DecisionWritten{Epoch{1}});
  const std::vector<SeatPlace> places = {{AgentId{0}, 0, {}}, {AgentId{0}, 1, address}};
  const host::Effects made =
      agent_.step(host::FromCoordinator{InstallView{view(2, {1, 4}, 1), {}, {}, places}}, now_);
  const auto is_view = [](const host::Effect& effect) {
    return std::holds_alternative<host::MakeView>(effect);
  };
  const auto found = std::find_if(made.begin(), made.end(), is_view);
  ASSERT_NE(found, made.end());
  EXPECT_EQ(std::get<host::MakeView>(*found).places, places);
}

TEST_F(Agent, TheAddressOfOneThatIsGoneIsNotSaidAgain) {
  order(StartProcess{Incarnation{4}, std::nullopt});
  step(host::Joined{Incarnation{4}, {std::byte{1}}});
  kill(4);
  for (const host::Effect& effect : agent_.step(host::ChannelUp{}, now_)) {
    const auto* sent = std::get_if<host::SendCoordinator>(&effect);
    if (sent == nullptr) continue;
    for (const ProcessInfo& process : std::get<AgentHello>(sent->message).processes)
      EXPECT_THAT(process.address, IsEmpty()) << process.incarnation.value();
  }
}

}  // namespace
}  // namespace regroup::membership
