#include "launcher/event_log.hpp"

#include <array>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <mutex>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/check.hpp"
#include "base/fd.hpp"
#include "launcher/report.hpp"

namespace regroup::launcher {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr std::int64_t kNanosPerSecond = 1'000'000'000;
constexpr int kKeptLogsMax = 1000;
/// A line longer than this is a defect of whoever made its fields; its text is cut rather than its
/// neighbours harmed.
constexpr std::size_t kTextBytesMax = 16 * 1024;

constexpr std::array<std::string_view, kEventKindCount> kNames = {"job_started",
                                                                  "process_started",
                                                                  "attached",
                                                                  "view_installed",
                                                                  "lost",
                                                                  "wedged",
                                                                  "decided",
                                                                  "flushed",
                                                                  "replaced",
                                                                  "entered",
                                                                  "first_operation",
                                                                  "coordinator_lost",
                                                                  "coordinator_restarted",
                                                                  "finished",
                                                                  "ledger",
                                                                  "flight",
                                                                  "injected",
                                                                  "refused",
                                                                  "warning",
                                                                  "note",
                                                                  "drained",
                                                                  "job_ended"};

std::int64_t read_clock(clockid_t id) {
  timespec now{};
  ::clock_gettime(id, &now);
  return now.tv_sec * kNanosPerSecond + now.tv_nsec;
}

std::string bounded(const std::string& text) {
  return text.size() <= kTextBytesMax ? text : text.substr(0, kTextBytesMax) + " [cut]";
}

void put_seat(json& out, const std::optional<Rank>& rank, Incarnation incarnation) {
  if (rank) out["rank"] = rank->value();
  out["incarnation"] = incarnation.value();
}

json fields(const events::JobStarted& e) {
  json program = json::array();
  for (const std::string& word : e.program) program.push_back(bounded(word));
  json out = {{"job", e.job},       {"version", e.version}, {"pid", e.pid},
              {"host", e.host},     {"ranks", e.ranks},     {"ranks_min", e.ranks_min},
              {"spares", e.spares}, {"on_loss", e.on_loss}, {"program", std::move(program)}};
  if (!e.hosts.empty()) out["hosts"] = e.hosts;
  return out;
}
json fields(const events::ProcessStarted& e) {
  json out = {{"pid", e.pid}};
  put_seat(out, e.rank, e.incarnation);
  return out;
}
json fields(const events::Attached& e) {
  json out = {{"pid", e.pid}, {"since_start_ns", e.since_start_ns}};
  put_seat(out, e.rank, e.incarnation);
  return out;
}
json fields(const events::ViewInstalled& e) {
  json seats = json::array();
  for (const Incarnation incarnation : e.seats) seats.push_back(incarnation.value());
  return {{"epoch", e.epoch.value()}, {"seats", std::move(seats)}, {"resume_step", e.resume_step}};
}
json fields(const events::Lost& e) {
  json out = {{"epoch", e.epoch.value()},
              {"evidence", evidence_name(e.evidence.kind)},
              {"text", bounded(e.evidence.text)},
              {"attached", e.attached}};
  put_seat(out, e.rank, e.incarnation);
  if (e.evidence.signal != 0) out["signal"] = e.evidence.signal;
  if (e.evidence.exit_code >= 0) out["exit_code"] = e.evidence.exit_code;
  if (!e.operation.empty()) out["operation"] = e.operation;
  if (e.seq != 0) out["seq"] = e.seq;
  if (e.step != 0) out["step"] = e.step;
  if (!e.phase.empty()) out["phase"] = e.phase;
  if (e.detect_ns) out["detect_ns"] = *e.detect_ns;
  return out;
}
json fields(const events::Wedged& e) {
  json lost = json::array();
  for (const Member& member : e.lost) {
    lost.push_back({{"rank", member.rank.value()}, {"incarnation", member.incarnation.value()}});
  }
  return {{"epoch", e.epoch.value()}, {"round", e.round}, {"lost", std::move(lost)}};
}
json fields(const events::Decided& e) {
  json cuts = json::array();
  for (const auto& cut : e.cuts)
    cuts.push_back({{"group", cut.group}, {"completed", cut.completed}});
  return {{"epoch", e.epoch.value()},
          {"round", e.round},
          {"committed_step", e.committed_step},
          {"cuts", std::move(cuts)}};
}
json fields(const events::Flushed& e) { return {{"epoch", e.epoch.value()}, {"round", e.round}}; }
json fields(const events::Replaced& e) {
  return {{"rank", e.rank.value()},
          {"incarnation", e.incarnation.value()},
          {"previous", e.previous.value()},
          {"how", e.from_spare ? "spare" : "cold"}};
}
json fields(const events::Entered& e) {
  json donors = json::array();
  for (const auto& [donor, bytes] : e.bytes_from) {
    donors.push_back({{"donor", donor.value()}, {"bytes", bytes}});
  }
  return {{"rank", e.rank.value()},
          {"incarnation", e.incarnation.value()},
          {"epoch", e.epoch.value()},
          {"heal_ns", e.heal_ns},
          {"bytes_from", std::move(donors)}};
}
json fields(const events::FirstOperation& e) {
  return {{"epoch", e.epoch.value()}, {"rank", e.rank.value()}};
}
json fields(const events::CoordinatorLost& e) {
  return {{"pid", e.pid}, {"text", bounded(e.text)}};
}
json fields(const events::CoordinatorRestarted& e) {
  return {{"pid", e.pid}, {"restarts", e.restarts}};
}
json fields(const events::Finished& e) {
  json out = {{"exit_code", e.exit_code}};
  put_seat(out, e.rank, e.incarnation);
  return out;
}
json fields(const events::Ledger& e) {
  json by_category = json::object();
  for (std::size_t i = 0; i < metrics::kCategories; ++i) {
    by_category[std::string(metrics::name(static_cast<metrics::Category>(i)))] = e.time.ns[i];
  }
  json out = {{"category_ns", std::move(by_category)},
              {"wall_ns", e.time.wall_ns},
              {"overlapped_ns", e.time.overlapped_ns},
              {"operations", e.time.operations},
              {"operation_bytes", e.time.operation_bytes}};
  put_seat(out, e.rank, e.incarnation);
  return out;
}
json fields(const events::Flight& e) {
  json out = {{"file", e.file}, {"operations", e.operations}, {"monotonic_ns", e.monotonic_ns}};
  put_seat(out, e.rank, e.incarnation);
  return out;
}
json fields(const events::Injected& e) {
  json out = {{"action", e.action}};
  if (e.rank) out["rank"] = e.rank->value();
  if (!e.at.empty()) out["at"] = e.at;
  return out;
}
json fields(const events::Refused& e) { return {{"causes", e.causes}, {"total", e.total}}; }
json fields(const events::Warning& e) { return {{"code", e.code}, {"text", bounded(e.text)}}; }
json fields(const events::Note& e) { return {{"about", e.about}, {"text", bounded(e.text)}}; }
json fields(const events::Drained& e) {
  return {{"rank", e.rank.value()},
          {"incarnation", e.incarnation.value()},
          {"resume_step", e.resume_step}};
}
json fields(const events::JobEnded& e) {
  return {{"exit_code", e.exit_code},
          {"origin", e.origin},
          {"reason", bounded(e.reason)},
          {"ranks_finished", e.ranks_finished},
          {"replaced", e.replaced}};
}

std::string make_line(const Stamp& stamp, EventKind kind, const json& fields) {
  ordered_json line;
  line["v"] = kEventSchema;
  line["time"] = utc_text(stamp.utc_ns);
  line["offset_ns"] = stamp.offset_ns;
  line["kind"] = name(kind);
  if (fields.is_object()) {
    for (const auto& [key, value] : fields.items()) {
      if (!line.contains(key)) line[key] = value;
    }
  }
  // Texts may hold whatever a program printed: bytes that are not UTF-8 are replaced, never thrown
  // about.
  return line.dump(-1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

/// Moves an earlier job's log out of the way.
void keep_earlier(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error) || std::filesystem::is_empty(path, error)) {
    return;
  }
  for (int i = 1; i <= kKeptLogsMax; ++i) {
    const auto kept = path.parent_path() / fmt::format("{}.{}.jsonl", path.stem().string(), i);
    if (std::filesystem::exists(kept, error)) continue;
    std::filesystem::rename(path, kept, error);
    return;
  }
}

/// Writes all bytes; returns how many were written before `error` (errno, 0 when all).
std::size_t write_all(int fd, std::string_view bytes, int& error) {
  std::size_t done = 0;
  error = 0;
  while (done < bytes.size()) {
    const ssize_t n = ::write(fd, bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      error = n < 0 ? errno : EIO;
      break;
    }
    done += static_cast<std::size_t>(n);
  }
  return done;
}

}  // namespace

