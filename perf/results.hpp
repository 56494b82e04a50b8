/// Rows of results, as a table in nccl-tests' columns and as one JSON object.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "perf/options.hpp"
#include "perf/workload.hpp"

namespace regroup::perf {

/// One implementation's figures for one workload.
struct Row {
  std::string implementation;  ///< "regroup", or a rival's name
  std::string algorithm;
  Workload workload;
  Mode mode = Mode::Streaming;
  std::vector<double> us;        ///< block means, or single operations
  double cpu_s = 0;              ///< processor time of all ranks for one operation
  std::uint64_t iterations = 0;  ///< timed operations
  std::uint64_t wrong = 0;
  std::uint64_t checked = 0;  ///< operations whose values were checked

  [[nodiscard]] double time_us() const;
  [[nodiscard]] double p90_us() const;
  [[nodiscard]] double alg_gbps() const;
  [[nodiscard]] double bus_gbps() const { return alg_gbps() * workload.bus_factor(); }
};

/// The lines above the rows.
[[nodiscard]] std::string table_head(const Options& options, int ranks);
/// One line: out of place, then in place; a side that was not measured says N/A.
[[nodiscard]] std::string table_line(const std::optional<Row>& out_of_place,
                                     const std::optional<Row>& in_place);
/// A rival's figures as a comment line, with how many times as long as `ours` it took.
[[nodiscard]] std::string rival_line(const Row& rival, const Row& ours);
/// The lines below the rows.
[[nodiscard]] std::string table_foot(const std::vector<Row>& rows);

[[nodiscard]] nlohmann::json to_json(const Workload& workload);
[[nodiscard]] nlohmann::json to_json(const Row& row);
/// What this machine and its kernel are, as far as a figure depends on it.
[[nodiscard]] nlohmann::json describe_machine();

}  // namespace regroup::perf
