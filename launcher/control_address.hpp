/// Where a job's control socket is, and who is at its other end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include <sys/socket.h>
#include <sys/un.h>

#include "launcher/control_socket.hpp"

namespace regroup::launcher {

/// An abstract address, ready for bind() and connect().
struct ControlAddress {
  sockaddr_un address{};
  socklen_t bytes = 0;
  [[nodiscard]] const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&address); }
};

/// "@regroup/1000/7f3a", as /proc/net/unix shows it.
[[nodiscard]] std::string control_name(const RunningJob& job);
/// Errors: InvalidArgument (empty, too long, or with characters that /proc/net/unix cannot show).
Result<ControlAddress> control_address(const RunningJob& job);
/// User of the process that connected (or listens); empty when the kernel does not say.
[[nodiscard]] std::optional<std::uint32_t> uid_behind(int fd);

}  // namespace regroup::launcher
