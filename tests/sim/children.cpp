/// The shell of the shipped SupervisorMachine: processes start, attach, are killed and die here.
/// Of one death three signs come, each by its own way and in any order: the beacon, the end of the
/// channel, the exit status. As in the launcher's shell, what a process said is read before a sign
/// of its death is looked at.
#include <fmt/format.h>

#include <algorithm>
#include <csignal>
#include <utility>

#include "tests/sim/agents.hpp"

namespace regroup::sim {

namespace host = membership::host;
namespace sv = supervisor;
using membership::EvidenceKind;

namespace {
sv::SupervisorConfig supervisor_of(const Swarm& swarm) {
  return {.grace = std::chrono::seconds(2),
          .backoff_first = nanoseconds(swarm.backoff_first),
          .backoff_max = nanoseconds(8 * swarm.backoff_first),
          .start_attempts_max = swarm.start_attempts_max};
}
}  // namespace

Agents::Host::Host(membership::AgentId id, const Swarm& swarm)
    : machine(std::make_unique<membership::HostAgent>(id)), supervisor(supervisor_of(swarm)) {}

// ---- what the supervisor decided ----------------------------------------------------------------

void Agents::perform(std::uint32_t host, const sv::Fork& fork) {
  const auto known = hosts_[host].machine->processes().find(fork.incarnation);
  if (known != hosts_[host].machine->processes().end() &&
      known->second.state == membership::ProcessState::Gone) {
    core_.checks.fail("S11 fencing", fmt::format("incarnation {} is started after it was removed",
                                                 fork.incarnation.value()));
  }
  core_.after(local(), [this, host, fork] { forked(host, fork); });
}

void Agents::forked(std::uint32_t host, const sv::Fork& fork) {
  if (!is_running(host)) return;
  if (core_.fault(core_.swarm.start_fails)) {
    ++faults_.start_failures;
    const bool again = core_.random.chance(core_.swarm.start_again);
    return take(host,
                sv::StartRefused{fork.incarnation, again ? "no memory" : "no such program", again});
  }
  Process& process = ranks_.create(fork.incarnation, host, fork.seat);
  take(host, sv::StartSucceeded{fork.incarnation});
  core_.after(core_.random.delay(core_.swarm.start_up), [this, &process] { attach(process); });
}

void Agents::perform(std::uint32_t /*host*/, const sv::Signal& signal) {
  Process* process = ranks_.find(signal.incarnation);
  if (process == nullptr || process->gone) return;
  if (signal.signal == SIGKILL) return kill(*process);
  if (core_.random.chance(core_.swarm.ignores_term)) {
    ++faults_.ignored_terms;
    return;
  }
  core_.after(local(), [this, process] { die(*process, {.signal = SIGTERM}); });
}

void Agents::perform(std::uint32_t /*host*/, const sv::Sweep& sweep) {
  const Process* process = ranks_.find(sweep.incarnation);
  if (process == nullptr || process->gone) return;
  core_.checks.fail(
      "S22 nothing left behind",
      fmt::format("incarnation {} is swept before it is reaped", sweep.incarnation.value()));
}

void Agents::perform(std::uint32_t host, const sv::Lost& lost) {
  core_.record({.what = What::Evidence,
                .incarnation = lost.incarnation,
                .host = host + 1,
                .other = static_cast<std::uint64_t>(lost.kind)});
  if (Process* process = ranks_.find(lost.incarnation)) process->reported_lost = true;
  take(host, host::Lost{lost.incarnation,
                        {.kind = lost.kind,
                         .text = membership::name(lost.kind),
                         .exit_code = lost.exit_code,
                         .signal = lost.signal}});
}

void Agents::perform(std::uint32_t host, const sv::Finished& finished) {
  const Process* process = ranks_.find(finished.incarnation);
  if (process == nullptr) return;
  take(host, host::Finished{finished.incarnation, process->heard_detach || !process->heard_attach});
}

void Agents::perform(std::uint32_t host, const sv::GaveUp& gave_up) {
  take(host, host::StartFailed{gave_up.incarnation, gave_up.why});
}

void Agents::perform(std::uint32_t host, const sv::SetTimer& timer) {
  const std::uint64_t generation = ++hosts_[host].supervisor_timer;
  const Nanos delay = std::chrono::nanoseconds(timer.at - core_.time()).count();
  core_.after(delay, [this, host, generation] {
    if (hosts_[host].supervisor_timer == generation) take(host, sv::TimerFired{});
  });
}

void Agents::perform(std::uint32_t host, const sv::AllGone& /*all_gone*/) {
  hosts_[host].ended = true;
  core_.record({.what = What::LeaveHost, .host = host + 1});
  for (const auto& process : ranks_.all()) {
    if (process->host != host || !process->alive || process->exited) continue;
    core_.checks.fail("S22 nothing left behind",
                      fmt::format("agent {} ends and incarnation {} still runs", host,
                                  process->incarnation.value()));
  }
  core_.after(local(), [this, host] { uplink_->agent_gone(host); });
}

// ---- what processes say -------------------------------------------------------------------------

void Agents::attach(Process& process) {
  if (!process.alive || !is_running(process.host)) return;
  if (process.paused_until > core_.now()) {
    core_.after(process.paused_until - core_.now(), [this, &process] { attach(process); });
    return;
  }
  if (core_.fault(core_.swarm.crash_on_event) && kill_by_fault(process)) return;
  process.attached = true;
  core_.record(
      {.what = What::Attach, .incarnation = process.incarnation, .host = process.host + 1});
  say(process, Says::Attached);
  maybe_crash_near(process.host);
}

void Agents::entered(Process& process) { say(process, Says::Entered); }
void Agents::leaves(Process& process) { say(process, Says::Detached); }
void Agents::exits(Process& process) { die(process, {}); }

void Agents::fails(Process& process) {
  core_.trace.note(core_.now(), fmt::format("rank {} ends by an error", process.seat->value()));
  die(process, {.exit_code = 1});
}

void Agents::wedged_itself(Process& process) {
  ++faults_.self_wedges;
  core_.record({.what = What::SelfWedge,
                .rank = *process.seat,
                .incarnation = process.incarnation,
                .epoch = process.mine->view.epoch});
  say(process, Says::EndsEpoch, process.mine->view.epoch);
}

void Agents::parked(Process& process) {
  ++faults_.parked;
  say(process, Says::Parked, process.mine->view.epoch);
}

void Agents::goes_deaf(Process& process) {
  if (process.deaf || crashes_ >= core_.swarm.crashes_max) return;
  if (!process.attached) return;  // it could not attach then, and is a program that never does
  ++crashes_;
  ++faults_.closed_channels;
  core_.record({.what = What::Deaf,
                .rank = process.seat.value_or(Rank{-1}),
                .incarnation = process.incarnation,
                .host = process.host + 1});
  say(process, Says::Closed);
  process.deaf = true;
}

void Agents::say(Process& process, Says what, Epoch epoch) {
  if (process.deaf) return;
  process.said.push_back({what, epoch, core_.sent()});
  core_.after(local(), [this, &process] { pump(process); });
}

/// Reads all that lies in the channel.
void Agents::pump(Process& process) {
  while (!process.said.empty() && is_running(process.host)) {
    const Said said = process.said.front();
    process.said.pop_front();
    core_.delivered(said.number);
    heard(process, said);
  }
}

void Agents::heard(Process& process, const Said& said) {
  if (said.what == Says::Closed) {
    return take(process.host, sv::ChannelClosed{process.incarnation});
  }
  if (process.reported_lost || process.gone) return;
  switch (said.what) {
    case Says::Attached:
      process.heard_attach = true;
      take(process.host, sv::AttachSeen{process.incarnation});
      return take(process.host, host::Joined{process.incarnation});
    case Says::Entered: return take(process.host, host::Healed{process.incarnation});
    case Says::EndsEpoch:
      return take(process.host,
                  host::WedgeWanted{said.epoch, "rank wedged itself: a deadline passed"});
    case Says::Parked: return take(process.host, host::Parked{process.incarnation, said.epoch});
    case Says::Detached:
      process.heard_detach = true;
      take(process.host, sv::DetachSeen{process.incarnation});
      // As in the launcher's shell: nobody waits for it at the end of a step.
      return take(process.host, host::Parked{process.incarnation,
                                             hosts_[process.host].machine->installed().epoch});
    case Says::Closed: return;
  }
}

// ---- death --------------------------------------------------------------------------------------

bool Agents::kill_by_fault(Process& process) {
  if (!process.alive || process.exited || crashes_ >= core_.swarm.crashes_max) return false;
  ++crashes_;
  ++faults_.crashes;
  if (!process.seat) ++faults_.crashes_of_spares;
  if (process.at >= At::Meet && process.at <= At::Judge) ++faults_.crashes_healing;
  const std::uint64_t sort = core_.random.below(10);
  die(process, sort < 8    ? End{.signal = SIGKILL}
               : sort == 8 ? End{.signal = SIGSEGV}
                           : End{.exit_code = 3});
  if (!core_.fault(core_.swarm.burst)) return true;
  ++faults_.bursts;
  auto& all = ranks_.all();
  for (std::uint64_t n = 1 + core_.random.below(3); n > 0; --n) {
    Process& other = *all[core_.random.below(all.size())];
    if (!other.exited) kill_by_fault(other);
  }
  return true;
}

Nanos Agents::evidence_after() {
  if (!core_.fault(core_.swarm.beacon_late)) return local();
  ++faults_.late_evidence;
  return local() + core_.random.between(0, 600 * kMillisecond);
}

/// The process is dead from here on; its agent learns of it by three ways.
void Agents::die(Process& process, End end) {
  if (!process.alive || process.exited) return;
  if (end.exit_code == 0 && end.signal == 0) {
    ranks_.finish(process);
  } else {
    ranks_.crash(process);
  }
  if (process.attached) {
    core_.after(evidence_after(), [this, &process, number = core_.sent()] {
      core_.delivered(number);
      owner_died(process);
    });
  }
  say(process, Says::Closed);
  core_.after(evidence_after(), [this, &process, end, number = core_.sent()] {
    core_.delivered(number);
    reap(process, end);
  });
}

void Agents::owner_died(Process& process) {
  if (process.gone) return;
  pump(process);
  take(process.host, sv::OwnerDied{process.incarnation});
}

void Agents::reap(Process& process, End end) {
  if (process.gone || !is_running(process.host)) return;
  // What others said before this one ended counts before its end does.
  for (const auto& other : ranks_.all()) {
    if (other->host == process.host) pump(*other);
  }
  process.gone = true;
  take(process.host, sv::Exited{process.incarnation, end.exit_code, end.signal});
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
  core_.after(delay, [this, &process] { die(process, {.signal = SIGKILL}); });
}

void Agents::maybe_crash_near(std::uint32_t host) {
  if (core_.fault(core_.swarm.crash_on_event)) crash_near(host);
}

void Agents::crash_near(std::uint32_t host) {
  auto& all = ranks_.all();
  if (all.empty()) return;
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

}  // namespace regroup::sim
