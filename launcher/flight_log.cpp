#include "launcher/flight_log.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>
#include <set>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "launcher/event_log.hpp"
#include "launcher/json_fields.hpp"
#include "launcher/report.hpp"

namespace regroup::launcher {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

/// The process of the trace that holds what belongs to no rank.
constexpr int kJobPid = 1'000'000;

/// The format counts in microseconds.
double us(std::int64_t ns) { return static_cast<double>(ns) / 1e3; }

json metadata(const char* what, std::int64_t pid, std::int64_t tid, const std::string& name) {
  return {{"ph", "M"}, {"name", what}, {"pid", pid}, {"tid", tid}, {"args", {{"name", name}}}};
}
json span(const std::string& name, const std::string& category, std::int64_t pid, std::int64_t tid,
          std::int64_t begin_ns, std::int64_t end_ns, json args) {
  return {{"ph", "X"},
          {"name", name},
          {"cat", category},
          {"pid", pid},
          {"tid", tid},
          {"ts", us(begin_ns)},
          {"dur", us(std::max<std::int64_t>(end_ns - begin_ns, 0))},
          {"args", std::move(args)}};
}
json instant(const std::string& name, const char* scope, std::int64_t pid, std::int64_t tid,
             std::int64_t at_ns, json args) {
  return {{"ph", "i"},       {"name", name},           {"s", scope}, {"pid", pid}, {"tid", tid},
          {"ts", us(at_ns)}, {"args", std::move(args)}};
}

/// One process. `at` has one instant in its clock and in the job's; `until_ns` ends the operation
/// that it was in, if it is known.
void add_flight(json& out, const json& file, const json& at, std::optional<std::int64_t> until_ns) {
  const std::int64_t pid = integer(file, "rank");
  const std::int64_t tid = integer(file, "incarnation");
  const std::int64_t shift_ns = integer(at, "offset_ns") - integer(at, "monotonic_ns");
  out.push_back(metadata("process_name", pid, tid, fmt::format("rank {}", pid)));
  out.push_back(metadata("thread_name", pid, tid, fmt::format("incarnation {}", tid)));
  for (const json& record : file.value("records", json::array())) {
    const std::int64_t began = integer(record, "started_ns") + shift_ns;
    json args = {{"step", integer(record, "step")},
                 {"seq", integer(record, "seq")},
                 {"group", integer(record, "group")},
                 {"bytes", integer(record, "bytes")},
                 {"attempt", integer(record, "attempt")},
                 {"outcome", word(record, "outcome")},
                 {"straggler_us", us(integer(record, "straggler_ns"))}};
    out.push_back(span(word(record, "operation"), word(record, "outcome"), pid, tid, began,
                       integer(record, "ended_ns") + shift_ns, std::move(args)));
  }
  const auto last = file.find("doing");
  if (last == file.end() || !until_ns) return;
  const std::int64_t began = integer(*last, "started_ns") + shift_ns;
  out.push_back(span(word(*last, "operation"), "unfinished", pid, tid, began,
                     std::max(*until_ns, began),
                     {{"step", integer(*last, "step")},
                      {"seq", integer(*last, "seq")},
                      {"phase", word(*last, "phase")},
                      {"outcome", "unfinished"}}));
}

void add_recoveries(json& out, const json& report) {
  std::size_t index = 0;
  for (const json& recovery : report.value("recoveries", json::array())) {
    const json phases = recovery.value("phases", json::object());
    std::int64_t at = integer(recovery, "offset_ns") - integer(phases, "detect_ns");
    for (std::size_t i = 0; i < kRecoveryPhases; ++i) {
      const std::string phase(name(static_cast<RecoveryPhase>(i)));
      const std::int64_t ns = integer(phases, (phase + "_ns").c_str());
      if (ns > 0) {
        out.push_back(span(phase, "recovery", kJobPid, 0, at, at + ns,
                           {{"recovery", index}, {"from_epoch", integer(recovery, "from_epoch")}}));
      }
      at += ns;
    }
    ++index;
  }
}

struct Lost {
  std::map<std::int64_t, std::int64_t> at_ns;  ///< by incarnation
};

void add_event(json& out, const json& event, Lost& lost) {
  const std::string kind = word(event, "kind");
  const std::int64_t at = integer(event, "offset_ns");
  if (kind == name(EventKind::Lost)) {
    lost.at_ns[integer(event, "incarnation")] = at;
    if (!event.contains("rank")) return;
    out.push_back(instant("lost", "p", integer(event, "rank"), integer(event, "incarnation"), at,
                          {{"evidence", word(event, "evidence")}, {"text", word(event, "text")}}));
  }
  if (kind == name(EventKind::ViewInstalled)) {
    out.push_back(instant(fmt::format("epoch {}", integer(event, "epoch")), "g", kJobPid, 0, at,
                          {{"resume_step", integer(event, "resume_step")}}));
  }
  if (kind == name(EventKind::CoordinatorLost))
    out.push_back(
        instant("coordinator lost", "p", kJobPid, 0, at, {{"text", word(event, "text")}}));
}

json record_json(const metrics::Flight& flight) {
  return {{"operation", metrics::name(flight.operation)},
          {"outcome", metrics::name(flight.outcome)},
          {"attempt", flight.attempt},
          {"group", flight.group},
          {"seq", flight.sequence},
          {"step", flight.step},
          {"bytes", flight.bytes},
          {"started_ns", flight.started_ns},
          {"ended_ns", flight.ended_ns},
          {"straggler_ns", flight.straggler_ns}};
}

}  // namespace

