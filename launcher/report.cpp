#include "launcher/report.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <system_error>

#include <fmt/format.h>

#include "base/check.hpp"
#include "launcher/json_fields.hpp"

namespace regroup::launcher {
namespace {

using nlohmann::json;

constexpr std::array<std::string_view, kRecoveryPhases> kPhaseNames = {
    "detect", "wedge", "decide", "replace_wait", "install", "enter", "heal", "first_operation"};

std::uint64_t count(const json& fields, const char* key) {
  return static_cast<std::uint64_t>(std::max<std::int64_t>(integer(fields, key), 0));
}
std::optional<Rank> rank_of(const json& fields) {
  if (!fields.contains("rank")) return std::nullopt;
  return Rank(static_cast<std::int32_t>(integer(fields, "rank")));
}
Incarnation incarnation_of(const json& fields) { return Incarnation(count(fields, "incarnation")); }
Epoch epoch_of(const json& fields) { return Epoch(count(fields, "epoch")); }

json without_line_fields(const json& fields) {
  json out = fields;
  for (const char* key : {"v", "time", "offset_ns", "kind"}) out.erase(key);
  return out;
}

metrics::Snapshot snapshot_of(const json& fields) {
  metrics::Snapshot out;
  if (const auto by_category = fields.find("category_ns"); by_category != fields.end()) {
    for (std::size_t i = 0; i < metrics::kCategories; ++i) {
      const std::string key(metrics::name(static_cast<metrics::Category>(i)));
      out.ns[i] = count(*by_category, key.c_str());
    }
  }
  out.wall_ns = count(fields, "wall_ns");
  out.overlapped_ns = count(fields, "overlapped_ns");
  out.operations = count(fields, "operations");
  out.operation_bytes = count(fields, "operation_bytes");
  return out;
}

/// Nearest rank: a figure that was really measured.
std::int64_t percentile(const std::vector<std::int64_t>& sorted, double p) {
  const auto rank = static_cast<std::size_t>(std::ceil(p * static_cast<double>(sorted.size())));
  return sorted[std::clamp<std::size_t>(rank, 1, sorted.size()) - 1];
}

json statistics(std::vector<std::int64_t> values) {
  if (values.empty()) return {{"n", 0}};
  std::sort(values.begin(), values.end());
  double sum = 0;
  for (const std::int64_t value : values) sum += static_cast<double>(value);
  return {{"n", values.size()},
          {"p50_ns", percentile(values, 0.50)},
          {"p99_ns", percentile(values, 0.99)},
          {"mean_ns", std::llround(sum / static_cast<double>(values.size()))},
          {"max_ns", values.back()}};
}

}  // namespace

std::string_view name(RecoveryPhase phase) {
  const auto index = static_cast<std::size_t>(phase);
  REGROUP_ASSERT(index < kPhaseNames.size());
  return kPhaseNames[index];
}

// ---- the fold
// ------------------------------------------------------------------------------------------------

void Report::observe(const Stamp& stamp, EventKind kind, const nlohmann::json& fields) {
  if (!fields.is_object()) return;
  wall_ns_ = std::max(wall_ns_, stamp.offset_ns);
  switch (kind) {
    case EventKind::JobStarted:
      job_ = without_line_fields(fields);
      if (stamp.utc_ns != 0) job_["started"] = utc_text(stamp.utc_ns);
      if (fields.contains("time")) job_["started"] = fields["time"];
      return;
    case EventKind::JobEnded: ended_ = without_line_fields(fields); return;
    case EventKind::ProcessStarted:
    case EventKind::Attached:
    case EventKind::Finished:
    case EventKind::Ledger: return on_process(stamp, kind, fields);
    case EventKind::ViewInstalled: return on_installed(stamp, fields);
    case EventKind::Lost: return on_lost(stamp, fields);
    case EventKind::Wedged:
    case EventKind::Decided:
    case EventKind::Flushed:
    case EventKind::FirstOperation: return on_recovery_step(stamp, kind, fields);
    case EventKind::Replaced: return on_replaced(stamp, fields);
    case EventKind::Entered: return on_entered(stamp, fields);
    case EventKind::CoordinatorLost: ++coordinator_losses_; return;
    case EventKind::Injected: ++injected_; return;
    case EventKind::Drained: return on_drained(stamp, fields);
    case EventKind::Warning: ++warnings_[word(fields, "code")]; return;
    case EventKind::Refused: refused_ = integer(fields, "total"); return;
    case EventKind::CoordinatorRestarted:
    case EventKind::Flight:
    case EventKind::Note: return;
  }
}

Report::Life& Report::life(const json& fields) {
  const Incarnation incarnation = incarnation_of(fields);
  Life& out = lives_[incarnation];
  out.incarnation = incarnation;
  if (const std::optional<Rank> rank = rank_of(fields)) hold_seat(*rank, incarnation);
  return out;
}

void Report::hold_seat(Rank rank, Incarnation incarnation) {
  std::vector<Incarnation>& holders = holders_[rank];
  if (std::find(holders.begin(), holders.end(), incarnation) == holders.end())
    holders.push_back(incarnation);
}

void Report::on_process(const Stamp& stamp, EventKind kind, const json& fields) {
  Life& one = life(fields);
  if (kind == EventKind::ProcessStarted) one.started_ns = stamp.offset_ns;
  if (kind == EventKind::Attached) one.attached_ns = stamp.offset_ns;
  if (kind == EventKind::Finished) one.finished_ns = stamp.offset_ns;
  if (kind != EventKind::Ledger) return;
  // A process that never mapped its page kept no ledger: its page says zero of everything.
  const metrics::Snapshot time = snapshot_of(fields);
  if (time.wall_ns > 0) one.time = time;
}

void Report::on_lost(const Stamp& stamp, const json& fields) {
  Life& one = life(fields);
  one.lost_ns = stamp.offset_ns;
  one.detect_ns = integer(fields, "detect_ns");
  json loss = without_line_fields(fields);
  loss["offset_ns"] = stamp.offset_ns;
  const Epoch epoch = epoch_of(fields);
  // Of a spare, and of a process lost before there was a view, nothing has to recover.
  if (rank_of(fields) && epoch != Epoch(0)) {
    const bool same = !recoveries_.empty() && recoveries_.back().from == epoch &&
                      !recoveries_.back().installed_ns;
    if (!same) recoveries_.push_back({.from = epoch, .lost_ns = stamp.offset_ns});
    Recovery& recovery = recoveries_.back();
    if (!recovery.detect_ns && fields.contains("detect_ns")) recovery.detect_ns = one.detect_ns;
    recovery.losses.push_back(losses_.size());
    one.recovery = recoveries_.size();
    loss["recovery"] = recoveries_.size() - 1;
  }
  losses_.push_back(std::move(loss));
}

void Report::on_recovery_step(const Stamp& stamp, EventKind kind, const json& fields) {
  if (recoveries_.empty()) return;
  Recovery& recovery = recoveries_.back();
  const Epoch epoch = epoch_of(fields);
  if (kind == EventKind::FirstOperation) {
    if (recovery.installed_ns && epoch == recovery.to && !recovery.first_operation_ns) {
      recovery.first_operation_ns = stamp.offset_ns;
    }
    return;
  }
  if (recovery.installed_ns || epoch != recovery.from) return;
  // A loss in the middle starts the recovery over: the last round counts.
  if (kind == EventKind::Wedged) {
    ++recovery.rounds;
    if (!recovery.wedged_ns) recovery.wedged_ns = stamp.offset_ns;
  } else if (kind == EventKind::Decided) {
    recovery.decided_ns = stamp.offset_ns;
    recovery.committed_step = count(fields, "committed_step");
  } else {
    recovery.flushed_ns = stamp.offset_ns;
  }
}

void Report::on_drained(const Stamp& stamp, const json& fields) {
  life(fields).drained_ns = stamp.offset_ns;
  json entry = without_line_fields(fields);
  entry["offset_ns"] = stamp.offset_ns;
  drained_.push_back(std::move(entry));
}

void Report::on_replaced(const Stamp& stamp, const json& fields) {
  const Life& one = life(fields);
  json entry = without_line_fields(fields);
  entry["offset_ns"] = stamp.offset_ns;
  replacements_.push_back(std::move(entry));
  for (json& loss : losses_) {
    if (incarnation_of(loss) == Incarnation(count(fields, "previous"))) {
      loss["replaced_by"] = {{"incarnation", one.incarnation.value()},
                             {"how", word(fields, "how")}};
    }
  }
  if (recoveries_.empty() || one.recovery != 0) return;
  // The seat waited until its newcomer had attached, whenever the log heard that it was to be the
  // one.
  Recovery& recovery = recoveries_.back();
  const std::int64_t ready = one.attached_ns.value_or(stamp.offset_ns);
  recovery.replaced_ns = std::max(recovery.replaced_ns.value_or(0), ready);
}

void Report::on_installed(const Stamp& stamp, const json& fields) {
  json view = without_line_fields(fields);
  view["offset_ns"] = stamp.offset_ns;
  if (const auto seats = fields.find("seats"); seats != fields.end() && seats->is_array()) {
    for (std::size_t i = 0; i < seats->size(); ++i) {
      const json& seat = (*seats)[i];
      const Incarnation incarnation(seat.is_number_unsigned() ? seat.get<std::uint64_t>() : 0);
      if (incarnation == Incarnation(0)) continue;
      hold_seat(Rank(static_cast<std::int32_t>(i)), incarnation);
      const auto holder = lives_.find(incarnation);
      if (holder != lives_.end() && holder->second.seated == Epoch())
        holder->second.seated = epoch_of(fields);
    }
  }
  views_.push_back(std::move(view));
  if (recoveries_.empty() || recoveries_.back().installed_ns) return;
  recoveries_.back().installed_ns = stamp.offset_ns;
  recoveries_.back().to = epoch_of(fields);
}

void Report::on_entered(const Stamp& stamp, const json& fields) {
  if (recoveries_.empty()) return;
  Recovery& recovery = recoveries_.back();
  if (!recovery.installed_ns || recovery.to != epoch_of(fields)) return;
  recovery.entered_ns = stamp.offset_ns;
  recovery.heal_ns = std::max(recovery.heal_ns, integer(fields, "heal_ns"));
  const auto donors = fields.find("bytes_from");
  if (donors == fields.end() || !donors->is_array()) return;
  for (const json& donor : *donors) {
    if (!donor.is_object()) continue;
    json entry = donor;
    entry["rank"] = integer(fields, "rank");
    recovery.bytes_from.push_back(std::move(entry));
  }
}

Result<Report> Report::from_events(const std::filesystem::path& events_file) {
  std::ifstream in(events_file);
  if (!in) {
    return Status(
        Code::FailedPrecondition,
        fmt::format("E-REP-1 cannot read {}: {}", events_file.string(), std::strerror(errno)));
  }
  Report report;
  std::size_t number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    if (line.empty()) continue;
    Result<ParsedEvent> event = parse_event(line);
    // A launcher that was killed, or a disk that was full, may leave a part of a line.
    if (!event && line.back() != '}') continue;
    if (!event) {
      return Status(event.error().code(),
                    fmt::format("E-REP-2 {} line {}: {}", events_file.string(), number,
                                event.error().text()));
    }
    if (const std::optional<EventKind> kind = event_kind(event->kind)) {
      report.observe(event->stamp, *kind, *event->fields);
    }
  }
  return report;
}

