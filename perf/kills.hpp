/// --kill: what the loss of a rank costs, from the kill to the first correct operation after it.
#pragma once

#include <cstddef>
#include <vector>

#include <nlohmann/json.hpp>
#include <regroup/regroup.hpp>

#include "perf/options.hpp"

namespace regroup::perf {

/// Memory that a rank holds like a program's own; touched page by page. Thread safety: none.
class Resident {
 public:
  explicit Resident(std::size_t bytes);
  Resident(const Resident&) = delete;
  Resident& operator=(const Resident&) = delete;
  ~Resident();

 private:
  void* memory_ = nullptr;
  std::size_t bytes_;
};

/// Microseconds from the kill of one round; the slowest rank of each.
struct KillSamples {
  std::vector<double> detect_us;   ///< the launcher has evidence; empty when its log is not there
  std::vector<double> release_us;  ///< every rank that waited has its error
  std::vector<double> first_us;    ///< every member of the next world has a correct result
  std::uint64_t wrong = 0;         ///< operations with a wrong value, in all rounds
  std::size_t incomplete = 0;      ///< rounds in which somebody left nothing written
};
[[nodiscard]] nlohmann::json to_json(const KillSamples& samples);
/// Nanoseconds since 1970 of "2026-01-31T12:00:00.000000001Z"; 0 of anything else.
[[nodiscard]] std::int64_t parse_utc_ns(const std::string& text);

/// The exit code of the program.
int run_kills(Job& job, const Options& options, const std::vector<std::string>& arguments);

}  // namespace regroup::perf
