#include "membership/policy.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace regroup::membership {

void SeatHistory::lose(const Loss& loss) {
  std::erase_if(losses_,
                [&loss](const Loss& old) { return loss.at - old.at > kReplacementWindow; });
  losses_.push_back(loss);
  in_step_ = loss.step == step_ ? in_step_ + 1 : 1;
  step_ = loss.step;
}

bool SeatHistory::has(Incarnation incarnation) const {
  return std::any_of(losses_.begin(), losses_.end(),
                     [incarnation](const Loss& loss) { return loss.incarnation == incarnation; });
}

std::uint32_t SeatHistory::recent(TimePoint now) const {
  return static_cast<std::uint32_t>(
      std::count_if(losses_.begin(), losses_.end(),
                    [now](const Loss& loss) { return now - loss.at <= kReplacementWindow; }));
}

std::uint32_t SeatHistory::in_step(std::uint64_t step) const {
  return step == step_ ? in_step_ : 0;
}

const char* name(SeatAction action) {
  switch (action) {
    case SeatAction::TakeSpare: return "TakeSpare";
    case SeatAction::RestartCold: return "RestartCold";
    case SeatAction::LeaveVacant: return "LeaveVacant";
    case SeatAction::FillLater: return "FillLater";
    case SeatAction::EndJob: return "EndJob";
  }
  return "?";
}

bool is_proof(EvidenceKind kind) {
  switch (kind) {
    case EvidenceKind::Beacon:
    case EvidenceKind::Reaped: return true;
    // A closed channel proves that the runtime in the process is gone, not that the process is.
    case EvidenceKind::ChannelClosed:
    case EvidenceKind::Silence:
    case EvidenceKind::Requested:
    case EvidenceKind::AgentLost: return false;
  }
  return false;
}

std::int32_t exit_code_of(const Evidence& evidence) {
  if (evidence.signal > 0) return 128 + evidence.signal;
  if (evidence.exit_code > 0) return evidence.exit_code;
  return kExitTemporary;
}

std::string describe(const Evidence& evidence) {
  if (!evidence.text.empty()) return evidence.text;
  if (evidence.signal > 0) return fmt::format("killed by signal {}", evidence.signal);
  if (evidence.exit_code >= 0) return fmt::format("exited with code {}", evidence.exit_code);
  switch (evidence.kind) {
    case EvidenceKind::Beacon: return "its death beacon fired";
    case EvidenceKind::Reaped: return "it was reaped";
    case EvidenceKind::ChannelClosed: return "its control channel closed";
    case EvidenceKind::Silence: return "it fell silent";
    case EvidenceKind::Requested: return "it was evicted on request";
    case EvidenceKind::AgentLost: return "its host was lost";
  }
  return "?";
}

