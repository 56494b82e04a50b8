/// What an outer launcher left in the environment: who started this process, as which rank of how
/// many.
///
/// Pure: variables in, answer out. docs/environment.md has the table for people. `regroup exec`
/// acts on read_launch_environment(); explain_launch_environment() is for showing why.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <regroup/status.hpp>

namespace regroup::launcher {

/// In the order in which they are looked for: the first that matches counts. Launchers nest and
/// leave their variables behind, and the earlier ones are those that run inside the later ones.
enum class LaunchSystem : std::uint8_t {
  Regroup,
  Torchrun,
  OpenMpi,  ///< 4 and 5
  Hydra,    ///< MPICH, Intel MPI, MVAPICH
  Srun,
  Pmix,
  Horovod,
  KubeflowTrainer,
  LeaderWorkerSet,
  IndexedJob,  ///< JobSet and indexed Jobs of Kubernetes
  Volcano,
  TorchEnv,  ///< RANK, WORLD_SIZE and MASTER_ADDR, set by anybody
  None,      ///< by hand: one rank
};
inline constexpr int kLaunchSystems = static_cast<int>(LaunchSystem::None) + 1;

/// "ompi", "hydra", "slurm", "torchrun", ...: what REGROUP_LAUNCH may say.
[[nodiscard]] std::string_view name(LaunchSystem system);
/// "Open MPI", "srun": for people.
[[nodiscard]] std::string_view title(LaunchSystem system);

struct LaunchEnvironment {
  LaunchSystem system = LaunchSystem::None;
  /// Empty: this system starts one process a host or says it elsewhere (PMIx's size, a pod's rank).
  std::optional<int> rank;
  std::optional<int> size;
  std::optional<int> local_rank;
  std::optional<int> local_size;  ///< ranks on this host
  std::optional<int> host;        ///< index of this host
  std::optional<int> hosts;
  std::string job;      ///< the outer launcher's name for the job; empty: it has none
  std::string address;  ///< host or host:port that the outer launcher offers for meeting
  /// "OMPI_COMM_WORLD_RANK=3": distinguishes this process from the launcher and from the other
  /// ranks. Empty when there is no rank.
  std::string source;
  std::string why;                     ///< "OMPI_COMM_WORLD_RANK is set"
  std::vector<std::string> conflicts;  ///< later rows that match too and give another rank or size
};

/// Reads `environment` (KEY=VALUE). Errors: InvalidArgument (a number that is none, a rank outside
/// its size, REGROUP_LAUNCH naming nothing or a system whose variables are missing); the text names
/// the variable.
Result<LaunchEnvironment> read_launch_environment(const std::vector<std::string>& environment);

/// One row of the table, as it looks from here.
struct LaunchRow {
  LaunchSystem system = LaunchSystem::None;
  bool matches = false;
  bool chosen = false;
  std::string why;  ///< "PMI_RANK is set, MPI_LOCALRANKID and HYDI_CONTROL_FD are not"
};
/// All rows in order, for `regroup env`.
[[nodiscard]] std::vector<LaunchRow> explain_launch_environment(
    const std::vector<std::string>& environment);

/// Slurm's compressed list "4(x2),3": the number for host `index`. Empty when it cannot be read or
/// is too short.
[[nodiscard]] std::optional<int> slurm_tasks(std::string_view list, int index);

}  // namespace regroup::launcher
