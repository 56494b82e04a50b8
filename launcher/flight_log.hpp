/// Flight records of processes that ended: read by the agent from their beacon pages, also after a
/// SIGKILL, and kept beside the event log for `regroup trace`.
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

/// Writes what the page holds. Blocks for one file of at most some 100 KiB: not for the path of a
/// recovery. Returns how many operations it wrote. Errors: FailedPrecondition with the system's
/// reason.
Result<std::size_t> write_flight(const std::filesystem::path& log_dir, std::optional<Rank> rank,
                                 Incarnation incarnation, const metrics::BeaconPage& page);

/// A job as a Chrome trace: the object of trace_event format. `events` are all lines of its log;
/// the files that they name are read below `log_dir`, and those that are gone are left out.
[[nodiscard]] nlohmann::json chrome_trace(const std::filesystem::path& log_dir,
                                          const nlohmann::json& events,
                                          const nlohmann::json& report);

}  // namespace regroup::launcher
