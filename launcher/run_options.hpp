/// The command line that `regroup run`, `regroup exec` and `regroup mpirun` share.
#pragma once

#include <chrono>
#include <string>

#include "launcher/options.hpp"
#include "launcher/rank_process.hpp"

namespace CLI {
class App;
}

namespace regroup::launcher {

/// Durations and the policy as they were typed, until they are read.
struct Typed {
  std::string on_loss = "replay";
  std::string grace = "15s";
  std::string timeout = "0";
  std::string detect_budget = "1500ms";
  std::string control = "pair";
  std::string start_timeout = "120s";
  bool quiet = false;
  bool verbose = false;
};

/// The options of a job, but for the number of ranks and --json. Memory: `options` and `typed`
/// outlive `app`.
void describe_job_options(CLI::App& app, RunOptions& options, Typed& typed);
/// The option of the commands whose places another launcher starts.
void describe_start_timeout(CLI::App& app, Typed& typed);
[[nodiscard]] Refusal read_start_timeout(const Typed& typed, std::chrono::milliseconds& value);
/// Turns what was typed into values. The refusal of the first that cannot be read.
[[nodiscard]] Refusal read_typed(const Typed& typed, RunOptions& options);
/// Prints the refusal; returns its exit code.
int refuse(const Refusal& refusal);

/// Program, kernel, descriptors: in the order in which a person can mend them. Raises the
/// descriptor limit.
[[nodiscard]] Refusal check_program_and_kernel(const RunOptions& options, JobSetup& setup);
/// Makes the log directory, runs/JOB unless another is named.
[[nodiscard]] Refusal prepare_log_dir(RunOptions& options, const std::string& job);

}  // namespace regroup::launcher
