/// One simulated job under one seed: the machines as shipped, the faults, first safety mode, then
/// liveness mode.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tests/sim/agents.hpp"
#include "tests/sim/checkers.hpp"
#include "tests/sim/coordinator.hpp"

namespace regroup::sim {

struct Options {
  bool keeps_text = false;   ///< keep the trace's lines
  bool safety_only = false;  ///< stop before liveness mode
  bool carry_on = false;     ///< every job is one under carry_on
};

struct Outcome {
  std::uint64_t seed = 0;
  std::uint64_t events = 0;
  std::uint64_t hash = 0;
  std::uint64_t operations = 0;
  std::optional<Violation> violation;
  FaultCount faults;
  membership::CellCounters cells{};
  bool good = false;               ///< the job ended with exit code 0
  bool beyond_repair = false;      ///< so much was lost for good that no quorum could be healed
  std::string end;                 ///< how the job ended, in words
  std::vector<std::string> lines;  ///< the trace, when it was kept
};

/// Runs one schedule. The outcome is a function of (seed, safety_only, carry_on) and of the code
/// alone.
[[nodiscard]] Outcome run_schedule(std::uint64_t seed, const Options& options);

}  // namespace regroup::sim