fs::path flight_file(Incarnation incarnation) {
  return fs::path("flight") / fmt::format("{}.json", incarnation.value());
}

json flight_json(std::optional<Rank> rank, Incarnation incarnation,
                 const metrics::BeaconPage& page) {
  json file = {
      {"v", kFlightSchema}, {"incarnation", incarnation.value()}, {"records", json::array()}};
  if (rank) file["rank"] = rank->value();
  for (const metrics::Flight& flight : metrics::read_flight(page))
    file["records"].push_back(record_json(flight));
  if (const metrics::Doing doing = metrics::read_doing(page);
      doing.operation != metrics::Operation::None) {
    file["doing"] = {{"operation", metrics::name(doing.operation)},
                     {"phase", metrics::name(doing.phase)},
                     {"seq", doing.sequence},
                     {"step", doing.step},
                     {"started_ns", doing.started_ns}};
  }
  return file;
}

Result<std::size_t> write_flight(const fs::path& log_dir, std::optional<Rank> rank,
                                 Incarnation incarnation, const metrics::BeaconPage& page) {
  const json file = flight_json(rank, incarnation, page);
  const fs::path path = log_dir / flight_file(incarnation);
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  std::ofstream out(path);
  out << file.dump() << '\n';
  out.close();
  if (!out) {
    return Status(Code::FailedPrecondition,
                  fmt::format("cannot write {}: {}", path.string(), std::strerror(errno)));
  }
  return file["records"].size();
}

json chrome_trace(const fs::path& log_dir, const json& events, const json& report,
                  const json& running) {
  json out = json::array();
  out.push_back(metadata("process_name", kJobPid, 0, "job " + word(report, "job")));
  Lost lost;
  std::set<std::int64_t> ended;
  for (const json& event : events) add_event(out, event, lost);
  for (const json& event : events) {
    if (word(event, "kind") != name(EventKind::Flight) || !event.contains("rank")) continue;
    const std::int64_t incarnation = std::max<std::int64_t>(integer(event, "incarnation"), 0);
    std::ifstream in(log_dir / flight_file(Incarnation(static_cast<std::uint64_t>(incarnation))));
    const json file = json::parse(in, nullptr, false);
    if (!file.is_object() || integer(file, "v") != kFlightSchema) continue;
    const auto at = lost.at_ns.find(incarnation);
    add_flight(out, file, event, at != lost.at_ns.end() ? std::optional(at->second) : std::nullopt);
    ended.insert(incarnation);
  }
  for (const json& process : running) {
    // One that ended since it was asked for is there already, and whole.
    if (ended.contains(integer(process, "incarnation"))) continue;
    add_flight(out, process, process, integer(process, "offset_ns"));
  }
  add_recoveries(out, report);
  return {{"traceEvents", std::move(out)},
          {"displayTimeUnit", "ms"},
          {"otherData", {{"job", word(report, "job")}, {"started", word(report, "started")}}}};
}

}  // namespace regroup::launcher
