#include "tests/sim/swarm.hpp"

#include <algorithm>

namespace regroup::sim {
namespace {

std::uint32_t draw_seats(Random& random) {
  const std::uint64_t sort = random.below(400);
  if (sort == 0) return static_cast<std::uint32_t>(random.between(17, kSeatsMax));
  if (sort < 12) return static_cast<std::uint32_t>(random.between(9, 16));
  if (sort < 60) return static_cast<std::uint32_t>(random.between(5, 8));
  return static_cast<std::uint32_t>(random.between(2, 4));
}

OnLoss draw_policy(Random& random) {
  const std::uint64_t sort = random.below(20);
  if (sort < 12) return OnLoss::Replay;
  if (sort < 16) return OnLoss::Replace;
  return sort < 19 ? OnLoss::Shrink : OnLoss::Abort;
}

/// Off in half of all seeds, otherwise a rate between low and high.
double draw_rate(Random& random, double low, double high) {
  const bool on = random.chance(0.5);
  const double rate = low + (high - low) * random.unit() * random.unit();
  return on ? rate : 0.0;
}

/// A mean between low and high with equal weight per order of magnitude of two.
Nanos draw_mean(Random& random, Nanos low, Nanos high) {
  Nanos mean = low;
  while (mean < high && random.chance(0.75)) mean *= 2;
  return std::min(mean, high);
}

/// A few tensors of odd sizes: chunks (64 KiB) hold several of them, and they span several chunks.
void draw_state(Random& random, Swarm& swarm) {
  const std::uint64_t several = random.below(8);
  for (std::uint64_t n = 1 + random.below(4); n > 0; --n) {
    const std::uint64_t sort = random.below(8);
    const std::int64_t most = several < 3 ? 4096 : sort < 4 ? 40'000 : 100'000;
    swarm.tensors.push_back(sort == 0 ? 0 : static_cast<std::uint64_t>(random.between(1, most)));
  }
  swarm.tensors.push_back(8);  // never quite nothing: the state itself stands in its first bytes
}

void draw_job(Random& random, Swarm& swarm) {
  auto& job = swarm.job;
  job.ranks = draw_seats(random);
  job.ranks_min = random.chance(0.5) ? 1 : static_cast<std::uint32_t>(random.between(1, job.ranks));
  job.spares = random.chance(0.3) ? 0 : static_cast<std::uint32_t>(random.between(1, 4));
  job.on_loss = draw_policy(random);
  job.replacements_max = random.chance(0.8) ? 10 : static_cast<std::uint32_t>(random.between(0, 3));
  swarm.hosts = random.chance(0.5) ? 1 : static_cast<std::uint32_t>(random.between(2, 4));
  swarm.hosts = std::min(swarm.hosts, job.ranks);
  swarm.groups = random.chance(0.3) ? 2 : 1;
  const std::uint64_t all =
      job.ranks == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << job.ranks) - 1;
  swarm.second_group = random.next() & all;
  if (swarm.second_group == 0) swarm.second_group = all;
  swarm.operations_max = static_cast<std::uint32_t>(job.ranks > 16 ? 1 : random.between(1, 4));
  swarm.rooted = random.chance(0.5) ? 0.0 : random.unit();
  swarm.steps = random.chance(0.4) ? static_cast<std::uint64_t>(random.between(1, 12)) : 0;
  draw_state(random, swarm);
}

void draw_faults(Random& random, Swarm& swarm) {
  swarm.crash_in_step = draw_rate(random, 0.0005, 0.02) * 4.0 / (2.0 + swarm.job.ranks);
  swarm.crash_on_event = draw_rate(random, 0.002, 0.05);
  swarm.pause = draw_rate(random, 0.001, 0.02);
  swarm.long_pause = random.unit() * random.unit();
  swarm.burst = draw_rate(random, 0.05, 0.5);
  swarm.slow_kill = draw_rate(random, 0.1, 1.0);
  swarm.self_wedge = draw_rate(random, 0.0005, 0.005);
  swarm.start_fails = draw_rate(random, 0.02, 0.4);
  swarm.ignores_term = draw_rate(random, 0.1, 0.9);
  swarm.channel_closed = draw_rate(random, 0.0002, 0.002);
  swarm.heal_damage = draw_rate(random, 0.01, 0.2);
  swarm.evict = draw_rate(random, 0.002, 0.02);
  swarm.stop = random.chance(0.1) ? 0.01 * random.unit() : 0.0;
  swarm.message_lost = draw_rate(random, 0.002, 0.05);
  swarm.message_twice = draw_rate(random, 0.01, 0.3);
  swarm.partition = draw_rate(random, 0.001, 0.01);
  swarm.coordinator_crash = draw_rate(random, 0.001, 0.03);
  swarm.host_lost = swarm.hosts > 1 ? draw_rate(random, 0.0005, 0.003) : 0.0;
  swarm.beacon_late = draw_rate(random, 0.05, 0.8);
  if (random.chance(0.06)) {
    swarm.poisoned_seat = static_cast<std::int32_t>(random.below(swarm.job.ranks));
    swarm.poisoned_step = 1 + random.below(8);
  }
  swarm.crashes_max = static_cast<std::uint32_t>(random.between(1, 10));
}

/// A third of all seeds is hard on restarts, of processes and of the coordinator.
void draw_restarts(Random& random, Swarm& swarm) {
  if (!random.chance(0.33)) return;
  if (random.chance(0.5)) swarm.start_fails = 0.1 + 0.4 * random.unit();
  swarm.start_again = 0.9;
  swarm.backoff_first = draw_mean(random, 20 * kMillisecond, 320 * kMillisecond);
  swarm.start_attempts_max = 6;
  swarm.coordinator_burst = swarm.burst;
  swarm.crash_when_durable = 15 * swarm.coordinator_crash;
  if (swarm.hosts > 1) swarm.host_very_late = draw_rate(random, 0.05, 0.8);
}

}  // namespace

