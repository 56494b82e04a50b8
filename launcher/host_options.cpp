#include "launcher/host_options.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "launcher/environment.hpp"
#include "launcher/exit_codes.hpp"
#include "launcher/host_address.hpp"
#include "launcher/process.hpp"

namespace regroup::launcher {
namespace {

constexpr std::chrono::seconds kDiscoverMax{30};

Refusal bad(const Status& why) {
  const std::string_view text = why.text();
  // The texts of the readers begin with their code.
  const std::size_t space = text.find(' ');
  return {kExitBadUsage, std::string(text.substr(0, space)), std::string(text.substr(space + 1))};
}

std::string variable(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
}

Result<std::vector<HostEntry>> slurm_hosts() {
  std::string nodes = variable("SLURM_STEP_NODELIST");
  std::string tasks = variable("SLURM_STEP_TASKS_PER_NODE");
  if (nodes.empty()) nodes = variable("SLURM_JOB_NODELIST");
  if (tasks.empty()) tasks = variable("SLURM_TASKS_PER_NODE");
  if (nodes.empty() || tasks.empty()) {
    return Status(Code::InvalidArgument,
                  "E-HOST-1 --hosts slurm: this is no allocation of Slurm (SLURM_JOB_NODELIST and "
                  "SLURM_TASKS_PER_NODE are not both set)");
  }
  return parse_slurm(nodes, tasks);
}

Result<std::vector<HostEntry>> discovered(const std::string& command) {
  SpawnRequest request;
  request.path = "/bin/sh";
  request.arguments = {"sh", "-c", command};
  request.environment = own_environment();
  request.err = STDERR_FILENO;
  const Result<std::string> text = output_of(std::move(request), Clock::now() + kDiscoverMax);
  if (!text) {
    return Status(Code::InvalidArgument,
                  fmt::format("E-HOST-7 --discover '{}': {}", command, text.error().text()));
  }
  Result<std::vector<HostEntry>> hosts = parse_host_file(*text);
  if (hosts) return hosts;
  return Status(Code::InvalidArgument, fmt::format("E-HOST-7 --discover '{}': {}", command,
                                                   hosts.error().text().substr(9)));
}

Refusal read_hosts(const HostWords& words, std::vector<HostEntry>& hosts) {
  Result<std::vector<HostEntry>> read = std::vector<HostEntry>();
  if (words.hosts == "slurm") {
    read = slurm_hosts();
  } else if (!words.hosts.empty()) {
    read = parse_host_list(words.hosts);
  } else if (!words.discover.empty()) {
    read = discovered(words.discover);
  } else {
    std::ifstream file(words.hostfile);
    if (!file) {
      return {
          kExitNoProgram, "E-HOST-1",
          fmt::format("cannot read the host file {}: {}", words.hostfile, std::strerror(errno))};
    }
    read = parse_host_file(std::string(std::istreambuf_iterator<char>(file), {}));
    if (!read) {
      Refusal refusal = bad(read.error());
      refusal.text = words.hostfile + ": " + refusal.text;
      return refusal;
    }
  }
  if (!read) return bad(read.error());
  hosts = std::move(*read);
  return Refusal::none();
}

std::optional<std::size_t> find_this_host(const std::vector<HostEntry>& hosts) {
  const std::string own_name = own_host_name();
  const std::vector<secure::SocketAddress> own = own_addresses();
  const auto here = std::find_if(hosts.begin(), hosts.end(), [&](const HostEntry& host) {
    return is_this_host(host.name, own_name, own);
  });
  if (here == hosts.end()) return std::nullopt;
  return static_cast<std::size_t>(here - hosts.begin());
}

/// Hosts without a number share what the others leave.
std::uint32_t slots_default(const std::vector<HostEntry>& hosts, int ranks) {
  std::uint32_t given = 0;
  std::uint32_t open = 0;
  for (const HostEntry& host : hosts) {
    if (host.spare) continue;
    given += host.slots.value_or(0);
    open += host.slots ? 0 : 1;
  }
  const std::uint32_t left = static_cast<std::uint32_t>(ranks) -
                             std::min<std::uint32_t>(given, static_cast<std::uint32_t>(ranks));
  return open == 0 ? 0 : std::max(1U, (left + open - 1) / open);
}

}  // namespace

void describe_host_list(CLI::App& app, HostWords& words) {
  CLI::Option* const list =
      app.add_option("--hosts", words.hosts,
                     "run on these: a:2,b:2 (name:slots), node[1-4]:8, or slurm: those of the "
                     "allocation");
  CLI::Option* const file =
      app.add_option("--hostfile", words.hostfile,
                     "the same from a file: 'a slots=2' or 'a:2' a line, # comments");
  CLI::Option* const discover = app.add_option(
      "--discover", words.discover, "the same from what this command prints, as a host file");
  list->excludes(file)->excludes(discover);
  file->excludes(discover);
  app.add_option("--agent", words.agent, "path of regroup there (default: that of this one)");
  app.add_option("--interface", words.interface,
                 "where other hosts reach this one: an interface or an address");
}

void describe_host_options(CLI::App& app, HostWords& words) {
  describe_host_list(app, words);
  app.add_option("--starter", words.starter,
                 "how to start an agent there, {host} filled in (default: ssh)");
  app.add_option("--start-timeout", words.start_timeout,
                 "how long the agents of all hosts may take (default 120s)");
}

Result<FleetPlan> make_fleet(std::vector<HostEntry> hosts, std::optional<std::size_t> here,
                             int ranks) {
  // This host's agent is number 0, whether or not it runs any process.
  if (here)
    std::rotate(hosts.begin(), hosts.begin() + static_cast<std::ptrdiff_t>(*here),
                hosts.begin() + static_cast<std::ptrdiff_t>(*here) + 1);
  Result<std::vector<membership::HostPlan>> seats =
      plan_seats(hosts, ranks, slots_default(hosts, ranks));
  if (!seats) return seats.error();
  FleetPlan out;
  out.plans = std::move(*seats);
  if (!here) {
    hosts.insert(hosts.begin(), HostEntry{.name = "localhost"});
    out.plans.insert(out.plans.begin(), {0, false});
  }
  std::uint32_t first_seat = 0;
  const auto nodes = static_cast<std::uint32_t>(hosts.size() - (here ? 0 : 1));
  for (std::uint32_t id = 0; id < hosts.size(); ++id) {
    const std::uint32_t node = here || id == 0 ? id : id - 1;
    out.places.push_back(
        {membership::AgentId{id}, hosts[id].name, node, nodes, first_seat, out.plans[id].seats});
    first_seat += out.plans[id].seats;
    if (id != 0) out.others.emplace(membership::AgentId{id}, hosts[id]);
  }
  return out;
}

Refusal plan_hosts(const HostWords& words, const RunOptions& options,
                   std::optional<FleetPlan>& fleet) {
  const bool given = !words.hosts.empty() || !words.hostfile.empty() || !words.discover.empty();
  if (!given) {
    if (words.starter.empty() && words.agent.empty() && words.interface.empty())
      return Refusal::none();
    return {kExitBadUsage, "E-USE-12",
            "--starter, --agent and --interface belong to --hosts, --hostfile or --discover"};
  }
  std::vector<HostEntry> hosts;
  if (Refusal refusal = read_hosts(words, hosts); !refusal.code.empty()) return refusal;
  Result<FleetPlan> plan = make_fleet(hosts, find_this_host(hosts), options.ranks);
  if (!plan) return bad(plan.error());
  if (plan->others.empty()) return Refusal::none();
  const Result<std::chrono::milliseconds> timeout = parse_duration(words.start_timeout);
  if (!timeout) {
    return {kExitBadUsage, "E-USE-8", fmt::format("--start-timeout {}", timeout.error().text())};
  }
  plan->start_timeout = *timeout;
  if (!words.starter.empty()) {
    Result<std::vector<std::string>> starter = split_words(words.starter);
    if (!starter) {
      return {kExitBadUsage, "E-USE-12", fmt::format("--starter {}", starter.error().text())};
    }
    plan->starter.words = std::move(*starter);
  }
  std::error_code error;
  plan->starter.agent = words.agent.empty()
                            ? std::filesystem::read_symlink("/proc/self/exe", error).string()
                            : words.agent;
  const Result<secure::SocketAddress> listen =
      listen_address(words.interface, plan->others.begin()->second.name);
  if (!listen) {
    Refusal refusal = bad(listen.error());
    if (listen.error().code() == Code::FailedPrecondition) refusal.exit_code = kExitUnavailable;
    return refusal;
  }
  plan->listen = *listen;
  fleet.emplace(std::move(*plan));
  return Refusal::none();
}

}  // namespace regroup::launcher
