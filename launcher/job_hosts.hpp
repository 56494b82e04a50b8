/// The hosts of a job, as its launcher and its agents know them.
#pragma once

#include <chrono>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <regroup/types.hpp>

#include "base/fd.hpp"
#include "launcher/coordinator_wire.hpp"
#include "launcher/host_fleet.hpp"
#include "launcher/host_list.hpp"
#include "launcher/host_orders.hpp"
#include "membership/types.hpp"
#include "secure/socket_address.hpp"

namespace regroup::launcher {

/// A job whose ranks may run on other hosts, too: what its launcher knows.
struct FleetPlan {
  std::map<membership::AgentId, HostEntry> others;  ///< to be started by a starter
  std::vector<HostPlace> places;                    ///< by agent; this host is number 0
  std::vector<membership::HostPlan> plans;          ///< likewise
  Starter starter;
  secure::SocketAddress listen = secure::SocketAddress::loopback();
  std::chrono::milliseconds start_timeout{120'000};
};

/// What the agent of another host knows.
struct AgentRole {
  struct Pipes {
    base::Fd in;   ///< from the launcher; its end is the launcher's
    base::Fd out;  ///< to the launcher
  };
  TcpControl coordinator;
  Pipes pipes;
  std::string early;        ///< what has been read behind the orders
  std::int64_t age_ns = 0;  ///< of the job
};

/// At most one of them; none: the job has one host.
struct JobHosts {
  std::optional<FleetPlan> fleet;
  std::optional<AgentRole> role;
};

}  // namespace regroup::launcher
