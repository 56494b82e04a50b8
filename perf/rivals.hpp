/// Other implementations, measured in turns with ours: each is a set of processes that stays alive
/// and blocks in a read of a pipe of its own while it is not its turn.
///
/// The pipes are named ones in a directory: `command.R` for each rank R, `result` for what the
/// first rank answers. A command is one line of words, an answer one JSON object in a line.
///   block COLLECTIVE DTYPE OP ROOT COUNT IN_PLACE MODE ITERATIONS WARMUPS CHECKS
///   -> {"us":[...],"cpu_s":S,"wrong":N,"checked":N}  or  {"error":"text"}
/// The first answer is {"ready":"name and version"}: by then every rank has opened its pipes, and
/// their names and the directory go away, so that nothing is left of a measurement that is killed.
/// The end of its pipe ends a rank.
#pragma once

#include <sched.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/fd.hpp"
#include "perf/measure.hpp"

namespace regroup::perf {

/// One that can be started: `command` holds {n} for the ranks and {dir} for the pipes' directory.
struct RivalSpec {
  std::string name;
  std::vector<std::string> command;
  bool spins = false;  ///< with more ranks than cores it takes seconds for one operation
};

/// How many ranks measure, and the cores that they may use together.
struct Seating {
  int ranks = 1;
  cpu_set_t cores{};
};

/// Those of `wanted` ("mpi", "gloo", single names), out of the descriptions *.json in `folder` and
/// of our own programs beside this one. Errors: InvalidArgument that says how to install them.
Result<std::vector<RivalSpec>> find_rivals(const std::vector<std::string>& wanted,
                                           const std::filesystem::path& folder,
                                           const Seating& seating);

[[nodiscard]] std::string to_line(const Workload& workload, const BlockPlan& plan);
struct Command {
  Workload workload;  ///< without the number of ranks
  BlockPlan plan;
};
/// Errors: InvalidArgument.
Result<Command> parse_line(const std::string& line);

/// The pipes of one set of ranks, on the side that says what to do. Thread safety: none.
class Pipes {
 public:
  /// Makes them in a new directory: below the job's log directory if there is a job.
  static Result<Pipes> create(int ranks);
  Pipes(Pipes&&) noexcept = default;
  Pipes& operator=(Pipes&&) noexcept = default;
  Pipes(const Pipes&) = delete;
  Pipes& operator=(const Pipes&) = delete;
  ~Pipes();
  [[nodiscard]] const std::string& directory() const { return directory_; }
  /// Every rank has opened its own: nobody needs the names any more.
  void remove_names();
  /// To all ranks from `first` on.
  Status tell(const std::string& line, int first = 0);
  /// One line; `alive` is a pidfd whose end ends the wait, or -1. Blocks.
  Result<std::string> answer(int alive);

 private:
  explicit Pipes(std::string directory) : directory_(std::move(directory)) {}
  std::string directory_;
  std::vector<base::Fd> commands_;
  base::Fd result_;
  std::string unread_;
};

/// A started one. Destroying it ends its processes. Thread safety: none.
class Rival {
 public:
  static Result<std::unique_ptr<Rival>> start(const RivalSpec& spec, const Seating& seating);
  Rival(const Rival&) = delete;
  Rival& operator=(const Rival&) = delete;
  ~Rival();
  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] const std::string& version() const { return version_; }
  /// Errors: Unsupported: it has no such operation, and can be asked for another one; else it is
  /// gone, and the text says how it ended.
  Result<Block> run(const Workload& workload, const BlockPlan& plan);

 private:
  Rival(std::string name, Pipes pipes) : name_(std::move(name)), pipes_(std::move(pipes)) {}
  Result<std::string> await_answer();
  [[nodiscard]] bool ends_within(std::chrono::milliseconds time) const;
  std::string name_;
  std::string version_;
  Pipes pipes_;
  int pid_ = -1;
  base::Fd alive_;
};

/// The other side: runs what the pipes in `directory` say until `end [CODE]`, and returns that
/// code. `answers`: this rank is the one that writes results.
Result<int> serve(ProcessGroup group, const std::string& directory, bool answers);

}  // namespace regroup::perf
