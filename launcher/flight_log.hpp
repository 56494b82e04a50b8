/// Flight records, for `regroup trace`: read by the agent from the beacon pages of the processes.
/// Of those that ended, also by SIGKILL, they are kept beside the event log; of running ones the
/// agent is asked.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include <nlohmann/json_fwd.hpp>

#include <regroup/status.hpp>
#include <regroup/types.hpp>

#include "metrics/beacon_page.hpp"

namespace regroup::launcher {

inline constexpr int kFlightSchema = 1;
/// As many files a job keeps: of the processes that ended last.
inline constexpr std::size_t kFlightFilesMax = 256;

/// `<log-dir>/flight/INCARNATION.json`, below the log directory.
[[nodiscard]] std::filesystem::path flight_file(Incarnation incarnation);

/// What the page of one process holds: rank, incarnation, its last operations, and the one that it
/// is in. At most some 300 KiB of text.
[[nodiscard]] nlohmann::json flight_json(std::optional<Rank> rank, Incarnation incarnation,
                                         const metrics::BeaconPage& page);

/// Writes what the page holds. Blocks for one file of at most some 100 KiB: not for the path of a
/// recovery. Returns how many operations it wrote. Errors: FailedPrecondition with the system's
/// reason.
Result<std::size_t> write_flight(const std::filesystem::path& log_dir, std::optional<Rank> rank,
                                 Incarnation incarnation, const metrics::BeaconPage& page);

/// A job as a Chrome trace: the object of trace_event format. `events` are all lines of its log;
/// the files that they name are read below `log_dir`, and those that are gone are left out.
/// `running`: a list of flight_json() with `monotonic_ns` and `offset_ns` of the instant.
[[nodiscard]] nlohmann::json chrome_trace(const std::filesystem::path& log_dir,
                                          const nlohmann::json& events,
                                          const nlohmann::json& report,
                                          const nlohmann::json& running);

}  // namespace regroup::launcher
