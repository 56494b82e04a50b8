/// The hosts: each runs the shipped HostAgent and the shipped SupervisorMachine, and does to
/// processes and words what the machines ask for (agents.cpp: HostAgent; children.cpp: the
/// supervisor and the processes).
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "membership/host_agent.hpp"
#include "supervisor/supervisor_machine.hpp"
#include "tests/sim/core.hpp"
#include "tests/sim/ranks.hpp"

namespace regroup::sim {

/// Carries the agents' messages to the coordinator.
class Uplink {
 public:
  virtual ~Uplink() = default;
  virtual void send_up(std::uint32_t host, membership::AgentMessage message) = 0;
  virtual void agent_gone(std::uint32_t host) = 0;  ///< its end of the channel closes
};

/// What was done to the job, by kind; printed at the end of a run.
struct FaultCount {
  std::uint64_t crashes = 0, pauses = 0, long_pauses = 0, bursts = 0, slow_kills = 0;
  std::uint64_t start_failures = 0, self_wedges = 0, evictions = 0, late_evidence = 0,
                late_checks = 0;
  std::uint64_t messages_lost = 0, messages_twice = 0, partitions = 0, hosts_lost = 0, stops = 0;
  std::uint64_t coordinator_crashes = 0, crashes_healing = 0, crashes_of_spares = 0;
  std::uint64_t closed_channels = 0, damaged_chunks = 0, resumed_heals = 0, failed_heals = 0;
  std::uint64_t ignored_terms = 0, reordered = 0;
  std::uint64_t changes = 0, released = 0, parked = 0, carried_on = 0;
};

class Agents final : public RankNews {
 public:
  Agents(Core& core, Ranks& ranks, FaultCount& faults);
  void connect_to(Uplink* uplink) { uplink_ = uplink; }

  void deliver(std::uint32_t host, membership::host::Event event) { take(host, std::move(event)); }
  /// Somebody presses Ctrl-C there.
  void stop(std::uint32_t host);
  /// The whole host is gone: its agent, its processes, its memory.
  void lose_host(std::uint32_t host);
  [[nodiscard]] bool is_running(std::uint32_t host) const;
  [[nodiscard]] bool is_lost(std::uint32_t host) const { return hosts_[host].lost; }
  [[nodiscard]] const membership::HostAgent& machine(std::uint32_t host) const {
    return *hosts_[host].machine;
  }
  /// A fault kills this process, and perhaps others with it. False: the schedule's budget of deaths
  /// is spent.
  bool kill_by_fault(Process& process);

  /// A moment later a process dies, probably of this host.
  void crash_near(std::uint32_t host);

  void entered(Process& process) override;
  void leaves(Process& process) override;
  void exits(Process& process) override;
  void fails(Process& process) override;
  void goes_deaf(Process& process) override;
  void dies(Process& process) override { kill_by_fault(process); }
  void wedged_itself(Process& process) override;
  void parked(Process& process) override;

 private:
  struct WordRef {
    std::int32_t seat = 0;
    std::uint32_t lane = 0;  ///< kGroupsMax: the step word
  };
  using Pending = std::variant<supervisor::Event, membership::host::Event>;
  struct Host {
    Host(membership::AgentId id, const Swarm& swarm);
    std::unique_ptr<membership::HostAgent> machine;
    supervisor::SupervisorMachine supervisor;
    std::deque<Pending> pending;
    bool draining = false;
    bool lost = false;
    bool ending = false;
    bool ended = false;
    std::uint64_t timer = 0;  ///< generation: only the newest timer fires
    std::uint64_t supervisor_timer = 0;
  };
  /// How a process ends.
  struct End {
    std::int32_t exit_code = 0;
    std::int32_t signal = 0;
  };

  void take(std::uint32_t host, Pending event);
  void check_bounded(std::uint32_t host, std::size_t effects);

  void perform(std::uint32_t host, const membership::host::Effect& effect);
  void wedge_words(std::uint32_t host, Epoch epoch, std::vector<WordRef> left);
  void report_words(std::uint32_t host, EpochMemory& memory);
  void write_words(std::uint32_t host, membership::host::WriteDecision order,
                   std::vector<WordRef> left);
  void make_view(std::uint32_t host, const membership::host::MakeView& order);
  void perform(std::uint32_t host, const supervisor::Fork& fork);
  void perform(std::uint32_t host, const supervisor::Signal& signal);
  void perform(std::uint32_t host, const supervisor::Sweep& sweep);
  void perform(std::uint32_t host, const supervisor::Lost& lost);
  void perform(std::uint32_t host, const supervisor::Finished& finished);
  void perform(std::uint32_t host, const supervisor::GaveUp& gave_up);
  void perform(std::uint32_t host, const supervisor::SetTimer& timer);
  void perform(std::uint32_t host, const supervisor::AllGone& all_gone);
  void forked(std::uint32_t host, const supervisor::Fork& fork);
  void attach(Process& process);
  void say(Process& process, Says what, Epoch epoch = {});
  void pump(Process& process);
  void heard(Process& process, const Said& said);
  void kill(Process& process);
  void die(Process& process, End end);
  void owner_died(Process& process);
  void reap(Process& process, End end);
  Nanos evidence_after();
  void set_timer(std::uint32_t host, TimePoint at);
  void read_beats(std::uint32_t host);
  void end_job(std::uint32_t host, const std::string& reason, std::int32_t exit_code);
  void maybe_crash_near(std::uint32_t host);
  void post(std::uint32_t host, Nanos delay, membership::host::Event event);
  std::vector<WordRef> words_of(std::uint32_t host, const EpochMemory& memory,
                                const std::vector<Member>& without);
  Nanos local() { return core_.random.delay(core_.swarm.local); }

  Core& core_;
  Ranks& ranks_;
  FaultCount& faults_;
  Uplink* uplink_ = nullptr;
  std::vector<Host> hosts_;
  membership::Timeouts timeouts_;
  std::uint32_t crashes_ = 0;
};

}  // namespace regroup::sim
