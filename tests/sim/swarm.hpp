/// What one seed draws before its job starts: the job's form, and which faults are switched on and
/// how often.
#pragma once

#include <cstdint>
#include <vector>

#include "membership/types.hpp"
#include "tests/sim/random.hpp"

namespace regroup::sim {

inline constexpr std::uint32_t kSeatsMax = 64;

/// Thread safety: a plain value.
struct Swarm {
  membership::JobConfig job;
  std::uint32_t hosts = 1;
  std::uint32_t groups = 1;            ///< 1 or 2; group 1 holds the seats of `second_group`
  std::uint64_t second_group = 0;      ///< set of seats
  std::uint32_t operations_max = 2;    ///< operations of a step, 1..operations_max
  std::uint64_t steps = 0;             ///< the program's length; 0: it ends in liveness mode
  double rooted = 0;                   ///< share of broadcasts and reduces
  std::vector<std::uint64_t> tensors;  ///< bytes of each registered tensor

  Nanos micro = kMillisecond;     ///< between two micro-steps of a rank
  Nanos compute = kMillisecond;   ///< of the program, once a step
  Nanos wire = kMillisecond;      ///< a message between agent and coordinator
  Nanos local = kMillisecond;     ///< agent's own work, news between agent and rank
  Nanos start_up = kMillisecond;  ///< from spawn to attached

  // Chances per opportunity; 0: this kind of fault is switched off.
  double crash_in_step = 0;  ///< a rank dies between two micro-steps
  double crash_on_event =
      0;             ///< a process dies right after one of the protocol's events reached its agent
  double pause = 0;  ///< a rank pauses, mostly shortly
  double long_pause = 0;     ///< ... and this share of pauses is long enough to evict
  double burst = 0;          ///< a crash takes further processes with it
  double slow_kill = 0;      ///< a killed process runs on for a while: a zombie
  double self_wedge = 0;     ///< a rank wedges its own word and says so
  double start_fails = 0;    ///< a fork is refused
  double start_again = 0.5;  ///< of the refused forks: is tried again
  Nanos backoff_first = 5 * kMillisecond;
  int start_attempts_max = 3;
  double ignores_term = 0;    ///< a program that only SIGKILL ends
  double channel_closed = 0;  ///< a program closes descriptors that it does not know
  double heal_damage = 0;     ///< a chunk of a heal arrives damaged
  double evict = 0;
  double change = 0;        ///< somebody asks for a drain or another number of ranks
  double stop = 0;          ///< somebody asks the job to end
  double message_lost = 0;  ///< the channel breaks and is made anew
  double message_twice = 0;
  double partition = 0;
  double coordinator_crash = 0;   ///< at an effect
  double crash_when_durable = 0;  ///< ... what is durable is not told yet
  double crash_when_decided = 0;  ///< ... what somebody was told is not durable yet
  double coordinator_burst = 0;   ///< its death takes a process with it
  double host_very_late = 0;      ///< after a restart: given up before it is back
  double host_lost = 0;
  double beacon_late = 0;  ///< evidence comes late
  /// A program that dies of the same step again and again; seat -1: none.
  std::int32_t poisoned_seat = -1;
  std::uint64_t poisoned_step = 0;
  std::uint32_t crashes_max = 8;  ///< beyond it nothing dies any more
  Nanos safety_time = kSecond;    ///< then liveness mode starts
};

/// Draws the swarm of one seed.
[[nodiscard]] Swarm draw_swarm(Random& random);
/// The same job under carry_on, whose model has operations in which everybody receives.
void carry_on(Swarm& swarm);
/// What came later, each drawn by itself: a seed without it means what it meant before. How often
/// planned changes are asked for; hosts that differ; coordinators that die while somebody acts on a
/// decision, and hosts that come and go meanwhile.
void draw_additions(std::uint64_t seed, Swarm& swarm);

}  // namespace regroup::sim
