/// RunShell: performs what the machines decided.
#include <fmt/format.h>
#include <sys/wait.h>

#include <algorithm>
#include <csignal>

#include "launcher/descendants.hpp"
#include "launcher/exit_codes.hpp"
#include "launcher/run_shell.hpp"
#include "membership/policy.hpp"

namespace regroup::launcher {

using membership::Evidence;
using membership::EvidenceKind;
namespace host = membership::host;
namespace sv = supervisor;

// ---- of the supervisor
// --------------------------------------------------------------------------------------------

void RunShell::perform(const sv::Fork& effect) {
  std::uint32_t life = 0;
  if (effect.seat)
    life = effect.attempt == 1 ? next_life(*effect.seat, 0) : lives_[*effect.seat] - 1;
  if (outer_.shims) return start_by_shim(effect, life);
  // Standard input has one reader: rank 0, whichever life.
  const bool reads = effect.seat == Rank{0} && !hosts_.role;
  const int stdin_fd = !reads ? -1 : terminal_ ? terminal_->fd() : 0;
  Result<std::unique_ptr<RankProcess>> started =
      start_process(options_, setup_, effect.incarnation, effect.seat, life,
                    effect.seat ? local_rank(*effect.seat) : 0, stdin_fd);
  if (!started) {
    const Status why = started.error();
    return post(sv::StartRefused{effect.incarnation, std::string(why.text()),
                                 why.code() == Code::ResourceExhausted});
  }
  RankProcess& process = *(processes_[effect.incarnation] = std::move(*started));
  narrator_.process_started(process);
  watch_process(process);
  post(sv::StartSucceeded{effect.incarnation});
}

void RunShell::perform(const sv::Signal& effect) {
  RankProcess* process = find(effect.incarnation);
  if (process == nullptr || process->gone) return;
  signal_group(process->spawned, effect.signal);
  // A stopped process hears only KILL; whoever is asked to end must be able to.
  if (effect.signal == SIGTERM) signal_group(process->spawned, SIGCONT);
  if (effect.signal == SIGKILL) signal_process(process->spawned, SIGKILL);
}

void RunShell::perform(const sv::Sweep& effect) { sweep(effect.incarnation); }

namespace {

/// How a process ends whose beacon fired: the kernel says so long before it can be reaped.
std::optional<ExitStatus> dying(const RankProcess& process) {
  const std::optional<int> status =
      dying_status(process.page->page().beacon.pid.load(std::memory_order_relaxed));
  if (!status) return std::nullopt;
  ExitStatus out;
  if (WIFSIGNALED(*status)) out.signal = WTERMSIG(*status);
  if (WIFEXITED(*status)) out.exit_code = WEXITSTATUS(*status);
  return out;
}

}  // namespace

Evidence RunShell::evidence_of(const RankProcess& process, const sv::Lost& effect) const {
  Evidence evidence;
  evidence.kind = effect.kind;
  evidence.exit_code = effect.exit_code;
  evidence.signal = effect.signal;
  std::optional<ExitStatus> status = process.exit;
  if (!status && effect.kind == EvidenceKind::Beacon) status = dying(process);
  if (status) {
    evidence.text = status->text();
    evidence.signal = status->signal;
    evidence.exit_code = status->signal == 0 ? status->exit_code : -1;
  } else {
    evidence.text = effect.kind == EvidenceKind::Beacon ? "its death beacon fired"
                                                        : "its control channel closed";
  }
  if (process.attached)
    evidence.text += "; " + metrics::describe(metrics::read_doing(process.page->page()));
  if (!process.fault.empty()) evidence.text += "; it said: " + process.fault;
  return evidence;
}

void RunShell::perform(const sv::Lost& effect) {
  RankProcess* process = find(effect.incarnation);
  if (process == nullptr) return;
  const TimePoint now = Clock::now();
  if (process->released) {
    if (effect.kind == EvidenceKind::Reaped && process->exit)
      narrator_.ended_after_drain(*process, process->exit->text());
    return post(host::Lost{effect.incarnation, evidence_of(*process, effect)});
  }
  const Evidence evidence = evidence_of(*process, effect);
  // First the machine, whose words must be wedged at once; what people read can wait.
  post(host::Lost{effect.incarnation, evidence});
  if (process->reported_lost) return;
  process->reported_lost = true;
  std::optional<std::int64_t> detect_ns;
  const std::uint64_t beat_at = process->page->page().beat.at_ns.load(std::memory_order_relaxed);
  if (beat_at != 0) detect_ns = static_cast<std::int64_t>(metrics::monotonic_ns() - beat_at);
  narrator_.lost(*process, evidence, agent_.installed().epoch, detect_ns, now);
  if (process->attached) narrator_.ledger(*process, beat_at);
}

void RunShell::perform(const sv::Finished& effect) {
  RankProcess* process = find(effect.incarnation);
  if (process == nullptr) return;
  if (process->released) {
    narrator_.ended_after_drain(*process, "ended with code 0");
  } else if (process->seat) {
    finished_ += 1;
  }
  narrator_.finished(*process);
  post(host::Finished{effect.incarnation, process->detached || !process->attached});
}

void RunShell::perform(const sv::GaveUp& effect) {
  if (!ending_)
    narrator_.warning("E-START-1", fmt::format("a process could not be started: {}", effect.why));
  post(host::StartFailed{effect.incarnation, effect.why});
}

void RunShell::perform(const sv::SetTimer& effect) { supervisor_timer_ = effect.at + stopped_for_; }

void RunShell::perform(const sv::AllGone&) { all_gone_ = true; }

// ---- of the host agent
// --------------------------------------------------------------------------------------------

void RunShell::perform(const host::WedgeWords& effect) {
  const Result<membership::WedgeReport> report = arenas_.wedge();
  wedged_since_ = Clock::now();
  if (!report) {
    narrator_.warning("E-MEM-2", fmt::format("the shared memory of epoch {} was written over: {}",
                                             effect.epoch.value(), report.error().text()));
    return end_job(kExitProgramError, "launcher", "a rank wrote over shared memory", false);
  }
  // Another loss before the refill: now the spare is what the recovery may be waiting for.
  post(sv::HoldOver{});
  post(host::WordsWedged{*report});
  std::vector<Member> lost;
  for (const auto& [incarnation, process] : processes_) {
    if (process->reported_lost && process->seat && holder(*process->seat) == process.get()) {
      lost.push_back({*process->seat, incarnation});
    }
  }
  narrator_.wedged(effect.epoch, round_.value(), lost, wedged_since_);
}

void RunShell::perform(const host::WriteDecision& effect) {
  arenas_.decide(effect.cuts, effect.committed_step, effect.lost);
  post(host::DecisionWritten{effect.epoch});
  narrator_.decided({effect.epoch, round_.value(), effect.committed_step, effect.cuts},
                    Clock::now());
}

void RunShell::seat_newcomers(const host::MakeView& effect, const membership::View& before,
                              std::vector<Narrator::Newcomer>& newcomers) {
  for (const Member& member : effect.assigned) {
    RankProcess* process = find(member.incarnation);
    if (process == nullptr) continue;
    const bool from_spare = process->born_spare;
    if (process->seat != member.rank) {
      const auto seat = static_cast<std::size_t>(member.rank.value());
      process->seat = member.rank;
      process->life = next_life(member.rank, effect.places[seat].life);
      process->local_rank = local_rank(member.rank);
      assign(*process, seat < before.seats.size() && before.seats[seat] == Incarnation{});
      // Its lines so far stand in the spare's folder; the seat's folder points there.
      if (!outer_.shims) (void)adopt_logs(options_.log_dir, member.rank, member.incarnation).ok();
    }
    newcomers.push_back({member, last_in_seat_[member.rank], from_spare, process->spawned.pid, ""});
  }
}

namespace {

/// How many members stay from one view to the next.
std::size_t kept(const membership::View& before, const membership::View& now) {
  std::size_t out = 0;
  for (std::size_t seat = 0; seat < std::min(before.seats.size(), now.seats.size()); ++seat) {
    if (now.seats[seat] != Incarnation{} && now.seats[seat] == before.seats[seat]) ++out;
  }
  return out;
}

}  // namespace

void RunShell::add_newcomers_elsewhere(const host::MakeView& effect, const membership::View& before,
                                       std::vector<Narrator::Newcomer>& newcomers) const {
  for (std::size_t seat = 0; seat < before.seats.size(); ++seat) {
    const Incarnation now = effect.view.seats[seat];
    const membership::SeatPlace& place = effect.places[seat];
    if (now == Incarnation{} || now == before.seats[seat] || place.host == setup_.place.agent)
      continue;
    const Rank rank{static_cast<std::int32_t>(seat)};
    const auto last = last_in_seat_.find(rank);
    newcomers.push_back({{rank, now},
                         last == last_in_seat_.end() ? Incarnation{} : last->second,
                         false,
                         0,
                         fleet_->name(place.host)});
  }
}

void RunShell::tell_view(RankProcess& process, const std::string& cause) {
  control::ViewInstalled message;
  message.view = arenas_.view();
  message.cause = cause;
  message.places = places_;
  std::vector<int> fds;
  for (std::size_t i = 0; i < arenas_.groups(); ++i) {
    message.groups.push_back(arenas_.group(i));
    fds.push_back(arenas_.descriptor(i));
  }
  send(process, message, fds);
}

/// The seat's member in this view runs here, or there is none.
bool RunShell::is_at(Rank seat, const host::MakeView& effect) const {
  const auto index = static_cast<std::size_t>(seat.value());
  return index >= effect.places.size() || effect.view.seats[index] == Incarnation{} ||
         effect.places[index].host == setup_.place.agent;
}

void RunShell::perform(const host::MakeView& effect) {
  const membership::View before = arenas_.view();
  if (const Status made = arenas_.install(effect.view, effect.local); !made) {
    narrator_.warning("E-MEM-1", fmt::format("no shared memory for epoch {}: {}",
                                             effect.view.epoch.value(), made.text()));
    end_job(kExitUnavailable, "launcher", "no shared memory for the next epoch", false);
    return;
  }
  places_ = effect.places;
  for (auto kept = kept_.begin(); kept != kept_.end();) {
    // What a seat left here is old once it has moved on: it may come back.
    kept = is_at(kept->first, effect) ? std::next(kept) : kept_.erase(kept);
  }
  std::vector<Narrator::Newcomer> newcomers;
  seat_newcomers(effect, before, newcomers);
  for (const Member& member : effect.local) {
    if (RankProcess* process = find(member.incarnation)) tell_view(*process, effect.cause);
  }
  post(host::ViewMade{effect.view.epoch});
  arenas_.prepare_next(membership::goes_on_smaller(options_.on_loss));
  if (fleet_) {
    // Of the loss that led here only its own host may have heard.
    if (effect.view.epoch > Epoch{1}) narrator_.recovering(Clock::now());
    add_newcomers_elsewhere(effect, before, newcomers);
  }
  narrator_.view_installed(effect.view, newcomers, kept(before, effect.view), Clock::now());
  look_at_wishes();
  for (std::size_t seat = 0; seat < effect.view.seats.size(); ++seat) {
    if (effect.view.seats[seat] != Incarnation{}) {
      last_in_seat_[Rank{static_cast<std::int32_t>(seat)}] = effect.view.seats[seat];
    }
  }
}

/// `known`: how many lives the seat had, as far as the coordinator knows: some may have been on
/// other hosts.
std::uint32_t RunShell::next_life(Rank seat, std::uint32_t known) {
  std::uint32_t& lives = lives_[seat];
  lives = std::max(lives, known);
  return lives++;
}

void RunShell::perform(const host::Spawn& effect) {
  constexpr std::chrono::milliseconds kRefillAfter{50};
  if (const auto seat = effect.process.seat)
    lives_[*seat] = std::max(lives_[*seat], effect.process.life);
  // A fresh spare would start up on the cores on which the recovery is under way.
  const bool is_refill = !effect.process.seat && agent_.installed().epoch != Epoch{};
  post(sv::StartRequested{effect.process.incarnation, effect.process.seat,
                          is_refill ? kRefillAfter : nanoseconds::zero()});
}

void RunShell::perform(const host::Kill& effect) {
  RankProcess* process = find(effect.incarnation);
  if (process != nullptr && !process->reported_lost && !process->gone && !ending_) {
    // Nothing of ours proved it: silence, or somebody's wish.
    process->reported_lost = true;
    const auto known = agent_.processes().find(effect.incarnation);
    Evidence evidence = known != agent_.processes().end() ? known->second.evidence : Evidence{};
    if (evidence.text.empty()) evidence.text = effect.why;
    if (effect.superseded) {
      narrator_.note({"seat", fmt::format("{} ends: {}", process->name(), evidence.text)},
                     options_.verbosity > 1);
    } else {
      narrator_.lost(*process, evidence, agent_.installed().epoch, std::nullopt, Clock::now());
    }
  }
  post(sv::KillRequested{effect.incarnation});
}

void RunShell::perform(const host::TellRanks& effect) {
  const control::LossNotice notice{effect.epoch, effect.lost, effect.text};
  for (auto& [incarnation, process] : processes_) {
    if (process->attached && !process->gone && !process->released && process->seat)
      send(*process, notice);
  }
}

void RunShell::perform(const host::SendCoordinator& effect) { coordinator_->send(effect.message); }

void RunShell::perform(const host::EndAll& effect) {
  end_job(effect.end.exit_code, "app", effect.end.reason, false);
}

void RunShell::perform(const host::AskPark&) { arenas_.want_end(); }

void RunShell::perform(const host::Release& effect) {
  RankProcess* process = find(effect.member.incarnation);
  if (process == nullptr || process->gone) return;
  process->released = true;
  narrator_.drained(*process, effect.resume_step, Clock::now());
  send(*process, control::Released{fmt::format(
                     "{} (incarnation {}) was drained: it has left its seat, and the job goes on "
                     "without it from step {}",
                     process->name(), effect.member.incarnation.value(), effect.resume_step - 1)});
}

void RunShell::perform(const host::Answered& effect) {
  const auto found = wishes_.find(effect.answer.id);
  if (found == wishes_.end()) return;
  Wish& wish = found->second.wish;
  wish.answered = true;
  wish.accepted = effect.answer.accepted;
  wish.text = effect.answer.text;
  look_at_wishes();
}

void RunShell::perform(const host::Log& effect) {
  if (effect.note.kind == "change_dropped") {
    for (auto& [id, asked] : wishes_) {
      if (asked.wish.done || !asked.wish.accepted) continue;
      asked.wish.dropped = true;
      asked.wish.text = effect.note.text;
    }
  }
  const bool of_a_host = effect.note.kind == "no_quorum" || effect.note.kind == "agent_lost";
  narrator_.note(effect.note, of_a_host || options_.verbosity > 1);
}

void RunShell::perform(const host::SetTimer& effect) { agent_timer_ = effect.at + stopped_for_; }

void RunShell::read_beats() {
  host::BeatsRead read;
  detached_beats_ += 1;
  for (const auto& [incarnation, process] : processes_) {
    if (!process->attached || process->gone) continue;
    // A process that left the job in order has no engine any more; its exit status speaks for it.
    if (process->detached) {
      read.beats.emplace_back(incarnation, (std::uint64_t{1} << 62) + detached_beats_);
      continue;
    }
    const auto& beat = process->page->page().beat;
    const std::uint64_t count = beat.count.load(std::memory_order_acquire);
    read.beats.emplace_back(incarnation, process->beats.read(count, job_now(), [&] {
      return wants_to_run(static_cast<pid_t>(beat.thread.load(std::memory_order_relaxed)));
    }));
  }
  post(host::Event(std::move(read)));
}

}  // namespace regroup::launcher
