#include "supervisor/supervisor_machine.hpp"

#include <algorithm>
#include <csignal>
#include <type_traits>

#include "base/check.hpp"
#include "base/mutant.hpp"

namespace regroup::supervisor {

using membership::EvidenceKind;

const char* name(ProcessPhase phase) {
  switch (phase) {
    case ProcessPhase::Starting: return "starting";
    case ProcessPhase::Running: return "running";
    case ProcessPhase::Attached: return "attached";
    case ProcessPhase::Detached: return "detached";
    case ProcessPhase::Closing: return "closing";
    case ProcessPhase::Ending: return "ending";
    case ProcessPhase::Killed: return "killed";
    case ProcessPhase::Gone: return "gone";
  }
  return "?";
}

Effects SupervisorMachine::step(const Event& event, TimePoint now) {
  out_.clear();
  std::visit(
      [&](const auto& e) {
        using E = std::decay_t<decltype(e)>;
        if constexpr (std::is_same_v<E, StartRequested> || std::is_same_v<E, EndRequested> ||
                      std::is_same_v<E, TimerFired> || std::is_same_v<E, HoldOver>) {
          on(e, now);
        } else {
          const auto found = processes_.find(e.incarnation);
          if (found == processes_.end()) return;
          Process& p = found->second;
          const Incarnation id = found->first;
          if constexpr (std::is_same_v<E, Exited>) {
            if (REGROUP_MUTANT(EXIT_OF_ANOTHER_LIFE)) {
              // Whoever sits in that seat now.
              for (auto& [newer, other] : processes_) {
                const bool runs = newer > id && other.phase != ProcessPhase::Starting;
                if (runs && p.seat && other.seat == p.seat) on_exited(newer, other, e);
              }
            }
          }
          if constexpr (std::is_same_v<E, StartSucceeded>) on_started(id, p, now);
          if constexpr (std::is_same_v<E, StartRefused>) on_refused(id, p, e, now);
          if constexpr (std::is_same_v<E, AttachSeen>) on_attach(p);
          if constexpr (std::is_same_v<E, DetachSeen>) on_detach(p);
          if constexpr (std::is_same_v<E, OwnerDied>) on_owner_died(id, p);
          if constexpr (std::is_same_v<E, ChannelClosed>) on_channel_closed(id, p, now);
          if constexpr (std::is_same_v<E, Exited>) on_exited(id, p, e);
          if constexpr (std::is_same_v<E, KillRequested>) on_kill(id, p);
        }
      },
      event);
  std::optional<TimePoint> due;
  for (const auto& [id, p] : processes_) {
    if (p.due && (!due || *p.due < *due)) due = p.due;
  }
  if (due) out_.emplace_back(SetTimer{*due});
  if (ending_ && !all_gone_said_ && alive() == 0) {
    all_gone_said_ = true;
    out_.emplace_back(AllGone{});
  }
  return std::move(out_);
}

std::optional<ProcessPhase> SupervisorMachine::phase(Incarnation incarnation) const {
  const auto found = processes_.find(incarnation);
  if (found == processes_.end()) return std::nullopt;
  return found->second.phase;
}

std::size_t SupervisorMachine::alive() const {
  return static_cast<std::size_t>(
      std::count_if(processes_.begin(), processes_.end(),
                    [](const auto& entry) { return entry.second.phase != ProcessPhase::Gone; }));
}

void SupervisorMachine::on(const StartRequested& e, TimePoint now) {
  if (processes_.contains(e.incarnation)) return;  // a repeated request of a restarted coordinator
  if (ending_) {
    out_.emplace_back(GaveUp{e.incarnation, "the job is ending"});
    return;
  }
  Process& p = processes_[e.incarnation];
  p.seat = e.seat;
  if (e.hold > nanoseconds::zero()) {
    if (!REGROUP_MUTANT(HOLD_NEVER_ENDS)) p.due = now + e.hold;
    return;
  }
  p.attempts = 1;
  p.forking = true;
  out_.emplace_back(Fork{e.incarnation, e.seat, 1});
}

void SupervisorMachine::on(const EndRequested& e, TimePoint now) {
  ending_ = true;
  ending_now_ = ending_now_ || e.now;
  for (auto& [id, p] : processes_) end_one(id, p, now);
}

void SupervisorMachine::end_one(Incarnation id, Process& p, TimePoint now) {
  switch (p.phase) {
    case ProcessPhase::Starting:
      if (p.forking) {
        p.doomed = true;
      } else {
        p.phase = ProcessPhase::Gone;
        p.due.reset();
        out_.emplace_back(GaveUp{id, "the job is ending"});
      }
      return;
    case ProcessPhase::Running:
    case ProcessPhase::Attached:
    case ProcessPhase::Detached:
    case ProcessPhase::Closing:
      if (ending_now_) return kill(id, p);
      p.phase = ProcessPhase::Ending;
      if (!REGROUP_MUTANT(GRACE_NEVER_ENDS)) p.due = now + config_.grace;
      out_.emplace_back(Signal{id, SIGTERM});
      return;
    case ProcessPhase::Ending:
      if (ending_now_) kill(id, p);
      return;
    case ProcessPhase::Killed:
    case ProcessPhase::Gone: return;
  }
}

void SupervisorMachine::on(const TimerFired&, TimePoint now) {
  for (auto& [id, p] : processes_) {
    if (p.due && *p.due <= now) timer_of(id, p, now);
  }
}

void SupervisorMachine::on(const HoldOver&, TimePoint now) {
  for (auto& [id, p] : processes_) {
    if (p.phase == ProcessPhase::Starting && p.attempts == 0) timer_of(id, p, now);
  }
}

void SupervisorMachine::timer_of(Incarnation id, Process& p, TimePoint) {
  p.due.reset();
  switch (p.phase) {
    case ProcessPhase::Starting:
      p.attempts += 1;
      p.forking = true;
      out_.emplace_back(Fork{id, p.seat, p.attempts});
      return;
    case ProcessPhase::Closing:
      lose(id, p, EvidenceKind::ChannelClosed);
      kill(id, p);
      return;
    case ProcessPhase::Ending: kill(id, p); return;
    case ProcessPhase::Running:
    case ProcessPhase::Attached:
    case ProcessPhase::Detached:
    case ProcessPhase::Killed:
    case ProcessPhase::Gone:
      REGROUP_UNREACHABLE("only starting, closing and ending processes have a timer");
  }
}

void SupervisorMachine::on_started(Incarnation id, Process& p, TimePoint now) {
  switch (p.phase) {
    case ProcessPhase::Starting:
      p.forking = false;
      p.phase = ProcessPhase::Running;
      if (p.doomed && !REGROUP_MUTANT(DOOMED_FORK_LIVES)) {
        if (ending_) {
          end_one(id, p, now);
        } else {
          kill(id, p);
        }
      }
      return;
    case ProcessPhase::Running:
    case ProcessPhase::Attached:
    case ProcessPhase::Detached:
    case ProcessPhase::Closing:
    case ProcessPhase::Ending:
    case ProcessPhase::Killed:
    case ProcessPhase::Gone: REGROUP_UNREACHABLE("one fork is under way at a time");
  }
}

void SupervisorMachine::on_refused(Incarnation id, Process& p, const StartRefused& e,
                                   TimePoint now) {
  switch (p.phase) {
    case ProcessPhase::Starting: {
      p.forking = false;
      if (e.again && !p.doomed && p.attempts < config_.start_attempts_max) {
        const nanoseconds wait = config_.backoff_first * (1 << std::min(p.attempts - 1, 20));
        p.due = now + std::min(wait, config_.backoff_max);
        return;
      }
      p.phase = ProcessPhase::Gone;
      p.reported = true;
      if (!REGROUP_MUTANT(REFUSAL_SAYS_NOTHING)) out_.emplace_back(GaveUp{id, e.why});
      return;
    }
    case ProcessPhase::Running:
    case ProcessPhase::Attached:
    case ProcessPhase::Detached:
    case ProcessPhase::Closing:
    case ProcessPhase::Ending:
    case ProcessPhase::Killed:
    case ProcessPhase::Gone: REGROUP_UNREACHABLE("one fork is under way at a time");
  }
}

void SupervisorMachine::on_attach(Process& p) {
  switch (p.phase) {
    case ProcessPhase::Running:
      p.phase = ProcessPhase::Attached;
      p.attached = true;
      return;
    case ProcessPhase::Ending: p.attached = true; return;
    case ProcessPhase::Starting:  // it cannot speak before it runs
    case ProcessPhase::Attached:  // said twice
    case ProcessPhase::Detached:  // once out, a process image does not come back
    case ProcessPhase::Closing:
    case ProcessPhase::Killed:
    case ProcessPhase::Gone: return;
  }
}

void SupervisorMachine::on_detach(Process& p) {
  switch (p.phase) {
    case ProcessPhase::Attached:
    case ProcessPhase::Closing:
      p.phase = ProcessPhase::Detached;
      p.due.reset();
      return;
    case ProcessPhase::Starting:
    case ProcessPhase::Running:  // nothing to leave
    case ProcessPhase::Detached:
    case ProcessPhase::Ending:
    case ProcessPhase::Killed:
    case ProcessPhase::Gone: return;
  }
}

void SupervisorMachine::on_owner_died(Incarnation id, Process& p) {
  switch (p.phase) {
    case ProcessPhase::Detached:
      // Its engine thread ended in order; the exit status tells the rest.
      if (!REGROUP_MUTANT(BEACON_AFTER_DETACH_COUNTS)) return;
      [[fallthrough]];
    case ProcessPhase::Attached:
    case ProcessPhase::Closing:
      lose(id, p, EvidenceKind::Beacon);
      kill(id, p);
      return;
    case ProcessPhase::Starting:
    case ProcessPhase::Running:  // the beacon counts from Attached on
    case ProcessPhase::Ending:
    case ProcessPhase::Killed:
    case ProcessPhase::Gone: return;
  }
}

void SupervisorMachine::on_channel_closed(Incarnation id, Process& p, TimePoint now) {
  switch (p.phase) {
    case ProcessPhase::Attached:
      // A program that closes descriptors it does not know is as lost as a dead one: it hears
      // nothing any more.
      if (REGROUP_MUTANT(CLOSED_CHANNEL_IGNORED)) return;
      p.phase = ProcessPhase::Closing;
      p.due = now + config_.channel_wait;
      return;
    case ProcessPhase::Running:  // it does not use Regroup, or has not yet and never will: its exit
                                 // tells
    case ProcessPhase::Detached:
    case ProcessPhase::Starting:
    case ProcessPhase::Closing:
    case ProcessPhase::Ending:
    case ProcessPhase::Killed:
    case ProcessPhase::Gone: break;
  }
  (void)id;
}

void SupervisorMachine::on_exited(Incarnation id, Process& p, const Exited& e) {
  switch (p.phase) {
    case ProcessPhase::Running:
    case ProcessPhase::Detached:
    case ProcessPhase::Attached:
    case ProcessPhase::Closing:
      // Also without leaving the job in order: a program that ends with 0 has ended.
      if (e.exit_code == 0 && e.signal == 0) {
        p.reported = true;
        out_.emplace_back(Finished{id});
      } else if (p.attached || !REGROUP_MUTANT(UNATTACHED_DEATH_UNSEEN)) {
        lose(id, p, EvidenceKind::Reaped, e.exit_code, e.signal);
      }
      break;
    case ProcessPhase::Ending:
      // Our own TERM is never a cause; who ends with 0 all the same has finished.
      if (e.exit_code == 0 && e.signal == 0) {
        p.reported = true;
        out_.emplace_back(Finished{id});
      }
      break;
    case ProcessPhase::Killed:
      // The exit status completes what is known of the loss, and says that it touches memory no
      // more.
      if (!ending_)
        out_.emplace_back(
            Lost{id, EvidenceKind::Reaped, e.signal == 0 ? e.exit_code : -1, e.signal, p.attached});
      break;
    case ProcessPhase::Starting: REGROUP_UNREACHABLE("reaped before its fork was answered");
    case ProcessPhase::Gone: return;
  }
  const bool finished = e.exit_code == 0 && e.signal == 0 && p.phase != ProcessPhase::Killed;
  p.phase = ProcessPhase::Gone;
  p.due.reset();
  // What a finished program left running on purpose lives until the job ends.
  if (!finished) out_.emplace_back(Sweep{id});
}

void SupervisorMachine::on_kill(Incarnation id, Process& p) {
  switch (p.phase) {
    case ProcessPhase::Starting:
      if (p.forking) {
        p.doomed = true;
      } else if (!REGROUP_MUTANT(HELD_START_SURVIVES_KILL)) {
        p.phase = ProcessPhase::Gone;
        p.due.reset();
      }
      return;
    case ProcessPhase::Running:
    case ProcessPhase::Attached:
    case ProcessPhase::Detached:
    case ProcessPhase::Closing:
    case ProcessPhase::Ending: kill(id, p); return;
    case ProcessPhase::Killed:
    case ProcessPhase::Gone: return;
  }
}

void SupervisorMachine::lose(Incarnation id, Process& p, EvidenceKind kind, std::int32_t code,
                             std::int32_t sig) {
  if (p.reported) return;
  p.reported = true;
  out_.emplace_back(Lost{id, kind, sig == 0 ? code : -1, sig, p.attached});
}

void SupervisorMachine::kill(Incarnation id, Process& p) {
  p.phase = ProcessPhase::Killed;
  p.due.reset();
  out_.emplace_back(Signal{id, SIGKILL});
}

}  // namespace regroup::supervisor
