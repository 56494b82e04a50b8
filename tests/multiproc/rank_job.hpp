/// Jobs of rank_program, and what its ranks print at their end.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "tests/support/job.hpp"

namespace regroup::test {

/// Runs `regroup run FLAGS --log-dir TEMP -- PROGRAM ARGUMENTS` to its end.
inline Ended run_program(const std::string& program, const std::vector<std::string>& flags,
                         const std::vector<std::string>& arguments,
                         const std::map<std::string, std::string>& environment = {},
                         int seconds = 60) {
  const TempDir temp;
  std::vector<std::string> words{"run", "--log-dir", (temp.path() / "logs").string()};
  words.insert(words.end(), flags.begin(), flags.end());
  words.insert(words.end(), {"--", program});
  words.insert(words.end(), arguments.begin(), arguments.end());
  JobOptions options;
  options.patience = std::chrono::seconds(seconds);
  for (const auto& [key, value] : environment) options.environment.push_back(key + "=" + value);
  return run(words, std::move(options));
}

/// Of rank_program.
inline Ended run_job(const std::vector<std::string>& flags,
                     const std::vector<std::string>& arguments,
                     const std::map<std::string, std::string>& environment = {}, int seconds = 60) {
  return run_program(REGROUP_RANK_PROGRAM, flags, arguments, environment, seconds);
}

inline std::string story(const Ended& job) { return "--- out\n" + job.out + "--- err\n" + job.err; }

inline std::set<std::string> digests(const Ended& job) {
  std::set<std::string> found;
  for (const auto& line : job.lines_with("digest="))
    found.insert(line.substr(line.find("digest=") + 7, 16));
  return found;
}

}  // namespace regroup::test
