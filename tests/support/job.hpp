/// One `regroup` command under test: started, read line by line, signalled, and never left running.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include <regroup/types.hpp>

#include "base/fd.hpp"
#include "tests/support/sanitized.hpp"

namespace regroup::test {

/// The numbers of ranks at which deaths in each phase are tried.
inline const std::vector<int> kRankCounts =
    kSanitized ? std::vector<int>{3} : std::vector<int>{2, 3, 4};

/// A directory that is removed with this object.
class TempDir {
 public:
  TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  ~TempDir();
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

struct JobOptions {
  std::vector<std::string> environment;  ///< KEY=VALUE on top of this process's
  std::string input;                     ///< its standard input
  unsigned long descriptors_hard = 0;    ///< 0: as here
  std::string directory;                 ///< its working directory; empty: as here
  std::function<void()> before_exec;     ///< runs in the child; async-signal-safe calls only
  std::chrono::seconds patience{40};     ///< of every wait
};

/// Thread safety: one thread. Every wait has a deadline; a job that passes it is killed and the
/// test fails with all that it printed.
class Job {
 public:
  /// `words` follow the program's name.
  explicit Job(const std::vector<std::string>& words, JobOptions options = {});
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;
  ~Job();

  [[nodiscard]] pid_t pid() const { return pid_; }
  void signal(int signal) const;
  /// Blocks until standard output and error together hold this text. False when the job ended or
  /// patience ran out without it.
  bool wait_for(const std::string& text);
  /// Blocks until it has ended. Returns its exit code, or 128 + signal.
  int wait();
  /// Blocks until it is stopped (SIGSTOP, SIGTSTP). False when it ended or patience ran out.
  bool wait_stopped();
  /// Whether a wait for its end was given up.
  [[nodiscard]] bool timed_out() const { return timed_out_; }
  /// Waits, and then for everything that carries this job's id to be gone. Returns what is left.
  std::vector<pid_t> left_behind();

  [[nodiscard]] const std::string& out() const { return out_; }
  [[nodiscard]] const std::string& err() const { return err_; }
  /// The job's id, from its first line.
  [[nodiscard]] std::string id() const;
  /// Stops reading its standard output: its pipe breaks.
  void close_output() { out_pipe_.reset(); }

 private:
  bool pump(TimePoint until);
  void reap(bool block);

  pid_t pid_ = -1;
  std::chrono::seconds patience_;
  int status_ = -1;
  bool ended_ = false;
  bool timed_out_ = false;
  base::Fd out_pipe_;
  base::Fd err_pipe_;
  std::string out_;
  std::string err_;
};

/// What one command printed and how it ended.
struct Ended {
  int exit_code = -1;      ///< 128 + signal when ended by one
  bool timed_out = false;  ///< the watchdog ended it; the test has failed already
  std::string out;
  std::string err;
  /// The text after the first `key` up to white space, over standard output; empty when it is not
  /// there.
  [[nodiscard]] std::string value_of(const std::string& key) const;
  [[nodiscard]] std::vector<std::string> lines_with(const std::string& part) const;
};
/// Runs `regroup WORDS` to its end.
Ended run(const std::vector<std::string>& words, JobOptions options = {});

/// `T`: stopped, `S`: asleep, ... of a process, as /proc says; '-' when there is none.
[[nodiscard]] char state_of(pid_t pid);
[[nodiscard]] std::string read_file(const std::filesystem::path& path);
/// How often `part` stands in `text`.
[[nodiscard]] std::size_t count(const std::string& text, const std::string& part);

}  // namespace regroup::test
