#include "launcher/launch_environment.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <charconv>
#include <limits>
#include <map>

#include "base/check.hpp"

namespace regroup::launcher {
namespace {

using Variables = std::map<std::string, std::string, std::less<>>;
using Keys = std::vector<std::string_view>;

Variables variables_of(const std::vector<std::string>& environment) {
  Variables out;
  for (const std::string& one : environment) {
    const std::size_t equals = one.find('=');
    if (equals != std::string::npos) out.emplace(one.substr(0, equals), one.substr(equals + 1));
  }
  return out;
}

/// One launcher: which variables say that it started us, and which say what. Several names stand in
/// one text, separated by blanks.
struct Adapter {
  LaunchSystem system;
  std::string_view all_of;       ///< every one of these is set
  std::string_view any_of = "";  ///< and one of these, if there are any
  std::string_view rank = "";
  std::string_view size = "";  ///< the first of them that is set
  std::string_view local_rank = "";
  std::string_view local_size = "";
  std::string_view host = "";
  std::string_view hosts = "";
  std::string_view job = "";
  std::string_view address = "";
};

/// `OMPI_COMM_WORLD_NODE_RANK` is not a host's index but a rank on the host over all jobs, so it is
/// not here.
constexpr Adapter kAdapters[] = {
    {.system = LaunchSystem::Regroup,
     .all_of = "REGROUP_RANK REGROUP_RDZV",
     .rank = "REGROUP_RANK",
     .size = "REGROUP_WORLD_SIZE",
     .local_rank = "REGROUP_LOCAL_RANK",
     .local_size = "REGROUP_LOCAL_SIZE",
     .host = "REGROUP_NODE_RANK",
     .hosts = "REGROUP_NUM_NODES",
     .job = "REGROUP_JOB_ID",
     .address = "REGROUP_RDZV"},
    {.system = LaunchSystem::Torchrun,
     .all_of = "TORCHELASTIC_RUN_ID RANK",
     .rank = "RANK",
     .size = "WORLD_SIZE",
     .local_rank = "LOCAL_RANK",
     .local_size = "LOCAL_WORLD_SIZE",
     .host = "GROUP_RANK",
     .hosts = "GROUP_WORLD_SIZE",
     .job = "TORCHELASTIC_RUN_ID",
     .address = "MASTER_ADDR"},
    {.system = LaunchSystem::OpenMpi,
     .all_of = "OMPI_COMM_WORLD_RANK",
     .rank = "OMPI_COMM_WORLD_RANK",
     .size = "OMPI_COMM_WORLD_SIZE",
     .local_rank = "OMPI_COMM_WORLD_LOCAL_RANK",
     .local_size = "OMPI_COMM_WORLD_LOCAL_SIZE",
     .job = "PMIX_NAMESPACE"},
    {.system = LaunchSystem::Hydra,
     .all_of = "PMI_RANK",
     .any_of = "MPI_LOCALRANKID HYDI_CONTROL_FD",
     .rank = "PMI_RANK",
     .size = "PMI_SIZE",
     .local_rank = "MPI_LOCALRANKID",
     .local_size = "MPI_LOCALNRANKS"},
    {.system = LaunchSystem::Srun,
     .all_of = "SLURM_PROCID SLURM_STEP_ID",
     .rank = "SLURM_PROCID",
     .size = "SLURM_STEP_NUM_TASKS SLURM_NTASKS",
     .local_rank = "SLURM_LOCALID",
     .host = "SLURM_NODEID",
     .hosts = "SLURM_STEP_NUM_NODES",
     .job = "SLURM_JOB_ID",
     .address = "SLURM_LAUNCH_NODE_IPADDR"},
    {.system = LaunchSystem::Pmix,
     .all_of = "PMIX_RANK PMIX_NAMESPACE",
     .rank = "PMIX_RANK",
     .job = "PMIX_NAMESPACE"},
    {.system = LaunchSystem::Horovod,
     .all_of = "HOROVOD_RANK",
     .rank = "HOROVOD_RANK",
     .size = "HOROVOD_SIZE",
     .local_rank = "HOROVOD_LOCAL_RANK",
     .local_size = "HOROVOD_LOCAL_SIZE",
     .host = "HOROVOD_CROSS_RANK",
     .hosts = "HOROVOD_CROSS_SIZE",
     .address = "HOROVOD_GLOO_RENDEZVOUS_ADDR"},
    {.system = LaunchSystem::KubeflowTrainer,
     .all_of = "PET_NODE_RANK",
     .local_size = "PET_NPROC_PER_NODE",
     .host = "PET_NODE_RANK",
     .hosts = "PET_NNODES",
     .address = "PET_MASTER_ADDR"},
    {.system = LaunchSystem::LeaderWorkerSet,
     .all_of = "LWS_WORKER_INDEX",
     .host = "LWS_WORKER_INDEX",
     .hosts = "LWS_GROUP_SIZE",
     .address = "LWS_LEADER_ADDRESS"},
    {.system = LaunchSystem::IndexedJob,
     .all_of = "JOB_COMPLETION_INDEX",
     .host = "JOB_COMPLETION_INDEX"},
    {.system = LaunchSystem::Volcano,
     .all_of = "",
     .any_of = "VC_TASK_INDEX VK_TASK_INDEX",
     .host = "VC_TASK_INDEX"},
    {.system = LaunchSystem::TorchEnv,
     .all_of = "RANK WORLD_SIZE MASTER_ADDR",
     .rank = "RANK",
     .size = "WORLD_SIZE",
     .local_rank = "LOCAL_RANK",
     .local_size = "LOCAL_WORLD_SIZE",
     .address = "MASTER_ADDR"},
};

Keys words(std::string_view text) {
  Keys out;
  while (!text.empty()) {
    out.push_back(text.substr(0, text.find(' ')));
    text.remove_prefix(std::min(text.size(), out.back().size() + 1));
  }
  return out;
}

std::optional<std::uint64_t> number(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

/// Whether the adapter's variables are there, and the sentence that says so.
struct Match {
  bool matches = false;
  std::string why;
};

/// The batch script of an allocation has a rank too, but no numbered step: it is not a task.
bool is_numbered_step(std::string_view step) {
  constexpr std::uint64_t kSpecialSteps = 0xfffffff0;
  const std::optional<std::uint64_t> value = number(step);
  return value && *value < kSpecialSteps;
}

Match match(const Adapter& adapter, const Variables& variables) {
  Keys set;
  Keys missing;
  for (const std::string_view key : words(adapter.all_of)) {
    (variables.contains(key) ? set : missing).push_back(key);
  }
  const Keys any_of = words(adapter.any_of);
  bool any = any_of.empty();
  for (const std::string_view key : any_of) any = any || variables.contains(key);
  for (const std::string_view key : any_of) {
    if (variables.contains(key)) set.push_back(key);
    if (!any) missing.push_back(key);
  }
  const auto say = [](const Keys& keys, std::string_view what, std::string_view what_many) {
    return fmt::format("{} {}", fmt::join(keys, " and "), keys.size() == 1 ? what : what_many);
  };
  Match out{missing.empty(), ""};
  if (!set.empty()) out.why = say(set, "is set", "are set");
  if (!missing.empty())
    out.why += (set.empty() ? "" : ", ") + say(missing, "is not set", "are not set");
  if (out.matches && adapter.system == LaunchSystem::Srun) {
    const std::string& step = variables.find("SLURM_STEP_ID")->second;
    if (!is_numbered_step(step))
      return {false, fmt::format("SLURM_STEP_ID={} is no step of srun", step)};
  }
  return out;
}

/// Reads numbers; the first that is none becomes the error.
class Numbers {
 public:
  explicit Numbers(const Variables& variables) : variables_(variables) {}
  std::optional<int> read(std::string_view key) {
    const auto found = key.empty() ? variables_.end() : variables_.find(key);
    if (found == variables_.end()) return std::nullopt;
    const std::optional<std::uint64_t> value = number(found->second);
    if (value && *value <= std::numeric_limits<int>::max()) return static_cast<int>(*value);
    if (error_)
      error_ = {Code::InvalidArgument,
                fmt::format("{}={} is not a number that it can be", key, found->second)};
    return std::nullopt;
  }
  [[nodiscard]] const Status& error() const { return error_; }

 private:
  const Variables& variables_;
  Status error_;
};

std::string text_of(const Variables& variables, std::string_view key) {
  const auto found = key.empty() ? variables.end() : variables.find(key);
  return found == variables.end() ? std::string() : found->second;
}

std::string joined(const std::string& first, std::string_view between, const std::string& second) {
  return first.empty() || second.empty() ? first : fmt::format("{}{}{}", first, between, second);
}

/// What is particular to one launcher.
void complete(LaunchEnvironment& out, const Variables& variables, Numbers& numbers) {
  const auto port = [&](std::string_view key) {
    out.address = joined(out.address, ":", text_of(variables, key));
  };
  switch (out.system) {
    case LaunchSystem::Torchrun:
      out.job = joined(out.job, "_", text_of(variables, "TORCHELASTIC_RESTART_COUNT"));
      port("MASTER_PORT");
      return;
    case LaunchSystem::TorchEnv: port("MASTER_PORT"); return;
    case LaunchSystem::Srun:
      out.job = joined(out.job, ".", text_of(variables, "SLURM_STEP_ID"));
      out.local_size =
          slurm_tasks(text_of(variables, "SLURM_STEP_TASKS_PER_NODE"), out.host.value_or(0));
      return;
    case LaunchSystem::Horovod: port("HOROVOD_GLOO_RENDEZVOUS_PORT"); return;
    case LaunchSystem::KubeflowTrainer:
      port("PET_MASTER_PORT");
      if (out.hosts && out.local_size) out.size = *out.hosts * *out.local_size;
      return;
    case LaunchSystem::Volcano:
      if (!out.host) out.host = numbers.read("VK_TASK_INDEX");
      return;
    case LaunchSystem::Regroup:
    case LaunchSystem::OpenMpi:
    case LaunchSystem::Hydra:
    case LaunchSystem::Pmix:
    case LaunchSystem::LeaderWorkerSet:
    case LaunchSystem::IndexedJob:
    case LaunchSystem::None: return;
  }
  REGROUP_UNREACHABLE("launch system");
}

Result<LaunchEnvironment> read(const Adapter& adapter, const Variables& variables,
                               std::string why) {
  Numbers numbers(variables);
  LaunchEnvironment out;
  out.system = adapter.system;
  out.why = std::move(why);
  out.rank = numbers.read(adapter.rank);
  for (const std::string_view key : words(adapter.size)) {
    if (!out.size) out.size = numbers.read(key);
  }
  out.local_rank = numbers.read(adapter.local_rank);
  out.local_size = numbers.read(adapter.local_size);
  out.host = numbers.read(adapter.host);
  out.hosts = numbers.read(adapter.hosts);
  out.job = text_of(variables, adapter.job);
  out.address = text_of(variables, adapter.address);
  complete(out, variables, numbers);
  if (!numbers.error()) return numbers.error();
  if (out.rank) out.source = fmt::format("{}={}", adapter.rank, *out.rank);
  if (out.rank && out.size && *out.rank >= *out.size) {
    return Status(Code::InvalidArgument,
                  fmt::format("{} does not fit its size {}", out.source, *out.size));
  }
  if (out.local_size && out.size && *out.local_size > *out.size) {
    return Status(Code::InvalidArgument,
                  fmt::format("{} says {} ranks on this host, but there are {} in all",
                              title(out.system), *out.local_size, *out.size));
  }
  return out;
}

LaunchEnvironment by_hand() {
  LaunchEnvironment out;
  out.rank = out.local_rank = out.host = 0;
  out.size = out.local_size = out.hosts = 1;
  out.why = "no launcher left a variable that is known";
  return out;
}

void note_conflicts(LaunchEnvironment& out, const Variables& variables) {
  for (const Adapter& other : kAdapters) {
    if (other.system <= out.system || !match(other, variables).matches) continue;
    const Result<LaunchEnvironment> theirs = read(other, variables, "");
    if (!theirs) continue;
    const auto differs = [](std::optional<int> a, std::optional<int> b) {
      return a && b && *a != *b;
    };
    if (differs(theirs->rank, out.rank) || differs(theirs->size, out.size)) {
      out.conflicts.push_back(fmt::format("{} says {} of {}", title(other.system), theirs->source,
                                          theirs->size.value_or(0)));
    }
  }
}

Status no_such_system(std::string_view wanted) {
  std::vector<std::string_view> names;
  for (int i = 0; i < kLaunchSystems; ++i) names.push_back(name(static_cast<LaunchSystem>(i)));
  return {Code::InvalidArgument, fmt::format("REGROUP_LAUNCH={} names no launcher; known are {}",
                                             wanted, fmt::join(names, ", "))};
}

Result<LaunchEnvironment> read_as(std::string_view wanted, const Variables& variables) {
  if (wanted == name(LaunchSystem::None)) return by_hand();
  for (const Adapter& adapter : kAdapters) {
    if (name(adapter.system) != wanted) continue;
    Match found = match(adapter, variables);
    if (!found.matches) {
      return Status(Code::InvalidArgument,
                    fmt::format("REGROUP_LAUNCH={}, but {}", wanted, found.why));
    }
    return read(adapter, variables, fmt::format("REGROUP_LAUNCH={}", wanted));
  }
  return no_such_system(wanted);
}

}  // namespace

std::string_view name(LaunchSystem system) {
  constexpr std::array<std::string_view, kLaunchSystems> kNames = {
      "regroup", "torchrun", "ompi", "hydra",   "slurm",     "pmix", "horovod",
      "pet",     "lws",      "job",  "volcano", "torch-env", "none"};
  return kNames[static_cast<std::size_t>(system)];
}

std::string_view title(LaunchSystem system) {
  constexpr std::array<std::string_view, kLaunchSystems> kTitles = {"Regroup",
                                                                    "torchrun",
                                                                    "Open MPI",
                                                                    "Hydra",
                                                                    "srun",
                                                                    "PMIx",
                                                                    "Horovod",
                                                                    "Kubeflow Trainer",
                                                                    "LeaderWorkerSet",
                                                                    "indexed Job",
                                                                    "Volcano",
                                                                    "RANK and WORLD_SIZE",
                                                                    "by hand"};
  return kTitles[static_cast<std::size_t>(system)];
}

Result<LaunchEnvironment> read_launch_environment(const std::vector<std::string>& environment) {
  const Variables variables = variables_of(environment);
  if (const std::string wanted = text_of(variables, "REGROUP_LAUNCH"); !wanted.empty())
    return read_as(wanted, variables);
  for (const Adapter& adapter : kAdapters) {
    Match found = match(adapter, variables);
    if (!found.matches) continue;
    Result<LaunchEnvironment> out = read(adapter, variables, std::move(found.why));
    if (out) note_conflicts(*out, variables);
    return out;
  }
  return by_hand();
}

std::vector<LaunchRow> explain_launch_environment(const std::vector<std::string>& environment) {
  const Variables variables = variables_of(environment);
  const Result<LaunchEnvironment> chosen = read_launch_environment(environment);
  std::vector<LaunchRow> out;
  for (const Adapter& adapter : kAdapters) {
    Match found = match(adapter, variables);
    out.push_back({adapter.system, found.matches, chosen && chosen->system == adapter.system,
                   std::move(found.why)});
  }
  const bool by_hand_chosen = chosen && chosen->system == LaunchSystem::None;
  out.push_back({LaunchSystem::None, true, by_hand_chosen, "when nothing else matches"});
  return out;
}

std::optional<int> slurm_tasks(std::string_view list, int index) {
  while (!list.empty()) {
    std::string_view part = list.substr(0, list.find(','));
    list.remove_prefix(std::min(list.size(), part.size() + 1));
    std::uint64_t times = 1;
    if (const std::size_t open = part.find("(x"); open != std::string_view::npos) {
      if (!part.ends_with(')')) return std::nullopt;
      const auto count = number(part.substr(open + 2, part.size() - open - 3));
      if (!count) return std::nullopt;
      times = *count;
      part = part.substr(0, open);
    }
    const std::optional<std::uint64_t> tasks = number(part);
    if (!tasks || *tasks > std::numeric_limits<int>::max()) return std::nullopt;
    if (static_cast<std::uint64_t>(index) < times) return static_cast<int>(*tasks);
    index -= static_cast<int>(times);
  }
  return std::nullopt;
}

}  // namespace regroup::launcher
