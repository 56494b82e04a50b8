// Changes of members that a person asked for: drain and scale. A change is a wish that the next
// view carries out; stopping the ranks at the end of a step is how a next view comes without a
// loss.
#include <fmt/format.h>

#include <algorithm>

#include "base/mutant.hpp"
#include "membership/membership.hpp"

namespace regroup::membership {

namespace {

/// Requests are no steps: an operation that ends early is run again by the caller.
bool without_steps(OnLoss policy) { return policy == OnLoss::Replace; }

}  // namespace

// ---- cells
// ----------------------------------------------------------------------------------------

void Membership::answer(const Event& event, bool accepted, std::string text) {
  const auto& from = std::get<FromAgent>(event);
  const auto* drain = std::get_if<DrainRequest>(&from.message);
  const std::uint64_t id = drain != nullptr ? drain->id : std::get<ScaleRequest>(from.message).id;
  note(drain != nullptr ? "drain" : "scale", (accepted ? "accepted: " : "refused: ") + text);
  send(from.agent, Answer{id, accepted, std::move(text)});
}

void Membership::refuse_forming(const Event& event) {
  answer(event, false,
         state_ == State::Forming ? "the job has not formed yet; ask again"
                                  : "the coordinator waits for all hosts; ask again");
}

void Membership::refuse_over(const Event& event) {
  answer(event, false, "the job is ending: " + durable_.ended->reason);
}

void Membership::drain(const Event& event) {
  const auto& request = std::get<DrainRequest>(std::get<FromAgent>(event).message);
  std::string why = refuse_change();
  const auto staying = std::count_if(
      durable_.view.seats.begin(), durable_.view.seats.end(), [&](Incarnation member) {
        const bool asked = std::find(request.incarnations.begin(), request.incarnations.end(),
                                     member) != request.incarnations.end();
        const Process* process = find(member);
        return process != nullptr && is_alive(*process) && !asked && !leaves(member);
      });
  for (const Incarnation incarnation : request.incarnations) {
    if (why.empty()) why = refuse_drain(incarnation, static_cast<std::uint32_t>(staying));
  }
  if (!why.empty()) return answer(event, false, why);
  const bool vacate = !fills_seats(durable_.config.on_loss);
  std::string who;
  for (const Incarnation incarnation : request.incarnations) {
    const Rank rank = *find(incarnation)->seat;
    durable_.planned.push_back({rank, incarnation, vacate, request.now});
    who += fmt::format("{}rank {} (incarnation {})", who.empty() ? "" : ", ", rank.value(),
                       incarnation.value());
  }
  persist();
  answer(event, true,
         fmt::format("{} {} {}; {}", who,
                     request.now || without_steps(durable_.config.on_loss)
                         ? "leaves as soon as its successor is ready"
                         : "leaves at the end of a step",
                     vacate ? "and the seat stays vacant" : "and another process takes the seat",
                     "the job goes on"));
}

void Membership::scale(const Event& event) {
  const auto& request = std::get<ScaleRequest>(std::get<FromAgent>(event).message);
  std::string why = refuse_change();
  if (why.empty()) why = refuse_scale(request.seats);
  if (!why.empty()) return answer(event, false, why);
  const std::size_t before = occupied().size();
  plan_scale(request.seats, request.now);
  persist();
  answer(event, true,
         fmt::format("from {} to {} of {} ranks: {}", before, request.seats, durable_.config.ranks,
                     durable_.planned.empty() ? "nothing to do" : plan_text()));
}

void Membership::parked(const Event& event) {
  Agent& agent = agents_.at(std::get<FromAgent>(event).agent);
  agent.parked = std::max(agent.parked, std::get<Parked>(std::get<FromAgent>(event).message).epoch);
}

// ---- may it be done
// -------------------------------------------------------------------------------

/// Empty: changes are possible here at all.
std::string Membership::refuse_change() const {
  if (any_seat_over()) return "the job is ending: a rank has ended with 0 already";
  switch (durable_.config.on_loss) {
    case OnLoss::Replay:
    case OnLoss::CarryOn:
    case OnLoss::Replace:
    case OnLoss::Shrink: return {};
    case OnLoss::Abort: break;
  }
  return "--on-loss abort keeps the members that the job began with";
}

std::string Membership::refuse_drain(Incarnation incarnation, std::uint32_t stay) const {
  const Process* process = find(incarnation);
  if (process == nullptr || !is_alive(*process) || !is_member(incarnation)) {
    return fmt::format("incarnation {} holds no seat (any more)", incarnation.value());
  }
  const std::string who =
      fmt::format("rank {} (incarnation {})", process->seat->value(), incarnation.value());
  if (leaves(incarnation)) return who + " is being drained already";
  if (stay == 0) {
    return who +
           " is among the last ranks that hold the job's state: nobody would be left to heal from";
  }
  if (fills_seats(durable_.config.on_loss)) {
    if (spares_given_up_)
      return who + " cannot be replaced: no process can be started for its seat";
    return {};
  }
  const std::uint32_t least = std::max(durable_.config.ranks_min, 1U);
  if (stay >= least) return {};
  return fmt::format("without {} only {} ranks go on, fewer than --min {}", who, stay, least);
}

std::string Membership::refuse_scale(std::uint32_t seats) const {
  const std::uint32_t least = std::max(durable_.config.ranks_min, 1U);
  if (seats < least) return fmt::format("{} ranks are fewer than --min {}", seats, least);
  if (seats > durable_.config.ranks) {
    return fmt::format(
        "the job has {} seats (-n), and seats are never added: {} ranks are too many",
        durable_.config.ranks, seats);
  }
  if (seats <= occupied().size()) return {};
  if (!fills_seats(durable_.config.on_loss)) {
    return "--on-loss shrink leaves a seat vacant for good: the ranks keep no record from which a "
           "newcomer could join";
  }
  if (spares_given_up_) return "no further process can be started";
  return {};
}

/// Seats that somebody holds or will hold.
std::vector<Rank> Membership::occupied() const {
  std::vector<Rank> ranks;
  for (std::uint32_t seat = 0; seat < durable_.config.ranks; ++seat) {
    const Rank rank{static_cast<std::int32_t>(seat)};
    if (!vacant_.contains(rank)) ranks.push_back(rank);
  }
  return ranks;
}

/// The highest seats leave, the lowest vacant ones are filled. What an earlier wish of this kind
/// left undone is forgotten.
void Membership::plan_scale(std::uint32_t seats, bool now) {
  std::erase_if(durable_.planned, [](const PlannedChange& change) {
    return change.vacate || change.incarnation == Incarnation{};
  });
  std::vector<Rank> ranks = occupied();
  for (; ranks.size() > seats; ranks.pop_back()) {
    const Rank rank = ranks.back();
    std::erase_if(durable_.planned,
                  [rank](const PlannedChange& change) { return change.rank == rank; });
    const auto holder = live_holder(rank);
    durable_.planned.push_back(
        {rank, holder.value_or(last_of(rank).value_or(Incarnation{})), true, now});
  }
  auto missing = static_cast<std::int64_t>(seats) - static_cast<std::int64_t>(ranks.size());
  for (auto rank = vacant_.begin(); rank != vacant_.end() && missing > 0; ++rank, --missing)
    durable_.planned.push_back({*rank, Incarnation{}, false, now});
}

// ---- carrying it out
// ------------------------------------------------------------------------------

std::uint32_t Membership::newcomers_planned() const {
  return static_cast<std::uint32_t>(
      std::count_if(durable_.planned.begin(), durable_.planned.end(),
                    [](const PlannedChange& change) { return !change.vacate; }));
}

bool Membership::leaves(Incarnation incarnation) const {
  return std::any_of(
      durable_.planned.begin(), durable_.planned.end(),
      [incarnation](const PlannedChange& change) { return change.incarnation == incarnation; });
}

/// Whoever takes a seat has joined, and somebody stays who holds the state.
bool Membership::plan_ready() const {
  if (durable_.planned.empty()) return false;
  const auto joined = std::count_if(processes_.begin(), processes_.end(), [](const auto& entry) {
    return !entry.second.seat && entry.second.state == ProcessState::Joined;
  });
  if (joined < static_cast<std::int64_t>(newcomers_planned())) return false;
  const std::vector<Incarnation> members = survivors();
  return std::any_of(members.begin(), members.end(), [this](Incarnation member) {
    return find(member)->holds_state && !leaves(member);
  });
}

std::string Membership::plan_text() const {
  std::string text;
  for (const PlannedChange& change : durable_.planned) {
    const char* what = change.incarnation == Incarnation{} ? "is filled"
                       : change.vacate                     ? "leaves, its seat stays vacant"
                                                           : "is drained";
    text += fmt::format("{}rank {} {}", text.empty() ? "" : ", ", change.rank.value(), what);
  }
  return text;
}

/// In Steady: asks the ranks to stop at the end of a step once all is ready, and ends the epoch
/// when all of them stand there.
void Membership::follow_plan() {
  const bool at_once = std::any_of(
      durable_.planned.begin(), durable_.planned.end(),
      [this](const auto& change) { return change.now || without_steps(durable_.config.on_loss); });
  if (at_once && plan_ready()) return begin_round("planned, at once: " + plan_text());
  if (!parking_) {
    // An earlier coordinator may have asked: then the ranks wait, whatever became of the plan.
    const bool asked = std::any_of(agents_.begin(), agents_.end(), [this](const auto& entry) {
      return !entry.second.lost && entry.second.parked == durable_.view.epoch;
    });
    if (!asked && !plan_ready()) return;
    parking_ = true;
    note("change", "at the end of a step: " + plan_text());
    for (const auto& [id, agent] : agents_) {
      if (hosts_member(id)) send(id, ParkEpoch{durable_.view.epoch});
    }
  }
  for (const auto& [id, agent] : agents_) {
    if (is_awaited(id) && !REGROUP_MUTANT(PARKED_NOT_AWAITED)) return;
  }
  begin_round("planned: all ranks stand at the end of a step");
}

/// What cannot be carried out any more.
void Membership::drop_plan() {
  if (durable_.planned.empty()) return;
  std::string why;
  if (any_seat_over()) {
    why = "a rank has ended with 0";
    durable_.planned.clear();
  } else if (spares_given_up_ && free_spares() < newcomers_planned()) {
    why = "no process can be started for the seats";
    std::erase_if(durable_.planned, [](const PlannedChange& change) { return !change.vacate; });
  }
  if (why.empty()) return;
  note("change_dropped", "a planned change is given up: " + why);
  persist();
}

/// A seat that was to be vacated and lost its process is not filled again, unless others were lost
/// too, and too few would be left: then it is a loss like any other.
void Membership::vacate_planned() {
  std::erase_if(durable_.planned, [this](const PlannedChange& change) {
    if (!change.vacate || live_holder(change.rank)) return false;
    if (seats_left_without(change.rank) < std::max(durable_.config.ranks_min, 1U)) return true;
    note("vacant", fmt::format("rank {} was lost before it could leave: its seat stays vacant",
                               change.rank.value()));
    vacant_.insert(change.rank);
    return true;
  });
}

/// The ranks go on without this seat for now; a newcomer joins when they stand at the end of a
/// step.
void Membership::fill_later(Rank rank) {
  std::erase_if(durable_.planned,
                [rank](const PlannedChange& change) { return change.rank == rank; });
  durable_.planned.push_back({rank, Incarnation{}, false, false});
  vacant_.insert(rank);
}

/// Whether every member that is left stands at the end of the same step.
bool Membership::all_parked() const {
  return std::all_of(agents_.begin(), agents_.end(), [this](const auto& entry) {
    const auto& [id, agent] = entry;
    return agent.lost || !hosts_member(id) || agent.parked == durable_.view.epoch;
  });
}

void Membership::carry_out_plan() {
  // Whoever comes into the middle of a step would have it begun again.
  const bool in_step = durable_.config.on_loss == OnLoss::CarryOn && !all_parked();
  std::erase_if(durable_.planned, [this, in_step](PlannedChange& change) {
    return (!in_step || change.now) && carry_out(change);
  });
}

/// Whether this change is done. All seats are filled or vacant, and the decision stands.
bool Membership::carry_out(PlannedChange& change) {
  const auto holder = vacant_.contains(change.rank) ? std::nullopt : live_holder(change.rank);
  if (change.incarnation == Incarnation{}) {
    if (holder) return true;
    const auto spare = free_spare(place(change.rank));
    if (!spare) return false;
    vacant_.erase(change.rank);
    give_seat(*spare, change.rank);
    return true;
  }
  if (holder != change.incarnation) {
    // It was lost before it could leave: a successor has the seat, or nobody.
    if (!change.vacate || !holder) return true;
    change.incarnation = *holder;
    return false;
  }
  if (!is_member(*holder) || !may_release(*holder)) return false;
  if (change.vacate) {
    vacant_.insert(change.rank);
    release(*holder, change.rank);
    return true;
  }
  const auto spare = free_spare(find(*holder)->agent);
  if (!spare) return false;
  release(*holder, change.rank);
  give_seat(*spare, change.rank);
  return true;
}

/// Somebody else stays in the next view who holds the state.
bool Membership::may_release(Incarnation incarnation) const {
  const std::vector<Incarnation> members = survivors();
  return std::any_of(members.begin(), members.end(), [&](Incarnation member) {
    return member != incarnation && find(member)->holds_state;
  });
}

void Membership::release(Incarnation incarnation, Rank rank) {
  find(incarnation)->state = ProcessState::Released;
  durable_.released.push_back({rank, incarnation});
  note("released", fmt::format("rank {} (incarnation {}) leaves its seat as planned", rank.value(),
                               incarnation.value()));
}

/// It has ended: nobody needs to be told any more.
void Membership::forget_released(Incarnation incarnation) {
  std::erase_if(durable_.released,
                [incarnation](const Member& member) { return member.incarnation == incarnation; });
}

bool Membership::was_released(Incarnation incarnation) const {
  return std::any_of(
      durable_.released.begin(), durable_.released.end(),
      [incarnation](const Member& member) { return member.incarnation == incarnation; });
}

}  // namespace regroup::membership
