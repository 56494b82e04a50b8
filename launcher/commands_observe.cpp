#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>

#include <poll.h>
#include <sys/inotify.h>

#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "base/fd.hpp"
#include "launcher/command_line.hpp"
#include "launcher/commands.hpp"
#include "launcher/control_socket.hpp"
#include "launcher/event_log.hpp"
#include "launcher/exit_codes.hpp"
#include "launcher/flight_log.hpp"
#include "launcher/observe_text.hpp"
#include "launcher/report.hpp"
#include "launcher/report_page.hpp"

namespace regroup::launcher {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

/// Without news, `events -f` looks this often whether the launcher still lives.
constexpr int kAliveEveryMs = 500;

/// What a person means by DIR: a log directory, a file in it, or nothing: the newest job below
/// runs/.
Result<fs::path> find_log_dir(const std::string& named) {
  std::error_code error;
  if (!named.empty()) {
    const fs::path path(named);
    if (fs::is_directory(path, error)) return path;
    if (fs::exists(path, error)) return path.has_parent_path() ? path.parent_path() : fs::path(".");
    // "7f3a" says enough when runs/7f3a is there.
    if (fs::is_directory("runs" / path, error)) return "runs" / path;
    return Status(Code::FailedPrecondition, fmt::format("E-REP-1 there is no directory {}", named));
  }
  std::optional<std::pair<fs::file_time_type, fs::path>> newest;
  for (const auto& entry : fs::directory_iterator("runs", error)) {
    if (entry.is_symlink(error)) continue;
    const auto written = fs::last_write_time(entry.path() / kEventFile, error);
    if (!error && (!newest || written > newest->first)) newest.emplace(written, entry.path());
  }
  if (newest) return newest->second;
  return Status(Code::FailedPrecondition,
                "E-REP-1 no job has written below runs/ here: name its log directory, as in "
                "\"regroup report DIR\"");
}

/// Prints the lines of an event log as they come.
class EventReader {
 public:
  EventReader(fs::path path, bool raw) : path_(std::move(path)), raw_(raw), in_(path_) {}

  [[nodiscard]] bool opened() const { return in_.is_open(); }
  [[nodiscard]] bool ended() const { return ended_; }
  [[nodiscard]] std::int32_t launcher_pid() const { return pid_; }

  /// Prints all whole lines that are there. Errors: a line that cannot be read.
  Status print_new() {
    for (std::string part; std::getline(in_, part);) {
      line_ += part;
      if (in_.eof()) break;  // no newline yet: the rest will come
      if (Status status = print(line_); !status) return status;
      line_.clear();
    }
    in_.clear();
    std::fflush(stdout);
    return {};
  }

 private:
  Status print(const std::string& line) {
    if (line.empty()) return {};
    Result<ParsedEvent> event = parse_event(line);
    if (!event && line.back() != '}') return {};  // torn by a full disk or a kill
    if (!event)
      return {event.error().code(),
              fmt::format("E-REP-2 {}: {}", path_.string(), event.error().text())};
    if (event->kind == name(EventKind::JobEnded)) ended_ = true;
    if (event->kind == name(EventKind::JobStarted) && (*event->fields)["pid"].is_number_integer()) {
      pid_ = (*event->fields)["pid"].get<std::int32_t>();
    }
    fmt::print("{}\n", raw_ ? line : event_text(event->stamp, event->kind, *event->fields));
    return {};
  }

