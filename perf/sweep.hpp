/// All rows of one call of regroup-perf, with those of the rivals in turns.
#pragma once

#include <memory>
#include <vector>

#include <nlohmann/json.hpp>
#include <regroup/regroup.hpp>

#include "perf/options.hpp"
#include "perf/results.hpp"
#include "perf/rivals.hpp"

namespace regroup::perf {

/// The exit code of the program.
int run_sweep(Job& job, const Options& options, const std::vector<std::string>& arguments);

}  // namespace regroup::perf
