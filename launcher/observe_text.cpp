#include "launcher/observe_text.hpp"

#include <algorithm>
#include <array>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "launcher/json_fields.hpp"
#include "launcher/report.hpp"

namespace regroup::launcher {
namespace {

using nlohmann::json;

bool has(const json& object, const char* key) { return object.is_object() && object.contains(key); }

std::string who(const json& fields) {
  const std::int64_t incarnation = integer(fields, "incarnation");
  return has(fields, "rank")
             ? fmt::format("rank {} (incarnation {})", integer(fields, "rank"), incarnation)
             : fmt::format("spare (incarnation {})", incarnation);
}

/// The fields that no sentence of ours uses, so that nothing in the log is hidden.
std::string as_pairs(const json& fields) {
  constexpr std::array<std::string_view, 4> kOfTheLine = {"v", "time", "offset_ns", "kind"};
  std::string out;
  if (!fields.is_object()) return out;
  for (const auto& [key, value] : fields.items()) {
    if (std::find(kOfTheLine.begin(), kOfTheLine.end(), key) != kOfTheLine.end()) continue;
    out += fmt::format(" {}={}", key, value.dump(-1, ' ', false, json::error_handler_t::replace));
  }
  return out;
}

/// The categories that got any time.
std::string shares(const json& fields) {
  std::string out;
  if (!has(fields, "category_ns")) return out;
  for (const auto& [category, ns] : fields["category_ns"].items()) {
    if (ns.is_number_integer() && ns != 0)
      out += fmt::format(" {} {}", category, duration_text(ns));
  }
  return out.empty() ? " kept none" : out;
}

std::string sentence(EventKind kind, const json& fields) {
  switch (kind) {
    case EventKind::Lost: {
      std::string text = fmt::format("{}: {}", who(fields), word(fields, "text"));
      if (has(fields, "operation")) {
        text += fmt::format("; in {} seq {} of step {}, phase {}", word(fields, "operation"),
                            integer(fields, "seq"), integer(fields, "step"), word(fields, "phase"));
      }
      if (has(fields, "detect_ns"))
        text += fmt::format("; detected in {}", duration_text(integer(fields, "detect_ns")));
      return text + fmt::format(" ({})", word(fields, "evidence"));
    }
    case EventKind::Replaced:
      return fmt::format("rank {}: incarnation {} takes over from {}, {}", integer(fields, "rank"),
                         integer(fields, "incarnation"), integer(fields, "previous"),
                         word(fields, "how") == "spare" ? "a spare" : "started cold");
    case EventKind::ViewInstalled:
      return fmt::format("epoch {}, from step {}, seats {}", integer(fields, "epoch"),
                         integer(fields, "resume_step"),
                         has(fields, "seats") ? fields["seats"].dump() : "?");
    case EventKind::Warning:
      return fmt::format("{} {}", word(fields, "code"), word(fields, "text"));
    case EventKind::Note: return fmt::format("{}: {}", word(fields, "about"), word(fields, "text"));
    case EventKind::JobEnded:
      return fmt::format("exit {} ({}): {}; {} ranks finished, {} replaced",
                         integer(fields, "exit_code"), word(fields, "origin"),
                         word(fields, "reason"), integer(fields, "ranks_finished"),
                         integer(fields, "replaced"));
    case EventKind::Finished:
      return fmt::format("{}, code {}", who(fields), integer(fields, "exit_code"));
    case EventKind::Ledger: return fmt::format("{}:{}", who(fields), shares(fields));
    case EventKind::Drained:
      return fmt::format("{} left its seat as planned; the others go on from step {}", who(fields),
                         integer(fields, "resume_step") - 1);
    case EventKind::Flight:
    case EventKind::JobStarted:
    case EventKind::ProcessStarted:
    case EventKind::Attached:
    case EventKind::Wedged:
    case EventKind::Decided:
    case EventKind::Flushed:
    case EventKind::Entered:
    case EventKind::FirstOperation:
    case EventKind::CoordinatorLost:
    case EventKind::CoordinatorRestarted:
    case EventKind::Injected:
    case EventKind::Refused: break;
  }
  std::string pairs = as_pairs(fields);
  return pairs.empty() ? pairs : pairs.substr(1);
}

std::string row(const json& process) {
  const std::string rank =
      has(process, "rank") ? fmt::format("{}", integer(process, "rank")) : "spare";
  const std::string operation = word(process, "operation");
  const bool busy = !operation.empty() && operation != "none";
  return fmt::format(
      "{:>5} {:>5} {:>8} {:<9} {:>7} {:<24} {:>9}  {}\n", rank, integer(process, "incarnation"),
      integer(process, "pid"), word(process, "state"), integer(process, "step"),
      busy ? fmt::format("{}#{} {}", operation, integer(process, "seq"), word(process, "phase"))
           : "-",
      busy && has(process, "age_ns") ? duration_text(integer(process, "age_ns")) : "-",
      word(process, "host"));
}

}  // namespace

std::string event_text(const Stamp& stamp, std::string_view kind, const json& fields) {
  const std::optional<EventKind> known = event_kind(kind);
  std::string text = known ? sentence(*known, fields) : as_pairs(fields);
  return fmt::format("[{:.3f}s] {} {}", static_cast<double>(stamp.offset_ns) / 1e9, kind, text);
}

std::string status_text(const json& status) {
  std::size_t seated = 0;
  std::size_t spares = 0;
  std::string rows;
  if (has(status, "processes")) {
    for (const json& process : status["processes"]) {
      ++(has(process, "rank") ? seated : spares);
      rows += row(process);
    }
  }
  const json& coordinator = has(status, "coordinator") ? status["coordinator"] : json();
  const std::int64_t coordinator_pid = integer(coordinator, "pid");
  std::string out = fmt::format(
      "job {}  {}  epoch {}  {}/{} ranks, {} of {} spares  up {}  replaced {}  logs {}\n",
      word(status, "job"), word(status, "state"), integer(status, "epoch"), seated,
      integer(status, "ranks"), spares, integer(status, "spares_wanted"),
      duration_text(integer(status, "uptime_ns")), integer(status, "replaced"),
      word(status, "log_dir"));
  out +=
      fmt::format("launcher pid {}  coordinator {} (restarted {} times)\n", integer(status, "pid"),
                  coordinator_pid != 0 ? fmt::format("pid {}", coordinator_pid) : "being restarted",
                  integer(coordinator, "restarts"));
  if (has(status, "refused") && !status["refused"].empty())
    out += fmt::format("refused:{}\n", as_pairs(status["refused"]));
  out += fmt::format("{:>5} {:>5} {:>8} {:<9} {:>7} {:<24} {:>9}  {}\n", "RANK", "INC", "PID",
                     "STATE", "STEP", "OPERATION", "AGE", "HOST");
  out += rows;
  if (has(status, "armed")) {
    for (const json& armed : status["armed"]) {
      out += fmt::format("armed: {} {}when {}\n", word(armed, "action"),
                         has(armed, "rank") ? fmt::format("rank {} ", integer(armed, "rank")) : "",
                         word(armed, "at"));
    }
  }
  return out;
}

}  // namespace regroup::launcher