  fs::path path_;
  bool raw_;
  std::ifstream in_;
  std::string line_;
  bool ended_ = false;
  std::int32_t pid_ = 0;
};

/// Waits until the file grew, or a while without news.
void await_growth(const base::Fd& watch) {
  pollfd ready{watch.get(), POLLIN, 0};
  if (::poll(&ready, watch ? 1 : 0, kAliveEveryMs) <= 0) return;
  alignas(inotify_event) std::array<char, 4096> news{};
  (void)!::read(watch.get(), news.data(), news.size());
}

int follow(EventReader& reader, const fs::path& path) {
  const base::Fd watch(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  if (watch) (void)::inotify_add_watch(watch.get(), path.c_str(), IN_MODIFY);
  while (!reader.ended()) {
    await_growth(watch);
    const bool gone =
        reader.launcher_pid() > 0 && ::kill(reader.launcher_pid(), 0) != 0 && errno == ESRCH;
    if (const Status status = reader.print_new(); !status) return say_failure(status);
    if (gone && !reader.ended()) {
      fmt::print(stderr, "regroup: the launcher (pid {}) is gone and the log has no end\n",
                 reader.launcher_pid());
      return kExitUnavailable;
    }
  }
  return kExitDone;
}

Result<json> read_report(const fs::path& dir) {
  const fs::path path = dir / kReportFile;
  std::error_code error;
  const auto written = fs::last_write_time(path, error);
  const bool there = !error;
  const auto logged = fs::last_write_time(dir / kEventFile, error);
  // A directory that was used again: an older job's report says nothing of the newer log.
  const bool current = there && (error || written >= logged);
  if (current) {
    std::ifstream in(path);
    json report = json::parse(in, nullptr, false);
    if (!report.is_object() || !report.contains("v")) {
      return Status(Code::InvalidArgument,
                    fmt::format("E-REP-2 {} is not a report", path.string()));
    }
    if (report["v"] != kReportSchema) {
      return Status(Code::Unsupported,
                    fmt::format("E-REP-2 {} has schema {}, this version reads {}", path.string(),
                                report["v"].dump(), kReportSchema));
    }
    return report;
  }
  Result<Report> folded = Report::from_events(dir / kEventFile);
  if (!folded) return folded.error();
  return folded->to_json();
}

/// The flight records of the ranks that run, if the job does; a rank that ends meanwhile is left
/// out.
json running_flights(const std::string& name) {
  json out = json::array();
  const std::vector<RunningJob> jobs = running_jobs();
  const auto job = std::ranges::find(jobs, name, &RunningJob::job);
  if (job == jobs.end()) return out;
  const TimePoint until = Clock::now() + kAnswerTime;
  const Result<json> status = ask(*job, {{"v", kStatusSchema}, {"do", "status"}}, until);
  for (std::uint32_t rank = 0; status && rank < status->value("ranks", 0U); ++rank) {
    Result<json> flight =
        ask(*job, {{"v", kStatusSchema}, {"do", "flight"}, {"rank", rank}}, until);
    if (flight) out.push_back(std::move(*flight));
  }
  return out;
}

int write_file(const fs::path& path, const std::string& text) {
  std::ofstream out(path);
  out << text;
  out.close();
  if (out) return kExitDone;
  fmt::print(stderr, "regroup: E-REP-4 cannot write {}: {}\n", path.string(), std::strerror(errno));
  return kExitNotAllowed;
}

int write_page(const json& report, const fs::path& dir, const fs::path& page) {
  const Result<json> events = page_events(dir / kEventFile);
  if (!events) return say_failure(events.error());
  return write_file(page, report_page(report, *events));
}

}  // namespace

int status_command(const Arguments& arguments) {
  CLI::App app("Shows the jobs of yours that run on this machine, rank by rank.", "regroup status");
  std::string wanted;
  bool as_json = false;
  app.add_option("JOB", wanted, "only this job (its name, or the beginning of it)");
  app.add_flag("--json", as_json, "one JSON object a line (docs/schemas/status.md)");
  if (const std::optional<int> done = parse_command_line(app, "status", arguments)) return *done;
  std::vector<RunningJob> jobs = running_jobs();
  std::erase_if(jobs, [&](const RunningJob& job) { return !job.job.starts_with(wanted); });
  if (jobs.empty()) {
    fmt::print(stderr, "regroup: E-CTL-2 no job {}of yours runs on this machine\n",
               wanted.empty() ? "" : fmt::format("named {} ", wanted));
    return kExitUnavailable;
  }
  int exit_code = kExitDone;
  for (const RunningJob& job : jobs) {
    const Result<json> status =
        ask(job, {{"v", kStatusSchema}, {"do", "status"}}, Clock::now() + kAnswerTime);
    if (!status) {
      exit_code = say_failure(status.error());
      continue;
    }
    fmt::print("{}{}", as_json ? status->dump() : status_text(*status), as_json ? "\n" : "");
  }
  return exit_code;
}

int events_command(const Arguments& arguments) {
  CLI::App app("Prints what happened in a job, one line an event.", "regroup events");
  std::string named;
  bool following = false;
  bool as_json = false;
  app.add_option("DIR", named, "the job's log directory; the newest below runs/ when not given");
  app.add_flag("-f,--follow", following, "wait for more until the job ends");
  app.add_flag("--json", as_json, "the lines as they stand in the log (docs/schemas/events.md)");
  if (const std::optional<int> done = parse_command_line(app, "events", arguments)) return *done;
  const Result<fs::path> dir = find_log_dir(named);
  if (!dir) return say_failure(dir.error());
  const fs::path path = *dir / kEventFile;
  EventReader reader(path, as_json);
  if (!reader.opened()) {
    return say_failure(
        Status(Code::FailedPrecondition, fmt::format("E-REP-1 cannot read {}", path.string())));
  }
  if (const Status status = reader.print_new(); !status) return say_failure(status);
  return following ? follow(reader, path) : kExitDone;
}

int report_command(const Arguments& arguments) {
  CLI::App app(
      "Shows what became of a job: losses and their causes, recovery by phase, where the time "
      "went.",
      "regroup report");
  std::string page;
  std::string named;
  bool as_json = false;
  app.add_option("DIR", named, "the job's log directory; the newest below runs/ when not given");
  app.add_flag("--json", as_json, "the report as JSON (docs/schemas/report.md)");
  app.add_option("--html", page, "write it as one page for a browser, with everything in it");
  if (const std::optional<int> done = parse_command_line(app, "report", arguments)) return *done;
  const Result<fs::path> dir = find_log_dir(named);
  if (!dir) return say_failure(dir.error());
  const Result<json> report = read_report(*dir);
  if (!report) return say_failure(report.error());
  if (!page.empty()) return write_page(*report, *dir, page);
  fmt::print("{}", as_json ? report->dump(1) + "\n" : report_text(*report));
  return kExitDone;
}

int trace_command(const Arguments& arguments) {
  CLI::App app(
      "Prints a job as a Chrome trace: each rank's last operations, losses, recoveries. Of a job "
      "that runs, ranks that run too, up to now. Open it in Perfetto or chrome://tracing.",
      "regroup trace");
  std::string named;
  std::string file;
  app.add_option("DIR", named, "the job's log directory; the newest below runs/ when not given");
  app.add_option("-o,--output", file, "write it there; to stdout when not given");
  if (const std::optional<int> done = parse_command_line(app, "trace", arguments)) return *done;
  const Result<fs::path> dir = find_log_dir(named);
  if (!dir) return say_failure(dir.error());
  Result<json> report = read_report(*dir);
  if (!report) return say_failure(report.error());
  // Before the log is read: a process that ends in between stands there.
  const json running = running_flights(report->value("job", ""));
  if (!running.empty()) report = read_report(*dir);
  const Result<json> events = trace_events(*dir / kEventFile);
  if (!report || !events) return say_failure(report ? events.error() : report.error());
  const std::string text = chrome_trace(*dir, *events, *report, running)
                               .dump(-1, ' ', false, json::error_handler_t::replace);
  if (file.empty()) {
    fmt::print("{}\n", text);
    return kExitDone;
  }
  return write_file(file, text);
}

int inject_command(const Arguments& arguments) {
  CLI::App app("Rehearses a fault in a running job.", "regroup inject");
  std::string action;
  std::string wanted;
  std::string at;
  std::int64_t rank = -1;
  app.add_option("ACTION", action, "kill, stop, cont, evict or coordinator-kill")
      ->required()
      ->check(CLI::IsMember({"kill", "stop", "cont", "evict", "coordinator-kill"}));
  app.add_option("--rank", rank, "the seat that is meant")->check(CLI::NonNegativeNumber);
  app.add_option("--at", at,
                 "when: step=K, seq=K, phase=P, several with commas; at once when not given");
  app.add_option("--job", wanted, "which job, when several of yours run");
  if (const std::optional<int> done = parse_command_line(app, "inject", arguments)) return *done;
  if (const Result<Trigger> trigger = Trigger::parse(at); !trigger) {
    fmt::print(stderr, "regroup: {}\n", trigger.error().text());
    return kExitBadUsage;
  }
  const Result<RunningJob> job = only_job(wanted);
  if (!job) return say_no_job(job.error());
  json request = {{"v", kStatusSchema}, {"do", "inject"}, {"action", action}, {"at", at}};
  if (rank >= 0) request["rank"] = rank;
  const Result<json> answer = ask(*job, request, Clock::now() + kAnswerTime);
  if (!answer) return say_failure(answer.error());
  const bool done = answer->contains("done") && (*answer)["done"] == true;
  fmt::print("{}\n", done ? "done" : fmt::format("armed: {} when {}", action, at));
  return kExitDone;
}

}  // namespace regroup::launcher
