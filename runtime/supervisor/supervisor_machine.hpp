/// What becomes of each process that the supervisor starts: a pure machine, one row of states per
/// incarnation.
///
/// The shell feeds it events and performs its effects in order. It knows no clock, no pid and no
/// descriptor.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include <regroup/types.hpp>

#include "membership/types.hpp"

namespace regroup::supervisor {

struct SupervisorConfig {
  nanoseconds grace = std::chrono::seconds(15);  ///< from TERM to KILL
  nanoseconds backoff_first = std::chrono::milliseconds(50);
  nanoseconds backoff_max = std::chrono::seconds(5);
  int start_attempts_max = 6;  ///< starts that the system refused (EAGAIN, ENOMEM) before giving up
  /// After a closed control channel of a process that still holds its beacon: how long its exit
  /// status is awaited, so that the report can name the signal, before the closed channel alone
  /// counts as the loss.
  nanoseconds channel_wait = std::chrono::milliseconds(50);
};

/// Life of one process. Every (state, event) pair is written out in the machine.
enum class ProcessPhase : std::uint8_t {
  Starting,  ///< asked for: the fork is under way, or waits for its (next) attempt
  Running,   ///< runs, has not attached
  Attached,  ///< said Hello and holds its beacon
  Detached,  ///< left the job in order and goes on by itself
  Closing,   ///< attached, its channel closed; its exit status is awaited for a moment
  Ending,    ///< was told to end (TERM), has until its grace is over
  Killed,    ///< SIGKILL sent, waits for being reaped
  Gone,      ///< reaped
};
[[nodiscard]] const char* name(ProcessPhase phase);

// ---- events ----
struct StartRequested {
  Incarnation incarnation;
  std::optional<Rank> seat;
  /// Not before this much later: a fresh spare would start up on the cores on which a recovery is
  /// under way.
  nanoseconds hold{};
};
/// Another recovery waits for a spare: what is held back starts now.
struct HoldOver {};
struct StartSucceeded {
  Incarnation incarnation;
};
/// `again`: the system was short of something and may not be soon.
struct StartRefused {
  Incarnation incarnation;
  std::string why;
  bool again = false;
};
struct AttachSeen {
  Incarnation incarnation;
};
struct DetachSeen {
  Incarnation incarnation;
};
/// The death beacon fired.
struct OwnerDied {
  Incarnation incarnation;
};
struct ChannelClosed {
  Incarnation incarnation;
};
/// Reaped. signal 0: ended by itself with `exit_code`.
struct Exited {
  Incarnation incarnation;
  std::int32_t exit_code = 0;
  std::int32_t signal = 0;
};
/// Fence it: its seat is taken from it, or it is evicted.
struct KillRequested {
  Incarnation incarnation;
};
/// End all in order; `now` without grace.
struct EndRequested {
  bool now = false;
};
struct TimerFired {};
using Event =
    std::variant<StartRequested, StartSucceeded, StartRefused, AttachSeen, DetachSeen, OwnerDied,
                 ChannelClosed, Exited, KillRequested, EndRequested, TimerFired, HoldOver>;

// ---- effects ----
struct Fork {
  Incarnation incarnation;
  std::optional<Rank> seat;
  int attempt = 1;
  bool operator==(const Fork&) const = default;
};
/// To the process and its process group.
struct Signal {
  Incarnation incarnation;
  std::int32_t signal = 0;
  bool operator==(const Signal&) const = default;
};
/// End what this process left behind.
struct Sweep {
  Incarnation incarnation;
  bool operator==(const Sweep&) const = default;
};
/// It is lost; exit code and signal where they are known already. Reaped may follow as a second
/// sign of the same loss.
struct Lost {
  Incarnation incarnation;
  membership::EvidenceKind kind;
  std::int32_t exit_code = -1;
  std::int32_t signal = 0;
  bool attached = true;
  bool operator==(const Lost&) const = default;
};
struct Finished {
  Incarnation incarnation;
  bool operator==(const Finished&) const = default;
};
struct GaveUp {
  Incarnation incarnation;
  std::string why;
  bool operator==(const GaveUp&) const = default;
};
/// Wake the machine no later than this.
struct SetTimer {
  TimePoint at;
  bool operator==(const SetTimer&) const = default;
};
/// Ending, and every process is gone.
struct AllGone {
  bool operator==(const AllGone&) const = default;
};
using Effect = std::variant<Fork, Signal, Sweep, Lost, Finished, GaveUp, SetTimer, AllGone>;
using Effects = std::vector<Effect>;

/// Thread safety: one thread.
class SupervisorMachine {
 public:
  explicit SupervisorMachine(SupervisorConfig config) : config_(config) {}

  /// Events about an incarnation that was never requested, or is Gone, change nothing.
  [[nodiscard]] Effects step(const Event& event, TimePoint now);

  [[nodiscard]] bool ending() const { return ending_; }
  /// Empty for an incarnation that was never requested.
  [[nodiscard]] std::optional<ProcessPhase> phase(Incarnation incarnation) const;
  /// Processes that are not Gone.
  [[nodiscard]] std::size_t alive() const;

 private:
  struct Process {
    std::optional<Rank> seat;
    ProcessPhase phase = ProcessPhase::Starting;
    bool forking = false;   ///< a Fork effect is out
    bool attached = false;  ///< ever
    bool reported = false;  ///< Lost or Finished went out
    bool doomed = false;    ///< kill it as soon as the fork under way has a result
    int attempts = 0;
    std::optional<TimePoint> due;  ///< next attempt, end of the grace, or end of the channel's wait
  };

  void on(const StartRequested& e, TimePoint now);
  void on(const EndRequested& e, TimePoint now);
  void on(const TimerFired& e, TimePoint now);
  void on(const HoldOver& e, TimePoint now);
  void on_started(Incarnation id, Process& p, TimePoint now);
  void on_refused(Incarnation id, Process& p, const StartRefused& e, TimePoint now);
  void on_attach(Process& p);
  void on_detach(Process& p);
  void on_owner_died(Incarnation id, Process& p);
  void on_channel_closed(Incarnation id, Process& p, TimePoint now);
  void on_exited(Incarnation id, Process& p, const Exited& e);
  void on_kill(Incarnation id, Process& p);
  void end_one(Incarnation id, Process& p, TimePoint now);
  void timer_of(Incarnation id, Process& p, TimePoint now);
  void lose(Incarnation id, Process& p, membership::EvidenceKind kind, std::int32_t code = -1,
            std::int32_t sig = 0);
  void kill(Incarnation id, Process& p);

  SupervisorConfig config_;
  std::map<Incarnation, Process> processes_;
  bool ending_ = false;
  bool ending_now_ = false;
  bool all_gone_said_ = false;
  Effects out_;
};

}  // namespace regroup::supervisor
