/// What regroup-sim and regroup-sim-mutants do with a command line.
#pragma once

#include <span>
#include <string>

namespace regroup::sim {

/// `program`: its name and what it was told already, to say how a schedule is replayed.
/// `arguments`: what comes after that. Returns the exit code.
[[nodiscard]] int run_program(const std::string& program, std::span<char* const> arguments);

}  // namespace regroup::sim
