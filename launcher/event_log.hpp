/// The job's history: `<log-dir>/events.jsonl`, one JSON object a line. docs/schemas/events.md
/// describes each kind; the report is a fold over these lines, so whoever has the file can make the
/// report again.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include <regroup/status.hpp>
#include <regroup/types.hpp>

#include "membership/types.hpp"
#include "metrics/ledger.hpp"

namespace regroup::launcher {

/// Version of the lines' layout; grows when a field changes its meaning, not when one is added.
inline constexpr int kEventSchema = 1;
inline constexpr std::string_view kEventFile = "events.jsonl";

enum class EventKind : std::uint8_t {
  JobStarted,
  ProcessStarted,
  Attached,
  ViewInstalled,
  Lost,
  Wedged,
  Decided,
  Flushed,
  Replaced,
  Entered,
  FirstOperation,
  CoordinatorLost,
  CoordinatorRestarted,
  Finished,
  Ledger,
  Flight,
  Injected,
  Refused,
  Warning,
  Note,
  Drained,
  JobEnded,
};
inline constexpr int kEventKindCount = 22;

/// As it stands in the lines: "job_started", ...
[[nodiscard]] std::string_view name(EventKind kind);
/// Empty for a kind that this version does not know.
[[nodiscard]] std::optional<EventKind> event_kind(std::string_view name);

/// "beacon", "reaped", ...: stable words for files.
[[nodiscard]] std::string_view evidence_name(membership::EvidenceKind kind);

/// The fields of each kind. A field that is absent (no seat, not known) is left out of the line.
namespace events {

struct JobStarted {
  std::string job;
  std::string version;
  std::int32_t pid = 0;
  std::string host;
  std::uint32_t ranks = 0;
  std::uint32_t ranks_min = 0;
  std::uint32_t spares = 0;
  std::string on_loss;
  std::vector<std::string> program;
  std::vector<std::string> hosts;  ///< as listed; empty: this one
};
struct ProcessStarted {
  std::optional<Rank> rank;  ///< none: a spare
  Incarnation incarnation;
  std::int32_t pid = 0;
};
/// The process said hello on its control channel.
struct Attached {
  std::optional<Rank> rank;
  Incarnation incarnation;
  std::int32_t pid = 0;
  std::int64_t since_start_ns = 0;
};
struct ViewInstalled {
  Epoch epoch;
  std::vector<Incarnation> seats;  ///< 0: vacant
  std::uint64_t resume_step = 1;
};
struct Lost {
  std::optional<Rank> rank;
  Incarnation incarnation;
  Epoch epoch;
  membership::Evidence evidence;
  bool attached = true;
  std::string operation;  ///< what it was doing, empty when nothing or not known
  std::uint64_t seq = 0;
  std::uint64_t step = 0;
  std::string phase;
  std::optional<std::int64_t>
      detect_ns;  ///< from its last proof of life, or from the injected kill
};
struct Wedged {
  Epoch epoch;
  std::uint64_t round = 0;
  std::vector<Member> lost;
};
struct Decided {
  Epoch epoch;
  std::uint64_t round = 0;
  std::uint64_t committed_step = 0;
  std::vector<membership::WedgeReport::GroupCut> cuts;
};
/// The decision stands in the words of all survivors of this host, and waiting calls were woken to
/// finish.
struct Flushed {
  Epoch epoch;
  std::uint64_t round = 0;
};
struct Replaced {
  Rank rank;
  Incarnation incarnation;
  Incarnation previous;
  bool from_spare = false;  ///< else started cold
};
/// A member entered the epoch; bytes_from is what a newcomer got from each donor.
struct Entered {
  Rank rank;
  Incarnation incarnation;
  Epoch epoch;
  std::int64_t heal_ns = 0;
  std::map<Rank, std::uint64_t> bytes_from;
};
/// First operation completed in this epoch, as the agent saw it in the beacon pages.
struct FirstOperation {
  Epoch epoch;
  Rank rank;
};
struct CoordinatorLost {
  std::int32_t pid = 0;
  std::string text;
};
struct CoordinatorRestarted {
  std::int32_t pid = 0;
  std::uint32_t restarts = 0;
};
struct Finished {
  std::optional<Rank> rank;
  Incarnation incarnation;
  std::int32_t exit_code = 0;
};
/// Where the time of one process went, read from its beacon page when it ended; the report puts the
/// lives of a seat and the gaps between them together.
struct Ledger {
  std::optional<Rank> rank;
  Incarnation incarnation;
  metrics::Snapshot time;
};
/// Its last operations were written to a file (flight_log.hpp).
struct Flight {
  std::optional<Rank> rank;
  Incarnation incarnation;
  std::string file;  ///< below the log directory
  std::uint64_t operations = 0;
  std::uint64_t monotonic_ns = 0;  ///< of this line: the clock that the file counts in
};
struct Injected {
  std::string action;
  std::optional<Rank> rank;
  std::string at;  ///< "", "step=3", "seq=17", "phase=reduce"
};
/// Connections and messages that were refused since the last such line, and since the start.
struct Refused {
  std::map<std::string, std::uint64_t> causes;  ///< new ones, by name
  std::uint64_t total = 0;
};
/// One text of the error catalogue, docs/errors.md.
struct Warning {
  std::string code;
  std::string text;
};
struct Note {
  std::string about;
  std::string text;
};
/// The process left its seat as planned; it ends by itself.
struct Drained {
  Rank rank;
  Incarnation incarnation;
  std::uint64_t resume_step = 1;  ///< of the view without it
};
struct JobEnded {
  std::int32_t exit_code = 0;
  std::string origin;  ///< app, launcher or signal
  std::string reason;
  std::uint32_t ranks_finished = 0;
  std::uint32_t replaced = 0;
};

}  // namespace events

using Event =
    std::variant<events::JobStarted, events::ProcessStarted, events::Attached,
                 events::ViewInstalled, events::Lost, events::Wedged, events::Decided,
                 events::Flushed, events::Replaced, events::Entered, events::FirstOperation,
                 events::CoordinatorLost, events::CoordinatorRestarted, events::Finished,
                 events::Ledger, events::Flight, events::Injected, events::Refused, events::Warning,
                 events::Note, events::Drained, events::JobEnded>;

[[nodiscard]] EventKind kind_of(const Event& event);
/// The line's fields, without version, time and kind.
[[nodiscard]] nlohmann::json fields_of(const Event& event);

/// When something happened.
struct Stamp {
  std::int64_t utc_ns = 0;     ///< since 1970
  std::int64_t offset_ns = 0;  ///< monotonic, since the job started
};
/// "2026-01-31T12:00:00.000000001Z"
[[nodiscard]] std::string utc_text(std::int64_t utc_ns);

/// Writes the lines. Each is one write(2) in append mode, so a line is whole even if this process
/// is killed. A full or read-only disk costs one warning on stderr and the lines themselves, never
/// the job; once writing works again a warning line says how many are missing. Thread safety: any
/// thread. Blocks for the time of one write to the file system.
class EventLog {
 public:
  /// Called with each event after it was written, on the writing thread and outside the log's lock.
  using Listener = std::function<void(const Stamp&, EventKind, const nlohmann::json& fields)>;
  struct Options {
    int mirror_fd = -1;              ///< lines go there too (`--json`: stdout); not owned
    std::function<Stamp()> clock{};  ///< tests; the system's clocks when empty
    Listener listener{};
    std::string file{kEventFile};  ///< its name in the directory
    bool report = true;  ///< fold the lines into report.json, written beside the log with job_ended
  };

