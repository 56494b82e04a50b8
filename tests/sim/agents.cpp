#include "tests/sim/agents.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/mutant.hpp"

namespace regroup::sim {

namespace host = membership::host;

namespace {
constexpr nanoseconds kRefillAfter = std::chrono::milliseconds(50);
}  // namespace

Agents::Agents(Core& core, Ranks& ranks, FaultCount& faults)
    : core_(core),
      ranks_(ranks),
      faults_(faults),
      timeouts_(membership::timeouts_for(membership::kDetectBudget)) {
  for (std::uint32_t i = 0; i < core.swarm.hosts; ++i) {
    hosts_.emplace_back(membership::AgentId{i}, core.swarm);
  }
}

bool Agents::is_running(std::uint32_t host) const {
  return !hosts_[host].lost && !hosts_[host].ended;
}

/// As in the launcher's shell: an effect never calls back into a machine, what it sets off waits
/// until the effects before it are done.
void Agents::take(std::uint32_t host, Pending event) {
  Host& here = hosts_[host];
  here.pending.push_back(std::move(event));
  if (here.draining) return;
  here.draining = true;
  while (!here.pending.empty()) {
    const Pending next = std::move(here.pending.front());
    here.pending.pop_front();
    if (!is_running(host)) continue;
    if (const auto* mine = std::get_if<supervisor::Event>(&next)) {
      const supervisor::Effects effects = here.supervisor.step(*mine, core_.time());
      check_bounded(host, effects.size());
      for (const supervisor::Effect& effect : effects) {
        std::visit([this, host](const auto& e) { perform(host, e); }, effect);
      }
    } else {
      const host::Effects effects = here.machine->step(std::get<host::Event>(next), core_.time());
      check_bounded(host, effects.size());
      for (const host::Effect& effect : effects) perform(host, effect);
    }
  }
  here.draining = false;
}

void Agents::check_bounded(std::uint32_t host, std::size_t effects) {
  if (effects <= 32 + 4 * ranks_.all().size()) return;
  core_.checks.fail("S19 bounded", fmt::format("agent {}: {} effects of one event", host, effects));
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
    take(host, supervisor::HoldOver{});
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
    if (!core_.swarm.job.may_run(membership::AgentId{host}))
      core_.checks.fail("placement", fmt::format("host {} is to run nothing, and starts {}", host,
                                                 start->process.incarnation.value()));
    const bool is_refill =
        !start->process.seat && hosts_[host].machine->installed().epoch != Epoch{};
    take(host, supervisor::StartRequested{start->process.incarnation, start->process.seat,
                                          is_refill ? kRefillAfter : nanoseconds::zero()});
  } else if (const auto* victim = std::get_if<host::Kill>(&effect)) {
    if (Process* process = ranks_.find(victim->incarnation)) process->reported_lost = true;
    take(host, supervisor::KillRequested{victim->incarnation});
  } else if (const auto* message = std::get_if<host::SendCoordinator>(&effect)) {
    uplink_->send_up(host, message->message);
  } else if (const auto* all = std::get_if<host::EndAll>(&effect)) {
    end_job(host, all->end.reason, all->end.exit_code);
  } else if (const auto* park = std::get_if<host::AskPark>(&effect)) {
    ranks_.memory(park->epoch)->end_wanted |= std::uint64_t{1} << host;
  } else if (const auto* release = std::get_if<host::Release>(&effect)) {
    ++faults_.released;
    if (Process* process = ranks_.find(release->member.incarnation))
      core_.after(local(), [this, process] { ranks_.release(*process); });
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
    if (REGROUP_MUTANT(WORDS_OF_THE_DEAD_DROPPED) && !process->alive) continue;
    const Block& block = memory.blocks[static_cast<std::size_t>(seat)];
    for (std::uint32_t g = 0; g < core_.swarm.groups; ++g) {
      completed[g] = std::max(completed[g], spi::read(block.lanes[g].word).number);
    }
    const std::uint64_t step = spi::read(block.step).number;
    report.prepared = first ? step : std::min(report.prepared, step);
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
    if (process->host != host || !process->heard_attach || process->gone) continue;
    // A process that left in order has no engine any more; its exit status speaks for it.
    if (process->heard_detach) process->beat_offset = 0;
    const Nanos pause_left = std::max<Nanos>(0, process->paused_until - core_.now());
    const Nanos ran = core_.now() - process->beat_offset + pause_left;
    if (process->alive)
      process->beats = static_cast<std::uint64_t>(ran / timeouts_.beat_every.count());
    read.beats.emplace_back(process->incarnation, process->beats);
  }
  deliver(host, read);
}

void Agents::end_job(std::uint32_t host, const std::string& reason, std::int32_t exit_code) {
  if (!std::exchange(hosts_[host].ending, true)) take(host, host::Stop{reason, exit_code});
  take(host, supervisor::EndRequested{false});
}

void Agents::stop(std::uint32_t host) {
  ++faults_.stops;
  // One host is its launcher's own: a signal ends its processes at once. Of several hosts the
  // coordinator is asked.
  if (hosts_.size() == 1) return end_job(host, "asked to stop", 0);
  if (!is_running(host)) return;
  core_.record({.what = What::StopAsked, .host = host + 1});
  take(host, host::Stop{"asked to stop", 0});
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
