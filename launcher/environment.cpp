#include "launcher/environment.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "launcher/variables.hpp"

namespace regroup::launcher {
namespace {

/// Set by Open MPI, PMIx, Hydra, Slurm steps, Horovod, torchrun and an outer Regroup.
constexpr std::array<std::string_view, 16> kForeignPrefixes = {
    "OMPI_",    "PMIX_",         "PMI_",  "PMI2_",      "PRTE_",        "HYDI_",
    "HYDRA_",   "MPI_LOCAL",     "MPIR_", "SLURM_STEP", "SLURM_PROCID", "SLURM_LOCALID",
    "HOROVOD_", "TORCHELASTIC_", "PET_",  "GROUP_"};
constexpr std::array<std::string_view, 12> kForeignNames = {
    "RANK",        "WORLD_SIZE",      "LOCAL_RANK",   "LOCAL_WORLD_SIZE",
    "ROLE_RANK",   "ROLE_WORLD_SIZE", "ROLE_NAME",    "MASTER_ADDR",
    "MASTER_PORT", "SLURM_TASK_PID",  "SLURM_NODEID", "SLURM_GTIDS"};
bool inherited(std::string_view variable) {
  const std::string_view key = variable.substr(0, variable.find('='));
  const auto is_key = [&](std::string_view name) { return key == name; };
  const auto starts = [&](std::string_view prefix) { return key.starts_with(prefix); };
  return std::none_of(kForeignPrefixes.begin(), kForeignPrefixes.end(), starts) &&
         std::none_of(kForeignNames.begin(), kForeignNames.end(), is_key) &&
         std::none_of(kOwnVariables.begin(), kOwnVariables.end(), is_key);
}

}  // namespace

std::vector<std::string> own_environment() {
  std::vector<std::string> out;
  for (char** variable = environ; *variable != nullptr; ++variable) out.emplace_back(*variable);
  return out;
}

std::vector<std::string> make_environment(const std::vector<std::string>& outer,
                                          const ProcessIdentity& identity) {
  std::vector<std::string> out;
  bool omp_given = false;
  for (const std::string& variable : outer) {
    if (!inherited(variable)) continue;
    omp_given = omp_given || variable.starts_with("OMP_NUM_THREADS=");
    out.push_back(variable);
  }
  const auto set = [&](std::string_view key, const auto& value) {
    out.push_back(fmt::format("{}={}", key, value));
  };
  const auto set_pair = [&](std::string_view ours, std::string_view torch, const auto& value) {
    set(ours, value);
    set(torch, value);
  };
  set("REGROUP_JOB_ID", identity.job);
  set("REGROUP_RUN_DIR", identity.run_dir);
  set("REGROUP_CONTROL_FD", identity.control_fd);
  set("REGROUP_INCARNATION", identity.incarnation.value());
  set("REGROUP_SPARE", identity.seat ? 0 : 1);
  set("REGROUP_NODE_RANK", identity.node);
  set("REGROUP_NUM_NODES", identity.nodes);
  set("REGROUP_HOST_ID", identity.host_mark);
  set_pair("REGROUP_WORLD_SIZE", "WORLD_SIZE", identity.ranks);
  set_pair("REGROUP_LOCAL_SIZE", "LOCAL_WORLD_SIZE", identity.local_size);
  if (identity.seat) {
    set_pair("REGROUP_RANK", "RANK", identity.seat->value());
    set_pair("REGROUP_LOCAL_RANK", "LOCAL_RANK", identity.local_rank);
    set("ROLE_RANK", identity.seat->value());
    set("REGROUP_LIFE", identity.life);
    set("REGROUP_IS_REPLACEMENT", identity.life > 0 ? 1 : 0);
    set("TORCHELASTIC_RESTART_COUNT", identity.life);
  }
  set("GROUP_RANK", identity.node);
  set("GROUP_WORLD_SIZE", identity.nodes);
  set("ROLE_WORLD_SIZE", identity.ranks);
  set("ROLE_NAME", "default");
  set("MASTER_ADDR", identity.master_address);
  set("MASTER_PORT", identity.master_port);
  set("TORCHELASTIC_RUN_ID", identity.job);
  set("TORCHELASTIC_MAX_RESTARTS", identity.replacements_max);
  if (!omp_given)
    set("OMP_NUM_THREADS", std::max(1, identity.cores / std::max(1, identity.local_size)));
  return out;
}

}  // namespace regroup::launcher
