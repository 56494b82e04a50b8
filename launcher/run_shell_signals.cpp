/// RunShell: signals and children.
#include <fmt/format.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>

#include "base/check.hpp"
#include "launcher/descendants.hpp"
#include "launcher/exit_codes.hpp"
#include "launcher/run_shell.hpp"

namespace regroup::launcher {
namespace {

constexpr std::array kHandled = {SIGCHLD, SIGINT,  SIGTERM, SIGHUP,  SIGQUIT,
                                 SIGUSR1, SIGUSR2, SIGTSTP, SIGCONT, SIGWINCH};

ExitStatus status_of(const siginfo_t& info) {
  ExitStatus status;
  if (info.si_code == CLD_EXITED) {
    status.exit_code = info.si_status;
  } else {
    status.signal = info.si_status;
    status.core = info.si_code == CLD_DUMPED;
  }
  return status;
}

}  // namespace

Status RunShell::open_signals() {
  sigset_t set;
  ::sigemptyset(&set);
  for (const int signal : kHandled) ::sigaddset(&set, signal);
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  signal_fd_.reset(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signal_fd_)
    return {Code::ResourceExhausted, fmt::format("signalfd: {}", std::strerror(errno))};
  loop_.watch(signal_fd_.get(), [this](std::uint32_t) { on_signals(); });
  return {};
}

void RunShell::on_signals() {
  signalfd_siginfo info{};
  while (::read(signal_fd_.get(), &info, sizeof info) == static_cast<ssize_t>(sizeof info)) {
    on_signal(static_cast<int>(info.ssi_signo));
  }
  // After all of them: several ends may stand behind one SIGCHLD.
  reap();
  drain();
}

void RunShell::on_signal(int signal) {
  switch (signal) {
    case SIGCHLD: return;
    case SIGINT:
    case SIGTERM: {
      const bool again = ending_ && ending_->origin == "signal";
      const std::string why = fmt::format("received {}", signal_name(signal));
      if (again) narrator_.note({"signal", why + " again: killing what is left"}, true);
      if (!again)
        narrator_.note(
            {"signal",
             fmt::format("{}: ending the job, {} s of grace; once more kills at once", why,
                         std::chrono::duration_cast<std::chrono::seconds>(options_.grace).count())},
            true);
      end_job(128 + signal, "signal", why, again);
      return;
    }
    case SIGHUP:
    case SIGQUIT:
    case SIGUSR1:
    case SIGUSR2:
    case SIGTSTP:
    case SIGCONT:
    case SIGWINCH: break;
    default: REGROUP_UNREACHABLE("a signal that is not in kHandled");
  }
  for (auto& [incarnation, process] : processes_) {
    if (!process->gone) signal_group(process->spawned, signal);
  }
  // The ranks are being stopped; a terminal's job control expects the same of us.
  if (signal == SIGTSTP) ::raise(SIGSTOP);
}

void RunShell::reap() {
  while (true) {
    siginfo_t info{};
    // Look first: while the process is a zombie its number, and that of its group, cannot mean
    // somebody else.
    if (::waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == 0) return;
    const ExitStatus status = status_of(info);
    // What others said before this one ended counts before its end does: a newcomer that entered
    // must be known as healed when the last rank it healed from is gone.
    for (auto& [incarnation, process] : processes_) pump_channel(*process);
    if (!status.good()) {
      for (auto& [incarnation, process] : processes_) {
        if (process->spawned.pid == info.si_pid && !process->gone)
          signal_group(process->spawned, SIGKILL);
      }
    }
    ::waitpid(info.si_pid, nullptr, 0);
    reaped(info.si_pid, status);
  }
}

void RunShell::reaped(pid_t pid, const ExitStatus& status) {
  if (coordinator_ && coordinator_->reaped(pid, status, Clock::now())) return;
  if (guardian_ && guardian_->pid() == pid) {
    guardian_->gone();
    guardian_.reset();
    Result<Guardian> again = Guardian::start(setup_.job);
    if (again) guardian_.emplace(std::move(*again));
    return;
  }
  for (auto& [incarnation, process] : processes_) {
    if (process->spawned.pid != pid || process->gone) continue;
    process->gone = true;
    process->exit = status;
    process->spawned.pidfd.reset();
    beacons_->remove(incarnation);
    close_channel(*process);
    narrator_.exit_known(*process);
    if (process->attached && !process->reported_lost && status.good()) {
      narrator_.ledger(*process, metrics::monotonic_ns());
    }
    post(supervisor::Exited{incarnation, status.exit_code, status.signal});
    return;
  }
  // An orphan of a rank that came to us: nothing to tell.
}

void RunShell::sweep(Incarnation incarnation) {
  const std::string marker = fmt::format("REGROUP_INCARNATION={}", incarnation.value());
  const std::string job = "REGROUP_JOB_ID=" + setup_.job;
  for (const pid_t child : children_of(::getpid())) {
    const bool known = child == coordinator_->pid() || (guardian_ && child == guardian_->pid()) ||
                       std::any_of(processes_.begin(), processes_.end(), [&](const auto& entry) {
                         return entry.second->spawned.pid == child && !entry.second->gone;
                       });
    if (known || !has_variable(child, marker) || !has_variable(child, job)) continue;
    for (const pid_t below : descendants_of(child)) ::kill(below, SIGKILL);
    ::kill(child, SIGKILL);
  }
}

}  // namespace regroup::launcher
