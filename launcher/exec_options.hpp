/// The command line of `regroup exec`, which its agent reads again.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "launcher/options.hpp"

namespace regroup::launcher {

struct ExecOptions {
  RunOptions run;  ///< ranks 0: the launcher says how many
  std::chrono::milliseconds start_timeout{120'000};
  std::string agent;  ///< where the job's agent listens, if it is there already
  bool help = false;  ///< it was asked for and printed
};

/// Reads the words behind `regroup exec`. Returns the refusal of the first that cannot be read.
[[nodiscard]] Refusal parse_exec(const std::vector<std::string>& words, ExecOptions& options);

}  // namespace regroup::launcher
