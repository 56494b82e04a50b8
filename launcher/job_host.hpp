/// The agent of a job whose places another launcher started: waits until all shims have come, then
/// runs the job.
#pragma once

#include <chrono>
#include <optional>
#include <string>

#include <regroup/status.hpp>

#include "base/fd.hpp"
#include "launcher/options.hpp"
#include "launcher/process.hpp"
#include "launcher/terminal_input.hpp"

namespace regroup::launcher {

/// Blocks the signals that end a job, and returns where they arrive: the shell, once there is one,
/// takes them over with none lost in between. Errors: ResourceExhausted.
Result<base::Fd> open_end_signals();

/// A job under another launcher.
struct HostedJob {
  RunOptions options;  ///< ranks 0: places less spares
  std::chrono::milliseconds start_timeout{120'000};
  std::string job;
  base::Fd listener;
  std::uint32_t places = 0;  ///< 0: as the first shim says
  base::Fd launcher;         ///< pidfd: its end ends the job
  /// The launcher, where this process started it: it is ended and reaped, too, and lines for people
  /// go to this process's own standard error.
  std::optional<Spawned> child;
  base::Fd signals;  ///< of open_end_signals(), if that was called before `child` was started
  std::optional<TerminalInput> terminal;  ///< standard input of `child`
};

/// Runs it to its end and returns the exit code. Threads: the main thread, once a process.
int host_job(HostedJob job);

/// Starts `regroup agent` for it, outside every process group and session of the launcher, so that
/// it outlives any shim. `words`: the command line behind `regroup exec`. Errors: those of spawn().
Status start_agent(int listener, pid_t launcher, const std::vector<std::string>& words);

}  // namespace regroup::launcher
