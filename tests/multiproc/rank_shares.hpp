/// The mode of rank_program that uses every operation with a share for each rank.
#pragma once

#include <cstdint>

#include <regroup/regroup.hpp>

namespace regroup::test {

/// Runs `steps` steps, and two of the operations before the first one. Checks every element of
/// every result; prints how many were wrong, and a digest that is the same on all ranks and in
/// every run. Returns the exit code.
int run_shares(Job& job, std::uint64_t steps);

}  // namespace regroup::test
