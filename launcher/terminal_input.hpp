/// What is typed on the terminal of `regroup run`, for rank 0.
#pragma once

#include <optional>
#include <string>

#include <regroup/status.hpp>

#include "base/fd.hpp"
#include "launcher/event_loop.hpp"

namespace regroup::launcher {

/// Ranks have process groups of their own, and a terminal stops whoever reads from it in another
/// group than the one in its foreground; so the launcher reads, and hands on through a pipe.
/// Thread safety: the main thread. Never blocks: without room in the pipe nothing more is read.
class TerminalInput {
 public:
  /// None when standard input is no terminal: rank 0 then inherits it. Errors: ResourceExhausted.
  static Result<std::optional<TerminalInput>> open();

  /// Standard input of rank 0, whichever life.
  [[nodiscard]] int fd() const { return read_end_.get(); }
  /// Begins to read, or begins again: after SIGCONT this process may be in the foreground.
  /// Memory: `loop` outlives this object, which must not move from here on.
  void start(EventLoop& loop);

 private:
  TerminalInput(base::Fd read_end, base::Fd write_end)
      : read_end_(std::move(read_end)), write_end_(std::move(write_end)) {}
  void read();
  void write();

  EventLoop* loop_ = nullptr;
  base::Fd read_end_;
  base::Fd write_end_;  ///< closed at the end of input
  std::string waiting_;
};

}  // namespace regroup::launcher
