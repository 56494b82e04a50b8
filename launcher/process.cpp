#include "launcher/process.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>

#include "launcher/priority.hpp"

namespace regroup::launcher {
namespace {

/// Everything the child needs, prepared before the fork: after it, only async-signal-safe calls are
/// allowed.
struct ChildPlan {
  const SpawnRequest* request;
  char* const* argv;
  char* const* envp;
  int error_pipe;
  int null_fd;
  pid_t parent;
};

[[noreturn]] void child_fail(const ChildPlan& plan) {
  const int error = errno;
  const ssize_t ignored = ::write(plan.error_pipe, &error, sizeof error);
  (void)ignored;
  ::_exit(127);
}

void child_descriptors(const ChildPlan& plan) {
  const SpawnRequest& r = *plan.request;
  // Sources above 2 (the launcher keeps 0..2 open), so a dup2 onto 0..2 cannot overwrite a later
  // source.
  if (::dup2(r.in >= 0 ? r.in : plan.null_fd, 0) < 0) child_fail(plan);
  if (r.out >= 0 && ::dup2(r.out, 1) < 0) child_fail(plan);
  if (r.err >= 0 && ::dup2(r.err, 2) < 0) child_fail(plan);
  if (r.in == 0) ::fcntl(0, F_SETFD, 0);
  for (const int fd : r.kept) {
    if (::fcntl(fd, F_SETFD, 0) < 0) child_fail(plan);
  }
}

[[noreturn]] void child_main(const ChildPlan& plan) {
  const SpawnRequest& r = *plan.request;
  if (r.own_group && ::setpgid(0, 0) != 0) child_fail(plan);
  if (::prctl(PR_SET_PDEATHSIG, r.death_signal) != 0) child_fail(plan);
  // The parent may have died between the fork and the request above: then the signal never comes.
  if (::getppid() != plan.parent) ::_exit(127);
  go_as_before();
  child_descriptors(plan);
  if (!r.directory.empty() && ::chdir(r.directory.c_str()) != 0) child_fail(plan);
  if (r.descriptors_soft) {
    rlimit limit{};
    if (::getrlimit(RLIMIT_NOFILE, &limit) == 0) {
      limit.rlim_cur = *r.descriptors_soft;
      ::setrlimit(RLIMIT_NOFILE, &limit);
    }
  }
  struct sigaction standard {};
  standard.sa_handler = SIG_DFL;
  for (int signal = 1; signal < NSIG; ++signal) ::sigaction(signal, &standard, nullptr);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::execve(r.path.c_str(), plan.argv, plan.envp);
  child_fail(plan);
}

std::vector<char*> pointers(const std::vector<std::string>& words) {
  std::vector<char*> out;
  for (const std::string& word : words) out.push_back(const_cast<char*>(word.c_str()));
  out.push_back(nullptr);
  return out;
}

Status system_error(Code code, std::string_view what) {
  return {code, fmt::format("{}: {}", what, std::strerror(errno))};
}

}  // namespace

void open_standard_descriptors() {
  while (true) {
    const int fd = ::open("/dev/null", O_RDWR);
    if (fd < 0 || fd > 2) {
      if (fd > 2) ::close(fd);
      return;
    }
  }
}

Result<Spawned> spawn(const SpawnRequest& request) {
  int pipe_fds[2];
  if (::pipe2(pipe_fds, O_CLOEXEC) != 0) return system_error(Code::ResourceExhausted, "pipe");
  const base::Fd read_end(pipe_fds[0]);
  base::Fd write_end(pipe_fds[1]);
  const base::Fd null_fd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (!null_fd) return system_error(Code::ResourceExhausted, "/dev/null");
  const std::vector<char*> argv = pointers(request.arguments);
  const std::vector<char*> envp = pointers(request.environment);
  const ChildPlan plan{&request,        argv.data(),   envp.data(),
                       write_end.get(), null_fd.get(), ::getpid()};

  const pid_t pid = ::fork();
  if (pid < 0) return system_error(Code::ResourceExhausted, "fork");
  if (pid == 0) child_main(plan);
  // Also here: whoever signals the group next must find it, whichever of the two runs first.
  if (request.own_group) ::setpgid(pid, pid);
  write_end.reset();

  int child_errno = 0;
  ssize_t got;
  do {
    got = ::read(read_end.get(), &child_errno, sizeof child_errno);
  } while (got < 0 && errno == EINTR);
  Spawned spawned{pid, base::Fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)))};
  if (got == static_cast<ssize_t>(sizeof child_errno) || !spawned.pidfd) {
    const bool ran = got != static_cast<ssize_t>(sizeof child_errno);
    if (ran) child_errno = errno;
    ::kill(pid, SIGKILL);
    while (::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
    }
    const bool again =
        ran || child_errno == EAGAIN || child_errno == ENOMEM || child_errno == EMFILE;
    return Status(again ? Code::ResourceExhausted : Code::FailedPrecondition,
                  fmt::format("cannot run {}: {}", request.path, std::strerror(child_errno)));
  }
  return spawned;
}