// ---- what came of it
// ----------------------------------------------------------------------------------------------

std::int64_t Report::Recovery::phase_ns(RecoveryPhase phase) const {
  // Each instant that did not happen, or was seen out of order, counts as that before it: no phase
  // is negative and they add up to the total.
  const std::int64_t wedged = std::max(wedged_ns.value_or(lost_ns), lost_ns);
  const std::int64_t decided = std::max(flushed_ns.value_or(decided_ns.value_or(wedged)), wedged);
  std::int64_t replaced = std::max(replaced_ns.value_or(decided), decided);
  if (installed_ns) replaced = std::min(replaced, std::max(*installed_ns, decided));
  const std::int64_t installed = std::max(installed_ns.value_or(replaced), replaced);
  const std::int64_t entered = std::max(entered_ns.value_or(installed), installed);
  const std::int64_t healing = std::min(heal_ns, entered - installed);
  switch (phase) {
    case RecoveryPhase::Detect: return detect_ns.value_or(0);
    case RecoveryPhase::Wedge: return wedged - lost_ns;
    case RecoveryPhase::Decide: return decided - wedged;
    case RecoveryPhase::ReplaceWait: return replaced - decided;
    case RecoveryPhase::Install: return installed - replaced;
    case RecoveryPhase::Enter: return entered - installed - healing;
    case RecoveryPhase::Heal: return healing;
    case RecoveryPhase::FirstOperation:
      return std::max(first_operation_ns.value_or(entered), entered) - entered;
  }
  REGROUP_UNREACHABLE("phase outside its enumeration");
}

