/// Who runs first where more processes want to run than there are cores. An agent and the
/// coordinator do little, and what they do late looks like a death to others.
#pragma once

namespace regroup::launcher {

/// From now on this process goes before ordinary ones, where the system permits it (root, or a
/// limit: ulimit -e). Threads: the main thread, before others are started; once a process.
void go_first();

/// In a child, between fork and exec: as this process was before go_first(). Async-signal-safe.
void go_as_before();

}  // namespace regroup::launcher
