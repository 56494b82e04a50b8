// What the coordinator knows of agents and processes. Knowledge only grows: a process that is gone
// or finished never comes back, whatever arrives late or twice.
#include <fmt/format.h>

#include <algorithm>

#include "base/mutant.hpp"
#include "membership/membership.hpp"

namespace regroup::membership {

Membership::Process* Membership::find(Incarnation incarnation) {
  const auto it = processes_.find(incarnation);
  return it == processes_.end() ? nullptr : &it->second;
}

const Membership::Process* Membership::find(Incarnation incarnation) const {
  const auto it = processes_.find(incarnation);
  return it == processes_.end() ? nullptr : &it->second;
}

bool Membership::is_alive(const Process& process) {
  switch (process.state) {
    case ProcessState::Starting:
    case ProcessState::Joined:
    case ProcessState::Healed: return true;
    case ProcessState::Gone:
    case ProcessState::Finished:
    case ProcessState::Released: return false;
  }
  return false;
}

bool Membership::ended_clean(const Process& process) {
  if (process.state == ProcessState::Finished) return true;
  return process.state == ProcessState::Gone && process.evidence.exit_code == 0 &&
         process.evidence.signal == 0;
}

/// Dead for certain, and its exit status is still on its way.
bool Membership::status_unknown(const Process& process) const {
  return process.state == ProcessState::Gone && process.evidence.exit_code < 0 &&
         process.evidence.signal == 0 && !process.gave_up &&
         process.evidence.kind != EvidenceKind::AgentLost &&
         process.evidence.kind != EvidenceKind::Requested && agents_.at(process.agent).said_hello;
}

// ---- learning
// -------------------------------------------------------------------------------------

void Membership::absorb(AgentId id, const AgentHello& hello) {
  Agent& agent = agents_.at(id);
  agent.installed = std::max(agent.installed, hello.installed.epoch);
  if (hello.wedged) agent.wedged = std::max(agent.wedged, hello.wedged->epoch);
  for (const ProcessInfo& info : hello.processes) {
    absorb_process(id, info, hello.installed.epoch);
  }
  for (auto& [incarnation, process] : processes_) {
    if (process.agent != id) continue;
    const bool listed = std::any_of(
        hello.processes.begin(), hello.processes.end(),
        [inc = incarnation](const ProcessInfo& info) { return info.incarnation == inc; });
    if (listed) continue;
    if (process.state == ProcessState::Starting) {
      // The order to start it was lost with the channel. The agent ignores one that it got after
      // all.
      send(id, StartProcess{incarnation, process.seat,
                            process.seat ? life_of(*process.seat, incarnation) : 0});
    } else if (is_alive(process)) {
      mark_gone(incarnation,
                {.kind = EvidenceKind::AgentLost, .text = "its agent knows it no more"}, true);
    }
  }
}

/// Whether the decision of this epoch goes on without it.
bool Membership::was_left_behind(Incarnation incarnation) const {
  if (!durable_.decision) return false;
  const auto& without = durable_.decision->without;
  return std::find(without.begin(), without.end(), incarnation) != without.end();
}

/// Whether a view left this process out that had, or may have had, a seat: a removed member, or a
/// newcomer whose seat another one took. The views in between may be known to nobody any more, so
/// what counts is when it was started. `seen`: the last view that its host knows.
bool Membership::was_left_out(const ProcessInfo& info, Epoch seen) const {
  if (is_member(info.incarnation) || info.incarnation >= durable_.newcomers_from) return false;
  const bool missed_views = seen.value() + 1 < durable_.view.epoch.value();
  return info.seat || missed_views;  // in a view that its host missed a spare may have had a seat
}

void Membership::absorb_process(AgentId id, const ProcessInfo& info, Epoch seen) {
  const bool is_new = find(info.incarnation) == nullptr;
  if (is_new) {
    processes_[info.incarnation] = {.agent = id};
    if (info.seat) set_seat(info.incarnation, *info.seat);
    const bool released = info.state == ProcessState::Released || was_released(info.incarnation);
    if (released) find(info.incarnation)->state = ProcessState::Released;
    if (is_member(info.incarnation)) {
      member_hosts_.insert(id);
      seat_member(info.incarnation);
    }
    // Its agent was given up before this coordinator ever heard of it; a round without a decision
    // may still count it.
    const bool too_late =
        state_ != State::Gathering && (state_ != State::Wedged || !is_member(info.incarnation));
    if (too_late) revoke(info.incarnation, "its host was given up");
    if (was_left_behind(info.incarnation))
      revoke(info.incarnation, "an earlier decision went on without it");
    // The coordinator that decided so is no more: it never comes back.
    const bool runs = info.state != ProcessState::Gone && info.state != ProcessState::Finished;
    if (runs && was_left_out(info, seen) && !REGROUP_MUTANT(REMOVED_MEMBER_READMITTED))
      revoke(info.incarnation, "a later view went on without it");
  }
  Process& process = *find(info.incarnation);
  if (process.agent != id) return;
  if (!info.address.empty()) process.address = info.address;
  switch (info.state) {
    case ProcessState::Starting: break;
    case ProcessState::Joined: mark_joined(info.incarnation); break;
    case ProcessState::Healed:
      mark_joined(info.incarnation);
      mark_healed(info.incarnation);
      break;
    case ProcessState::Gone:
      if (is_member(info.incarnation)) process.joined = true;
      mark_gone(info.incarnation, info.evidence, true);
      break;
    case ProcessState::Finished: mark_finished(info.incarnation); break;
    case ProcessState::Released: break;
  }
  // Whoever held this seat earlier, and is heard of only now, is not the last of it.
  if (is_new && info.seat) order_holders(*info.seat);
}

/// A lost agent is back before anything was decided without it: its processes count again.
void Membership::revive(AgentId id, const AgentHello& hello) {
  for (const ProcessInfo& info : hello.processes) {
    Process* process = find(info.incarnation);
    if (process == nullptr || process->agent != id || process->state != ProcessState::Gone)
      continue;
    if (process->evidence.kind != EvidenceKind::AgentLost) continue;
    // Only this epoch is undecided: who was removed by an earlier view stays removed.
    if (process->seat && !is_member(info.incarnation)) continue;
    if (was_left_behind(info.incarnation)) continue;
    if (info.state == ProcessState::Gone || info.state == ProcessState::Finished) continue;
    process->state = ProcessState::Starting;
    process->revoked = false;
    process->evidence = {};
  }
}

void Membership::mark_joined(Incarnation incarnation) {
  Process* process = find(incarnation);
  if (process == nullptr) return;
  process->joined = true;
  if (process->state == ProcessState::Starting) process->state = ProcessState::Joined;
}

void Membership::mark_healed(Incarnation incarnation) {
  Process* process = find(incarnation);
  if (process == nullptr) return;
  if (is_alive(*process)) {
    process->state = ProcessState::Healed;
    process->joined = true;
    process->holds_state = true;
  }
  // Said by one that was evicted meanwhile, too: there was a state.
  if (durable_.state_exists || REGROUP_MUTANT(STATE_FORGOTTEN)) return;
  durable_.state_exists = true;
  persist();
}

/// `confirmed`: its own agent says so.
void Membership::mark_gone(Incarnation incarnation, const Evidence& evidence, bool confirmed) {
  Process* process = find(incarnation);
  if (process == nullptr || process->state == ProcessState::Finished) return;
  if (process->state == ProcessState::Released) return forget_released(incarnation);
  if (confirmed) process->revoked = false;
  if (process->state == ProcessState::Gone) {
    Evidence& known = process->evidence;
    if (is_proof(evidence.kind) && !is_proof(known.kind)) known.kind = evidence.kind;
    if (known.exit_code < 0 && known.signal == 0) {
      known.exit_code = evidence.exit_code;
      known.signal = evidence.signal;
    }
    return;
  }
  process->state = ProcessState::Gone;
  process->evidence = evidence;
  process->revoked = !confirmed;
  // A restarted coordinator hears of all that ever died; what is over was counted and told long
  // ago.
  if (state_ == State::Gathering) {
    process->counted = was_counted(*process, incarnation);
    if (durable_.view.epoch != Epoch{} && !is_member(incarnation)) return;
  }
  if (!process->seat) {
    remember({Rank{-1}, incarnation, 0, now_});
    note("spare_lost",
         fmt::format("spare (incarnation {}) lost: {}", incarnation.value(), describe(evidence)));
    return;
  }
  if (!first_cause_) first_cause_ = incarnation;
  note("lost", fmt::format("rank {} (incarnation {}) lost: {}", process->seat->value(),
                           incarnation.value(), describe(evidence)));
}

/// A loss of a seat, or of a spare, that counts until a step is committed.
void Membership::remember(const Loss& loss) {
  (loss.rank == Rank{-1} ? spare_history_ : history_[loss.rank]).lose(loss);
  losses_changed_ = true;
}

/// What an earlier coordinator had counted. Its clock is this host's; after a reboot an instant may
/// lie ahead, and counts as now.
void Membership::recall_losses() {
  if (REGROUP_MUTANT(LOSSES_FORGOTTEN)) return;
  for (Loss loss : durable_.losses) {
    loss.at = std::min(loss.at, now_);
    remember(loss);
  }
}

/// Whether an earlier coordinator has counted this loss, or had no need to: it was of a view before
/// this one. What died while no coordinator was there is counted now.
bool Membership::was_counted(const Process& process, Incarnation incarnation) const {
  if (!process.seat) return true;
  if (!is_member(incarnation) && incarnation < durable_.newcomers_from) return true;
  const auto history = history_.find(*process.seat);
  return history != history_.end() && history->second.has(incarnation);
}

void Membership::mark_finished(Incarnation incarnation) {
  Process* process = find(incarnation);
  if (process == nullptr || process->state == ProcessState::Finished) return;
  if (process->state == ProcessState::Released) return forget_released(incarnation);
  if (process->state == ProcessState::Gone) {
    // Declared gone here while it ended by itself: gone it stays, and it ended well.
    mark_gone(incarnation, {.kind = EvidenceKind::Reaped, .exit_code = 0}, true);
    return;
  }
  process->state = ProcessState::Finished;
  if (!process->seat)
    spares_given_up_ = true;  // its program ends by itself: another one would, too
}

void Membership::mark_silent_agents() {
  const bool somebody_here = std::any_of(agents_.begin(), agents_.end(),
                                         [](const auto& entry) { return entry.second.said_hello; });
  // With nobody to act upon it, giving an agent up would only lose knowledge.
  if (!somebody_here) return;
  for (auto& [id, agent] : agents_) {
    if (agent.lost || !agent.silent_since || now_ - *agent.silent_since < timeouts_.agent_lost)
      continue;
    agent.lost = true;
    agent.connected = false;
    agent.said_hello = false;
    agent.silent_since.reset();
    note("agent_lost", fmt::format("agent {} stayed away for {} ms", id.value(),
                                   timeouts_.agent_lost.count() / 1'000'000));
    for (auto& [incarnation, process] : processes_) {
      if (process.agent != id || !is_alive(process)) continue;
      mark_gone(incarnation, {.kind = EvidenceKind::AgentLost, .text = "its host was lost"}, false);
    }
  }
}

// ---- asking
// ---------------------------------------------------------------------------------------

void Membership::set_seat(Incarnation incarnation, Rank rank) {
  std::vector<Incarnation>& holders = in_seat_[rank];
  find(incarnation)->seat = rank;
  if (std::find(holders.begin(), holders.end(), incarnation) == holders.end()) {
    holders.push_back(incarnation);
  }
}

/// A process that this coordinator hears of for the first time is a member of the durable view: it
/// has its seat, also when its own host never saw that view and calls it a spare.
void Membership::seat_member(Incarnation incarnation) {
  const auto& seats = durable_.view.seats;
  const auto seat = std::find(seats.begin(), seats.end(), incarnation) - seats.begin();
  const Rank rank{static_cast<std::int32_t>(seat)};
  set_seat(incarnation, rank);
  find(incarnation)->joined = true;
  order_holders(rank);
}

/// After a restart, when hosts tell of a seat's holders in any order: the dead and removed, the
/// member, newcomers.
void Membership::order_holders(Rank rank) {
  const auto seat = static_cast<std::size_t>(rank.value());
  const auto& seats = durable_.view.seats;
  const Incarnation member = seat < seats.size() ? seats[seat] : Incarnation{};
  std::vector<Incarnation>& holders = in_seat_[rank];
  const auto rest = std::stable_partition(holders.begin(), holders.end(), [&](Incarnation holder) {
    return holder != member && !is_alive(*find(holder));
  });
  std::stable_partition(rest, holders.end(),
                        [member](Incarnation holder) { return holder == member; });
}

/// After every change of the view.
void Membership::index_view() {
  members_.clear();
  member_hosts_.clear();
  for (const Incarnation incarnation : durable_.view.seats) {
    if (incarnation == Incarnation{}) continue;
    members_.insert(incarnation);
    if (const Process* process = find(incarnation)) member_hosts_.insert(process->agent);
  }
}

bool Membership::is_member(Incarnation incarnation) const { return members_.contains(incarnation); }

std::vector<Member> Membership::lost_members() const {
  std::vector<Member> lost;
  for (std::size_t seat = 0; seat < durable_.view.seats.size(); ++seat) {
    const Incarnation incarnation = durable_.view.seats[seat];
    if (incarnation == Incarnation{}) continue;
    const Process* process = find(incarnation);
    if (process != nullptr && process->state != ProcessState::Gone) continue;
    lost.push_back({Rank{static_cast<std::int32_t>(seat)}, incarnation});
  }
  return lost;
}

std::vector<Incarnation> Membership::survivors() const {
  std::vector<Incarnation> alive;
  for (const Incarnation incarnation : durable_.view.seats) {
    const Process* process = find(incarnation);
    if (process != nullptr && is_alive(*process)) alive.push_back(incarnation);
  }
  return alive;
}

/// Adds whoever else was declared gone here: their agents kill what is left of them.
std::vector<Member> Membership::with_revoked(std::vector<Member> members) const {
  for (const auto& [incarnation, process] : processes_) {
    if (!process.revoked) continue;
    const auto known =
        std::find_if(members.begin(), members.end(),
                     [inc = incarnation](const Member& m) { return m.incarnation == inc; });
    if (known == members.end()) members.push_back({process.seat.value_or(Rank{-1}), incarnation});
  }
  return members;
}

bool Membership::hosts_member(AgentId id) const { return member_hosts_.contains(id); }

/// Whether the present state waits for an answer of this agent.
bool Membership::is_awaited(AgentId id) const {
  const Agent& agent = agents_.at(id);
  if (agent.lost || !hosts_member(id)) return false;
  switch (state_) {
    case State::Installing: return agent.installed < durable_.view.epoch;
    case State::Wedged: return !agent.report;
    case State::Draining: return !agent.stored;
    case State::Steady: return parking_ && agent.parked < durable_.view.epoch;
    case State::Gathering:
    case State::Forming:
    case State::Replacing:
    case State::Failed:
    case State::Ended: return false;
  }
  return false;
}

/// At least half of the members that are not proven dead go on. A lost member whose agent is here
/// counts as proven: the agent kills it before it answers the decision.
bool Membership::has_quorum(std::string& why) const {
  std::size_t going_on = 0;
  std::size_t unproven = 0;
  for (const Incarnation incarnation : durable_.view.seats) {
    const Process* process = find(incarnation);
    if (incarnation == Incarnation{} ||
        (process != nullptr && process->state == ProcessState::Finished)) {
      continue;
    }
    if (process != nullptr && is_alive(*process)) {
      ++going_on;
    } else if (process == nullptr ||
               (!is_proof(process->evidence.kind) && !agents_.at(process->agent).said_hello)) {
      ++unproven;
    }
  }
  if (2 * going_on >= going_on + unproven || REGROUP_MUTANT(NO_QUORUM_NEEDED)) return true;
  why = fmt::format("no quorum: {} members are here, {} are out of reach and not proven dead",
                    going_on, unproven);
  return false;
}

bool Membership::anybody_joined() const {
  return std::any_of(processes_.begin(), processes_.end(),
                     [](const auto& entry) { return entry.second.joined; });
}

/// Whether the last process of some seat has ended with 0: others may be about to.
bool Membership::any_seat_over() const {
  return std::any_of(in_seat_.begin(), in_seat_.end(), [this](const auto& entry) {
    const auto& holders = entry.second;
    return !holders.empty() && ended_clean(*find(holders.back()));
  });
}

bool Membership::all_agents_known() const {
  return std::all_of(
             agents_.begin(), agents_.end(),
             [](const auto& entry) { return entry.second.said_hello || entry.second.lost; }) &&
         std::any_of(agents_.begin(), agents_.end(),
                     [](const auto& entry) { return entry.second.said_hello; });
}

/// The living process of a seat: its member before any newcomer.
std::optional<Incarnation> Membership::live_holder(Rank rank) const {
  std::optional<Incarnation> holder;
  const auto holders = in_seat_.find(rank);
  if (holders == in_seat_.end()) return holder;
  for (const Incarnation incarnation : holders->second) {
    const Process& process = *find(incarnation);
    if (!is_alive(process)) continue;
    if (is_member(incarnation)) return incarnation;
    if (!holder || (process.joined && !find(*holder)->joined)) holder = incarnation;
  }
  return holder;
}

std::optional<Incarnation> Membership::last_of(Rank rank) const {
  const auto holders = in_seat_.find(rank);
  if (holders == in_seat_.end() || holders->second.empty()) return std::nullopt;
  return holders->second.back();
}

/// A joined spare, on the preferred host if there is one: what the lost process left in memory lies
/// there.
std::optional<Incarnation> Membership::free_spare(std::optional<AgentId> preferred) const {
  std::optional<Incarnation> found;
  for (const auto& [incarnation, process] : processes_) {
    const bool may_enter = process.state == ProcessState::Joined ||
                           (REGROUP_MUTANT(ADMIT_UNJOINED_SPARE) && is_alive(process));
    if (process.seat || !may_enter) continue;
    if (process.agent == preferred) return incarnation;
    if (!found) found = incarnation;
  }
  return found;
}

std::uint32_t Membership::free_spares() const {
  return static_cast<std::uint32_t>(std::count_if(
      processes_.begin(), processes_.end(),
      [](const auto& entry) { return !entry.second.seat && is_alive(entry.second); }));
}

std::uint32_t Membership::seats_left_without(Rank rank) const {
  std::uint32_t left = 0;
  for (std::uint32_t seat = 0; seat < durable_.config.ranks; ++seat) {
    const Rank other{static_cast<std::int32_t>(seat)};
    if (other == rank || vacant_.contains(other)) continue;
    const auto last = last_of(other);
    if (!last || find(*last)->state != ProcessState::Finished) ++left;
  }
  return left;
}

}  // namespace regroup::membership
