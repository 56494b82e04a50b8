/// Finding processes that a job left behind.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <regroup/types.hpp>

namespace regroup::launcher {

/// -1 when it is gone.
[[nodiscard]] pid_t parent_of(pid_t pid);
/// In clock ticks since boot: with the number it names one process for ever. None: it is gone.
[[nodiscard]] std::optional<std::uint64_t> start_time_of(pid_t pid);
/// Direct children, zombies included.
[[nodiscard]] std::vector<pid_t> children_of(pid_t pid);
/// All descendants that are there now, `pid` itself not included; parents before their children.
[[nodiscard]] std::vector<pid_t> descendants_of(pid_t pid);
/// Whether the process's environment, as it was when its program began, holds exactly this
/// variable. False when the process is gone, a zombie or not ours to read.
[[nodiscard]] bool has_variable(pid_t pid, std::string_view key_value);
/// All processes of this machine that we may examine and whose environment holds this variable.
[[nodiscard]] std::vector<pid_t> processes_with(std::string_view key_value);
/// Whether it still runs (a zombie does not).
[[nodiscard]] bool runs(pid_t pid);
/// Whether that thread runs or waits for a processor. False when it sleeps, is stopped or is not
/// there.
[[nodiscard]] bool wants_to_run(pid_t thread);

/// The wait status (as of waitpid) of a process that is ending but not yet reaped, which the kernel
/// knows before the memory is torn down; none: it is not ending, ends with 0, or is not ours to
/// read.
[[nodiscard]] std::optional<int> dying_status(pid_t pid);

}  // namespace regroup::launcher