std::int64_t Report::Recovery::total_ns() const {
  std::int64_t sum = 0;
  for (std::size_t i = 0; i < kRecoveryPhases; ++i) sum += phase_ns(static_cast<RecoveryPhase>(i));
  return sum;
}

json Report::recoveries_json() const {
  json out = json::array();
  for (const Recovery& recovery : recoveries_) {
    json phases = json::object();
    for (std::size_t i = 0; i < kRecoveryPhases; ++i) {
      const auto phase = static_cast<RecoveryPhase>(i);
      phases[fmt::format("{}_ns", name(phase))] = recovery.phase_ns(phase);
    }
    phases["total_ns"] = recovery.total_ns();
    json entry = {{"from_epoch", recovery.from.value()},
                  {"offset_ns", recovery.lost_ns},
                  {"losses", recovery.losses},
                  {"rounds", recovery.rounds},
                  {"committed_step", recovery.committed_step},
                  {"complete", recovery.complete()},
                  {"phases", std::move(phases)},
                  {"bytes_from", recovery.bytes_from}};
    if (recovery.installed_ns) entry["to_epoch"] = recovery.to.value();
    out.push_back(std::move(entry));
  }
  return out;
}

json Report::percentiles_json() const {
  json out = json::object();
  std::vector<std::int64_t> totals;
  for (std::size_t i = 0; i < kRecoveryPhases; ++i) {
    const auto phase = static_cast<RecoveryPhase>(i);
    std::vector<std::int64_t> values;
    for (const Recovery& recovery : recoveries_) {
      if (recovery.complete()) values.push_back(recovery.phase_ns(phase));
    }
    out[std::string(name(phase))] = statistics(std::move(values));
  }
  for (const Recovery& recovery : recoveries_) {
    if (recovery.complete()) totals.push_back(recovery.total_ns());
  }
  out["total"] = statistics(std::move(totals));
  return out;
}

