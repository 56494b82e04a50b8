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
  for (const int signal : kHandledSignals) ::sigaddset(&set, signal);
  // Started by nohup, or by what works like it: the end of the terminal is nothing to the job.
  struct sigaction hangup {};
  if (::sigaction(SIGHUP, nullptr, &hangup) == 0 && hangup.sa_handler == SIG_IGN)
    ::sigdelset(&set, SIGHUP);
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
  if (stop_due_) go_on_stopping();
  drain();
}

void RunShell::on_signal(int signal) {
  switch (signal) {
    case SIGCHLD: return;
    case SIGINT:
    case SIGTERM: {
      const bool again = ending_ && ending_->origin == "signal";
      const std::string why = fmt::format("received {}", signal_name(signal));
      if (hosts_.role) return end_here(128 + signal, why);
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
    case SIGTSTP:
      // Other hosts would take a stopped launcher for a lost one.
      if (!fleet_ && !hosts_.role) return begin_stop();
      return narrator_.note({"signal", "SIGTSTP: a job on several hosts is not stopped"}, true);
    case SIGCONT:
      stop_due_.reset();
      if (terminal_) terminal_->start(loop_);
      return forward(signal);
    case SIGHUP:
    case SIGQUIT:
    case SIGUSR1:
    case SIGUSR2:
    case SIGWINCH: return forward(signal);
    default: REGROUP_UNREACHABLE("a signal that is not in kHandledSignals");
  }
}

void RunShell::forward(int signal) {
  for (auto& [incarnation, process] : processes_) {
    if (!process->gone) signal_group(process->spawned, signal);
  }
  if (fleet_) fleet_->tell_all({HostWord::Kind::Forward, signal, {}});
}

// ---- stopping the whole job, as a terminal's ctrl-Z wants it
// ------------------------------------

// Programs are asked first: one that handles SIGTSTP may have a terminal or a lock to give back.
void RunShell::begin_stop() {
  constexpr std::chrono::milliseconds kStopGrace{500};
  stop_due_ = Clock::now() + kStopGrace;
  stop_forced_ = false;
  forward(SIGTSTP);
  go_on_stopping();
}

void RunShell::go_on_stopping() {
  constexpr std::chrono::milliseconds kStopMax{500};
  const bool all = std::all_of(processes_.begin(), processes_.end(), [](const auto& entry) {
    return entry.second->gone || is_stopped(entry.second->spawned);
  });
  if (all) return stop_here();
  if (Clock::now() < *stop_due_) return;
  // One that sits in the kernel stops when it comes out; this job must not wait for that.
  if (stop_forced_) return stop_here();
  stop_forced_ = true;
  stop_due_ = Clock::now() + kStopMax;
  forward(SIGSTOP);
}

void RunShell::stop_here() {
  stop_due_.reset();
  sigset_t pending;
  if (::sigpending(&pending) == 0 && ::sigismember(&pending, SIGCONT) == 1) return;
  narrator_.note({"stopped", "SIGTSTP: the whole job is stopped until SIGCONT"}, false);
  narrator_.flush(Clock::now());
  coordinator_->signal(SIGSTOP);
  const TimePoint before = Clock::now();
  ::raise(SIGSTOP);
  const nanoseconds away = Clock::now() - before;
  stopped_for_ += away;
  const auto later = [away](auto& at) {
    if (at) *at += away;
  };
  later(supervisor_timer_);
  later(agent_timer_);
  later(first_attach_);
  wedged_since_ += away;
  stall_told_ = Clock::now();
  // The SIGCONT that woke this process is pending, and is forwarded in its turn.
  coordinator_->signal(SIGCONT);
  narrator_.note({"continued", fmt::format("the job was stopped for {} ms",
                                           away / std::chrono::milliseconds(1))},
                 false);
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
    Result<Guardian> again = start_guardian();
    if (again) guardian_.emplace(std::move(*again));
    return;
  }
  if (fleet_ && fleet_->reaped(pid, status, Clock::now())) return;
  if (outer_.child && outer_.child->pid == pid) {
    outer_.child.reset();
    return on_launcher_end();
  }
  for (auto& [incarnation, process] : processes_) {
    if (process->spawned.pid != pid || process->gone) continue;
    process->gone = true;
    process->exit = status;
    // Watched since its shim was lost; under regroup mpirun it came to us, and was reaped first.
    loop_.forget(process->spawned.pidfd.get());
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
    const bool starter = fleet_ && std::ranges::count(fleet_->pids(), child) != 0;
    const bool known = starter || child == coordinator_->pid() ||
                       (guardian_ && child == guardian_->pid()) ||
                       std::any_of(processes_.begin(), processes_.end(), [&](const auto& entry) {
                         return entry.second->spawned.pid == child && !entry.second->gone;
                       });
    if (known || !has_variable(child, marker) || !has_variable(child, job)) continue;
    for (const pid_t below : descendants_of(child)) ::kill(below, SIGKILL);
    ::kill(child, SIGKILL);
  }
}

}  // namespace regroup::launcher
