/// The hosts that `regroup run` and `regroup mpirun` were given, made into a plan.
#pragma once

#include <chrono>
#include <optional>
#include <string>

#include "launcher/host_list.hpp"
#include "launcher/job_hosts.hpp"
#include "launcher/options.hpp"

namespace CLI {
class App;
}

namespace regroup::launcher {

/// As typed.
struct HostWords {
  std::string hosts;
  std::string hostfile;
  std::string discover;
  std::string starter;
  std::string agent;
  std::string interface;
  std::string start_timeout = "120s";
};
/// Which hosts, and how they find each other. Memory: `words` outlives `app`.
void describe_host_list(CLI::App& app, HostWords& words);
/// The same, and how agents are started there.
void describe_host_options(CLI::App& app, HostWords& words);

/// Reads the list and plans who goes where; none: the job has this host only. Blocks for --discover
/// and for looking up a name. Refuses what cannot be.
[[nodiscard]] Refusal plan_hosts(const HostWords& words, const RunOptions& options,
                                 std::optional<FleetPlan>& fleet);

/// Agents, seats and places of a list; `here`: which of them is this host. Pure. Errors: those of
/// plan_seats().
Result<FleetPlan> make_fleet(std::vector<HostEntry> hosts, std::optional<std::size_t> here,
                             int ranks);

}  // namespace regroup::launcher
