#include "tests/sim/world.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <utility>

namespace regroup::sim {
namespace {

constexpr Nanos kWeatherEvery = 20 * kMillisecond;
constexpr Nanos kLivenessBound =
    120 * kSecond;  // of virtual time, from the instant at which faults stop
constexpr Nanos kAftermath = 10 * kSecond;  // for kills under way when the job ended
constexpr std::uint64_t kEventsMax = 400'000;
constexpr std::uint64_t kFurtherSteps = 11;

class World {
 public:
  World(std::uint64_t seed, const Options& options)
      : options_(options),
        core_(seed, options.keeps_text, options.carry_on),
        ranks_(core_),
        agents_(core_, ranks_, faults_),
        coordinator_(core_, agents_, faults_) {
    ranks_.listen(&agents_);
    core_.swarm.safety_time = core_.random.between(200 * kMillisecond, 4 * kSecond);
    if (core_.swarm.steps != 0) ranks_.end_after(core_.swarm.steps);
  }

  Outcome run() {
    coordinator_.start();
    core_.after(kWeatherEvery, [this] { weather(); });
    const Nanos calm_at = core_.now() + core_.swarm.safety_time;
    while (!stopped() && core_.turn(calm_at)) {
    }
    if (!core_.checks.violation() && !options_.safety_only) live();
    faults_.pauses = ranks_.pauses_short();
    faults_.long_pauses = ranks_.pauses_long();
    faults_.damaged_chunks = ranks_.damaged_chunks();
    faults_.resumed_heals = ranks_.resumed_heals();
    faults_.failed_heals = ranks_.failed_heals();
    faults_.carried_on = ranks_.carried_on();
    faults_.reordered = core_.reordered();
    Outcome outcome;
    outcome.events = core_.events();
    outcome.hash = core_.trace.hash();
    outcome.operations = ranks_.operations_done();
    outcome.violation = core_.checks.violation();
    outcome.faults = faults_;
    outcome.cells = coordinator_.cells();
    outcome.end = coordinator_.ended() ? coordinator_.ended()->reason : "not ended";
    outcome.good = coordinator_.ended() && coordinator_.ended()->exit_code == 0;
    outcome.beyond_repair = beyond_repair_;
    outcome.lines = core_.trace.lines();
    return outcome;
  }

 private:
  [[nodiscard]] bool stopped() const {
    return core_.checks.violation() || core_.events() > kEventsMax;
  }

  [[nodiscard]] bool all_ended() const {
    for (std::uint32_t host = 0; host < core_.swarm.hosts; ++host) {
      if (!coordinator_.is_isolated(host) && agents_.is_running(host)) return false;
    }
    return true;
  }

  /// Faults that no event of the protocol triggers.
  void weather() {
    core_.tick();
    if (core_.calm || all_ended()) return;
    const auto host = static_cast<std::uint32_t>(core_.random.below(core_.swarm.hosts));
    if (coordinator_.knows(host) && core_.fault(core_.swarm.host_lost)) agents_.lose_host(host);
    if (core_.fault(core_.swarm.partition)) {
      coordinator_.partition(host, core_.random.chance(0.5),
                             core_.random.between(10 * kMillisecond, 3 * kSecond));
    }
    auto& all = ranks_.all();
    if (!all.empty()) {
      Process& someone = *all[core_.random.below(all.size())];
      const bool runs = someone.alive && !someone.exited;
      if (runs && core_.fault(core_.swarm.crash_on_event)) agents_.kill_by_fault(someone);
      if (runs && core_.fault(core_.swarm.pause)) pause(someone);
      if (runs && someone.seat && core_.fault(core_.swarm.evict)) evict(host, someone);
      if (runs && someone.seat && core_.fault(core_.swarm.change)) change(host, someone);
    }
    if (core_.fault(core_.swarm.stop)) {
      agents_.stop(host);
    }
    core_.after(kWeatherEvery, [this] { weather(); });
  }

