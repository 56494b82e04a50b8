// Who takes which seat, and when the job is over.
#include <fmt/format.h>

#include <algorithm>
#include <csignal>
#include <utility>

#include "base/check.hpp"
#include "base/mutant.hpp"
#include "membership/membership.hpp"

namespace regroup::membership {

namespace {
/// Incarnations are made durable in blocks, so that not every start waits for the disk.
constexpr std::uint64_t kIncarnationBlock = 64;
}  // namespace

void Membership::start_process(std::optional<Rank> seat) {
  // What this start makes up for is durable before it.
  if (losses_changed_) persist();
  if (REGROUP_MUTANT(REUSE_INCARNATION)) {
    if (seat && last_of(*seat)) next_incarnation_ = *last_of(*seat);
  } else if (next_incarnation_ >= durable_.next_incarnation) {
    durable_.next_incarnation = Incarnation{next_incarnation_.value() + kIncarnationBlock};
    if (!REGROUP_MUTANT(INCARNATIONS_NOT_DURABLE)) persist();
  }
  const Incarnation incarnation = next_incarnation_;
  next_incarnation_ = Incarnation{incarnation.value() + 1};
  const std::optional<AgentId> id = place(seat);
  REGROUP_ASSERT(id);
  processes_[incarnation] = {.agent = *id};
  if (seat) set_seat(incarnation, *seat);
  send(*id, StartProcess{incarnation, seat, seat ? life_of(*seat, incarnation) : 0});
}

/// Lives that the seat had before this one. After a restart of the coordinator those of a host that
/// is away are not known; a newcomer is never the first one.
std::uint32_t Membership::life_of(Rank rank, Incarnation incarnation) const {
  const auto holders = in_seat_.find(rank);
  if (holders == in_seat_.end()) return 0;
  const auto begin = holders->second.begin();
  const auto life =
      static_cast<std::uint32_t>(std::find(begin, holders->second.end(), incarnation) - begin);
  const bool newcomer = durable_.view.epoch != Epoch{} && !is_member(incarnation);
  return newcomer ? std::max(life, 1U) : life;
}

std::vector<SeatPlace> Membership::places() const {
  std::vector<SeatPlace> out;
  for (std::size_t seat = 0; seat < durable_.view.seats.size(); ++seat) {
    const Incarnation incarnation = durable_.view.seats[seat];
    const Process* process = incarnation == Incarnation{} ? nullptr : find(incarnation);
    const Rank rank{static_cast<std::int32_t>(seat)};
    out.push_back(process == nullptr
                      ? SeatPlace{}
                      : SeatPlace{process->agent, life_of(rank, incarnation), process->address});
  }
  return out;
}

/// Seats in blocks over the hosts, in their order.
AgentId Membership::first_host(Rank rank, const std::vector<AgentId>& here) const {
  const auto seat = static_cast<std::size_t>(rank.value());
  const auto& hosts = durable_.config.hosts;
  std::size_t end = 0;
  for (std::size_t id = 0; id < hosts.size(); ++id) {
    end += hosts[id].seats;
    const AgentId agent{static_cast<std::uint32_t>(id)};
    if (seat < end && std::find(here.begin(), here.end(), agent) != here.end()) return agent;
    if (seat < end) return here.front();
  }
  const std::size_t per_host = (durable_.config.ranks + here.size() - 1) / here.size();
  return here[seat / per_host];
}

/// A lost seat on its old host if that is there; otherwise where the fewest run. None while every
/// host that may run it is away.
std::optional<AgentId> Membership::place(std::optional<Rank> seat) const {
  std::vector<AgentId> here;
  for (const auto& [id, agent] : agents_) {
    if (!agent.lost && durable_.config.may_run(id)) here.push_back(id);
  }
  if (here.empty()) return std::nullopt;
  if (seat && last_of(*seat)) {
    const AgentId before = find(*last_of(*seat))->agent;
    if (std::find(here.begin(), here.end(), before) != here.end()) return before;
  } else if (seat) {
    return first_host(*seat, here);
  }
  const auto load = [this](AgentId id) {
    return std::count_if(processes_.begin(), processes_.end(), [id](const auto& entry) {
      return entry.second.agent == id && is_alive(entry.second);
    });
  };
  return *std::min_element(here.begin(), here.end(),
                           [&load](AgentId a, AgentId b) { return load(a) < load(b); });
}

void Membership::refill_spares() {
  switch (state_) {
    case State::Gathering:
    case State::Failed:
    case State::Ended: return;
    case State::Forming:
    case State::Installing:
    case State::Steady:
    case State::Wedged:
    case State::Draining:
    case State::Replacing: break;
  }
  if (spares_given_up_ || any_seat_over()) return;
  if (spare_history_.recent(now_) > durable_.config.replacements_max) {
    spares_given_up_ = true;
    note("spares_given_up", fmt::format("{} spares were lost within an hour (--max-replacements)",
                                        spare_history_.recent(now_)));
    return;
  }
  // A program that never attaches needs no spare; one that failed at once is not tried again for
  // it.
  const auto started = std::count_if(processes_.begin(), processes_.end(),
                                     [](const auto& entry) { return !entry.second.seat; });
  const auto have = anybody_joined() ? static_cast<std::int64_t>(free_spares()) : started;
  const std::int64_t wanted = std::int64_t{durable_.config.spares} + newcomers_planned();
  for (std::int64_t spare = have; spare < wanted && place(std::nullopt); ++spare)
    start_process(std::nullopt);
}

// ---- filling seats
// --------------------------------------------------------------------------------

void Membership::form() {
  if (fill_all() && state_ == State::Forming) install();
}

void Membership::fill_seats() {
  // Others have ended already: the survivors may be about to, and then nobody needs a newcomer.
  if (any_seat_over() && !survivors().empty() && hold()) return;
  const bool abort = durable_.config.on_loss == OnLoss::Abort;
  if (abort && first_cause_) {
    std::uint32_t none = 0;
    const Process& first = *find(*first_cause_);
    if (!is_alive(first) && !ended_clean(first)) {
      fill_by_policy(*first.seat, *first_cause_, none);
      return;
    }
  }
  if (!abort && lacks_holder()) {
    end_without_holder();
    return;
  }
  vacate_planned();
  if (!fill_all() || state_ != State::Replacing) return;
  carry_out_plan();
  install();
}

/// Whether every seat is held by a process that joined, or stays vacant. Starts what is missing.
bool Membership::fill_all() {
  std::uint32_t spares = free_spares();
  bool all = true;
  for (std::uint32_t seat = 0; seat < durable_.config.ranks; ++seat) {
    const Rank rank{static_cast<std::int32_t>(seat)};
    if (vacant_.contains(rank)) continue;
    all = fill_seat(rank, spares) && all;
    if (durable_.ended) return false;
  }
  return all;
}

bool Membership::fill_seat(Rank rank, std::uint32_t& spares) {
  if (const auto holder = live_holder(rank)) {
    const Process& process = *find(*holder);
    if (process.state != ProcessState::Starting) return true;
    if (REGROUP_MUTANT(ADMIT_UNJOINED_SPARE) && state_ == State::Replacing) return true;
    const auto spare = state_ == State::Replacing ? free_spare(process.agent) : std::nullopt;
    if (!spare) return false;
    revoke(*holder, "a spare was ready first");
    give_seat(*spare, rank);
    return true;
  }
  const auto last = last_of(rank);
  if (!last) return start_newcomer(rank);
  if (find(*last)->state == ProcessState::Finished) return vacate_finished(rank);
  return fill_by_policy(rank, *last, spares);
}

/// False, as fill_seat() says: it has yet to join. While all hosts that may run it are away it is
/// not started: whichever comes back first gets it.
bool Membership::start_newcomer(Rank rank, const std::string& why) {
  if (!place(rank)) {
    waiting_for_ = fmt::format("rank {} waits for a host that may run it", rank.value());
    return false;
  }
  if (!why.empty()) note("replace", why);
  start_process(rank);
  return false;
}

bool Membership::fill_by_policy(Rank rank, Incarnation last, std::uint32_t& spares) {
  const SeatVerdict verdict = decide_seat(durable_.config, loss_of(rank, last, spares > 0));
  const AgentId host = find(last)->agent;
  switch (verdict.action) {
    case SeatAction::TakeSpare: {
      --spares;
      const auto spare = free_spare(host);
      if (!spare) {
        waiting_for_ = fmt::format("rank {} waits for a spare to join", rank.value());
        return false;
      }
      note("replace", verdict.why);
      give_seat(*spare, rank);
      return true;
    }
    case SeatAction::RestartCold: return start_newcomer(rank, verdict.why);
    case SeatAction::LeaveVacant:
      note("vacant", verdict.why);
      vacant_.insert(rank);
      return true;
    case SeatAction::FillLater:
      note("carry_on", verdict.why);
      fill_later(rank);
      return true;
    case SeatAction::EndJob:
      // The exit code is the first cause's own; the death is known before its exit status is.
      if (status_unknown(*find(last)) && hold()) return false;
      end_job(verdict.exit_code, verdict.why);
      return false;
  }
  return false;
}

/// The program in this seat has ended with 0, so the seat is over.
bool Membership::vacate_finished(Rank rank) {
  if (state_ == State::Forming) {
    if (!anybody_joined())
      return false;  // a program that never attaches; check_over() ends the job
    if (seats_left_without(rank) < std::max(durable_.config.ranks_min, 1U)) {
      end_job(kExitTemporary,
              fmt::format("rank {} ended with 0 before it joined, and the other ranks "
                          "are fewer than --min",
                          rank.value()));
      return false;
    }
  }
  note("vacant", fmt::format("rank {} has ended with 0: its seat stays vacant", rank.value()));
  vacant_.insert(rank);
  return true;
}

void Membership::give_seat(Incarnation spare, Rank rank) {
  set_seat(spare, rank);
  note("seat", fmt::format("spare (incarnation {}) becomes rank {}", spare.value(), rank.value()));
}

SeatLoss Membership::loss_of(Rank rank, Incarnation last, bool spare_left) {
  Process& process = *find(last);
  const std::uint64_t step =
      durable_.decision ? durable_.decision->committed_step + 1 : durable_.view.resume_step;
  if (!process.counted && !REGROUP_MUTANT(LOSSES_NOT_COUNTED)) remember({rank, last, step, now_});
  const SeatHistory& history = history_[rank];
  process.counted = true;
  std::uint32_t alike = 0;
  std::uint32_t looked_at = 0;
  const std::vector<Incarnation>& lives = in_seat_[rank];
  for (auto life = lives.rbegin(); life != lives.rend(); ++life) {
    const Process* before = find(*life);
    if (before == nullptr || !before->counted) continue;
    if (looked_at++ == history.in_step(step)) break;
    if (before->evidence.exit_code > 0 && before->evidence.exit_code == process.evidence.exit_code)
      ++alike;
  }
  const bool others = std::any_of(processes_.begin(), processes_.end(), [last](const auto& entry) {
    return entry.first != last && entry.second.joined;
  });
  return {.rank = rank,
          .incarnation = last,
          .evidence = process.evidence,
          .attached = process.joined,
          .others_attached = others,
          .state_exists = durable_.state_exists,
          .start_gave_up = process.gave_up,
          .step = step,
          .losses_in_step = history.in_step(step),
          .exited_alike = alike,
          .losses_recent = history.recent(now_),
          .seats_left = seats_left_without(rank),
          // Of a program that never attaches no spare ever joins.
          .spare_left = spare_left && anybody_joined()};
}

/// Not a loss: the process is not wanted any more. Its agent kills it with the next order that
/// names it.
void Membership::revoke(Incarnation incarnation, const std::string& why) {
  Process& process = *find(incarnation);
  if (!is_alive(process)) return;
  process.state = ProcessState::Gone;
  process.evidence = {.kind = EvidenceKind::Requested, .text = why};
  process.revoked = true;
  process.counted = true;
}

// ---- the end
// --------------------------------------------------------------------------------------

bool Membership::lacks_holder() const {
  if (!durable_.state_exists) return false;
  const std::vector<Incarnation> alive = survivors();
  return std::none_of(alive.begin(), alive.end(),
                      [this](Incarnation incarnation) { return find(incarnation)->holds_state; });
}

void Membership::end_without_holder() {
  const Process* first = first_cause_ ? find(*first_cause_) : nullptr;
  if (first != nullptr && status_unknown(*first) && hold()) return;
  const std::string cause =
      first == nullptr ? std::string("every member was lost")
                       : fmt::format("rank {} (incarnation {}) was lost: {}", first->seat->value(),
                                     first_cause_->value(), describe(first->evidence));
  end_job(first == nullptr ? kExitTemporary : exit_code_of(first->evidence),
          cause + "; nobody is left to heal from: no living rank holds the job's state");
}

/// Waits once per round, for exit codes or for exits that are on their way.
bool Membership::hold() {
  if (!hold_until_) hold_until_ = now_ + timeouts_.finish_grace;
  return now_ < *hold_until_;
}

/// Whether some seat's process has work of its own left. A newcomer has none once nobody can give
/// it the state.
bool Membership::somebody_goes_on() const {
  return std::any_of(processes_.begin(), processes_.end(), [this](const auto& entry) {
    const auto& [incarnation, process] = entry;
    if (!process.seat || !is_alive(process)) return false;
    return !durable_.state_exists || (is_member(incarnation) && process.holds_state);
  });
}

void Membership::check_over() {
  if (!any_seat_over() || somebody_goes_on()) return;
  const bool status_on_its_way = std::any_of(
      processes_.begin(), processes_.end(),
      [this](const auto& entry) { return entry.second.seat && status_unknown(entry.second); });
  if (status_on_its_way && hold()) return;
  std::string reason;
  const std::int32_t code = final_code(reason);
  end_job(code, reason);
}

/// All seats are over: 0, unless a rank failed by itself. A rank that was killed from outside after
/// others had ended is not held against the job: nobody needed it any more.
std::int32_t Membership::final_code(std::string& reason) const {
  reason = "all ranks have ended with 0";
  for (std::uint32_t seat = 0; seat < durable_.config.ranks; ++seat) {
    const Rank rank{static_cast<std::int32_t>(seat)};
    const auto holders = in_seat_.find(rank);
    if (holders == in_seat_.end() || vacant_.contains(rank)) continue;
    // A newcomer that never came in says nothing; who was there before it does.
    const auto last = std::find_if(holders->second.rbegin(), holders->second.rend(),
                                   [this](Incarnation holder) { return !is_alive(*find(holder)); });
    if (last == holders->second.rend() || ended_clean(*find(*last))) continue;
    const Process& process = *find(*last);
    const int signal = process.evidence.signal;
    const bool from_outside = process.joined && process.evidence.exit_code <= 0 &&
                              (signal == 0 || signal == SIGKILL || signal == SIGTERM);
    reason = fmt::format("all other ranks have ended with 0; rank {} (incarnation {}) was lost: {}",
                         seat, last->value(), describe(process.evidence));
    if (!from_outside) return exit_code_of(process.evidence);
  }
  return 0;
}

void Membership::end_job(std::int32_t exit_code, std::string reason) {
  if (durable_.ended) return;
  durable_.ended = EndJob{exit_code, std::move(reason)};
  if (!REGROUP_MUTANT(END_NOT_DURABLE)) persist();
  enter(exit_code == 0 ? State::Ended : State::Failed, durable_.ended->reason);
  for (const auto& [id, agent] : agents_) send(id, *durable_.ended);
}

}  // namespace regroup::membership
