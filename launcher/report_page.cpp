#include "launcher/report_page.hpp"

#include <algorithm>
#include <array>
#include <fstream>
#include <span>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "launcher/event_log.hpp"
#include "report_page_text.hpp"

namespace regroup::launcher {
namespace {

using nlohmann::json;

/// Kinds that the page draws; notes and ledgers would only make it large.
constexpr std::array kDrawn = {EventKind::ProcessStarted, EventKind::ViewInstalled,
                               EventKind::Lost,           EventKind::Wedged,
                               EventKind::Entered,        EventKind::Finished};

constexpr std::array kTraced = {EventKind::Lost, EventKind::ViewInstalled,
                                EventKind::CoordinatorLost, EventKind::Flight};

Result<json> lines_of(const std::filesystem::path& events_file, std::span<const EventKind> kinds) {
  std::ifstream in(events_file);
  json out = json::array();
  for (std::string line; std::getline(in, line) && out.size() < kPageEventsMax;) {
    if (line.empty()) continue;
    Result<ParsedEvent> event = parse_event(line);
    if (!event && line.back() != '}') break;  // torn by a full disk or a kill
    if (!event) return event.error();
    const std::optional<EventKind> kind = event_kind(event->kind);
    if (kind && std::find(kinds.begin(), kinds.end(), *kind) != kinds.end())
      out.push_back(std::move(*event->fields));
  }
  return out;
}

/// As the text of a script element, which no content may end.
std::string script_text(const json& value) {
  std::string out;
  for (const char c : value.dump(-1, ' ', false, json::error_handler_t::replace)) {
    if (c == '<') {
      out += "\\u003c";
    } else {
      out += c;
    }
  }
  return out;
}

void replace_once(std::string& text, std::string_view mark, const std::string& with) {
  const std::size_t at = text.find(mark);
  if (at != std::string::npos) text.replace(at, mark.size(), with);
}

}  // namespace

std::string report_page(const json& report, const json& events) {
  std::string out(kReportPage);
  // The events first: their mark lies behind the report's, whose text may hold anything.
  replace_once(out, "@EVENTS@", script_text(events));
  replace_once(out, "@REPORT@", script_text(report));
  return out;
}

Result<json> page_events(const std::filesystem::path& events_file) {
  Result<json> out = lines_of(events_file, kDrawn);
  if (!out) return out;
  for (json& event : *out) {
    for (const char* key : {"v", "time", "text", "bytes_from"}) event.erase(key);
  }
  return out;
}

Result<json> trace_events(const std::filesystem::path& events_file) {
  return lines_of(events_file, kTraced);
}

}  // namespace regroup::launcher
