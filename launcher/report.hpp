/// What became of a job: losses with their first cause, recovery by phase, where the time went. A
/// fold over the events, so the launcher makes it at the end and anybody can make it again from
/// events.jsonl.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include <regroup/status.hpp>
#include <regroup/types.hpp>

#include "launcher/event_log.hpp"
#include "metrics/ledger.hpp"

namespace regroup::launcher {

inline constexpr int kReportSchema = 1;
inline constexpr std::string_view kReportFile = "report.json";

/// The phases of a recovery, in order. Together they span from the fault to the first operation
/// after it.
enum class RecoveryPhase : std::uint8_t {
  Detect,          ///< fault, or last proof of life -> evidence
  Wedge,           ///< evidence -> every word of the epoch is wedged
  Decide,          ///< -> the decision stands in the survivors' words
  ReplaceWait,     ///< -> every seat has its newcomer (at once, if spares were waiting)
  Install,         ///< -> the lost are fenced, the next view is current
  Enter,           ///< -> all members are in it, without the transfer of state
  Heal,            ///< the transfer of state to newcomers
  FirstOperation,  ///< -> the first operation of the new epoch is complete
};
inline constexpr std::size_t kRecoveryPhases = 8;
/// "detect", "wedge", ...
[[nodiscard]] std::string_view name(RecoveryPhase phase);

/// Collects events in the order of the log.
/// Thread safety: one thread at a time. Memory: grows with losses, views and processes, not with
/// operations.
class Report {
 public:
  /// Folds in one event; of kinds and fields that it does not know it takes no notice.
  void observe(const Stamp& stamp, EventKind kind, const nlohmann::json& fields);
  /// Folds the log of a job, whole lines only. Errors: FailedPrecondition (no such file), those of
  /// parse_event().
  static Result<Report> from_events(const std::filesystem::path& events_file);

  /// docs/schemas/report.md.
  [[nodiscard]] nlohmann::json to_json() const;
  /// Puts report.json into place whole (rename). Errors: FailedPrecondition with path and reason.
  Status write(const std::filesystem::path& log_dir) const;

 private:
  struct Life {
    Incarnation incarnation;
    std::optional<std::int64_t> started_ns, attached_ns, lost_ns, finished_ns, drained_ns;
    std::int64_t detect_ns = 0;
    std::optional<metrics::Snapshot> time;
    std::size_t recovery = 0;  ///< 1 + index of the one that followed its loss
    Epoch seated;              ///< of the first view that has it in a seat
  };
  struct Recovery {
    Epoch from, to;
    std::int64_t lost_ns = 0;
    std::optional<std::int64_t> detect_ns, wedged_ns, decided_ns, flushed_ns, replaced_ns,
        installed_ns, entered_ns, first_operation_ns;
    std::int64_t heal_ns = 0;
    std::uint64_t rounds = 0;
    std::uint64_t committed_step = 0;
    std::vector<std::size_t> losses;
    nlohmann::json bytes_from = nlohmann::json::array();
    [[nodiscard]] bool complete() const {
      return installed_ns && (entered_ns || first_operation_ns);
    }
    [[nodiscard]] std::int64_t phase_ns(RecoveryPhase phase) const;
    [[nodiscard]] std::int64_t total_ns() const;
  };

  void on_lost(const Stamp& stamp, const nlohmann::json& fields);
  void on_installed(const Stamp& stamp, const nlohmann::json& fields);
  void on_entered(const Stamp& stamp, const nlohmann::json& fields);
  void on_drained(const Stamp& stamp, const nlohmann::json& fields);
  void on_replaced(const Stamp& stamp, const nlohmann::json& fields);
  void on_recovery_step(const Stamp& stamp, EventKind kind, const nlohmann::json& fields);
  void on_process(const Stamp& stamp, EventKind kind, const nlohmann::json& fields);
  Life& life(const nlohmann::json& fields);
  void hold_seat(Rank rank, Incarnation incarnation);

  [[nodiscard]] nlohmann::json recoveries_json() const;
  [[nodiscard]] nlohmann::json percentiles_json() const;
  [[nodiscard]] nlohmann::json exit_json() const;
  [[nodiscard]] nlohmann::json ledger_json() const;
  [[nodiscard]] metrics::Snapshot seat_time(const std::vector<Incarnation>& holders,
                                            std::uint64_t& spare_ns) const;
  void add_end(metrics::SeatLedger& seat, const Life& last, std::int64_t cursor) const;
  void add_vacancy(metrics::SeatLedger& seat, const Life& lost, std::int64_t cursor,
                   std::int64_t until) const;
  void add_between(metrics::SeatLedger& seat, const Life& before, const Life& next,
                   std::int64_t cursor, std::int64_t began) const;

  nlohmann::json job_ = nlohmann::json::object();  ///< fields of job_started
  nlohmann::json ended_;                           ///< fields of job_ended; null while it runs
  std::int64_t wall_ns_ = 0;
  nlohmann::json losses_ = nlohmann::json::array();
  nlohmann::json views_ = nlohmann::json::array();
  nlohmann::json replacements_ = nlohmann::json::array();
  nlohmann::json drained_ = nlohmann::json::array();
  std::map<std::string, std::uint64_t> warnings_;
  std::vector<Recovery> recoveries_;
  std::map<Incarnation, Life> lives_;
  std::map<Rank, std::vector<Incarnation>> holders_;  ///< of each seat, in order
  std::uint64_t coordinator_losses_ = 0;
  std::uint64_t injected_ = 0;
  std::int64_t refused_ = 0;
};

/// For people, from report.json's object. Fields that are missing are left out.
[[nodiscard]] std::string report_text(const nlohmann::json& report);
/// "1.20 ms", "3.4 s", "2h05m": three digits that matter.
[[nodiscard]] std::string duration_text(std::int64_t ns);
/// "1.5 MiB"
[[nodiscard]] std::string bytes_text(std::uint64_t bytes);

}  // namespace regroup::launcher
