/// The commands of the program. Each takes the words after its own name, prints to stdout (errors
/// to stderr, with a code of docs/errors.md) and returns the process's exit code.
#pragma once

#include <string>
#include <vector>

namespace regroup::launcher {

using Arguments = std::vector<std::string>;

/// `regroup run -n N ... -- program`: launcher, agent and supervisor of one job on this host.
int run_command(const Arguments& arguments);
/// `regroup mpirun -n N ... -- program`: the same, with ranks that an mpirun starts.
int mpirun_command(const Arguments& arguments);
/// `regroup exec ... -- program`: the supervisor of one place under mpirun, srun or torchrun.
int exec_command(const Arguments& arguments);
/// `regroup agent --stdio`: agent of a host that the job's launcher is not on (agent_host.hpp).
/// `regroup agent --fd N --launcher PID -- WORDS`: agent and coordinator of a job of `regroup exec`
/// (job_host.hpp).
int agent_command(const Arguments& arguments);
/// `regroup guardian --fd N --mark M`: cleans up after a launcher that was killed (guardian.hpp).
int guardian_command(const Arguments& arguments);
/// `regroup coordinator --fd N --state FILE`: hosts the membership machine until its channel
/// closes.
int coordinator_command(const Arguments& arguments);
/// `regroup status [JOB] [--json]`
int status_command(const Arguments& arguments);
/// `regroup events [-f] [--json] [DIR]`
int events_command(const Arguments& arguments);
/// `regroup report [DIR] [--json]`
int report_command(const Arguments& arguments);
/// `regroup trace [DIR] [-o F]`
int trace_command(const Arguments& arguments);
/// `regroup doctor [--json]`: what this machine offers; kExitUnavailable when no job can run here.
int doctor_command(const Arguments& arguments);
/// `regroup env [--all] [--json]`: which launcher started this process, and why that one.
int env_command(const Arguments& arguments);
/// `regroup drain RANK... [--now] [--wait] [--job JOB]`
int drain_command(const Arguments& arguments);
/// `regroup scale N [--now] [--wait] [--job JOB]`
int scale_command(const Arguments& arguments);
/// `regroup inject kill|stop|cont|evict|coordinator-kill [--rank R] [--at WHEN] [--job JOB]`,
/// WHEN = step=K, seq=K or phase=P
int inject_command(const Arguments& arguments);

}  // namespace regroup::launcher
