#include "launcher/shim.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>

#include "launcher/descendants.hpp"
#include "launcher/rank_process.hpp"

namespace regroup::launcher {
namespace {

/// After the launcher's death the agent ends the job; a shim whose agent does not, ends itself.
constexpr std::chrono::seconds kLauncherGoneMax{5};
constexpr std::chrono::seconds kSweepMax{10};

control::ShimExited ended(Incarnation incarnation, const siginfo_t& info) {
  control::ShimExited out{incarnation};
  if (info.si_code == CLD_EXITED) {
    out.exit_code = info.si_status;
  } else {
    out.signal = info.si_status;
    out.core = info.si_code == CLD_DUMPED;
  }
  return out;
}

}  // namespace

Result<std::unique_ptr<Shim>> Shim::create(ShimSetup setup, base::Fd agent) {
  Result<EventLoop> loop = EventLoop::create();
  if (!loop) return loop.error();
  std::unique_ptr<Shim> shim(new Shim(std::move(setup), std::move(agent), std::move(*loop)));
  if (Status opened = shim->open_signals(); !opened) return opened;
  if (Status watched = shim->watch_launcher(); !watched) return watched;
  return shim;
}

Status Shim::open_signals() {
  // Orphans of the ranks come to us, so that none of them is left behind.
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGTTOU, SIG_IGN);
  sigset_t set;
  ::sigemptyset(&set);
  for (const int signal : kHandledSignals) ::sigaddset(&set, signal);
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  signal_fd_.reset(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signal_fd_)
    return {Code::ResourceExhausted, fmt::format("signalfd: {}", std::strerror(errno))};
  loop_.watch(signal_fd_.get(), [this](std::uint32_t) { on_signals(); });
  return {};
}

Status Shim::watch_launcher() {
  if (setup_.launcher_pid <= 1 || setup_.launcher_pid == ::getpid()) return {};
  launcher_fd_.reset(static_cast<int>(::syscall(SYS_pidfd_open, setup_.launcher_pid, 0)));
  if (!launcher_fd_) {
    return {Code::ResourceExhausted,
            fmt::format("cannot watch the launcher: {}", std::strerror(errno))};
  }
  loop_.watch(launcher_fd_.get(), [this](std::uint32_t) {
    loop_.forget(launcher_fd_.get());
    patience_ = Clock::now() + kLauncherGoneMax;
    send(control::ShimSignalled{0});
  });
  return {};
}

void Shim::watch_agent() {
  loop_.watch(
      agent_.fd(), [this](std::uint32_t events) { on_agent(events); }, agent_.wants_write());
}

Shim::Outcome Shim::run() {
  watch_agent();
  send(setup_.hello);
  while (!outcome_) {
    loop_.turn(patience_.value_or(Clock::now() + std::chrono::seconds(60)));
    if (patience_ && Clock::now() >= *patience_) end(Outcome::LauncherGone);
  }
  loop_.forget(agent_.fd());
  sweep(true);
  return *outcome_;
}

void Shim::end(Outcome outcome) {
  if (!outcome_) outcome_ = outcome;
}

void Shim::send(const control::ShimMessage& message, const std::vector<int>& fds) {
  if (outcome_) return;
  if (!agent_.send(message, fds)) return end(Outcome::AgentGone);
  watch_agent();
}

void Shim::on_agent(std::uint32_t events) {
  if ((events & EPOLLOUT) != 0) {
    if (!agent_.flush()) return end(Outcome::AgentGone);
    watch_agent();
  }
  while (!outcome_) {
    auto received = agent_.try_recv_as<control::AgentToShim>();
    if (!received) return end(Outcome::AgentGone);
    if (!received->has_value()) return;
    std::visit([&](const auto& m) { on(m, std::move((*received)->fds)); }, (*received)->message);
  }
}