json Report::exit_json() const {
  if (ended_.is_null()) {
    return {
        {"code", nullptr}, {"origin", "unknown"}, {"reason", "the log ends before the job does"}};
  }
  json out = {{"code", integer(ended_, "exit_code")},
              {"origin", word(ended_, "origin")},
              {"reason", word(ended_, "reason")}};
  if (integer(ended_, "exit_code") == 0 || losses_.empty()) return out;
  // The first loss of the recovery that never ended is what the others follow from; without a view
  // it is the first.
  const bool open = !recoveries_.empty() && !recoveries_.back().complete();
  const json& cause = losses_[open ? recoveries_.back().losses.front() : 0];
  if (open || recoveries_.empty()) out["first_cause"] = cause;
  return out;
}

json Report::to_json() const {
  json out = job_;
  out["v"] = kReportSchema;
  out["complete"] = !ended_.is_null();
  out["wall_ns"] = wall_ns_;
  out["exit"] = exit_json();
  out["losses"] = losses_;
  out["recoveries"] = recoveries_json();
  out["recovery_percentiles"] = percentiles_json();
  out["replacements"] = replacements_;
  out["drained"] = drained_;
  out["views"] = views_;
  out["ledger"] = ledger_json();
  out["coordinator_losses"] = coordinator_losses_;
  out["injected"] = injected_;
  out["refused"] = refused_;
  out["warnings"] = warnings_;
  if (!ended_.is_null()) out["ranks_finished"] = integer(ended_, "ranks_finished");
  return out;
}

Status Report::write(const std::filesystem::path& log_dir) const {
  const std::filesystem::path path = log_dir / kReportFile;
  const std::filesystem::path fresh = path.string() + ".new";
  const auto failed = [&](std::string_view why) {
    std::error_code ignored;
    std::filesystem::remove(fresh, ignored);
    return Status(Code::FailedPrecondition,
                  fmt::format("E-REP-3 cannot write {}: {}", path.string(), why));
  };
  {
    std::ofstream out(fresh, std::ios::trunc);
    out << to_json().dump(1, ' ', false, json::error_handler_t::replace) << "\n";
    out.flush();
    if (!out) return failed(std::strerror(errno));
  }
  std::error_code error;
  std::filesystem::rename(fresh, path, error);
  return error ? failed(error.message()) : Status();
}

}  // namespace regroup::launcher
