#include "tests/sim/program.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tests/sim/coverage.hpp"
#include "tests/sim/world.hpp"

namespace regroup::sim {
namespace {

struct Arguments {
  std::uint64_t schedules = 1000;
  std::uint64_t seed = 1;
  std::optional<std::uint64_t> replay;
  bool verbose = false;
  bool safety_only = false;
  bool check_cells = false;
  bool expect_violation = false;
  bool carry_on = false;
};

/// The command line up to the seed.
std::string replay_command;

constexpr const char* kUsage =
    "usage: regroup-sim [--schedules N] [--seed S] [--replay SEED] [--verbose] [--safety-only]\n"
    "                   [--check-cells] [--expect-violation] [--carry-on]\n"
    "  --schedules N        runs the seeds S, S+1, ... S+N-1 (default 1000)\n"
    "  --replay SEED        runs one seed twice, compares the two traces, prints the last lines\n"
    "  --verbose            with --replay: prints the whole trace\n"
    "  --safety-only        stops each schedule before its liveness mode\n"
    "  --check-cells        fails when a (state, event) cell was not reached and nothing says why\n"
    "  --expect-violation   succeeds when a violation is found: for mutants\n"
    "  --carry-on           every job is one under --on-loss carry_on\n";

bool number(const char* text, std::uint64_t& out) {
  char* end = nullptr;
  out = std::strtoull(text, &end, 0);
  return end != text && *end == '\0';
}

std::optional<Arguments> parse(std::span<char* const> words) {
  Arguments arguments;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string_view flag = words[i];
    const bool has_value = i + 1 < words.size();
    std::uint64_t value = 0;
    if (flag == "--verbose") {
      arguments.verbose = true;
    } else if (flag == "--safety-only") {
      arguments.safety_only = true;
    } else if (flag == "--check-cells") {
      arguments.check_cells = true;
    } else if (flag == "--expect-violation") {
      arguments.expect_violation = true;
    } else if (flag == "--carry-on") {
      arguments.carry_on = true;
    } else if (has_value && number(words[i + 1], value) && flag == "--schedules") {
      arguments.schedules = value, ++i;
    } else if (has_value && number(words[i + 1], value) && flag == "--seed") {
      arguments.seed = value, ++i;
    } else if (has_value && number(words[i + 1], value) && flag == "--replay") {
      arguments.replay = value, ++i;
    } else {
      return std::nullopt;
    }
  }
  return arguments;
}

Options options_of(const Arguments& arguments, bool keeps_text) {
  return {.keeps_text = keeps_text,
          .safety_only = arguments.safety_only,
          .carry_on = arguments.carry_on};
}

void print_violation(const Outcome& outcome, std::size_t lines_max) {
  const std::size_t from = outcome.lines.size() > lines_max ? outcome.lines.size() - lines_max : 0;
  for (std::size_t i = from; i < outcome.lines.size(); ++i) fmt::print("  {}\n", outcome.lines[i]);
  if (!outcome.violation) return;
  fmt::print("VIOLATION of {}: {}\nreplay: {} {}\n", outcome.violation->property,
             outcome.violation->text, replay_command, outcome.seed);
}

int replay(const Arguments& arguments) {
  const Outcome first = run_schedule(*arguments.replay, options_of(arguments, true));
  const Outcome second = run_schedule(*arguments.replay, options_of(arguments, false));
  print_violation(first, arguments.verbose ? first.lines.size() : 40);
  fmt::print("seed {}: {} events, {} operations, trace hash {:016x}; {}\n", first.seed,
             first.events, first.operations, first.hash, first.end);
  if (first.hash != second.hash) {
    fmt::print("NOT DETERMINISTIC: the second run has trace hash {:016x}\n", second.hash);
    return 2;
  }
  return first.violation ? 1 : 0;
}

void add(FaultCount& sum, const FaultCount& one) {
  sum.crashes += one.crashes;
  sum.pauses += one.pauses;
  sum.long_pauses += one.long_pauses;
  sum.bursts += one.bursts;
  sum.slow_kills += one.slow_kills;
  sum.start_failures += one.start_failures;
  sum.self_wedges += one.self_wedges;
  sum.evictions += one.evictions;
  sum.late_evidence += one.late_evidence;
  sum.late_checks += one.late_checks;
  sum.messages_lost += one.messages_lost;
  sum.messages_twice += one.messages_twice;
  sum.partitions += one.partitions;
  sum.hosts_lost += one.hosts_lost;
  sum.stops += one.stops;
  sum.coordinator_crashes += one.coordinator_crashes;
  sum.crashes_healing += one.crashes_healing;
  sum.crashes_of_spares += one.crashes_of_spares;
  sum.closed_channels += one.closed_channels;
  sum.damaged_chunks += one.damaged_chunks;
  sum.resumed_heals += one.resumed_heals;
  sum.failed_heals += one.failed_heals;
  sum.ignored_terms += one.ignored_terms;
  sum.reordered += one.reordered;
  sum.changes += one.changes;
  sum.released += one.released;
  sum.parked += one.parked;
  sum.carried_on += one.carried_on;
}

void print_faults(const FaultCount& f) {
  fmt::print(
      "faults: {} crashes ({} while healing, {} of spares, {} bursts), {} pauses, {} long pauses,\n"
      "  {} zombies, {} failed starts, {} self-made wedges, {} evictions, {} stops,\n"
      "  {} late evidence, {} late checks, {} channels broken by loss, {} messages twice,\n"
      "  {} partitions, {} hosts lost, {} coordinator crashes, {} channels closed by programs,\n"
      "  {} programs ignore TERM, {} chunks damaged, {} heals resumed, {} given up,\n"
      "  {} deliveries reordered between channels,\n"
      "  {} changes asked for: {} ranks stopped for them, {} left; {} times a rank carried on\n",
      f.crashes, f.crashes_healing, f.crashes_of_spares, f.bursts, f.pauses, f.long_pauses,
      f.slow_kills, f.start_failures, f.self_wedges, f.evictions, f.stops, f.late_evidence,
      f.late_checks, f.messages_lost, f.messages_twice, f.partitions, f.hosts_lost,
      f.coordinator_crashes, f.closed_channels, f.ignored_terms, f.damaged_chunks, f.resumed_heals,
      f.failed_heals, f.reordered, f.changes, f.parked, f.released, f.carried_on);
}

/// The seed under way, for the handler below.
volatile std::sig_atomic_t violation_expected = 0;
std::uint64_t seed_under_way = 0;

/// A failed assertion of the shipped code is a finding like any other: say how to replay it.
void on_abort(int) {
  char text[256];
  const int length = std::snprintf(text, sizeof text, "replay: %s %llu\n", replay_command.c_str(),
                                   static_cast<unsigned long long>(seed_under_way));
  if (::write(STDERR_FILENO, text, static_cast<std::size_t>(length)) < 0) std::_Exit(3);
  if (violation_expected != 0) std::_Exit(0);
}

int explore(const Arguments& arguments) {
  violation_expected = arguments.expect_violation ? 1 : 0;
  std::signal(SIGABRT, on_abort);
  FaultCount faults;
  membership::CellCounters cells{};
  std::vector<std::uint64_t> events;
  std::uint64_t operations = 0;
  std::uint64_t ended_well = 0;
  std::uint64_t beyond_repair = 0;
  const auto begin = std::chrono::steady_clock::now();
  for (std::uint64_t i = 0; i < arguments.schedules; ++i) {
    const Options options = options_of(arguments, false);
    seed_under_way = arguments.seed + i;
    const Outcome outcome = run_schedule(arguments.seed + i, options);
    if (outcome.violation) {
      print_violation(run_schedule(outcome.seed, options_of(arguments, true)), 40);
      fmt::print("found after {} schedules\n", i + 1);
      return arguments.expect_violation ? 0 : 1;
    }
    add(faults, outcome.faults);
    for (std::size_t s = 0; s < membership::kStates; ++s) {
      for (std::size_t e = 0; e < membership::kEventKinds; ++e) cells[s][e] += outcome.cells[s][e];
    }
    events.push_back(outcome.events);
    operations += outcome.operations;
    if (outcome.good) ++ended_well;
    if (outcome.beyond_repair) ++beyond_repair;
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  std::nth_element(events.begin(), events.begin() + static_cast<std::ptrdiff_t>(events.size() / 2),
                   events.end());
  fmt::print(
      "{} schedules from seed {} in {:.1f} s: {:.0f} schedules/s, median {} events, {} operations, "
      "{} jobs ended with 0, {} without a quorum to heal\n",
      arguments.schedules, arguments.seed, took.count(),
      static_cast<double>(arguments.schedules) / took.count(),
      events.empty() ? 0 : events[events.size() / 2], operations, ended_well, beyond_repair);
  print_faults(faults);
  fmt::print("violations: 0\n");
  const bool cells_explained = print_cells(cells);
  if (arguments.expect_violation) return 1;
  return arguments.check_cells && !cells_explained ? 1 : 0;
}

}  // namespace

int run_program(const std::string& program, std::span<char* const> arguments) {
  const auto parsed = parse(arguments);
  if (!parsed) {
    fmt::print(stderr, "{}", kUsage);
    return 64;
  }
  replay_command = program + (parsed->carry_on ? " --carry-on --replay" : " --replay");
  return parsed->replay ? replay(*parsed) : explore(*parsed);
}

}  // namespace regroup::sim
