#include "launcher/console.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>

namespace regroup::launcher {
namespace fs = std::filesystem;

void Console::write(int fd, std::string_view text) {
  while (!text.empty() && !closed_[fd]) {
    const ssize_t sent = ::write(fd, text.data(), text.size());
    if (sent >= 0) {
      text.remove_prefix(static_cast<std::size_t>(sent));
    } else if (errno == EAGAIN) {
      // Somebody made our console non-blocking (it is shared with them): wait instead of losing a
      // line.
      pollfd wait{fd, POLLOUT, 0};
      ::poll(&wait, 1, -1);
    } else if (errno != EINTR) {
      closed_[fd] = true;
    }
  }
}

void Console::program_lines(bool is_error, std::string_view text) {
  if (options_.program_sink) return options_.program_sink(is_error, text);
  if (options_.programs) write(is_error ? 2 : 1, text);
}

void Console::always(std::string_view line) {
  if (options_.sink) return options_.sink(line);
  write(2, fmt::format("{}\n", line));
}

void Console::say(std::string_view line) {
  if (!options_.quiet) always(line);
}

bool OutputStream::pump(Console& console, std::string_view prefix) {
  char buffer[16 * 1024];
  const ssize_t got = ::read(pipe_.get(), buffer, sizeof buffer);
  if (got > 0) {
    take(console, prefix, {buffer, static_cast<std::size_t>(got)});
    return true;
  }
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return true;
  flush_line(console, prefix);
  return false;
}

void OutputStream::finish(Console& console, std::string_view prefix) {
  pollfd ready{pipe_.get(), POLLIN, 0};
  while (::poll(&ready, 1, 0) > 0 && (ready.revents & POLLIN) != 0) {
    if (!pump(console, prefix)) break;
  }
  flush_line(console, prefix);
}

void OutputStream::take(Console& console, std::string_view prefix, std::string_view bytes) {
  for (std::string_view rest = bytes; file_ && !rest.empty();) {
    const ssize_t sent = ::write(file_.get(), rest.data(), rest.size());
    if (sent < 0 && errno == EINTR) continue;
    // A full disk costs the log file, never the job.
    if (sent <= 0) file_.reset();
    if (sent > 0) rest.remove_prefix(static_cast<std::size_t>(sent));
  }
  std::string lines;
  while (!bytes.empty()) {
    const std::size_t end = bytes.find('\n');
    line_.append(bytes.substr(0, end));
    bytes.remove_prefix(end == std::string_view::npos ? bytes.size() : end + 1);
    if (end == std::string_view::npos && line_.size() < kLineBytesMax) break;
    fmt::format_to(std::back_inserter(lines), "{}: {}\n", prefix, line_);
    line_.clear();
  }
  if (!lines.empty()) console.program_lines(is_error_, lines);
}

void OutputStream::flush_line(Console& console, std::string_view prefix) {
  if (line_.empty()) return;
  console.program_lines(is_error_, fmt::format("{}: {}\n", prefix, line_));
  line_.clear();
}

namespace {

Status failed(std::string_view what, const fs::path& path, int error) {
  return {Code::FailedPrecondition,
          fmt::format("{} {}: {}", what, path.string(), std::strerror(error))};
}

/// Points link at target by rename, so that a reader finds the old one or the new one.
Status point(const fs::path& link, const fs::path& target) {
  fs::path fresh = link;
  fresh += ".new";
  std::error_code error;
  fs::remove(fresh, error);
  fs::create_symlink(target, fresh, error);
  if (!error) fs::rename(fresh, link, error);
  return error ? failed("cannot link", link, error.value()) : Status();
}

}  // namespace

Result<LogFiles> open_logs(const fs::path& log_dir, std::optional<Rank> seat,
                           Incarnation incarnation) {
  const fs::path folder = log_dir / (seat ? fmt::format("rank-{}", seat->value())
                                          : fmt::format("spare-{}", incarnation.value()));
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) return failed("cannot make", folder, error.value());
  LogFiles files;
  for (const bool is_error : {false, true}) {
    const char* ending = is_error ? "err" : "out";
    const std::string file = fmt::format("inc-{}.{}", incarnation.value(), ending);
    base::Fd fd(
        ::open((folder / file).c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0644));
    if (!fd) return failed("cannot write", folder / file, errno);
    (is_error ? files.err : files.out) = std::move(fd);
    if (Status linked = point(folder / fmt::format("latest.{}", ending), file); !linked)
      return linked;
  }
  return files;
}

Status adopt_logs(const fs::path& log_dir, Rank seat, Incarnation incarnation) {
  const fs::path folder = log_dir / fmt::format("rank-{}", seat.value());
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) return failed("cannot make", folder, error.value());
  for (const char* ending : {"out", "err"}) {
    const std::string file = fmt::format("inc-{}.{}", incarnation.value(), ending);
    const fs::path target = fs::path("..") / fmt::format("spare-{}", incarnation.value()) / file;
    if (Status linked = point(folder / file, target); !linked) return linked;
    if (Status linked = point(folder / fmt::format("latest.{}", ending), file); !linked)
      return linked;
  }
  return {};
}

}  // namespace regroup::launcher
