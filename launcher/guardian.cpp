#include "launcher/guardian.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>

#include "launcher/commands.hpp"
#include "launcher/descendants.hpp"
#include "launcher/exit_codes.hpp"

namespace regroup::launcher {
namespace {

constexpr std::chrono::seconds kCleanUpMax{30};

void wait_for_end_of(int fd) {
  char byte;
  while (true) {
    const ssize_t got = ::read(fd, &byte, 1);
    if (got == 0 || (got < 0 && errno != EINTR)) return;
  }
}

/// Kills until two looks in a row find nothing: a process between fork and exec shows its parent's
/// environment, so one look sees it, but what it starts meanwhile may need the next.
void clean_up(const std::string& marker) {
  const TimePoint until = Clock::now() + kCleanUpMax;
  for (int empty_looks = 0; empty_looks < 2 && Clock::now() < until;) {
    bool found = false;
    for (const pid_t pid : processes_with(marker)) {
      if (pid == ::getpid() || !runs(pid)) continue;
      found = true;
      ::kill(pid, SIGKILL);
    }
    empty_looks = found ? 0 : empty_looks + 1;
    ::poll(nullptr, 0, 5);
  }
}

void detach_from_terminal() {
  ::setsid();
  const base::Fd null_fd(::open("/dev/null", O_RDWR | O_CLOEXEC));
  for (const int fd : {0, 1, 2}) {
    if (null_fd) ::dup2(null_fd.get(), fd);
  }
}

void guardian_main(int fd, const std::string& mark) {
  detach_from_terminal();
  ::prctl(PR_SET_NAME, "regroup-guard");
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) ::signal(signal, SIG_IGN);
  wait_for_end_of(fd);
  clean_up(mark);
}

}  // namespace

Result<Guardian> Guardian::start(const std::string& job, const std::string& mark) {
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC) != 0)
    return Status(Code::ResourceExhausted, "no descriptors for the guardian");
  const base::Fd read_end(fds[0]);
  base::Fd write_end(fds[1]);
  SpawnRequest request;
  request.path = "/proc/self/exe";
  request.arguments = {"regroup", "guardian", "--fd", std::to_string(read_end.get()),
                       "--mark",  mark};
  // Its own job's id: an outer job's guardian leaves it alone, so that it can do its work.
  request.environment = {"REGROUP_JOB_ID=" + job};
  request.kept = {read_end.get()};
  // It outlives this process on purpose, for as long as the clean-up takes.
  request.death_signal = 0;
  Result<Spawned> spawned = spawn(request);
  if (!spawned) return spawned.error();
  return Guardian(std::move(*spawned), std::move(write_end));
}

Guardian::~Guardian() {
  if (process_.pid <= 0 || !process_.pidfd) return;
  signal_process(process_, SIGKILL);
  while (::waitpid(process_.pid, nullptr, 0) < 0 && errno == EINTR) {
  }
}

int guardian_command(const Arguments& arguments) {
  if (arguments.size() != 4 || arguments[0] != "--fd" || arguments[2] != "--mark") {
    fmt::print(stderr, "regroup guardian: started by regroup run only\n");
    return kExitBadUsage;
  }
  int fd = -1;
  const std::string& text = arguments[1];
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), fd);
  if (error != std::errc{} || end != text.data() + text.size() || fd < 0) return kExitBadUsage;
  guardian_main(fd, arguments[3]);
  return kExitDone;
}

}  // namespace regroup::launcher