std::string_view name(EventKind kind) {
  const auto index = static_cast<std::size_t>(kind);
  REGROUP_ASSERT(index < kNames.size());
  return kNames[index];
}

std::optional<EventKind> event_kind(std::string_view text) {
  for (std::size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] == text) return static_cast<EventKind>(i);
  }
  return std::nullopt;
}

std::string_view evidence_name(membership::EvidenceKind kind) {
  switch (kind) {
    case membership::EvidenceKind::Beacon: return "beacon";
    case membership::EvidenceKind::Reaped: return "reaped";
    case membership::EvidenceKind::ChannelClosed: return "channel_closed";
    case membership::EvidenceKind::Silence: return "silence";
    case membership::EvidenceKind::Requested: return "requested";
    case membership::EvidenceKind::AgentLost: return "agent_lost";
  }
  REGROUP_UNREACHABLE("evidence kind outside its enumeration");
}

static_assert(std::variant_size_v<Event> == kEventKindCount,
              "one struct for each kind, in the same order");

EventKind kind_of(const Event& event) { return static_cast<EventKind>(event.index()); }

nlohmann::json fields_of(const Event& event) {
  return std::visit([](const auto& e) { return fields(e); }, event);
}

std::string utc_text(std::int64_t utc_ns) {
  const std::time_t seconds = utc_ns / kNanosPerSecond;
  std::tm parts{};
  ::gmtime_r(&seconds, &parts);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}Z", parts.tm_year + 1900,
                     parts.tm_mon + 1, parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec,
                     utc_ns % kNanosPerSecond);
}