namespace {

std::string who(const SeatLoss& loss) {
  return fmt::format("rank {} (incarnation {}) was lost: {}", loss.rank.value(),
                     loss.incarnation.value(), describe(loss.evidence));
}

SeatVerdict end(std::int32_t exit_code, std::string why) {
  return {.action = SeatAction::EndJob, .exit_code = exit_code, .why = std::move(why)};
}

/// The seat cannot or shall not be filled again.
SeatVerdict vacate(const JobConfig& config, const SeatLoss& loss, const std::string& because) {
  if (!loss.attached && !loss.others_attached) {
    // Ranks that know nothing of each other cannot go on as a smaller world: the failure is the
    // job's.
    return end(exit_code_of(loss.evidence), fmt::format("{}; {}", who(loss), because));
  }
  const std::uint32_t least = std::max(config.ranks_min, 1U);
  if (loss.seats_left >= least) {
    return {.action = SeatAction::LeaveVacant,
            .why = fmt::format("{}; {}: the seat stays vacant, {} of {} ranks go on (--min {})",
                               who(loss), because, loss.seats_left, config.ranks, least)};
  }
  return end(kExitTemporary, fmt::format("{}; {}, and {} ranks are fewer than --min {}", who(loss),
                                         because, loss.seats_left, least));
}

std::optional<SeatVerdict> poisoned(const JobConfig& config, const SeatLoss& loss) {
  // A program that never attaches has no steps that could be poisoned.
  const bool in_a_step = loss.attached || loss.others_attached;
  // Requests are no steps: what bounds a request that always kills is the allowance below.
  const bool counts_steps = config.on_loss != OnLoss::Replace;
  if (!in_a_step || !counts_steps || loss.losses_in_step < kPoisonedAt) return std::nullopt;
  const bool by_itself = loss.evidence.exit_code > 0 && loss.exited_alike >= loss.losses_in_step;
  if (by_itself) {
    return end(exit_code_of(loss.evidence),
               fmt::format("{}; the program itself exited with code {}, {} times at the same step "
                           "({}), so trying again does not help: the step is poisoned",
                           who(loss), loss.evidence.exit_code, loss.losses_in_step, loss.step));
  }
  return end(exit_code_of(loss.evidence),
             fmt::format("{}; that is the {}. loss of this rank in step {}: the step is poisoned",
                         who(loss), loss.losses_in_step, loss.step));
}

/// None: the seat may be filled again.
std::optional<SeatVerdict> lost_too_often(const JobConfig& config, const SeatLoss& loss) {
  if (auto verdict = poisoned(config, loss)) return verdict;
  if (loss.losses_recent <= config.replacements_max) return std::nullopt;
  return vacate(
      config, loss,
      fmt::format("replaced {} times within an hour without a committed step (--max-replacements)",
                  config.replacements_max));
}

SeatVerdict refill(const JobConfig& config, const SeatLoss& loss) {
  if (auto verdict = lost_too_often(config, loss)) return *verdict;
  if (loss.spare_left) {
    return {.action = SeatAction::TakeSpare,
            .why = fmt::format("{}; a spare takes the seat", who(loss))};
  }
  if (loss.start_gave_up)
    return vacate(config, loss, "it cannot be started again and no spare is left");
  return {.action = SeatAction::RestartCold,
          .why = fmt::format("{}; no spare is left, so the seat is started anew", who(loss))};
}

/// The others finish their step as a smaller world; before the first step there is none to finish.
SeatVerdict carry_on(const JobConfig& config, const SeatLoss& loss) {
  if (!loss.state_exists) return refill(config, loss);
  if (auto verdict = lost_too_often(config, loss)) return *verdict;
  SeatVerdict verdict = vacate(config, loss, "--on-loss carry_on");
  if (verdict.action != SeatAction::LeaveVacant) return verdict;
  return {.action = SeatAction::FillLater,
          .why = fmt::format("{}; {} of {} ranks carry on, and another process takes the seat at "
                             "the end of a step",
                             who(loss), loss.seats_left, config.ranks)};
}

}  // namespace

bool fills_seats(OnLoss policy) {
  return policy == OnLoss::Replay || policy == OnLoss::Replace || policy == OnLoss::CarryOn;
}

bool goes_on_smaller(OnLoss policy) {
  return policy == OnLoss::Shrink || policy == OnLoss::CarryOn;
}

SeatVerdict decide_seat(const JobConfig& config, const SeatLoss& loss) {
  if (!loss.attached && !loss.others_attached && !config.restart_unattached) {
    return end(exit_code_of(loss.evidence),
               fmt::format("{}; the program never attached and is not replaced without --restart",
                           who(loss)));
  }
  switch (config.on_loss) {
    case OnLoss::Abort:
      return end(exit_code_of(loss.evidence), fmt::format("{}; --on-loss abort", who(loss)));
    case OnLoss::Shrink: return vacate(config, loss, "--on-loss shrink");
    case OnLoss::CarryOn: return carry_on(config, loss);
    case OnLoss::Replay:
    case OnLoss::Replace: return refill(config, loss);
  }
  return end(kExitInternal, "unknown policy");
}

}  // namespace regroup::membership
