#include "launcher/doctor.hpp"

#include <dlfcn.h>
#include <fmt/format.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <thread>

#include "launcher/options.hpp"
#include "launcher/preflight.hpp"
#include "launcher/process.hpp"

namespace regroup::launcher {
namespace {

std::string first_line(const std::filesystem::path& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

Finding required(std::string name, bool there, std::string_view means, std::string_view lacks) {
  return {std::move(name), there ? Health::Good : Health::Missing, there ? "yes" : "no",
          std::string(there ? means : lacks)};
}

// ---- kernel ----

void look_at_kernel(std::vector<Finding>& out) {
  utsname system{};
  ::uname(&system);
  out.push_back({"kernel", Health::Good, fmt::format("{} {}", system.sysname, system.release), ""});
  const KernelFeatures kernel = probe_kernel();
  out.push_back(required("robust futex", kernel.robust_futex,
                         "the kernel tells of a rank's death in milliseconds",
                         "no job starts: a rank's death could not be noticed at once"));
  out.push_back(required("memfd sealing", kernel.memfd_seals,
                         "shared memory has no name that could be left behind",
                         "no job starts: there is no shared memory without names"));
  out.push_back(required("pidfd", kernel.pidfd, "signals reach exactly the process that is meant",
                         "no job starts: Linux 5.3 or newer has it"));
  const bool waits = ::syscall(SYS_futex_waitv, nullptr, 0, 0, nullptr, 0) == 0 || errno != ENOSYS;
  out.push_back({"futex_waitv", waits ? Health::Good : Health::Hint, waits ? "yes" : "no",
                 waits ? "one wait covers the beacons of all ranks"
                       : "Linux 5.16 or newer notices deaths sooner with many ranks"});
}

// ---- processor and memory ----

/// Of the group that this process is in; "" where there is none.
std::string cgroup_file(const char* name) {
  const std::string line = first_line("/proc/self/cgroup");
  const std::size_t path = line.rfind("::");
  const std::filesystem::path root("/sys/fs/cgroup");
  if (path != std::string::npos) {
    const std::string own =
        first_line(root / std::filesystem::path(line.substr(path + 2)).relative_path() / name);
    if (!own.empty()) return own;
  }
  return first_line(root / name);
}

double cgroup_quota() {
  const std::string both = cgroup_file("cpu.max");
  if (!both.empty()) return quota_of(both);
  const std::string quota = first_line("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
  return quota.empty() || quota[0] == '-'
             ? 0
             : quota_of(quota + " " + first_line("/sys/fs/cgroup/cpu/cpu.cfs_period_us"));
}

int allowed_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return ::sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 0;
}

void look_at_memory(std::vector<Finding>& out) {
  std::uint64_t available_kib = 0;
  std::ifstream in("/proc/meminfo");
  for (std::string key; in >> key;) {
    if (key == "MemAvailable:") in >> available_kib;
    in.ignore(256, '\n');
  }
  const std::string limit = cgroup_file("memory.max");
  const bool limited = !limit.empty() && limit != "max";
  out.push_back({"memory", Health::Good,
                 fmt::format("{:.1f} GiB available{}", static_cast<double>(available_kib) / 1048576,
                             limited ? ", container limit " + limit + " bytes" : ""),
                 "shared memory of the ranks counts towards it, and towards a container's limit"});
  const std::string huge = first_line("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
  const std::size_t open = huge.find('[');
  const std::string mode =
      open == std::string::npos ? "unknown" : huge.substr(open + 1, huge.find(']') - open - 1);
  const bool on = mode == "always" || mode == "within_size" || mode == "advise";
  out.push_back({"huge pages", on ? Health::Good : Health::Hint, "shmem_enabled " + mode,
                 on ? "large arenas may use huge pages"
                    : "large messages cost more page faults; as root: echo advise > "
                      "/sys/kernel/mm/transparent_hugepage/shmem_enabled"});
  const std::string nodes = first_line("/sys/devices/system/node/online");
  out.push_back({"memory nodes", Health::Good, nodes.empty() ? "1" : nodes,
                 nodes.empty() || nodes == "0"
                     ? "all memory is equally near"
                     : "bind ranks to nodes with your own tool (numactl)"});
  const std::string clock =
      first_line("/sys/devices/system/clocksource/clocksource0/current_clocksource");
  const bool cheap = clock == "tsc" || clock == "kvm-clock" || clock == "arch_sys_counter";
  out.push_back({"clock", cheap ? Health::Good : Health::Hint, clock.empty() ? "unknown" : clock,
                 cheap ? "the time ledger costs nanoseconds"
                       : "reading this clock is slow: small operations take longer"});
}

// ---- limits ----

void look_at_limits(std::vector<Finding>& out) {
  rlimit files{};
  ::getrlimit(RLIMIT_NOFILE, &files);
  out.push_back(judge_descriptors(files.rlim_max));
  rlimit locked{};
  ::getrlimit(RLIMIT_MEMLOCK, &locked);
  out.push_back({"locked memory", Health::Good,
                 locked.rlim_cur == RLIM_INFINITY ? "unlimited"
                                                  : fmt::format("{} KiB", locked.rlim_cur / 1024),
                 "not needed: arenas are never locked"});
  rlimit processes{};
  ::getrlimit(RLIMIT_NPROC, &processes);
  const bool few = processes.rlim_cur != RLIM_INFINITY && processes.rlim_cur < 256;
  out.push_back(
      {"processes", few ? Health::Hint : Health::Good,
       processes.rlim_cur == RLIM_INFINITY ? "unlimited" : fmt::format("{}", processes.rlim_cur),
       few ? "each rank takes two threads and its program's own; raise ulimit -u"
           : "enough for ranks and their threads"});
  rlimit core{};
  ::getrlimit(RLIMIT_CORE, &core);
  out.push_back(judge_core_dumps(first_line("/proc/sys/kernel/core_pattern"), core.rlim_cur == 0));
}

// ---- launchers and libraries ----

/// The first line that `program --version` prints; "" if it says nothing in time.
std::string version_of(const std::string& program) {
  const std::string command = fmt::format("timeout 5 '{}' --version 2>/dev/null", program);
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(::popen(command.c_str(), "re"), &::pclose);
  std::array<char, 256> line{};
  while (pipe && std::fgets(line.data(), static_cast<int>(line.size()), pipe.get()) != nullptr) {
    std::string text(line.data());
    text.erase(text.find_last_not_of(" \n\t") + 1);
    text.erase(0, text.find_first_not_of(" \t"));
    // MPICH aligns its table with many spaces.
    while (text.find("  ") != std::string::npos) text.erase(text.find("  "), 1);
    if (text.find_first_of("0123456789") != std::string::npos) return text;
  }
  return "";
}

void look_for_launchers(std::vector<Finding>& out) {
  const char* search = std::getenv("PATH");
  std::vector<std::filesystem::path> seen;
  for (const char* program :
       {"mpirun", "mpirun.openmpi", "mpirun.mpich", "mpiexec.hydra", "srun", "torchrun"}) {
    const Result<std::string> path = find_program(program, search != nullptr ? search : "");
    if (!path || path->find('\'') != std::string::npos) continue;
    std::error_code error;
    const std::filesystem::path real = std::filesystem::canonical(*path, error);
    if (error || std::find(seen.begin(), seen.end(), real) != seen.end()) continue;
    seen.push_back(real);
    const std::string version = version_of(*path);
    out.push_back({program, Health::Good, version.empty() ? "no version told" : version,
                   "found at " + *path});
  }
  if (seen.empty()) {
    out.push_back({"other launchers", Health::Absent, "none",
                   "no mpirun, srun or torchrun in PATH; regroup run needs none"});
  }
}

/// A library that can be loaded.
class Library {
 public:
  // Not unloaded again: what such a library allocated when it was loaded it never frees.
  explicit Library(const char* name)
      : handle_(::dlopen(name, RTLD_LAZY | RTLD_LOCAL | RTLD_NODELETE)) {}
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;
  ~Library() {
    if (handle_ != nullptr) ::dlclose(handle_);
  }
  explicit operator bool() const { return handle_ != nullptr; }
  template <class Function>
  [[nodiscard]] Function* find(const char* name) const {
    return reinterpret_cast<Function*>(::dlsym(handle_, name));
  }

 private:
  void* handle_;
};

constexpr const char* kSharedMemoryOnly = "not used: this version moves data by shared memory";

Finding look_for_ucx() {
  const Library ucx("libucp.so.0");
  if (!ucx) return {"UCX", Health::Absent, "none", kSharedMemoryOnly};
  auto* version = ucx.find<const char*()>("ucp_get_version_string");
  return {"UCX", Health::Good, version != nullptr ? version() : "found", kSharedMemoryOnly};
}

Finding look_for_nccl() {
  const Library nccl("libnccl.so.2");
  if (!nccl) return {"NCCL", Health::Absent, "none", kSharedMemoryOnly};
  int number = 0;
  if (auto* version = nccl.find<int(int*)>("ncclGetVersion"); version != nullptr) version(&number);
  return {"NCCL", Health::Good,
          fmt::format("{}.{}.{}", number / 10000, number / 100 % 100, number % 100),
          kSharedMemoryOnly};
}

Finding look_for_gpus() {
  const Library cuda("libcuda.so.1");
  auto* begin = cuda ? cuda.find<int(unsigned)>("cuInit") : nullptr;
  auto* count_devices = cuda ? cuda.find<int(int*)>("cuDeviceGetCount") : nullptr;
  int count = 0;
  if (begin != nullptr && count_devices != nullptr && begin(0) == 0) count_devices(&count);
  if (count == 0) {
    return {"GPU", Health::Absent, cuda ? "a driver, no device" : "none",
            "buffers are host memory in this version"};
  }
  return {"GPU", Health::Good, fmt::format("{}", count),
          "not used: buffers are host memory in this version"};
}

}  // namespace

std::string_view name(Health health) {
  switch (health) {
    case Health::Good: return "ok";
    case Health::Hint: return "hint";
    case Health::Absent: return "absent";
    case Health::Missing: return "missing";
  }
  return "?";
}

double quota_of(std::string_view cpu_max) {
  double quota = 0;
  double period = 0;
  if (std::sscanf(std::string(cpu_max).c_str(), "%lf %lf", &quota, &period) != 2) return 0;
  return period > 0 && quota > 0 ? quota / period : 0;
}

Finding judge_cores(int online, int allowed, double quota) {
  Finding out{"cores", Health::Good, fmt::format("{} of {} allowed", allowed, online), ""};
  int usable = allowed;
  if (quota > 0) {
    out.value += fmt::format(", quota {:.1f}", quota);
    usable = std::min(usable, std::max(1, static_cast<int>(std::floor(quota))));
  }
  if (quota > 0 && quota < allowed) out.health = Health::Hint;
  out.meaning = fmt::format(
      "up to {} rank{} with a core each; more share them, and wait asleep instead of spinning{}",
      usable, usable == 1 ? "" : "s",
      out.health == Health::Hint ? "; a quota below the cores makes ranks pause for 100 ms" : "");
  return out;
}

Finding judge_core_dumps(std::string_view pattern, bool limit_is_zero) {
  Finding out{"core dumps", Health::Good, "", ""};
  const bool piped = pattern.starts_with('|');
  out.value = fmt::format("{}, pattern {}", limit_is_zero ? "off" : "on",
                          pattern.empty() ? "unknown" : pattern);
  // A pattern with a pipe dumps whatever the limit says, unless the limit is 1.
  if (limit_is_zero && !piped) {
    out.meaning = "a crashed rank is noticed at once, whatever its size";
    return out;
  }
  out.health = Health::Hint;
  out.meaning =
      "a crash is noticed only when its dump is written; for quick recovery of large ranks: ulimit "
      "-c 0, or madvise(MADV_DONTDUMP) on what is large";
  return out;
}

Finding judge_descriptors(std::uint64_t hard_limit) {
  int ranks = 0;
  for (int n = 1; n <= kRanksMax; ++n) {
    RunOptions options;
    options.ranks = n;
    if (descriptors_needed(options) <= hard_limit) ranks = n;
  }
  return {"open files",
          ranks == 0          ? Health::Missing
          : ranks < kRanksMax ? Health::Hint
                              : Health::Good,
          fmt::format("{} (hard limit)", hard_limit),
          ranks == 0 ? "no job starts: raise ulimit -Hn"
                     : fmt::format("good for {} ranks of the {} that one host may have", ranks,
                                   kRanksMax)};
}

std::vector<Finding> examine_machine() {
  std::vector<Finding> out;
  look_at_kernel(out);
  out.push_back(judge_cores(static_cast<int>(std::thread::hardware_concurrency()), allowed_cores(),
                            cgroup_quota()));
  look_at_memory(out);
  look_at_limits(out);
  look_for_launchers(out);
  out.push_back(look_for_ucx());
  out.push_back(look_for_nccl());
  out.push_back(look_for_gpus());
  return out;
}

}  // namespace regroup::launcher