  /// Opens `<log_dir>/events.jsonl`, made if needed; that of an earlier job is kept as
  /// events.1.jsonl, .2, ... The offset counts from here. Errors: FailedPrecondition with the path
  /// and the system's reason.
  static Result<EventLog> open(const std::filesystem::path& log_dir, Options options);
  static Result<EventLog> open(const std::filesystem::path& log_dir);
  EventLog(const EventLog&) = delete;
  EventLog& operator=(const EventLog&) = delete;
  EventLog(EventLog&&) noexcept;
  EventLog& operator=(EventLog&&) noexcept;
  ~EventLog();

  /// From now on; instead of Options::listener.
  void listen(Listener listener);
  void write(const Event& event);
  /// For kinds of fields that no struct describes. Fields named like the line's own (v, time,
  /// offset_ns, kind) are dropped.
  void write(EventKind kind, const nlohmann::json& fields);
  /// The stamp that a line of this instant has.
  [[nodiscard]] Stamp now() const;
  /// How many lines could not be written.
  [[nodiscard]] std::uint64_t dropped() const;

 private:
  struct Impl;
  explicit EventLog(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// One line read back.
struct ParsedEvent {
  Stamp stamp;
  std::string kind;
  std::unique_ptr<nlohmann::json> fields;  ///< the whole object
};
/// Errors: InvalidArgument (not JSON, not an event, or of a newer schema).
Result<ParsedEvent> parse_event(std::string_view line);

}  // namespace regroup::launcher
