#include "supervisor/supervisor_machine.hpp"

#include <gtest/gtest.h>

#include <csignal>
#include <functional>

namespace regroup::supervisor {
namespace {

using membership::EvidenceKind;
namespace sv = regroup::supervisor;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr Incarnation kOne{1};
constexpr Rank kSeat{0};

template <class E>
std::vector<E> all_of(const Effects& effects) {
  std::vector<E> out;
  for (const auto& effect : effects) {
    if (const E* e = std::get_if<E>(&effect)) out.push_back(*e);
  }
  return out;
}

class Supervisor : public testing::Test {
 protected:
  Effects step(sv::Event event) { return machine.step(event, now); }
  void start() {
    (void)step(sv::StartRequested{kOne, kSeat});
    (void)step(sv::StartSucceeded{kOne});
  }
  void attach() {
    start();
    (void)step(sv::AttachSeen{kOne});
  }
  ProcessPhase phase() { return machine.phase(kOne).value(); }

  SupervisorMachine machine{{.grace = seconds(15),
                             .backoff_first = milliseconds(50),
                             .backoff_max = milliseconds(150),
                             .start_attempts_max = 4,
                             .channel_wait = milliseconds(50)}};
  TimePoint now{};
};

TEST_F(Supervisor, AProgramThatNeverAttachesAndEndsWithZeroHasFinished) {
  EXPECT_EQ(all_of<sv::Fork>(step(sv::StartRequested{kOne, kSeat})),
            (std::vector<sv::Fork>{{kOne, kSeat, 1}}));
  (void)step(sv::StartSucceeded{kOne});
  const Effects end = step(sv::Exited{kOne, 0, 0});
  EXPECT_EQ(all_of<sv::Finished>(end).size(), 1U);
  EXPECT_TRUE(all_of<sv::Lost>(end).empty());
  EXPECT_TRUE(all_of<sv::Sweep>(end).empty());
  EXPECT_EQ(phase(), ProcessPhase::Gone);
}

TEST_F(Supervisor, ARepeatedStartRequestStartsNothing) {
  start();
  EXPECT_TRUE(step(sv::StartRequested{kOne, kSeat}).empty());
}

TEST_F(Supervisor, AHeldStartWaitsForItsMoment) {
  const Effects held = step(sv::StartRequested{kOne, std::nullopt, milliseconds(50)});
  EXPECT_TRUE(all_of<sv::Fork>(held).empty());
  EXPECT_EQ(all_of<sv::SetTimer>(held), (std::vector<sv::SetTimer>{{now + milliseconds(50)}}));
  now += milliseconds(50);
  EXPECT_EQ(all_of<sv::Fork>(step(sv::TimerFired{})),
            (std::vector<sv::Fork>{{kOne, std::nullopt, 1}}));
}

TEST_F(Supervisor, AHeldStartIsHurriedOnce) {
  (void)step(sv::StartRequested{kOne, std::nullopt, milliseconds(50)});
  EXPECT_EQ(all_of<sv::Fork>(step(sv::HoldOver{})).size(), 1U);
  EXPECT_TRUE(all_of<sv::Fork>(step(sv::HoldOver{})).empty());
  now += milliseconds(50);
  EXPECT_TRUE(all_of<sv::Fork>(step(sv::TimerFired{})).empty());
}

TEST_F(Supervisor, AHeldStartThatIsNotWantedAnyMoreNeverHappens) {
  (void)step(sv::StartRequested{kOne, std::nullopt, milliseconds(50)});
  (void)step(sv::KillRequested{kOne});
  EXPECT_EQ(phase(), ProcessPhase::Gone);
  now += milliseconds(50);
  EXPECT_TRUE(all_of<sv::Fork>(step(sv::TimerFired{})).empty());
  EXPECT_TRUE(all_of<sv::Fork>(step(sv::HoldOver{})).empty());
}

TEST_F(Supervisor, ABeaconIsALossAtOnceAndTheExitStatusFollows) {
  attach();
  const Effects died = step(sv::OwnerDied{kOne});
  EXPECT_EQ(all_of<sv::Lost>(died),
            (std::vector<sv::Lost>{{kOne, EvidenceKind::Beacon, -1, 0, true}}));
  EXPECT_EQ(all_of<sv::Signal>(died), (std::vector<sv::Signal>{{kOne, SIGKILL}}));
  const Effects reaped = step(sv::Exited{kOne, 0, SIGSEGV});
  EXPECT_EQ(all_of<sv::Lost>(reaped),
            (std::vector<sv::Lost>{{kOne, EvidenceKind::Reaped, -1, SIGSEGV, true}}));
  EXPECT_EQ(all_of<sv::Sweep>(reaped).size(), 1U);
}

TEST_F(Supervisor, ABeaconBeforeAttachingCountsForNothing) {
  start();
  EXPECT_TRUE(step(sv::OwnerDied{kOne}).empty());
  EXPECT_EQ(phase(), ProcessPhase::Running);
}

TEST_F(Supervisor, AfterDetachingOnlyTheExitStatusCounts) {
  attach();
  (void)step(sv::DetachSeen{kOne});
  EXPECT_TRUE(step(sv::OwnerDied{kOne}).empty());
  EXPECT_TRUE(step(sv::ChannelClosed{kOne}).empty());
  EXPECT_EQ(all_of<sv::Finished>(step(sv::Exited{kOne, 0, 0})).size(), 1U);
}

TEST_F(Supervisor, AFailureAfterDetachingIsALoss) {
  attach();
  (void)step(sv::DetachSeen{kOne});
  EXPECT_EQ(all_of<sv::Lost>(step(sv::Exited{kOne, 3, 0})),
            (std::vector<sv::Lost>{{kOne, EvidenceKind::Reaped, 3, 0, true}}));
}

TEST_F(Supervisor, AClosedChannelWaitsForTheExitStatusAndThenCountsItself) {
  attach();
  const Effects closed = step(sv::ChannelClosed{kOne});
  EXPECT_EQ(all_of<sv::SetTimer>(closed), (std::vector<sv::SetTimer>{{now + milliseconds(50)}}));
  EXPECT_TRUE(all_of<sv::Lost>(closed).empty());
  now += milliseconds(49);
  EXPECT_TRUE(all_of<sv::Lost>(step(sv::TimerFired{})).empty());
  now += milliseconds(1);
  const Effects lost = step(sv::TimerFired{});
  EXPECT_EQ(all_of<sv::Lost>(lost),
            (std::vector<sv::Lost>{{kOne, EvidenceKind::ChannelClosed, -1, 0, true}}));
  EXPECT_EQ(all_of<sv::Signal>(lost), (std::vector<sv::Signal>{{kOne, SIGKILL}}));
}

TEST_F(Supervisor, AnExitWithinTheChannelsWaitIsTheEvidence) {
  attach();
  (void)step(sv::ChannelClosed{kOne});
  const Effects reaped = step(sv::Exited{kOne, 0, SIGKILL});
  EXPECT_EQ(all_of<sv::Lost>(reaped),
            (std::vector<sv::Lost>{{kOne, EvidenceKind::Reaped, -1, SIGKILL, true}}));
  EXPECT_TRUE(all_of<sv::SetTimer>(reaped).empty());
}

TEST_F(Supervisor, ARefusedStartIsTriedAgainWithGrowingPausesAndThenGivenUp) {
  (void)step(sv::StartRequested{kOne, kSeat});
  for (const milliseconds pause : {milliseconds(50), milliseconds(100), milliseconds(150)}) {
    const Effects refused = step(sv::StartRefused{kOne, "no memory", true});
    ASSERT_EQ(all_of<sv::SetTimer>(refused), (std::vector<sv::SetTimer>{{now + pause}}));
    now += pause;
    ASSERT_EQ(all_of<sv::Fork>(step(sv::TimerFired{})).size(), 1U);
  }
  EXPECT_EQ(all_of<sv::GaveUp>(step(sv::StartRefused{kOne, "no memory", true})),
            (std::vector<sv::GaveUp>{{kOne, "no memory"}}));
  EXPECT_EQ(phase(), ProcessPhase::Gone);
}

TEST_F(Supervisor, AProgramThatCannotRunIsGivenUpAtOnce) {
  (void)step(sv::StartRequested{kOne, kSeat});
  EXPECT_EQ(all_of<sv::GaveUp>(step(sv::StartRefused{kOne, "not executable", false})).size(), 1U);
}

TEST_F(Supervisor, EndingGivesGraceAndThenKills) {
  attach();
  const Effects ending = step(sv::EndRequested{false});
  EXPECT_EQ(all_of<sv::Signal>(ending), (std::vector<sv::Signal>{{kOne, SIGTERM}}));
  EXPECT_TRUE(all_of<sv::AllGone>(ending).empty());
  now += seconds(15);
  EXPECT_EQ(all_of<sv::Signal>(step(sv::TimerFired{})), (std::vector<sv::Signal>{{kOne, SIGKILL}}));
  const Effects gone = step(sv::Exited{kOne, 0, SIGKILL});
  EXPECT_EQ(all_of<sv::AllGone>(gone).size(), 1U);
  EXPECT_TRUE(all_of<sv::Lost>(gone).empty()) << "what we end ourselves is never a loss";
}

TEST_F(Supervisor, ASecondRequestToEndKillsAtOnce) {
  attach();
  (void)step(sv::EndRequested{false});
  EXPECT_EQ(all_of<sv::Signal>(step(sv::EndRequested{true})),
            (std::vector<sv::Signal>{{kOne, SIGKILL}}));
}

TEST_F(Supervisor, OurOwnTermIsNoCause) {
  attach();
  (void)step(sv::EndRequested{false});
  const Effects gone = step(sv::Exited{kOne, 0, SIGTERM});
  EXPECT_TRUE(all_of<sv::Lost>(gone).empty());
  EXPECT_TRUE(all_of<sv::Finished>(gone).empty());
  EXPECT_EQ(all_of<sv::AllGone>(gone).size(), 1U);
}

TEST_F(Supervisor, EndingWithoutProcessesIsOver) {
  EXPECT_EQ(all_of<sv::AllGone>(step(sv::EndRequested{false})).size(), 1U);
}

TEST_F(Supervisor, NothingIsStartedWhileEnding) {
  (void)step(sv::EndRequested{false});
  EXPECT_EQ(all_of<sv::GaveUp>(step(sv::StartRequested{kOne, kSeat})).size(), 1U);
}

TEST_F(Supervisor, AnEndDuringTheForkEndsTheProcessOnceItRuns) {
  (void)step(sv::StartRequested{kOne, kSeat});
  EXPECT_TRUE(all_of<sv::AllGone>(step(sv::EndRequested{false})).empty());
  EXPECT_EQ(all_of<sv::Signal>(step(sv::StartSucceeded{kOne})),
            (std::vector<sv::Signal>{{kOne, SIGTERM}}));
}

TEST_F(Supervisor, AFencedProcessIsKilledAndItsReapingReported) {
  attach();
  EXPECT_EQ(all_of<sv::Signal>(step(sv::KillRequested{kOne})),
            (std::vector<sv::Signal>{{kOne, SIGKILL}}));
  EXPECT_EQ(all_of<sv::Lost>(step(sv::Exited{kOne, 0, SIGKILL})),
            (std::vector<sv::Lost>{{kOne, EvidenceKind::Reaped, -1, SIGKILL, true}}));
}

/// Every phase, reached by the shortest way, meets every event that can happen in it: no cell
/// breaks, nothing is reported lost twice without a reaping, and Gone stays Gone.
TEST(SupervisorTable, EveryCellIsWrittenOut) {
  using Path = std::vector<sv::Event>;
  const Path starting = {sv::StartRequested{kOne, kSeat}};
  const Path running = {sv::StartRequested{kOne, kSeat}, sv::StartSucceeded{kOne}};
  const auto with = [](Path path, std::vector<sv::Event> more) {
    path.insert(path.end(), more.begin(), more.end());
    return path;
  };
  const Path attached = with(running, {sv::AttachSeen{kOne}});
  const std::vector<std::pair<ProcessPhase, Path>> phases = {
      {ProcessPhase::Running, running},
      {ProcessPhase::Attached, attached},
      {ProcessPhase::Detached, with(attached, {sv::DetachSeen{kOne}})},
      {ProcessPhase::Closing, with(attached, {sv::ChannelClosed{kOne}})},
      {ProcessPhase::Ending, with(attached, {sv::EndRequested{false}})},
      {ProcessPhase::Killed, with(attached, {sv::OwnerDied{kOne}})},
      {ProcessPhase::Gone, with(running, {sv::Exited{kOne, 0, 0}})}};
  const std::vector<sv::Event> events = {sv::StartRequested{kOne, kSeat},
                                         sv::AttachSeen{kOne},
                                         sv::DetachSeen{kOne},
                                         sv::OwnerDied{kOne},
                                         sv::ChannelClosed{kOne},
                                         sv::Exited{kOne, 1, 0},
                                         sv::KillRequested{kOne},
                                         sv::EndRequested{false},
                                         sv::EndRequested{true},
                                         sv::TimerFired{},
                                         sv::HoldOver{}};
  for (const auto& [phase, path] : phases) {
    for (const sv::Event& event : events) {
      SupervisorMachine machine{SupervisorConfig{}};
      for (const sv::Event& step : path) (void)machine.step(step, TimePoint{});
      ASSERT_EQ(machine.phase(kOne), phase);
      const Effects effects = machine.step(event, TimePoint{} + seconds(60));
      EXPECT_LE(all_of<sv::Lost>(effects).size(), 1U) << name(phase) << " " << event.index();
      EXPECT_LE(all_of<sv::Signal>(effects).size(), 1U) << name(phase) << " " << event.index();
      if (phase == ProcessPhase::Gone) {
        EXPECT_EQ(machine.phase(kOne), ProcessPhase::Gone) << event.index();
      }
      if (std::holds_alternative<sv::Exited>(event)) {
        EXPECT_EQ(machine.phase(kOne), ProcessPhase::Gone) << name(phase);
      }
    }
  }
}

}  // namespace
}  // namespace regroup::supervisor
