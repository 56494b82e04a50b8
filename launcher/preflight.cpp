#include "launcher/preflight.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <system_error>

#include "base/fd.hpp"
#include "launcher/exit_codes.hpp"
#include "launcher/process.hpp"

namespace regroup::launcher {
namespace {

Refusal lacks(std::string_view feature, std::string_view needed_for, std::string_view since) {
  return {kExitUnavailable, "E-SYS-1",
          fmt::format("this kernel does not offer {}, which is needed {}; run on {}, or let the "
                      "container's seccomp profile allow it",
                      feature, needed_for, since)};
}

/// Whether the kernel marks a lock whose owner is gone.
bool marks_dead_owners() {
  pthread_mutexattr_t attributes;
  pthread_mutex_t mutex;
  ::pthread_mutexattr_init(&attributes);
  ::pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  ::pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  const bool made = ::pthread_mutex_init(&mutex, &attributes) == 0;
  ::pthread_mutexattr_destroy(&attributes);
  if (!made) return false;
  pthread_t owner;
  const auto lock = [](void* one) -> void* {
    ::pthread_mutex_lock(static_cast<pthread_mutex_t*>(one));
    return nullptr;
  };
  // No thread to be had is a lack of its own, and named when the next one is needed.
  if (::pthread_create(&owner, nullptr, lock, &mutex) != 0) return true;
  ::pthread_join(owner, nullptr);
  return ::pthread_mutex_trylock(&mutex) == EOWNERDEAD;
}

}  // namespace

KernelFeatures probe_kernel() {
  KernelFeatures out;
  const base::Fd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0)));
  out.pidfd = static_cast<bool>(pidfd) || errno == EMFILE || errno == ENFILE;
  out.pidfd_signal = !pidfd || ::syscall(SYS_pidfd_send_signal, pidfd.get(), 0, nullptr, 0) == 0;
  const base::Fd memory(::memfd_create("regroup-probe", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  out.memfd_seals = memory ? ::fcntl(memory.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0
                           : errno == EMFILE || errno == ENFILE;
  out.robust_futex = marks_dead_owners();
  return out;
}

Refusal check_kernel(const KernelFeatures& features) {
  if (!features.pidfd) {
    return lacks("pidfd_open", "to signal exactly the process that is meant", "Linux 5.3 or newer");
  }
  if (!features.pidfd_signal) {
    return lacks("pidfd_send_signal", "to signal exactly the process that is meant",
                 "Linux 5.1 or newer");
  }
  if (!features.memfd_seals) {
    return lacks("memfd_create with seals", "for shared memory that leaves nothing behind",
                 "Linux 3.17 or newer with CONFIG_MEMFD_CREATE");
  }
  if (!features.robust_futex) {
    return lacks("robust futexes", "to notice a rank's death at once",
                 "a kernel with CONFIG_FUTEX");
  }
  return Refusal::none();
}

std::uint64_t descriptors_needed(const RunOptions& options) {
  // A process: pidfd, channel, two pipes, two files, beacon page, two kept memories, and a spare
  // for its successor's start. Beside them: loop, signals, coordinator, console, event log, arenas
  // of a handful of groups.
  constexpr std::uint64_t kPerProcess = 10;
  constexpr std::uint64_t kOthers = 64;
  return kOthers + kPerProcess * static_cast<std::uint64_t>(options.ranks + options.spares + 1);
}

Refusal check_descriptors(const RunOptions& options, std::uint64_t hard_limit) {
  const std::uint64_t needed = descriptors_needed(options);
  if (needed <= hard_limit) return Refusal::none();
  return {
      kExitUnavailable, "E-LIMIT-1",
      fmt::format(
          "{} ranks and {} spares need {} open descriptors, the limit here is {}; raise it with "
          "'ulimit -Hn {}' (or LimitNOFILE=), or start fewer",
          options.ranks, options.spares, needed, hard_limit, needed)};
}

Refusal check_log_dir(const std::filesystem::path& log_dir) {
  const auto refuse = [&](int error) {
    return Refusal{
        kExitNotAllowed, "E-LOG-1",
        fmt::format("cannot write into the log directory {}: {}; name another one with --log-dir",
                    log_dir.string(), std::strerror(error))};
  };
  std::error_code error;
  std::filesystem::create_directories(log_dir, error);
  if (error) return refuse(error.value());
  // A name of its own: agents of several hosts may share the directory and a process number.
  std::string probe = (log_dir / ".probe-XXXXXX").string();
  const base::Fd fd(::mkostemp(probe.data(), O_CLOEXEC));
  if (!fd) return refuse(errno);
  ::unlink(probe.c_str());
  return Refusal::none();
}

Refusal check_program(const std::string& program, const std::string& search, std::string& path) {
  Result<std::string> found = find_program(program, search);
  if (!found) return {kExitNoProgram, "E-PROG-1", std::string(found.error().text())};
  path = std::move(*found);
  return Refusal::none();
}

}  // namespace regroup::launcher
