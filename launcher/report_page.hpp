/// The report as one page for a browser: everything is in it, nothing is fetched.
#pragma once

#include <filesystem>
#include <string>

#include <nlohmann/json_fwd.hpp>

#include <regroup/status.hpp>

namespace regroup::launcher {

/// `report` as in report.json, `events` a list of lines of events.jsonl.
[[nodiscard]] std::string report_page(const nlohmann::json& report, const nlohmann::json& events);
/// Of the log: what the page draws, or what a trace shows; at most kPageEventsMax lines. Errors:
/// those of parse_event().
Result<nlohmann::json> page_events(const std::filesystem::path& events_file);
Result<nlohmann::json> trace_events(const std::filesystem::path& events_file);
/// More would make a page that no browser likes; the tables count all of them all the same.
inline constexpr std::size_t kPageEventsMax = 50'000;

}  // namespace regroup::launcher
