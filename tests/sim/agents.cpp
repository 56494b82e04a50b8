#include "tests/sim/agents.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace regroup::sim {

namespace host = membership::host;
using membership::Evidence;
using membership::EvidenceKind;

Agents::Agents(Core& core, Ranks& ranks, FaultCount& faults)
    : core_(core),
      ranks_(ranks),
      faults_(faults),
      timeouts_(membership::timeouts_for(membership::kDetectBudget)) {
  for (std::uint32_t i = 0; i < core.swarm.hosts; ++i) {
    hosts_.push_back({.machine = std::make_unique<membership::HostAgent>(membership::AgentId{i})});
  }
}

bool Agents::is_running(std::uint32_t host) const {
  return !hosts_[host].lost && !hosts_[host].ended;
}

void Agents::deliver(std::uint32_t host, const host::Event& event) {
  if (!is_running(host)) return;
  const host::Effects effects = hosts_[host].machine->step(event, core_.time());
  const std::size_t effects_max = 32 + 4 * ranks_.all().size();
  if (effects.size() > effects_max) {
    core_.checks.fail("S19 bounded",
                      fmt::format("agent {}: {} effects of one event", host, effects.size()));
  }
  for (const host::Effect& effect : effects) perform(host, effect);
}

void Agents::post(std::uint32_t host, Nanos delay, host::Event event) {
  core_.after(delay, [this, host, event = std::move(event)] { deliver(host, event); });
}

void Agents::perform(std::uint32_t host, const host::Effect& effect) {
  Record record{.host = host + 1};
  if (const auto* wedge = std::get_if<host::WedgeWords>(&effect)) {
    record.what = What::WedgeWords;
    record.epoch = wedge->epoch;
    core_.record(record);
    const auto memory = ranks_.memory(wedge->epoch);
    wedge_words(host, wedge->epoch, words_of(host, *memory, {}));
  } else if (const auto* decision = std::get_if<host::WriteDecision>(&effect)) {
    record.what = What::Decide;
    record.epoch = decision->epoch;
    record.number = decision->committed_step;
    core_.record(record);
    const auto memory = ranks_.memory(decision->epoch);
    write_words(host, *decision, words_of(host, *memory, decision->lost));
  } else if (const auto* make = std::get_if<host::MakeView>(&effect)) {
    make_view(host, *make);
  } else if (const auto* start = std::get_if<host::Spawn>(&effect)) {
    spawn(host, start->process);
  } else if (const auto* victim = std::get_if<host::Kill>(&effect)) {
    if (Process* process = ranks_.find(victim->incarnation)) kill(*process);
  } else if (const auto* message = std::get_if<host::SendCoordinator>(&effect)) {
    uplink_->send_up(host, message->message);
  } else if (std::holds_alternative<host::EndAll>(effect)) {
    end_all(host);
  } else if (const auto* timer = std::get_if<host::SetTimer>(&effect)) {
    set_timer(host, timer->at);
  } else if (const auto* log = std::get_if<host::Log>(&effect)) {
    if (core_.trace.keeps_text() && host == 0) {
      core_.trace.note(core_.now(),
                       fmt::format("agent {}: {}: {}", host, log->note.kind, log->note.text));
    }
  }
  // TellRanks needs no act here: the words themselves wake whoever waits for them.
}

// ---- words ----------------------------------------------------------------------------------

std::vector<Agents::WordRef> Agents::words_of(std::uint32_t host, const EpochMemory& memory,
                                              const std::vector<Member>& without) {
  std::vector<WordRef> words;
  for (const std::int32_t seat : memory.members[0]) {
    const Incarnation who = memory.view.seats[static_cast<std::size_t>(seat)];
    const Process* process = ranks_.find(who);
    if (!process || process->host != host) continue;
    if (std::any_of(without.begin(), without.end(),
                    [who](const Member& m) { return m.incarnation == who; })) {
      continue;
    }
    for (std::uint32_t lane = 0; lane <= kGroupsMax; ++lane) {
      if (lane == 1 && core_.swarm.groups == 1) continue;
      words.push_back({seat, lane});
    }
  }
  // In any order: what holds must not depend on which word is wedged or decided first.
  for (std::size_t i = words.size(); i > 1; --i) {
    std::swap(words[i - 1], words[core_.random.below(i)]);
  }
  return words;
}

/// Touches a few words, lets the ranks move, touches the next ones.
void Agents::wedge_words(std::uint32_t host, Epoch epoch, std::vector<WordRef> left) {
  if (!is_running(host)) return;
  const auto memory = ranks_.memory(epoch);
  for (std::uint64_t n = 1 + core_.random.below(4); n > 0 && !left.empty(); --n) {
    const WordRef ref = left.back();
    left.pop_back();
    Block& block = memory->blocks[static_cast<std::size_t>(ref.seat)];
    spi::wedge(ref.lane == kGroupsMax ? block.step : block.lanes[ref.lane].word);
    ranks_.changed(*memory, ref.seat);
  }
  if (left.empty()) return report_words(host, *memory);
  core_.after(core_.random.delay(core_.swarm.micro),
              [this, host, epoch, left = std::move(left)] { wedge_words(host, epoch, left); });
}