  void pause(Process& process) {
    const bool is_long = core_.random.chance(core_.swarm.long_pause);
    ranks_.pause(process, is_long ? core_.random.between(kSecond, 6 * kSecond)
                                  : core_.random.between(kMillisecond, 150 * kMillisecond));
  }

  void evict(std::uint32_t host, const Process& process) {
    ++faults_.evictions;
    evict_asked_.insert(process.incarnation);
    core_.record(
        {.what = What::EvictAsked, .rank = *process.seat, .incarnation = process.incarnation});
    agents_.deliver(host, membership::host::Evict{process.incarnation, "asked for"});
  }

  /// Somebody wants a rank drained, or another number of ranks.
  void change(std::uint32_t host, const Process& process) {
    ++faults_.changes;
    const bool now = core_.random.chance(0.2);
    core_.record({.what = What::ChangeAsked,
                  .rank = *process.seat,
                  .incarnation = process.incarnation,
                  .other = now ? std::uint64_t{1} : 0});
    const std::uint64_t id = faults_.changes;
    if (core_.random.chance(0.5)) {
      std::vector<Incarnation> leaving{process.incarnation};
      const auto& all = ranks_.all();
      const Process& other = *all[core_.random.below(all.size())];
      if (core_.random.chance(0.2) && &other != &process) leaving.push_back(other.incarnation);
      return agents_.deliver(host, membership::host::Drain{id, leaving, now});
    }
    const auto seats = static_cast<std::uint32_t>(core_.random.below(core_.swarm.job.ranks + 1));
    agents_.deliver(host, membership::host::Scale{id, seats, now});
  }

  /// A quorum is healed, the rest stays broken for ever: now everything must come to a good end.
  void live() {
    core_.calm = true;
    ended_before_liveness_ = coordinator_.ended().has_value();
    const std::uint64_t before = ranks_.operations_done();
    core_.record({.what = What::Liveness, .number = ranks_.highest_step()});
    if (core_.swarm.hosts > 1 && core_.random.chance(0.3)) leave_broken();
    coordinator_.heal();
    const bool further = core_.swarm.steps == 0;
    if (further) ranks_.end_after(ranks_.highest_step() + kFurtherSteps);
    const Nanos bound = core_.now() + kLivenessBound;
    while (!stopped() && !all_ended() && core_.turn(bound)) {
    }
    const bool ended = all_ended();
    const Nanos aftermath = core_.now() + kAftermath;
    while (ended && !stopped() && core_.turn(aftermath)) {
    }
    beyond_repair_ = !ended && is_beyond_repair();
    if (beyond_repair_) return;
    Ending ending = judge(ended);
    ending.further_operations = ranks_.operations_done() - before;
    // Under carry_on nobody makes the second group's operations once it has no member.
    const bool enough = !options_.carry_on || core_.swarm.groups == 1;
    ending.further_expected = further && enough && !ended_before_liveness_ && faults_.stops == 0;
    core_.record({.what = What::Quiet});
    core_.checks.at_end(ending);
  }

  void leave_broken() {
    const auto host = static_cast<std::uint32_t>(core_.random.below(core_.swarm.hosts));
    if (!agents_.is_running(host) || !coordinator_.knows(host)) return;
    std::uint64_t here = 0;
    std::uint64_t members = 0;
    for (const auto& process : ranks_.all()) {
      if (!process->alive || process->exited || !process->seat) continue;
      ++members;
      if (process->host == host) ++here;
    }
    if (here * 2 < members) coordinator_.isolate(host);
  }

