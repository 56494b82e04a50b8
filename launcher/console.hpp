/// What the started processes print: into a file each, and line by line, prefixed, onto the
/// console.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include <regroup/status.hpp>
#include <regroup/types.hpp>

#include "base/fd.hpp"

namespace regroup::launcher {

/// Our own stdout and stderr. A pipe whose reader is gone, or a full disk, ends the output there
/// and nothing else. Thread safety: one thread. write() may block while a slow console takes its
/// time.
class Console {
 public:
  /// quiet: messages of ours are left out, never the programs' output. programs: false leaves that
  /// out too (--json).
  struct Options {
    bool quiet = false;
    bool programs = true;
    /// Where lines of ours go instead of stderr, if set.
    std::function<void(std::string_view line)> sink;
    /// Where whole lines of programs go instead of stdout and stderr, if set.
    std::function<void(bool is_error, std::string_view lines)> program_sink{};
  };
  explicit Console(Options options) : options_(std::move(options)) {}

  /// One or more whole lines of a program.
  void program_lines(bool is_error, std::string_view text);
  /// One line of ours, on stderr, whatever the options.
  void always(std::string_view line);
  /// One line of ours, on stderr, unless quiet.
  void say(std::string_view line);
  [[nodiscard]] bool quiet() const { return options_.quiet; }

 private:
  void write(int fd, std::string_view text);
  Options options_;
  bool closed_[3] = {};  ///< by descriptor
};

/// One of a process's two output streams: its pipe, its file and its unfinished line.
/// Thread safety: one thread. Never blocks on the pipe.
class OutputStream {
 public:
  /// A line longer than this is passed on in pieces, so that memory stays bounded.
  static constexpr std::size_t kLineBytesMax = 64 * 1024;

  OutputStream(base::Fd pipe, base::Fd file, bool is_error)
      : pipe_(std::move(pipe)), file_(std::move(file)), is_error_(is_error) {}

  [[nodiscard]] int fd() const { return pipe_.get(); }
  /// Reads what there is. Returns false at the end of the stream; the unfinished line has then been
  /// passed on.
  bool pump(Console& console, std::string_view prefix);
  /// Reads until nothing is left right now, and passes the unfinished line on.
  void finish(Console& console, std::string_view prefix);

 private:
  void take(Console& console, std::string_view prefix, std::string_view bytes);
  void flush_line(Console& console, std::string_view prefix);

  base::Fd pipe_;
  base::Fd file_;
  bool is_error_;
  std::string line_;
};

/// The folder of one seat's (or spare's) logs, and in it the files of one incarnation.
struct LogFiles {
  base::Fd out;
  base::Fd err;
};
/// Makes `<log_dir>/rank-R/inc-I.out` and `.err` (spares: `spare-I/inc-I.*`) and points
/// `latest.out` and `latest.err` at them. Errors: FailedPrecondition with path and reason.
Result<LogFiles> open_logs(const std::filesystem::path& log_dir, std::optional<Rank> seat,
                           Incarnation incarnation);
/// A spare took the seat: its files appear under the seat's folder too. Errors: as open_logs().
Status adopt_logs(const std::filesystem::path& log_dir, Rank seat, Incarnation incarnation);

}  // namespace regroup::launcher
