/// Where the shims of one job meet its agent: an abstract socket of this host. Nothing of it lies
/// in the file system.
#pragma once

#include <chrono>
#include <string>

#include <regroup/status.hpp>
#include <regroup/types.hpp>

#include "base/fd.hpp"
#include "launcher/launch_environment.hpp"

namespace regroup::launcher {

/// The launcher of this process: the nearest ancestor that does not carry `source`, the variable
/// that made this process a rank. Scripts between the launcher and us carry it. For an empty
/// `source`: this process itself, which is a job alone.
[[nodiscard]] pid_t launcher_of(const std::string& source);

/// "regroup-exec/1000/4242-98765": user, launcher and its start time. Errors: FailedPrecondition
/// (it is gone).
Result<std::string> meeting_place(pid_t launcher);
/// Value of REGROUP_RDZV for a meeting place, and back. Errors: InvalidArgument.
[[nodiscard]] std::string rdzv_of(const std::string& place);
Result<std::string> place_of(const std::string& rdzv);

/// Binds and listens. Empty: somebody else has the place. Errors: ResourceExhausted,
/// InvalidArgument (too long).
Result<base::Fd> listen_at(const std::string& place);
/// Connects; empty while nobody listens. Never blocks.
/// Errors: Unauthenticated (another user listens there), ResourceExhausted, InvalidArgument.
Result<base::Fd> connect_to(const std::string& place);

}  // namespace regroup::launcher