/// The words stand still from now on: one reading of all of them is what they said when each was
/// wedged.
void Agents::report_words(std::uint32_t host, EpochMemory& memory) {
  membership::WedgeReport report{.epoch = memory.view.epoch};
  std::array<std::uint64_t, kGroupsMax> completed{};
  bool first = true;
  for (const std::int32_t seat : memory.members[0]) {
    const Process* process = ranks_.find(memory.view.seats[static_cast<std::size_t>(seat)]);
    if (!process || process->host != host) continue;
#ifdef REGROUP_MUTANT_WORDS_OF_THE_DEAD_DROPPED
    if (!process->alive) continue;
#endif
    const Block& block = memory.blocks[static_cast<std::size_t>(seat)];
    for (std::uint32_t g = 0; g < core_.swarm.groups; ++g) {
      completed[g] = std::max(completed[g], spi::read(block.lanes[g].word).number);
    }
    const spi::WordState step = spi::read(block.step);
    report.prepared = first ? step.number : std::min(report.prepared, step.number);
    if (step.decided) report.told_step = step.number;
    first = false;
  }
  for (std::uint32_t g = 0; g < core_.swarm.groups; ++g) report.groups.push_back({g, completed[g]});
  core_.record({.what = What::WordsWedged,
                .epoch = report.epoch,
                .host = host + 1,
                .number = report.prepared,
                .other = completed[0]});
  post(host, local(), host::WordsWedged{report});
  maybe_crash_near(host);
}

void Agents::write_words(std::uint32_t host, host::WriteDecision order, std::vector<WordRef> left) {
  if (!is_running(host)) return;
  const auto memory = ranks_.memory(order.epoch);
  for (std::uint64_t n = 1 + core_.random.below(4); n > 0 && !left.empty(); --n) {
    const WordRef ref = left.back();
    left.pop_back();
    Block& block = memory->blocks[static_cast<std::size_t>(ref.seat)];
    if (ref.lane == kGroupsMax) {
      spi::decide(block.step, order.committed_step);
    } else {
      std::uint64_t cut = 0;
      for (const auto& known : order.cuts) {
        if (known.group == ref.lane) cut = known.completed;
      }
      spi::decide(block.lanes[ref.lane].word, cut);
    }
    ranks_.changed(*memory, ref.seat);
  }
  maybe_crash_near(host);
  if (left.empty()) return post(host, local(), host::DecisionWritten{order.epoch});
  core_.after(core_.random.delay(core_.swarm.micro),
              [this, host, order = std::move(order), left = std::move(left)] {
                write_words(host, order, left);
              });
}

void Agents::make_view(std::uint32_t host, const host::MakeView& order) {
  const auto memory = ranks_.memory(order.view);
  core_.record({.what = What::MakeView,
                .epoch = order.view.epoch,
                .host = host + 1,
                .number = order.view.resume_step,
                .seats = memory->seat_set[0],
                .view = &order.view});
  for (const Member& member : order.local) {
    Process* process = ranks_.find(member.incarnation);
    if (!process) continue;
    process->seat = member.rank;
    core_.after(local(), [this, process, memory] { ranks_.install(*process, memory); });
  }
  post(host, local(), host::ViewMade{order.view.epoch});
  maybe_crash_near(host);
}

// ---- processes ------------------------------------------------------------------------------

void Agents::spawn(std::uint32_t host, const membership::StartProcess& order) {
  Process& process = ranks_.create(order.incarnation, host, order.seat);
  core_.after(core_.random.delay(core_.swarm.start_up), [this, &process] { attach(process); });
}

void Agents::attach(Process& process) {
  if (!process.alive) return;
  if (process.paused_until > core_.now()) {
    core_.after(process.paused_until - core_.now(), [this, &process] { attach(process); });
    return;
  }
  if (core_.fault(core_.swarm.start_fails)) {
    ++faults_.start_failures;
    ranks_.crash(process);
    post(process.host, local(), host::StartFailed{process.incarnation, "no such program"});
    return;
  }
  if (core_.fault(core_.swarm.crash_on_event) && kill_by_fault(process)) return;
  process.attached = true;
  core_.record(
      {.what = What::Attach, .incarnation = process.incarnation, .host = process.host + 1});
  post(process.host, local(), host::Joined{process.incarnation});
  maybe_crash_near(process.host);
}

void Agents::entered(Process& process) {
  post(process.host, local(), host::Healed{process.incarnation});
}

void Agents::exits(Process& process) {
  post(process.host, local(), host::Finished{process.incarnation, true});
}

void Agents::wedged_itself(Process& process) {
  ++faults_.self_wedges;
  core_.trace.note(core_.now(), fmt::format("rank {} wedges itself", process.seat->value()));
  post(process.host, local(),
       host::WedgeWanted{process.mine->view.epoch, "rank wedged itself: a deadline passed"});
}

