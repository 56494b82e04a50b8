/// Starts a whole job and waits for it, with a watchdog.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace regroup::test {

struct Finished {
  int exit_code = -1;  ///< 128 + signal when ended by one
  bool timed_out = false;
  std::string out;
  std::string err;
  std::string run_dir;
  /// The text after the first `key` up to white space, over standard output; empty when it is not
  /// there.
  [[nodiscard]] std::string value_of(const std::string& key) const;
  [[nodiscard]] std::vector<std::string> lines_with(const std::string& part) const;
};

/// Runs `regroup run FLAGS --log-dir TEMP -- rank_program ARGUMENTS`; ends it after `seconds` and
/// says so. The run directory is removed with the last use of this process.
Finished run_job(const std::vector<std::string>& flags, const std::vector<std::string>& arguments,
                 const std::map<std::string, std::string>& environment = {}, int seconds = 60);

}  // namespace regroup::test
