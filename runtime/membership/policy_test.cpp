#include "membership/policy.hpp"

#include <gtest/gtest.h>

namespace regroup::membership {
namespace {

JobConfig job() { return {.ranks = 4, .ranks_min = 2, .spares = 1}; }

SeatLoss loss() {
  return {.rank = Rank{2},
          .incarnation = Incarnation{3},
          .evidence = {.kind = EvidenceKind::Reaped, .signal = 9},
          .seats_left = 3,
          .spare_left = true};
}

TEST(Policy, ASpareComesBeforeAColdRestart) {
  EXPECT_EQ(decide_seat(job(), loss()).action, SeatAction::TakeSpare);
  SeatLoss without = loss();
  without.spare_left = false;
  EXPECT_EQ(decide_seat(job(), without).action, SeatAction::RestartCold);
}

TEST(Policy, NoSpareAndNoRestartShrinksDownToTheMinimum) {
  SeatLoss stuck = loss();
  stuck.spare_left = false;
  stuck.start_gave_up = true;
  stuck.seats_left = 2;
  EXPECT_EQ(decide_seat(job(), stuck).action, SeatAction::LeaveVacant);
  stuck.seats_left = 1;
  const SeatVerdict verdict = decide_seat(job(), stuck);
  EXPECT_EQ(verdict.action, SeatAction::EndJob);
  EXPECT_EQ(verdict.exit_code, kExitTemporary);
  EXPECT_NE(verdict.why.find("--min 2"), std::string::npos) << verdict.why;
}

TEST(Policy, TheThirdLossInOneStepIsPoisoned) {
  SeatLoss third = loss();
  third.losses_in_step = kPoisonedAt - 1;
  EXPECT_EQ(decide_seat(job(), third).action, SeatAction::TakeSpare);
  third.losses_in_step = kPoisonedAt;
  const SeatVerdict verdict = decide_seat(job(), third);
  EXPECT_EQ(verdict.action, SeatAction::EndJob);
  EXPECT_EQ(verdict.exit_code, 128 + 9);
  EXPECT_NE(verdict.why.find("poisoned"), std::string::npos) << verdict.why;
}

TEST(Policy, AProgramThatEndsItselfAgainAndAgainIsSaidToDoSo) {
  SeatLoss third = loss();
  third.evidence = {.kind = EvidenceKind::Reaped, .exit_code = 1};
  third.losses_in_step = third.exited_alike = kPoisonedAt;
  const SeatVerdict verdict = decide_seat(job(), third);
  EXPECT_EQ(verdict.exit_code, 1);
  EXPECT_NE(verdict.why.find("the program itself exited with code 1, 3 times at the same step"),
            std::string::npos)
      << verdict.why;
  third.exited_alike = kPoisonedAt - 1;
  EXPECT_EQ(decide_seat(job(), third).why.find("itself"), std::string::npos);
}

TEST(Policy, RequestsAreNoStepsThatCouldBePoisoned) {
  JobConfig config = job();
  config.on_loss = OnLoss::Replace;
  SeatLoss third = loss();
  third.losses_in_step = third.losses_recent = kPoisonedAt;
  EXPECT_EQ(decide_seat(config, third).action, SeatAction::TakeSpare);
  third.losses_recent = config.replacements_max + 1;
  third.seats_left = 1;
  EXPECT_EQ(decide_seat(config, third).action, SeatAction::EndJob);
}

TEST(Policy, AbortEndsWithTheCauseOwnCode) {
  JobConfig config = job();
  config.on_loss = OnLoss::Abort;
  SeatLoss failed = loss();
  failed.evidence = {.kind = EvidenceKind::Reaped, .exit_code = 3};
  EXPECT_EQ(decide_seat(config, failed).exit_code, 3);
  failed.evidence = {.kind = EvidenceKind::AgentLost};
  EXPECT_EQ(decide_seat(config, failed).exit_code, kExitTemporary);
}

TEST(Policy, ShrinkNeverReplaces) {
  JobConfig config = job();
  config.on_loss = OnLoss::Shrink;
  EXPECT_EQ(decide_seat(config, loss()).action, SeatAction::LeaveVacant);
}

TEST(Policy, CarryOnFillsTheSeatLater) {
  JobConfig config = job();
  config.on_loss = OnLoss::CarryOn;
  EXPECT_EQ(decide_seat(config, loss()).action, SeatAction::FillLater);
  SeatLoss early = loss();
  early.state_exists = false;
  EXPECT_EQ(decide_seat(config, early).action, SeatAction::TakeSpare);
  SeatLoss often = loss();
  often.losses_recent = config.replacements_max + 1;
  EXPECT_EQ(decide_seat(config, often).action, SeatAction::LeaveVacant);
  often.losses_in_step = kPoisonedAt;
  EXPECT_NE(decide_seat(config, often).why.find("poisoned"), std::string::npos);
  SeatLoss few = loss();
  few.seats_left = 1;
  const SeatVerdict verdict = decide_seat(config, few);
  EXPECT_EQ(verdict.action, SeatAction::EndJob);
  EXPECT_EQ(verdict.exit_code, kExitTemporary);
  EXPECT_NE(verdict.why.find("--min 2"), std::string::npos) << verdict.why;
}

TEST(Policy, AProgramThatNeverAttachedIsNotReplacedUnlessAsked) {
  SeatLoss alone = loss();
  alone.attached = false;
  alone.others_attached = false;
  EXPECT_EQ(decide_seat(job(), alone).action, SeatAction::EndJob);
  alone.others_attached = true;
  EXPECT_EQ(decide_seat(job(), alone).action, SeatAction::TakeSpare);
  alone.others_attached = false;
  JobConfig config = job();
  config.restart_unattached = true;
  EXPECT_EQ(decide_seat(config, alone).action, SeatAction::TakeSpare);
}

TEST(Policy, AProgramThatNeverAttachedIsNeitherPoisonedNorShrunk) {
  JobConfig config = job();
  config.restart_unattached = true;
  SeatLoss failing = loss();
  failing.attached = false;
  failing.others_attached = false;
  failing.evidence = {.kind = EvidenceKind::Reaped, .exit_code = 3};
  failing.losses_in_step = kPoisonedAt;
  failing.losses_recent = config.replacements_max;
  EXPECT_EQ(decide_seat(config, failing).action, SeatAction::TakeSpare);
  failing.losses_recent = config.replacements_max + 1;
  EXPECT_EQ(decide_seat(config, failing).action, SeatAction::EndJob);
  EXPECT_EQ(decide_seat(config, failing).exit_code, 3);
}

TEST(Policy, EveryVerdictSaysWhoAndWhy) {
  const SeatVerdict verdict = decide_seat(job(), loss());
  EXPECT_NE(verdict.why.find("rank 2 (incarnation 3)"), std::string::npos) << verdict.why;
  EXPECT_NE(verdict.why.find("signal 9"), std::string::npos) << verdict.why;
}

TEST(SeatHistory, CountsWithinTheHourAndTheStep) {
  SeatHistory history;
  const TimePoint start{};
  history.lose({.step = 5, .at = start});
  history.lose({.step = 5, .at = start + std::chrono::minutes(30)});
  EXPECT_EQ(history.recent(start + std::chrono::minutes(59)), 2U);
  EXPECT_EQ(history.in_step(5), 2U);
  EXPECT_EQ(history.recent(start + std::chrono::minutes(61)), 1U);
  history.lose({.step = 6, .at = start + std::chrono::minutes(62)});
  EXPECT_EQ(history.in_step(6), 1U);
  EXPECT_EQ(history.in_step(5), 0U);
  history.progress();
  EXPECT_EQ(history.recent(start + std::chrono::minutes(62)), 0U);
}

TEST(Digest, DependsOnEveryField) {
  const View view{
      .epoch = Epoch{2}, .seats = {Incarnation{1}, Incarnation{2}}, .parent = 3, .resume_step = 4};
  View other = view;
  EXPECT_EQ(digest(view), digest(other));
  other.epoch = Epoch{3};
  EXPECT_NE(digest(view), digest(other));
  other = view;
  std::swap(other.seats[0], other.seats[1]);
  EXPECT_NE(digest(view), digest(other));
  other = view;
  other.parent = 4;
  EXPECT_NE(digest(view), digest(other));
  other = view;
  other.resume_step = 5;
  EXPECT_NE(digest(view), digest(other));
}

}  // namespace
}  // namespace regroup::membership