struct EventLog::Impl {
  mutable std::mutex mutex;
  base::Fd fd;
  std::string path;
  Options options;
  std::int64_t started_ns = 0;
  bool warned = false;  ///< said on stderr that lines are lost
  bool torn = false;    ///< the file ends in a part of a line
  std::uint64_t dropped = 0;
  std::uint64_t dropped_told = 0;
  Report report;

  [[nodiscard]] Stamp now() const {
    if (options.clock) return options.clock();
    return {read_clock(CLOCK_REALTIME), read_clock(CLOCK_MONOTONIC) - started_ns};
  }

  /// True when the whole line stands in the file.
  bool append(std::string line) {
    if (torn) line.insert(0, "\n");
    int error = 0;
    const std::size_t done = write_all(fd.get(), line, error);
    if (error == 0) {
      torn = false;
      return true;
    }
    torn = torn || done > 0;
    ++dropped;
    if (std::exchange(warned, true)) return false;
    fmt::print(stderr,
               "regroup: E-LOG-2 cannot write {}: {}. The job goes on; events are missing from the "
               "log until "
               "writing works again.\n",
               path, std::strerror(error));
    return false;
  }

  void fold(const Stamp& stamp, EventKind kind, const json& fields);

  /// After the first line that could be written again: says how many are missing before it.
  void tell_dropped(const Stamp& stamp) {
    const std::uint64_t missing = dropped - dropped_told;
    if (missing == 0) return;
    const std::string text =
        fmt::format("{} events before this line could not be written", missing);
    if (append(make_line(stamp, EventKind::Warning, {{"code", "E-LOG-2"}, {"text", text}})))
      dropped_told += missing;
  }
};