  Ending judge(bool ended) {
    Ending ending;
    ending.job_ended = ended;
    ending.orderly = coordinator_.ended() && coordinator_.ended()->exit_code == 0;
    ending.end = coordinator_.ended() ? coordinator_.ended()->reason : "";
    ending.views = coordinator_.views();
    ending.rounds = coordinator_.rounds();
    ending.coordinators = coordinator_.lives();
    ending.joins = ranks_.all().size();
    for (const auto& process : ranks_.all()) {
      if (coordinator_.is_isolated(process->host) || agents_.is_lost(process->host)) continue;
      if (!process->alive || process->exited) continue;
      auto& text = ended ? ending.zombie : ending.blocked;
      text = fmt::format("rank {} incarnation {} still runs (at {}, epoch {}, step {})",
                         process->seat.value_or(Rank{-1}).value(), process->incarnation.value(),
                         static_cast<int>(process->at),
                         process->mine ? process->mine->view.epoch.value() : 0, process->step);
      if (!ended && coordinator_.machine()) text += "; " + coordinator_.machine()->explain();
      if (!ended) text += "; " + agents_.machine(process->host).explain();
    }
    if (!ended) ending.dead_in_view = dead_member();
    if (options_.carry_on) ending.fills = ending.joins;
    const FaultCount& f = faults_;
    // A host that is given up and comes back in the middle of a round begins two.
    ending.faults = f.crashes + ranks_.pauses_short() + ranks_.pauses_long() + f.late_checks +
                    f.evictions + f.self_wedges + f.hosts_lost * core_.swarm.job.ranks +
                    2 * f.partitions + f.messages_lost + f.start_failures + f.coordinator_crashes +
                    f.stops + f.closed_channels + 2 * f.changes +
                    ranks_.failed_heals() * core_.swarm.job.ranks + (any_isolated() ? 1 : 0);
    return ending;
  }

  /// A member of the last view that died and was not removed.
  std::string dead_member() {
    if (!coordinator_.machine()) return "";
    for (const Incarnation who : coordinator_.machine()->view().seats) {
      const Process* process = ranks_.find(who);
      if (!process || process->alive || process->exited) continue;
      return fmt::format("incarnation {} died and is still in epoch {}", who.value(),
                         coordinator_.machine()->view().epoch.value());
    }
    return "";
  }

  /// Whether a host is left that may run ranks.
  [[nodiscard]] bool has_where_to_run() const {
    for (std::uint32_t host = 0; host < core_.swarm.hosts; ++host) {
      if (core_.swarm.job.may_run(membership::AgentId{host}) && !coordinator_.is_isolated(host) &&
          !agents_.is_lost(host)) {
        return true;
      }
    }
    return false;
  }

  /// Whether more is broken than may be: of the last view's members, those that can be reached and
  /// live are fewer than those on hosts that are gone for good, or no host is left to run any.
  /// Then nobody may make a view, and nothing is promised but that.
  bool is_beyond_repair() {
    if (!coordinator_.machine()) return false;
    if (!has_where_to_run()) return true;
    std::size_t here = 0;
    std::size_t away = 0;
    for (const Incarnation who : coordinator_.machine()->view().seats) {
      const Process* process = ranks_.find(who);
      if (!process) continue;
      // The end of a program on such a host may never have been heard of: it counts as away too.
      const bool is_away =
          coordinator_.is_isolated(process->host) || agents_.is_lost(process->host);
      if (is_away)
        ++away;
      else if (process->alive && !process->exited && evict_asked_.count(who) == 0 &&
               !coordinator_.machine()->was_left_behind(who))
        ++here;
    }
    return here < away;
  }

  [[nodiscard]] bool any_isolated() const {
    for (std::uint32_t host = 0; host < core_.swarm.hosts; ++host) {
      if (coordinator_.is_isolated(host)) return true;
    }
    return false;
  }

  Options options_;
  FaultCount faults_;
  Core core_;
  Ranks ranks_;
  Agents agents_;
  Coordinator coordinator_;
  bool ended_before_liveness_ = false;
  bool beyond_repair_ = false;
  std::set<Incarnation> evict_asked_;
};

}  // namespace

Outcome run_schedule(std::uint64_t seed, const Options& options) {
  World world(seed, options);
  Outcome outcome = world.run();
  outcome.seed = seed;
  return outcome;
}

}  // namespace regroup::sim
