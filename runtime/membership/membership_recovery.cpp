// From knowledge to conclusions: rounds, the decision, the next view. react() runs after every
// event and looks at what is known, never at how it became known; so a message that comes late,
// twice or after a restart does no harm.
#include <fmt/format.h>

#include <algorithm>

#include "base/mutant.hpp"
#include "membership/membership.hpp"

namespace regroup::membership {

namespace {

std::string list(const std::vector<Member>& members) {
  if (members.empty()) return "nobody";
  std::string text;
  for (const Member& member : members) {
    text += fmt::format("{}rank {} (incarnation {})", text.empty() ? "" : ", ", member.rank.value(),
                        member.incarnation.value());
  }
  return text;
}

}  // namespace

void Membership::react() {
  // Every conclusion that changes the state may allow the next one. Rounds count too: Wedged may
  // follow Wedged.
  for (;;) {
    const State state = state_;
    const std::uint32_t rounds = rounds_;
    react_once();
    if (state_ == state && rounds_ == rounds) return;
  }
}

void Membership::react_once() {
  if (state_ == State::Failed || state_ == State::Ended) return;
  if (state_ == State::Gathering) {
    if (all_agents_known()) resume();
    return;
  }
  check_over();
  drop_plan();
  const bool more_lost = durable_.view.epoch != Epoch{} && lost_members() != round_lost_;
  switch (state_) {
    case State::Gathering:
    case State::Failed:
    case State::Ended: return;
    case State::Forming: form(); break;
    case State::Installing:
    case State::Steady: {
      if (REGROUP_MUTANT(IGNORE_LOSS_WHILE_INSTALLING) && state_ == State::Installing) {
        round_lost_ = lost_members();
        check_installed();
        break;
      }
      const bool wedged = std::any_of(agents_.begin(), agents_.end(), [this](const auto& entry) {
        return !entry.second.lost && entry.second.wedged == durable_.view.epoch;
      });
      if (more_lost) {
        begin_round("lost: " + list(lost_members()));
      } else if (wedged) {
        begin_round("a rank ended the epoch, nobody is lost");
      } else if (state_ == State::Installing) {
        check_installed();
      } else {
        follow_plan();
      }
      break;
    }
    case State::Wedged:
      more_lost ? begin_round("lost by now: " + list(lost_members())) : check_reports();
      break;
    case State::Draining:
      more_lost ? begin_round("lost by now: " + list(lost_members())) : check_stored();
      break;
    case State::Replacing:
      more_lost ? begin_round("lost by now: " + list(lost_members())) : fill_seats();
      break;
  }
  refill_spares();
}

/// All agents have said what they know. Nothing else is needed: whatever a survivor was told stands
/// in its words.
void Membership::resume() {
  if (durable_.ended) {
    for (const auto& [id, agent] : agents_) send(id, *durable_.ended);
    enter(durable_.ended->exit_code == 0 ? State::Ended : State::Failed, durable_.ended->reason);
    return;
  }
  const bool newer_view = std::any_of(agents_.begin(), agents_.end(), [this](const auto& entry) {
    return entry.second.installed > durable_.view.epoch;
  });
  const bool newer_process = !REGROUP_MUTANT(REUSE_INCARNATION) && !processes_.empty() &&
                             processes_.rbegin()->first >= durable_.next_incarnation;
  if (newer_view || newer_process) {
    // Going on would issue the same epoch or incarnation twice.
    end_job(kExitInternal,
            "the coordinator's state is older than the job: its state file was lost or replaced");
    return;
  }
  if (durable_.view.epoch == Epoch{}) {
    enter(State::Forming, fmt::format("{} agents are here", agents_.size()));
    return;
  }
  for (std::size_t seat = 0; seat < durable_.view.seats.size(); ++seat) {
    const Rank rank{static_cast<std::int32_t>(seat)};
    Process* member = find(durable_.view.seats[seat]);
    if (durable_.view.seats[seat] == Incarnation{}) vacant_.insert(rank);
    if (member == nullptr) continue;
    set_seat(durable_.view.seats[seat], rank);
    member->joined = true;
    // The first members start from the program's own beginning.
    if (durable_.view.epoch == Epoch{1}) member->holds_state = true;
    for (const Incarnation other : in_seat_[rank]) {
      if (!is_member(other) && is_alive(*member))
        revoke(other, "its seat was filled by another process");
    }
    order_holders(rank);
  }
  bool behind = false;
  for (const auto& [id, agent] : agents_) {
    behind = behind || (!agent.lost && hosts_member(id) && agent.installed < durable_.view.epoch);
  }
  if (!behind) {
    enter(State::Steady, "all agents have installed the view");
    return;
  }
  enter(State::Installing, "the view is durable, and not all agents have it");
  for (const auto& [id, agent] : agents_) send_phase(id);
}

void Membership::begin_round(const std::string& why) {
  ++rounds_;
  round_ = Round{(durable_.term << 32) | rounds_};
  round_lost_ = lost_members();
  hold_until_.reset();
  parking_ = false;
  for (auto& [id, agent] : agents_) {
    agent.report.reset();
    agent.stored = false;
  }
  enter(State::Wedged, why);
  for (const auto& [id, agent] : agents_) send_phase(id);
}

void Membership::check_reports() {
  for (const auto& [id, agent] : agents_) {
    if (is_awaited(id)) return;
  }
  std::string why;
  if (!has_quorum(why)) {
    if (waiting_for_ != why) note("no_quorum", why);
    waiting_for_ = why;
    return;
  }
  decide();
}

/// One decision an epoch. What survivors were told must stand, also when this coordinator dies and
/// the next one reaches others than they: where there are others, it is durable before it is told.
void Membership::decide() {
  const bool again = durable_.decision.has_value();
  if (!again) durable_.decision = draw_decision();
  const std::size_t without = durable_.decision->without.size();
  leave_behind();
  note_progress();
  const bool changed = !again || durable_.decision->without.size() != without;
  if (changed && agents_.size() > 1 && !REGROUP_MUTANT(DECISION_NOT_DURABLE)) persist();
  std::string text =
      fmt::format("step {} is the last one committed ({})", durable_.decision->committed_step,
                  again ? "decided before" : "prepared by all");
  for (const auto& cut : durable_.decision->cuts) {
    text += fmt::format(", group {} is done up to {}", cut.group, cut.completed);
  }
  enter(State::Draining, text);
  for (const auto& [id, agent] : agents_) send_phase(id);
}

/// Cut: the highest number that anybody completed, per group. Step: the one that every reporting
/// member has prepared.
Decision Membership::draw_decision() const {
  std::map<std::uint32_t, std::uint64_t> cuts;
  std::vector<std::uint64_t> prepared;
  for (const auto& [id, agent] : agents_) {
    if (!agent.report) continue;
    if (REGROUP_MUTANT(CUT_OF_SURVIVORS_ONLY)) {
      const auto is_here = [this, agent_id = id](const Member& m) {
        return find(m.incarnation) != nullptr && find(m.incarnation)->agent == agent_id;
      };
      if (std::any_of(round_lost_.begin(), round_lost_.end(), is_here)) continue;
    }
    for (const WedgeReport::GroupCut& cut : agent.report->groups) {
      cuts[cut.group] = std::max(cuts[cut.group], cut.completed);
    }
    prepared.push_back(agent.report->prepared);
  }
  std::sort(prepared.begin(), prepared.end());
  const std::size_t lowest_at = REGROUP_MUTANT(COMMIT_ON_MAJORITY) ? prepared.size() / 2 : 0;
  const std::uint64_t lowest = prepared.empty() ? 0 : prepared[lowest_at];
  // Whoever has not even entered the epoch has prepared what was committed before it.
  Decision decision{.committed_step = std::max(lowest, durable_.view.resume_step - 1)};
  for (const auto& [group, completed] : cuts) {
    decision.cuts.push_back({group, REGROUP_MUTANT(CUT_AT_ZERO) ? 0 : completed});
  }
  return decision;
}

/// All members prepared a step of this epoch, so all of them had entered it with the state.
void Membership::note_progress() {
  if (durable_.decision->committed_step < durable_.view.resume_step) return;
  for (const Incarnation incarnation : durable_.view.seats) {
    if (Process* member = find(incarnation)) member->holds_state = true;
  }
  durable_.state_exists = true;
  if (durable_.progress_seen == durable_.view.epoch) return;
  durable_.progress_seen = durable_.view.epoch;
  losses_changed_ = !durable_.losses.empty();
  history_.clear();
  spare_history_.progress();
}

/// Whom the decision goes on without: a later coordinator may reach only those, and they are a
/// quorum too.
void Membership::leave_behind() {
  for (const Member& member : round_lost_) {
    const Process* process = find(member.incarnation);
    const bool confirmed = process != nullptr && !process->revoked;
    if (confirmed || was_left_behind(member.incarnation)) continue;
    if (REGROUP_MUTANT(LEFT_BEHIND_FORGOTTEN)) continue;
    durable_.decision->without.push_back(member.incarnation);
  }
}

void Membership::check_stored() {
  for (const auto& [id, agent] : agents_) {
    if (is_awaited(id) && !REGROUP_MUTANT(INSTALL_BEFORE_DECISION_STORED)) return;
  }
  enter(State::Replacing, "the decision stands in the words of all survivors, the lost are fenced");
}

void Membership::install() {
  View next;
  next.epoch = Epoch{durable_.view.epoch.value() + 1};
  next.parent = durable_.view.epoch == Epoch{} ? 0 : digest(durable_.view);
  if (durable_.decision) next.resume_step = durable_.decision->committed_step + 1;
  if (REGROUP_MUTANT(RESUME_ONE_TOO_EARLY) && next.resume_step > 1) --next.resume_step;
  std::string text =
      fmt::format("epoch {} resumes at step {}:", next.epoch.value(), next.resume_step);
  for (std::uint32_t seat = 0; seat < durable_.config.ranks; ++seat) {
    const Rank rank{static_cast<std::int32_t>(seat)};
    const auto holder = vacant_.contains(rank) ? std::nullopt : live_holder(rank);
    next.seats.push_back(holder.value_or(Incarnation{}));
    if (!holder) {
      text += fmt::format(" rank {} vacant", seat);
    } else if (!is_member(*holder)) {
      text += fmt::format(" rank {} is incarnation {}", seat, holder->value());
    }
    // The first members start from the program's own beginning.
    if (holder && next.epoch == Epoch{1}) find(*holder)->holds_state = true;
  }
  removed_ = with_revoked(round_lost_);
  round_lost_.clear();
  durable_.view = std::move(next);
  durable_.newcomers_from = next_incarnation_;
  durable_.decision.reset();
  index_view();
  if (!REGROUP_MUTANT(SKIP_PERSIST)) persist();
  enter(State::Installing, text);
  for (const auto& [id, agent] : agents_) send_phase(id);
}

void Membership::check_installed() {
  for (const auto& [id, agent] : agents_) {
    if (is_awaited(id)) return;
  }
  enter(State::Steady, "all agents have installed the view");
  first_cause_.reset();
  hold_until_.reset();
}

/// Tells one agent what the present state asks of it; also when it is back, or late with its
/// answer.
void Membership::send_phase(AgentId id) {
  const Agent& agent = agents_.at(id);
  const Epoch epoch = durable_.view.epoch;
  switch (state_) {
    case State::Gathering:
    case State::Forming:
    case State::Failed:
    case State::Ended: break;
    case State::Installing:
    case State::Steady: {
      const bool to_fence = std::any_of(
          processes_.begin(), processes_.end(),
          [id](const auto& entry) { return entry.second.agent == id && entry.second.revoked; });
      if (agent.installed < epoch || to_fence) {
        send(id, InstallView{durable_.view, with_revoked(removed_), durable_.released, places()});
      }
      if (parking_ && hosts_member(id)) send(id, ParkEpoch{epoch});
      break;
    }
    case State::Wedged:
      if (hosts_member(id)) send(id, WedgeEpoch{epoch, round_, round_lost_});
      break;
    case State::Draining:
    case State::Replacing:
      if (!hosts_member(id) || !durable_.decision) break;
      send(id, StoreDecision{epoch, round_, durable_.decision->cuts,
                             durable_.decision->committed_step, with_revoked(round_lost_)});
      break;
  }
}

}  // namespace regroup::membership
