/// Starting one process and holding on to it.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include <regroup/status.hpp>
#include <regroup/types.hpp>

#include "base/fd.hpp"

namespace regroup::launcher {

/// What to start. Memory: only read during spawn().
struct SpawnRequest {
  std::string path;                      ///< resolved; no search
  std::vector<std::string> arguments;    ///< argv[0] included
  std::vector<std::string> environment;  ///< KEY=VALUE
  std::string directory;                 ///< empty: as here
  int in = -1;                           ///< becomes stdin; -1: /dev/null
  int out = -1;                          ///< becomes stdout; -1: inherited
  int err = -1;                          ///< becomes stderr; -1: inherited
  std::vector<int> kept;                 ///< further descriptors, inherited under their own numbers
  int death_signal = 9;                  ///< sent to it when this process ends
  bool own_group = true;                 ///< a process group of its own
  std::optional<unsigned long> descriptors_soft;  ///< its limit of open descriptors, else inherited
};

/// Opens those of descriptors 0, 1 and 2 that are closed, so that none of ours is ever taken for a
/// console.
void open_standard_descriptors();

struct Spawned {
  pid_t pid = -1;
  base::Fd pidfd;
};

/// Starts a process; returns once its program runs (or could not be run).
/// Threads: the main thread only: the death signal is tied to the thread that forks. Blocks for the
/// time of the exec. Errors: FailedPrecondition (program cannot be run: the text names path and
/// reason), ResourceExhausted (no process, memory or descriptor now; may work later).
Result<Spawned> spawn(const SpawnRequest& request);

/// Sends a signal to exactly this process, even if its pid was reused meanwhile. A process that is
/// gone is fine.
void signal_process(const Spawned& process, int signal);
/// To its process group, if it leads one that still has members. Call before the process is reaped:
/// then the number cannot mean somebody else.
void signal_group(const Spawned& process, int signal);

/// What `request` prints on its standard output, the first 64 KiB; its standard error is dropped
/// unless it says where to.
/// One that has not ended until then is killed. Blocks. Threads and errors: those of spawn(),
/// and DeadlineExceeded.
Result<std::string> output_of(SpawnRequest request, TimePoint until);

/// Whether it is stopped (SIGSTOP, SIGTSTP) now. For a child that is not reaped yet.
[[nodiscard]] bool is_stopped(const Spawned& process);

/// The path that execvp would run: absolute, relative with a slash, or found in `search` (PATH's
/// value). Errors: InvalidArgument (not found), FailedPrecondition (found, but not executable or a
/// directory).
Result<std::string> find_program(const std::string& name, const std::string& search);

}  // namespace regroup::launcher
