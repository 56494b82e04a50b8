/// The agent of a host that the job's launcher is not on (run_shell_hosts.cpp is what it does).
#pragma once

namespace regroup::launcher {

/// Says who it is on standard output, reads its orders from standard input, and serves until the
/// job ends, the launcher is gone or cannot be reached any more. Returns the exit code. Threads:
/// the main thread, once a process.
int agent_on_host();

}  // namespace regroup::launcher