void Shim::on(const control::ShimStart& message, std::vector<base::Fd> fds) {
  const auto refuse = [&](std::string why, bool again) {
    send(control::ShimRefused{message.incarnation, std::move(why), again});
  };
  if (fds.size() != 1) return refuse("the channel of the new process did not arrive", true);
  SpawnRequest request;
  request.path = message.program.path;
  request.arguments = message.program.arguments;
  request.environment = message.program.environment;
  // Only here is the number known under which the process inherits its channel.
  std::erase_if(request.environment,
                [](const std::string& one) { return one.starts_with("REGROUP_CONTROL_FD="); });
  request.environment.push_back(fmt::format("REGROUP_CONTROL_FD={}", fds[0].get()));
  request.directory = message.program.directory;
  request.in = message.input ? STDIN_FILENO : -1;
  request.kept = {fds[0].get()};
  if (message.descriptors_soft != 0) request.descriptors_soft = message.descriptors_soft;
  Result<Spawned> spawned = spawn(request);
  if (!spawned) {
    return refuse(std::string(spawned.error().text()),
                  spawned.error().code() == Code::ResourceExhausted);
  }
  Child& child = children_[message.incarnation];
  child.process = std::move(*spawned);
  send(control::ShimStarted{message.incarnation, child.process.pid}, {child.process.pidfd.get()});
  look_at_children();
}

void Shim::on(const control::ShimReap& message, std::vector<base::Fd>) {
  const auto found = children_.find(message.incarnation);
  if (found == children_.end()) return;
  while (::waitpid(found->second.process.pid, nullptr, 0) < 0 && errno == EINTR) {
  }
  children_.erase(found);
  if (!message.keep) sweep(false);
}

void Shim::on(const control::ShimPrint& message, std::vector<base::Fd>) {
  fmt::print(stderr, "{}\n", message.text);
}

void Shim::on(const control::ShimBusy&, std::vector<base::Fd>) { end(Outcome::Busy); }

void Shim::on(const control::ShimEnd& message, std::vector<base::Fd>) {
  exit_code_ = message.exit_code;
  end(Outcome::Ended);
}

void Shim::on_signals() {
  signalfd_siginfo info{};
  while (::read(signal_fd_.get(), &info, sizeof info) == static_cast<ssize_t>(sizeof info)) {
    const int signal = static_cast<int>(info.ssi_signo);
    if (signal == SIGCHLD) continue;
    if (signal == SIGTERM || signal == SIGINT) {
      send(control::ShimSignalled{signal});
      continue;
    }
    for (auto& [incarnation, child] : children_) signal_group(child.process, signal);
    if (signal == SIGTSTP) ::raise(SIGSTOP);
  }
  look_at_children();
}

void Shim::look_at_children() {
  for (auto& [incarnation, child] : children_) {
    siginfo_t info{};
    // Left unreaped, so that its number, and that of its group, cannot mean somebody else.
    if (child.told ||
        ::waitid(P_PID, static_cast<id_t>(child.process.pid), &info, WEXITED | WNOHANG | WNOWAIT) !=
            0 ||
        info.si_pid == 0) {
      continue;
    }
    child.told = true;
    send(ended(incarnation, info));
  }
  for (const pid_t pid : children_of(::getpid())) {
    const bool ours = std::any_of(children_.begin(), children_.end(),
                                  [&](const auto& one) { return one.second.process.pid == pid; });
    if (!ours) ::waitpid(pid, nullptr, WNOHANG);  // an orphan of a rank that came to us
  }
}

/// Kills what the ranks left behind; the ranks too, if `everything`. Orphans come to us one level
/// at a time as their parents die, so it looks until nothing is left.
void Shim::sweep(bool everything) {
  const TimePoint until = Clock::now() + kSweepMax;
  while (Clock::now() < until) {
    bool any = false;
    for (const pid_t pid : children_of(::getpid())) {
      const bool rank = std::any_of(children_.begin(), children_.end(),
                                    [&](const auto& one) { return one.second.process.pid == pid; });
      if (rank && !everything) continue;
      any = true;
      for (const pid_t below : descendants_of(pid)) ::kill(below, SIGKILL);
      ::kill(pid, SIGKILL);
      ::waitpid(pid, nullptr, WNOHANG);
    }
    if (!any) return;
    ::poll(nullptr, 0, 1);
  }
}

}  // namespace regroup::launcher