EventLog::EventLog(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
EventLog::EventLog(EventLog&&) noexcept = default;
EventLog& EventLog::operator=(EventLog&&) noexcept = default;
EventLog::~EventLog() = default;

Result<EventLog> EventLog::open(const std::filesystem::path& log_dir) {
  return open(log_dir, Options{});
}

Result<EventLog> EventLog::open(const std::filesystem::path& log_dir, Options options) {
  std::error_code error;
  std::filesystem::create_directories(log_dir, error);
  const std::filesystem::path path = log_dir / options.file;
  keep_earlier(path);
  auto impl = std::make_unique<Impl>();
  impl->fd.reset(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  if (!impl->fd) {
    return Status(
        Code::FailedPrecondition,
        fmt::format("E-LOG-1 cannot write {}: {}. Choose another directory with --log-dir.",
                    path.string(), std::strerror(errno)));
  }
  impl->path = path.string();
  impl->options = std::move(options);
  impl->started_ns = read_clock(CLOCK_MONOTONIC);
  return EventLog(std::move(impl));
}

void EventLog::listen(Listener listener) { impl_->options.listener = std::move(listener); }

void EventLog::write(const Event& event) { write(kind_of(event), fields_of(event)); }

void EventLog::write(EventKind kind, const nlohmann::json& fields) {
  Stamp stamp;
  {
    const std::lock_guard lock(impl_->mutex);
    stamp = impl_->now();
    const std::string line = make_line(stamp, kind, fields);
    if (impl_->append(line)) impl_->tell_dropped(stamp);
    if (impl_->options.report) impl_->fold(stamp, kind, fields);
    if (impl_->options.mirror_fd >= 0) {
      int ignored = 0;  // whoever reads the mirror may go away; the job goes on
      (void)write_all(impl_->options.mirror_fd, line, ignored);
    }
  }
  if (impl_->options.listener) impl_->options.listener(stamp, kind, fields);
}

void EventLog::Impl::fold(const Stamp& stamp, EventKind kind, const json& fields) {
  report.observe(stamp, kind, fields);
  if (kind != EventKind::JobEnded) return;
  const Status written = report.write(std::filesystem::path(path).parent_path());
  if (written) return;
  fmt::print(stderr, "regroup: {}. \"regroup report\" makes it from the log.\n", written.text());
}

Stamp EventLog::now() const { return impl_->now(); }

std::uint64_t EventLog::dropped() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->dropped;
}

Result<ParsedEvent> parse_event(std::string_view line) {
  json parsed = json::parse(line, nullptr, false);
  if (!parsed.is_object() || !parsed.contains("v") || !parsed["v"].is_number_integer() ||
      !parsed.contains("kind") || !parsed["kind"].is_string()) {
    return Status(Code::InvalidArgument,
                  "not a line of an event log (one JSON object with v and kind)");
  }
  if (parsed["v"].get<std::int64_t>() != kEventSchema) {
    return Status(
        Code::InvalidArgument,
        fmt::format(
            "event schema {} is not the {} that this version of regroup reads; use the version "
            "that wrote the log",
            parsed["v"].dump(), kEventSchema));
  }
  ParsedEvent out;
  out.kind = parsed["kind"].get<std::string>();
  if (const auto at = parsed.find("offset_ns"); at != parsed.end() && at->is_number_integer()) {
    out.stamp.offset_ns = at->get<std::int64_t>();
  }
  out.fields = std::make_unique<json>(std::move(parsed));
  return out;
}

}  // namespace regroup::launcher
