// The epoch's life on one host: wedge, report, decide, install. The evidence side is in
// host_agent.cpp.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/mutant.hpp"
#include "membership/host_agent.hpp"
#include "membership/policy.hpp"

namespace regroup::membership {

// ---- a planned end
// --------------------------------------------------------------------------------

void HostAgent::order(const ParkEpoch& message) {
  if (ending_ || message.epoch != installed_.epoch || words_ != Words::Open) return;
  park_ordered_ = true;
  effects_.emplace_back(host::AskPark{message.epoch});
  report_parked();
}

void HostAgent::on(const host::Parked& event) {
  if (event.epoch != installed_.epoch) return;
  parked_.insert(event.incarnation);
  report_parked();
}

/// Says so when no member here goes on in this epoch; again to a coordinator that did not ask: the
/// one that did may be no more. A host that was never asked says nothing: its members may have come
/// to the end of the job.
void HostAgent::report_parked() {
  if (!park_ordered_ || words_ != Words::Open || ending_) return;
  for (const auto& [incarnation, process] : processes_) {
    if (is_member(process) && !is_over(process.state) && !parked_.contains(incarnation)) return;
  }
  send(Parked{installed_.epoch});
}

/// Not a loss: it is told, and ends by itself.
void HostAgent::release(ProcessInfo& process, std::uint64_t resume_step) {
  if (is_over(process.state)) return;
  process.state = ProcessState::Released;
  detector_.forget(process.incarnation);
  effects_.emplace_back(
      host::Release{{process.seat.value_or(Rank{-1}), process.incarnation}, resume_step});
}

// ---- wedge
// ----------------------------------------------------------------------------------------

void HostAgent::wedge() {
  if (installed_.epoch == Epoch{} || words_ != Words::Open) return;
  words_ = Words::Wedging;
  effects_.emplace_back(host::WedgeWords{installed_.epoch});
}

void HostAgent::on(const host::WedgeWanted& event) {
  // Its rank was told of the view before the shell could say that it is made.
  const bool early = making_ && event.epoch == making_->view.epoch;
  if (early && !REGROUP_MUTANT(EARLY_SELF_WEDGE_DROPPED)) wanted_ = event;
  if (event.epoch != installed_.epoch || words_ != Words::Open || ending_) return;
  cause_ = event.why;
  wedge();
}

void HostAgent::order(const WedgeEpoch& message) {
  if (ending_) return;
  const bool over = message.epoch < installed_.epoch;
  if (over && !REGROUP_MUTANT(STALE_EPOCH_ACCEPTED)) return;
  if (asked_ && asked_->epoch == message.epoch && message.round < asked_->round) return;
  if (message.epoch > installed_.epoch) {
    if (making_ && making_->view.epoch == message.epoch) {
      asked_ = message;  // answered when its words exist
      return;
    }
    // Never made here, and never will be: nobody on this host has completed or prepared anything in
    // it.
    barrier_ = std::max(barrier_, message.epoch);
    send(Wedged{message.round, {.epoch = message.epoch}});
    return;
  }
  asked_ = message;
  const std::size_t known = lost_.size();
  for (const Member& member : message.lost) {
    if (!contains(lost_, member.incarnation)) lost_.push_back(member);
  }
  switch (words_) {
    case Words::Open:
      if (REGROUP_MUTANT(NO_WEDGE_BEFORE_REPORT)) {
        report_ = {.epoch = installed_.epoch, .prepared = installed_.resume_step - 1};
        report();
      }
      wedge();
      break;
    case Words::Wedging:
    case Words::Deciding: break;  // answered when the shell has answered
    case Words::Wedged:
    case Words::Decided:
      if (lost_.size() != known) tell_ranks();
      report();
      break;
  }
}

void HostAgent::on(const host::WordsWedged& event) {
  if (event.report.epoch != installed_.epoch || words_ != Words::Wedging) return;
  report_ = event.report;
  words_ = Words::Wedged;
  tell_ranks();
  if (decision_) {
    write_decision();
  } else {
    report();
  }
}

void HostAgent::tell_ranks() {
  std::string text;
  for (const Member& member : lost_) {
    const auto it = processes_.find(member.incarnation);
    const std::string why =
        it == processes_.end() ? "on another host" : describe(it->second.evidence);
    text += fmt::format("{}rank {} (incarnation {}) lost: {}", text.empty() ? "" : "; ",
                        member.rank.value(), member.incarnation.value(), why);
  }
  if (!text.empty()) cause_ = text;
  effects_.emplace_back(host::TellRanks{installed_.epoch, lost_, cause_});
}

void HostAgent::report() {
  if (asked_ && asked_->epoch == installed_.epoch) {
    send(Wedged{asked_->round, report_});
  } else if (lost_.empty()) {
    // Nobody is lost and nobody asked: a rank wedged itself. Round 0 asks the coordinator to begin
    // one.
    send(Wedged{Round{}, report_});
  }
}

// ---- decide
// ---------------------------------------------------------------------------------------

void HostAgent::order(const StoreDecision& message) {
  if (ending_) return;
  const bool being_made = making_ && making_->view.epoch == message.epoch;
  if (message.epoch > installed_.epoch && !being_made) {
    // Decided before this host ever heard of the epoch: its members here count as lost with it.
    barrier_ = std::max(barrier_, message.epoch);
    for (const Member& member : message.lost) {
      const auto it = processes_.find(member.incarnation);
      if (it != processes_.end() && !is_over(it->second.state)) {
        lose(it->second, {.kind = EvidenceKind::Requested, .text = "removed from the job"});
      }
    }
    send(DecisionStored{message.epoch, message.round});
    return;
  }
  if (!REGROUP_MUTANT(STALE_EPOCH_ACCEPTED)) {
    if (message.epoch != installed_.epoch) return;
    if (asked_ && asked_->epoch == message.epoch && message.round < asked_->round) return;
  }
  if (decision_ && message.round < decision_->round) return;
  decision_ = message;
  switch (words_) {
    case Words::Open: wedge(); break;
    case Words::Wedging:
    case Words::Deciding: break;  // goes on when the shell has answered
    case Words::Wedged:
    case Words::Decided: write_decision(); break;
  }
}

void HostAgent::write_decision() {
  words_ = Words::Deciding;
  for (const Member& member : decision_->lost) {
    if (!contains(lost_, member.incarnation)) lost_.push_back(member);
    const auto it = processes_.find(member.incarnation);
    if (it == processes_.end() || is_over(it->second.state)) continue;
    lose(it->second, {.kind = EvidenceKind::Requested, .text = "removed from the job"});
  }
  effects_.emplace_back(host::WriteDecision{installed_.epoch, decision_->cuts,
                                            decision_->committed_step, decision_->lost});
}

void HostAgent::on(const host::DecisionWritten& event) {
  if (event.epoch != installed_.epoch || words_ != Words::Deciding) return;
  words_ = Words::Decided;
  send(DecisionStored{installed_.epoch, decision_->round});
  if (asked_ && asked_->epoch == installed_.epoch && asked_->round > decision_->round) report();
  try_install();
}

// ---- install
// --------------------------------------------------------------------------------------

void HostAgent::order(const InstallView& message) {
  if (ending_) return;
  const Epoch epoch = message.view.epoch;
  if (epoch < installed_.epoch && !REGROUP_MUTANT(STALE_EPOCH_ACCEPTED)) return;
  if (epoch <= barrier_) {
    // It ended here before it was made, in a round of a coordinator that is no more: this one has
    // to begin another.
    if (epoch == barrier_) send(Wedged{Round{}, {.epoch = epoch}});
    return;
  }
  if (epoch == installed_.epoch) {
    for (const Member& member : message.lost) {
      const auto it = processes_.find(member.incarnation);
      if (it != processes_.end() && !is_over(it->second.state)) {
        lose(it->second, {.kind = EvidenceKind::Requested, .text = "removed from the job"});
      }
    }
    for (const Member& member : message.released) {
      const auto it = processes_.find(member.incarnation);
      if (it != processes_.end()) release(it->second, message.view.resume_step);
    }
    send(Installed{epoch});
    return;
  }
  if (making_ && making_->view.epoch >= epoch) return;
  if (!pending_ || pending_->view.epoch < epoch) pending_ = message;
  try_install();
}

void HostAgent::try_install() {
  if (!pending_ || making_) return;
  if (pending_->view.epoch <= std::max(installed_.epoch, barrier_)) {
    pending_.reset();
    return;
  }
  // A survivor here must first have been told what of the old epoch holds.
  const bool survivor_here =
      std::any_of(processes_.begin(), processes_.end(), [this](const auto& entry) {
        const auto& seats = pending_->view.seats;
        return is_member(entry.second) &&
               std::find(seats.begin(), seats.end(), entry.first) != seats.end();
      });
  const bool told = words_ == Words::Decided || REGROUP_MUTANT(INSTALL_BEFORE_DECISION_STORED);
  if (survivor_here && !told) return;
  making_ = std::move(*pending_);
  pending_.reset();
  const View& view = making_->view;
  fence(view);
  host::MakeView make{.view = view, .cause = cause_, .places = making_->places};
  make.places.resize(view.seats.size());
  for (std::size_t seat = 0; seat < view.seats.size(); ++seat) {
    const auto it = processes_.find(view.seats[seat]);
    if (it == processes_.end()) continue;
    const Member member{Rank{static_cast<std::int32_t>(seat)}, it->first};
    make.local.push_back(member);
    if (!is_member(it->second)) make.assigned.push_back(member);
    it->second.seat = member.rank;
  }
  effects_.emplace_back(std::move(make));
}

void HostAgent::fence(const View& view) {
  for (auto& [incarnation, process] : processes_) {
    if (is_over(process.state)) continue;
    const bool removed = contains(making_->lost, incarnation);
    if (!removed && contains(making_->released, incarnation)) {
      release(process, view.resume_step);
      continue;
    }
    const bool in_view =
        std::find(view.seats.begin(), view.seats.end(), incarnation) != view.seats.end();
    // A process that has a seat and is not in the view was replaced, or is not needed any more.
    if (!removed && (in_view || !process.seat)) continue;
    // Never a member here: nothing was lost with it.
    const bool superseded = !is_member(process);
    lose(process,
         {.kind = EvidenceKind::Requested,
          .text = superseded ? "another process took its seat first" : "removed from the job"},
         superseded);
  }
}

void HostAgent::on(const host::ViewMade& event) {
  if (!making_ || making_->view.epoch != event.epoch) return;
  installed_ = std::move(making_->view);
  making_.reset();
  words_ = Words::Open;
  report_ = {};
  decision_.reset();
  lost_.clear();
  parked_.clear();
  park_ordered_ = false;
  cause_.clear();
  if (asked_ && asked_->epoch != installed_.epoch) asked_.reset();
  send(Installed{installed_.epoch});
  for (const auto& [incarnation, process] : processes_) {
    // Lost while the arenas were being made: no word of the new epoch was wedged for it yet.
    if (process.state != ProcessState::Gone || !is_member(process)) continue;
    lost_.push_back({*process.seat, incarnation});
  }
  if (asked_) {
    for (const Member& member : asked_->lost) {
      if (!contains(lost_, member.incarnation)) lost_.push_back(member);
    }
  }
  if (wanted_ && wanted_->epoch == installed_.epoch) cause_ = wanted_->why;
  if (!lost_.empty() || asked_ || (wanted_ && wanted_->epoch == installed_.epoch)) wedge();
  wanted_.reset();
  try_install();
}

// ---- the rest of the coordinator's orders
// -----------------------------------------------------------

void HostAgent::order(const StartProcess& message) {
  if (ending_ || processes_.contains(message.incarnation)) return;  // repeated after a reconnect
  processes_[message.incarnation] = {.incarnation = message.incarnation, .seat = message.seat};
  effects_.emplace_back(host::Spawn{message});
}

void HostAgent::order(const EndJob& message) {
  if (ending_) return;
  ending_ = message;
  for (const auto& [id, wish] : unanswered_) {
    effects_.emplace_back(host::Answered{{id, false, "the job is ending: " + message.reason}});
  }
  unanswered_.clear();
  effects_.emplace_back(host::EndAll{message});
}

void HostAgent::order(const Note& message) { effects_.emplace_back(host::Log{message}); }

}  // namespace regroup::membership