void signal_process(const Spawned& process, int signal) {
  if (process.pidfd) ::syscall(SYS_pidfd_send_signal, process.pidfd.get(), signal, nullptr, 0);
}

void signal_group(const Spawned& process, int signal) {
  if (process.pid > 1) ::kill(-process.pid, signal);
}

Result<std::string> output_of(SpawnRequest request, TimePoint until) {
  constexpr std::size_t kBytesMax = 64 * 1024;
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC) != 0) return system_error(Code::ResourceExhausted, "pipe");
  const base::Fd read_end(fds[0]);
  base::Fd write_end(fds[1]);
  const base::Fd null_fd(::open("/dev/null", O_WRONLY | O_CLOEXEC));
  request.out = write_end.get();
  if (request.err < 0) request.err = null_fd.get();
  const Result<Spawned> spawned = spawn(request);
  write_end.reset();
  if (!spawned) return spawned.error();
  std::string out;
  bool ended = false;
  while (!ended && out.size() < kBytesMax) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(until - Clock::now()).count();
    pollfd entry{read_end.get(), POLLIN, 0};
    if (left <= 0 || ::poll(&entry, 1, static_cast<int>(left)) == 0) break;
    char buffer[4096];
    const ssize_t got = ::read(read_end.get(), buffer, sizeof buffer);
    if (got > 0) out.append(buffer, static_cast<std::size_t>(got));
    ended = got == 0 || (got < 0 && errno != EINTR);
  }
  signal_group(*spawned, SIGKILL);
  while (::waitpid(spawned->pid, nullptr, 0) < 0 && errno == EINTR) {
  }
  if (!ended && out.size() < kBytesMax)
    return Status(Code::DeadlineExceeded, fmt::format("{} does not end", request.path));
  return out;
}

bool is_stopped(const Spawned& process) {
  siginfo_t info{};
  // Left in place (WNOWAIT), the report holds for as long as it is true.
  return ::waitid(P_PID, static_cast<id_t>(process.pid), &info, WSTOPPED | WNOHANG | WNOWAIT) ==
             0 &&
         info.si_pid == process.pid;
}

Result<std::string> find_program(const std::string& name, const std::string& search) {
  const auto is_program = [](const std::string& path) {
    struct stat info {};
    return ::stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) &&
           ::access(path.c_str(), X_OK) == 0;
  };
  const auto refusal = [&](const std::string& path) -> Status {
    struct stat info {};
    if (::stat(path.c_str(), &info) != 0) {
      return {Code::InvalidArgument, fmt::format("{}: {}", path, std::strerror(errno))};
    }
    if (S_ISDIR(info.st_mode))
      return {Code::FailedPrecondition, fmt::format("{} is a directory", path)};
    return {Code::FailedPrecondition,
            fmt::format("{} is not executable; chmod +x it, or name its interpreter", path)};
  };
  if (name.find('/') != std::string::npos) {
    if (is_program(name)) return name;
    return refusal(name);
  }
  std::optional<Status> near_miss;
  for (std::size_t begin = 0; begin <= search.size();) {
    const std::size_t end = std::min(search.find(':', begin), search.size());
    const std::string folder = search.substr(begin, end - begin);
    const std::string path = (folder.empty() ? "." : folder) + "/" + name;
    if (is_program(path)) return path;
    if (!near_miss && ::access(path.c_str(), F_OK) == 0) near_miss = refusal(path);
    begin = end + 1;
  }
  if (near_miss) return *near_miss;
  return Status(
      Code::InvalidArgument,
      fmt::format("{}: not found in PATH; a program of this folder is written ./{}", name, name));
}

}  // namespace regroup::launcher
