/// This host's own names and addresses, and the one that other hosts reach.
#pragma once

#include <string>
#include <vector>

#include <regroup/status.hpp>

#include "secure/socket_address.hpp"

namespace regroup::launcher {

/// Whether a host of a list is this machine: a loopback name, its own name, or an address of an
/// interface of its. `own_name`: as gethostname() says; `own`: its addresses. Pure.
[[nodiscard]] bool is_this_host(const std::string& name, const std::string& own_name,
                                const std::vector<secure::SocketAddress>& own);
/// Of all interfaces. Empty when the system does not say.
[[nodiscard]] std::vector<secure::SocketAddress> own_addresses();
[[nodiscard]] std::string own_host_name();

/// Where to listen: `interface` is an address or an interface's name; empty: the address from which
/// this host reaches `other`, whose name is looked up. Blocks for the look-up. Errors:
/// InvalidArgument (no such interface, not an address of this host), FailedPrecondition (`other` is
/// not known or not reached).
Result<secure::SocketAddress> listen_address(const std::string& interface,
                                             const std::string& other);

}  // namespace regroup::launcher