bool Agents::kill_by_fault(Process& process) {
  if (!process.alive || crashes_ >= core_.swarm.crashes_max) return false;
  ++crashes_;
  ++faults_.crashes;
  if (!process.seat) ++faults_.crashes_of_spares;
  if (process.at == At::Heal || process.at == At::Meet) ++faults_.crashes_healing;
  Nanos evidence_after = local();
  if (core_.fault(core_.swarm.beacon_late)) {
    ++faults_.late_evidence;
    evidence_after += core_.random.between(0, 600 * kMillisecond);
  }
  die(process, evidence_after);
  if (!core_.fault(core_.swarm.burst)) return true;
  ++faults_.bursts;
  auto& all = ranks_.all();
  for (std::uint64_t n = 1 + core_.random.below(3); n > 0; --n) {
    Process& other = *all[core_.random.below(all.size())];
    if (!other.exited) kill_by_fault(other);
  }
  return true;
}

/// The process is dead from here on; its agent learns of it by the beacon, then by reaping it.
void Agents::die(Process& process, Nanos evidence_after) {
  if (!process.alive || process.exited) return;
  ranks_.crash(process);
  const bool has_beacon = process.attached;
  if (has_beacon) {
    post(process.host, evidence_after,
         host::Lost{process.incarnation, {.kind = EvidenceKind::Beacon, .text = "beacon"}});
    evidence_after += local();
  }
  post(process.host, evidence_after,
       host::Lost{process.incarnation,
                  {.kind = EvidenceKind::Reaped, .text = "killed by SIGKILL", .signal = 9}});
}

void Agents::kill(Process& process) {
  if (!process.alive || process.killed || process.exited) return;
  process.killed = true;
  core_.record({.what = What::Kill,
                .rank = process.seat.value_or(Rank{-1}),
                .incarnation = process.incarnation,
                .host = process.host + 1});
  Nanos delay = local();
  if (core_.fault(core_.swarm.slow_kill)) {
    // Stuck in the kernel: a zombie that goes on with its program for a while.
    ++faults_.slow_kills;
    delay += core_.random.between(kMillisecond, 3 * kSecond);
  }
  core_.after(delay, [this, &process] { die(process, local()); });
}

void Agents::maybe_crash_near(std::uint32_t host) {
  if (!core_.fault(core_.swarm.crash_on_event)) return;
  auto& all = ranks_.all();
  for (std::size_t tries = 0; tries < 4; ++tries) {
    Process& victim = *all[core_.random.below(all.size())];
    if (!victim.alive || victim.exited || (tries < 2 && victim.host != host)) continue;
    // A moment later, so that it falls anywhere in what this event sets off.
    core_.after(core_.random.delay(core_.swarm.micro), [this, &victim] {
      if (!core_.calm && !victim.exited) kill_by_fault(victim);
    });
    return;
  }
}

// ---- time and end ---------------------------------------------------------------------------

void Agents::set_timer(std::uint32_t host, TimePoint at) {
  const std::uint64_t generation = ++hosts_[host].timer;
  Nanos delay = std::chrono::nanoseconds(at - core_.time()).count();
  if (core_.fault(core_.swarm.pause)) {
    ++faults_.late_checks;
    delay += core_.random.between(kMillisecond, 400 * kMillisecond);
  }
  core_.after(delay, [this, host, generation] {
    core_.tick();
    if (is_running(host) && hosts_[host].timer == generation) read_beats(host);
  });
}

void Agents::read_beats(std::uint32_t host) {
  host::BeatsRead read;
  for (auto& process : ranks_.all()) {
    if (process->host != host || process->exited) continue;
    const Nanos pause_left = std::max<Nanos>(0, process->paused_until - core_.now());
    const Nanos ran = core_.now() - process->beat_offset + pause_left;
    if (process->alive)
      process->beats = static_cast<std::uint64_t>(ran / timeouts_.beat_every.count());
    read.beats.emplace_back(process->incarnation, process->beats);
  }
  deliver(host, read);
}

void Agents::end_all(std::uint32_t host) {
  hosts_[host].ended = true;
  core_.record({.what = What::LeaveHost, .host = host + 1});
  for (auto& process : ranks_.all()) {
    if (process->host != host || !process->alive || process->exited) continue;
    process->stopping = true;
    kill(*process);
  }
  core_.after(local(), [this, host] { uplink_->agent_gone(host); });
}

void Agents::lose_host(std::uint32_t host) {
  if (!is_running(host)) return;
  ++faults_.hosts_lost;
  hosts_[host].lost = true;
  core_.record({.what = What::HostLost, .host = host + 1});
  for (auto& process : ranks_.all()) {
    if (process->host == host && !process->exited) ranks_.crash(*process);
  }
  core_.after(local(), [this, host] { uplink_->agent_gone(host); });
}

}  // namespace regroup::sim
