/// RunShell: never silent while blocked; and what people may ask for from outside.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>

#include <nlohmann/json.hpp>

#include "launcher/exit_codes.hpp"
#include "launcher/flight_log.hpp"
#include "launcher/run_shell.hpp"
#include "launcher/waiting.hpp"

namespace regroup::launcher {

void RunShell::tick() {
  say_who_was_refused();
  if (hosts_.role) look_for_coordinator(Clock::now());
  if (ending_) return say_who_does_not_end();
  // Not while somebody waits for the next view, and a few at a time.
  if (!arenas_.is_wedged()) keep_flights(4);
  say_which_hosts_are_missing();
  say_who_is_missing();
  say_who_stalls();
}

void RunShell::say_who_does_not_end() {
  const TimePoint now = Clock::now();
  if (now - ending_->since < kWaitToldAfter || now - wait_told_ < kWaitToldAfter) return;
  wait_told_ = now;
  std::vector<std::string> left;
  for (const auto& [incarnation, process] : processes_) {
    if (!process->gone)
      left.push_back(fmt::format("{} (pid {})", process->name(), process->spawned.pid));
  }
  narrator_.warning(
      "E-WAIT-1",
      fmt::format("the job ends since {} s ({}), still there: {}; killed after {} s (--grace)",
                  whole_seconds(now - ending_->since), ending_->reason, fmt::join(left, ", "),
                  whole_seconds(options_.grace)));
}

// At most one line a second, however many were refused.
void RunShell::say_who_was_refused() {
  const secure::RefusalCounts now = refusals_->read();
  if (now == refusals_told_) return;
  events::Refused refused;
  for (std::size_t i = 0; i < now.size(); ++i) {
    refused.total += now.at(i);
    if (const std::uint64_t fresh = now.at(i) - refusals_told_.at(i); fresh != 0)
      refused.causes[std::string(secure::name(static_cast<secure::Refusal>(i)))] = fresh;
  }
  refusals_told_ = now;
  narrator_.refused(refused);
}

void RunShell::refused_other_user() { refusals_->count(secure::Refusal::OtherUser); }

void RunShell::keep_flights(std::size_t files) {
  for (auto& [incarnation, process] : processes_) {
    if (files == 0) return;
    if (!process->gone || !process->attached || process->flight_kept) continue;
    process->flight_kept = true;
    files -= 1;
    const Result<std::size_t> kept =
        write_flight(options_.log_dir, process->seat, incarnation, process->page->page());
    if (!kept) continue;  // a full disk: the event log says so
    narrator_.flight(*process, flight_file(incarnation).string(), *kept);
    flights_.push_back(incarnation);
    if (flights_.size() <= kFlightFilesMax) continue;
    std::error_code ignored;
    std::filesystem::remove(options_.log_dir / flight_file(flights_.front()), ignored);
    flights_.pop_front();
  }
}

void RunShell::look_for_first_operation() {
  first_operation_due_.reset();
  if (arenas_.is_wedged() || ending_) return;
  if (const std::optional<Rank> rank = arenas_.first_completed()) {
    return narrator_.first_operation(arenas_.view().epoch, *rank);
  }
  // Looking costs a few loads, but waking up for it costs a rank its core: ever more rarely.
  first_operation_wait_ =
      std::min<nanoseconds>(first_operation_wait_ * 2, std::chrono::milliseconds(200));
  first_operation_due_ = Clock::now() + first_operation_wait_;
}

void RunShell::say_who_is_missing() {
  const TimePoint now = Clock::now();
  const bool forming = agent_.installed().epoch == Epoch{} && first_attach_.has_value();
  const bool replacing = arenas_.is_wedged();
  if (!forming && !replacing) return;
  const TimePoint since = forming ? *first_attach_ : wedged_since_;
  if (now - since < kWaitToldAfter || now - wait_told_ < kWaitToldAfter) return;
  wait_told_ = now;
  std::vector<std::string> missing;
  for (const auto& [incarnation, process] : processes_) {
    if (process->gone || process->attached) continue;
    missing.push_back(fmt::format("{} (pid {}: started {} s ago, has not attached{})",
                                  process->name(), process->spawned.pid,
                                  whole_seconds(now - process->started_at),
                                  is_stopped(process->spawned) ? ", is stopped" : ""));
  }
  narrator_.warning(
      "E-WAIT-1",
      fmt::format(
          "waiting {} s {}: {}", whole_seconds(now - since),
          forming ? "for ranks to attach"
                  : fmt::format("for the epoch after {}", arenas_.view().epoch.value()),
          missing.empty() ? agent_.explain() : fmt::format("{}", fmt::join(missing, ", "))));
}

void RunShell::say_who_stalls() {
  const TimePoint now = Clock::now();
  if (agent_.installed().epoch == Epoch{} || arenas_.is_wedged() ||
      now - stall_told_ < kWaitToldAfter)
    return;
  const std::uint64_t now_ns = metrics::monotonic_ns();
  const auto limit = static_cast<std::uint64_t>(std::chrono::nanoseconds(kWaitToldAfter).count());
  for (std::size_t index = 0; index < arenas_.groups(); ++index) {
    const control::ViewInstalled::Group group = arenas_.group(index);
    std::optional<metrics::Doing> oldest;
    std::vector<std::string> left;
    std::vector<std::pair<Rank, metrics::Doing>> doing;
    for (const Rank seat : group.seats) {
      if (is_elsewhere(seat)) continue;  // its own agent looks
      const RankProcess* process = holder(seat);
      if (process == nullptr || process->gone) {
        left.push_back(fmt::format("rank {}", seat.value()));
        continue;
      }
      doing.emplace_back(seat, metrics::read_doing(process->page->page()));
      const metrics::Doing& d = doing.back().second;
      if (d.operation == metrics::Operation::None || d.group != group.id) continue;
      if (!oldest || d.started_ns < oldest->started_ns) oldest = d;
    }
    if (!oldest || now_ns < oldest->started_ns + limit) continue;
    std::vector<std::string> missing;
    for (const auto& [seat, d] : doing) {
      const bool inside = d.operation != metrics::Operation::None && d.group == group.id &&
                          d.sequence >= oldest->sequence;
      if (!inside)
        missing.push_back(fmt::format("rank {} (pid {}, {})", seat.value(),
                                      holder(seat)->spawned.pid, metrics::describe(d)));
    }
    if (missing.empty()) {
      if (!left.empty()) end_for_the_left(group, *oldest, fmt::format("{}", fmt::join(left, ", ")));
      continue;
    }
    stall_told_ = now;
    narrator_.warning(
        "E-STALL-1",
        fmt::format("{}: {} of {} ranks entered, for {} s not: {}",
                    oldest->operation == metrics::Operation::Heal
                        ? fmt::format("epoch {}", oldest->epoch)
                        : fmt::format("{} #{} on group {}", metrics::name(oldest->operation),
                                      oldest->sequence, group.name),
                    doing.size() - missing.size(), doing.size(),
                    (now_ns - oldest->started_ns) / 1'000'000'000, fmt::join(missing, ", ")));
    return;
  }
}

// Whose program ended with 0 is not replaced: an operation that needs it can never end.
void RunShell::end_for_the_left(const control::ViewInstalled::Group& group,
                                const metrics::Doing& oldest, const std::string& left) {
  const std::string why = fmt::format(
      "{} #{} on group {} waits for {}, whose program has ended with 0; every rank of a "
      "group must make the same calls",
      metrics::name(oldest.operation), oldest.sequence, group.name, left);
  narrator_.warning("E-LEFT-1", why);
  post(membership::host::Stop{why, kExitProgramError});
}

JobStatus RunShell::status() {
  JobStatus out;
  out.job = setup_.job;
  out.state = ending_                               ? "ending"
              : arenas_.is_wedged()                 ? "recovering"
              : agent_.installed().epoch == Epoch{} ? "forming"
                                                    : "steady";
  out.log_dir = options_.log_dir.string();
  out.pid = ::getpid();
  out.ranks = static_cast<std::uint32_t>(options_.ranks);
  out.spares_wanted = static_cast<std::uint32_t>(options_.spares);
  out.epoch = agent_.installed().epoch;
  out.replaced = narrator_.replaced();
  out.uptime_ns = std::chrono::nanoseconds(Clock::now() - began_).count();
  out.now_ns = metrics::monotonic_ns();
  out.coordinator_pid = coordinator_->pid();
  out.coordinator_restarts = coordinator_->restarts();
  out.coordinator_port = coordinator_->port();
  const secure::RefusalCounts refused = refusals_->read();
  for (std::size_t i = 0; i < refused.size(); ++i) {
    if (refused.at(i) != 0)
      out.refused[std::string(secure::name(static_cast<secure::Refusal>(i)))] = refused.at(i);
  }
  std::vector<const RankProcess*> processes;
  for (const auto& [incarnation, process] : processes_) {
    if (!process->gone) processes.push_back(process.get());
  }
  std::stable_sort(processes.begin(), processes.end(),
                   [](const RankProcess* a, const RankProcess* b) {
                     return a->seat.value_or(Rank{kRanksMax}) < b->seat.value_or(Rank{kRanksMax});
                   });
  for (const RankProcess* process : processes) {
    ProcessStatus line{process->seat, process->incarnation, process->spawned.pid};
    line.state = process->released             ? "drained"
                 : process->detached           ? "finished"
                 : process->entered != Epoch{} ? "healed"
                 : process->attached           ? "joined"
                                               : "starting";
    line.host = "localhost";
    line.doing = metrics::read_doing(process->page->page());
    out.processes.push_back(std::move(line));
  }
  if (fleet_) add_elsewhere(out);
  return out;
}

/// Whoever holds the seat, on whichever host.
std::optional<Incarnation> RunShell::in_seat(Rank rank) {
  if (is_elsewhere(rank)) return agent_.installed().seats[static_cast<std::size_t>(rank.value())];
  const RankProcess* process = holder(rank);
  if (process == nullptr || process->gone) return std::nullopt;
  return process->incarnation;
}

Status RunShell::signal(Rank rank, int signal) {
  if (is_elsewhere(rank)) return signal_elsewhere(rank, signal);
  const RankProcess* process = holder(rank);
  if (process == nullptr || process->gone) {
    return {Code::FailedPrecondition, fmt::format("seat {} is vacant", rank.value())};
  }
  signal_process(process->spawned, signal);
  return {};
}

Status RunShell::evict(Rank rank, const std::string& why) {
  const std::optional<Incarnation> process = in_seat(rank);
  if (!process) {
    return {Code::FailedPrecondition, fmt::format("seat {} is vacant", rank.value())};
  }
  post(membership::host::Evict{*process, why});
  return {};
}

std::uint64_t RunShell::keep_wish(Asked asked) {
  constexpr std::size_t kWishesMax = 64;
  wishes_.emplace(++wishes_asked_, std::move(asked));
  if (wishes_.size() > kWishesMax) wishes_.erase(wishes_.begin());
  return wishes_asked_;
}

Result<std::uint64_t> RunShell::drain(const std::vector<Rank>& ranks, bool now) {
  Asked asked;
  for (const Rank rank : ranks) {
    const std::optional<Incarnation> process = in_seat(rank);
    if (!process) {
      return Status(
          Code::FailedPrecondition,
          fmt::format("E-PLAN-2 seat {} is vacant: nobody is there to drain", rank.value()));
    }
    asked.leaving.push_back(*process);
  }
  const std::vector<Incarnation> leaving = asked.leaving;
  const std::uint64_t id = keep_wish(std::move(asked));
  post(membership::host::Drain{id, leaving, now});
  return id;
}

std::uint64_t RunShell::scale(std::uint32_t seats, bool now) {
  const std::uint64_t id = keep_wish({.leaving = {}, .seats = seats, .wish = {}});
  post(membership::host::Scale{id, seats, now});
  return id;
}

std::optional<Wish> RunShell::wish(std::uint64_t id) {
  const auto found = wishes_.find(id);
  return found == wishes_.end() ? std::nullopt : std::optional(found->second.wish);
}

/// After each answer and each view.
void RunShell::look_at_wishes() {
  const std::vector<Incarnation>& seats = arenas_.view().seats;
  const auto occupied =
      static_cast<std::uint32_t>(seats.size() - static_cast<std::size_t>(std::count(
                                                    seats.begin(), seats.end(), Incarnation{})));
  for (auto& [id, asked] : wishes_) {
    const bool still_there =
        std::any_of(asked.leaving.begin(), asked.leaving.end(), [&](Incarnation leaving) {
          return std::find(seats.begin(), seats.end(), leaving) != seats.end();
        });
    const bool as_wanted = asked.seats ? *asked.seats == occupied : !still_there;
    if (asked.wish.accepted && !asked.wish.dropped && as_wanted) asked.wish.done = true;
  }
}

Status RunShell::kill_coordinator() {
  if (coordinator_->pid() == 0)
    return {Code::FailedPrecondition, "the coordinator is being restarted right now"};
  ::kill(coordinator_->pid(), SIGKILL);
  return {};
}

std::optional<metrics::Doing> RunShell::doing(Rank rank) {
  const RankProcess* process = holder(rank);
  if (process == nullptr || process->gone) return std::nullopt;
  return metrics::read_doing(process->page->page());
}

Result<nlohmann::json> RunShell::flight(Rank rank) {
  const RankProcess* process = holder(rank);
  if (process == nullptr || process->gone || !process->attached) {
    return Status(Code::FailedPrecondition, fmt::format("seat {} is vacant", rank.value()));
  }
  nlohmann::json out = flight_json(process->seat, process->incarnation, process->page->page());
  out["monotonic_ns"] = metrics::monotonic_ns();
  out["offset_ns"] = log_.now().offset_ns;
  return out;
}

}  // namespace regroup::launcher