Swarm draw_swarm(Random& random) {
  Swarm swarm;
  draw_job(random, swarm);
  swarm.micro = draw_mean(random, 50 * kMicrosecond, 8 * kMillisecond);
  swarm.compute = draw_mean(random, 5 * kMillisecond, 80 * kMillisecond);
  // At most a sixteenth of what makes an agent count as lost, even with a reconnect: slowness alone
  // is no loss.
  swarm.wire = draw_mean(random, 50 * kMicrosecond, 2 * kMillisecond);
  swarm.local = draw_mean(random, 20 * kMicrosecond, 8 * kMillisecond);
  swarm.start_up = draw_mean(random, kMillisecond, 64 * kMillisecond);
  draw_faults(random, swarm);
  Random copy = random;  // of the other seeds nothing changes
  draw_restarts(copy, swarm);
  return swarm;
}

void carry_on(Swarm& swarm) {
  swarm.job.on_loss = OnLoss::CarryOn;
  swarm.rooted = 0;
}

namespace {

/// Hosts that differ: some hold more seats than others, or none and only spares, and the first one
/// may run nothing at all, as that of a launcher that is not in its own list.
void draw_hosts(Random& random, Swarm& swarm) {
  auto& hosts = swarm.job.hosts;
  hosts.resize(swarm.hosts);
  const std::uint32_t first = random.chance(0.4) ? 1 : 0;
  hosts[0].used = first == 0;
  for (std::uint32_t seat = 0; seat < swarm.job.ranks; ++seat)
    ++hosts[first + random.below(swarm.hosts - first)].seats;
}

}  // namespace

void draw_additions(std::uint64_t seed, Swarm& swarm) {
  Random hosts(seed ^ 0x686f737473ULL);
  if (swarm.hosts > 1 && hosts.chance(0.3)) draw_hosts(hosts, swarm);
  Random changes(seed ^ 0x6368616e676573ULL);
  if (changes.chance(0.35)) swarm.change = 0.005 + 0.05 * changes.unit();
  Random decided(seed ^ 0x64656369646564ULL);
  if (swarm.hosts == 1 || !decided.chance(0.5)) return;
  swarm.partition = 0.005 + 0.045 * decided.unit();
  swarm.crash_when_decided = 0.2 + 0.8 * decided.unit();
}

}  // namespace regroup::sim
