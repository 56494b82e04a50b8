/// Measures what REGROUP_TUNING says about the network between hosts.
#pragma once

#include <string>

#include <regroup/regroup.hpp>

namespace regroup::perf {

/// Each rank of the job calls it; rank 0 writes the file and prints what it wrote. Returns the
/// program's exit code: kExitBadUsage where all ranks run on one host, and no network is between
/// them. Blocks for some seconds. Threads: the caller's.
int run_tune(Job& job, const std::string& file);

}  // namespace regroup::perf
