#include "launcher/job_host.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstring>

#include "launcher/agent_host.hpp"
#include "launcher/commands.hpp"
#include "launcher/descendants.hpp"
#include "launcher/environment.hpp"
#include "launcher/exec_options.hpp"
#include "launcher/exit_codes.hpp"
#include "launcher/preflight.hpp"
#include "launcher/run_options.hpp"
#include "launcher/run_shell.hpp"
#include "launcher/shims.hpp"
#include "launcher/waiting.hpp"

namespace regroup::launcher {
namespace {

constexpr std::chrono::seconds kEndMax{10};

bool is_over(const base::Fd& pidfd) {
  pollfd entry{pidfd.get(), POLLIN, 0};
  return pidfd && ::poll(&entry, 1, 0) > 0;
}

void tell(HostedJob& job, Shims& shims, const std::string& line) {
  if (job.child) {
    fmt::print(stderr, "{}\n", line);
  } else {
    shims.print(line);
  }
}

std::string who_is_missing(const Shims& shims) {
  if (shims.places() == 0) return "no place has called regroup exec";
  return fmt::format("place{} {} of {}: it has not called regroup exec",
                     shims.missing().size() == 1 ? "" : "s", fmt::join(shims.missing(), ", "),
                     shims.places());
}

/// The launcher ended before the job began: its own code, if that says something.
Refusal launcher_gone(HostedJob& job) {
  int code = kExitUnavailable;
  siginfo_t info{};
  if (job.child &&
      ::waitid(P_PID, static_cast<id_t>(job.child->pid), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
      info.si_pid != 0) {
    if (info.si_code != CLD_EXITED) code = 128 + info.si_status;
    if (info.si_code == CLD_EXITED && info.si_status != 0) code = info.si_status;
  }
  return {code, "E-RDZV-3", "the launcher ended before all places had called regroup exec"};
}

/// Waits until every place is there. Refuses when that cannot come true any more.
Refusal gather(HostedJob& job, Shims& shims) {
  const TimePoint began = Clock::now();
  const TimePoint until = began + job.start_timeout;
  TimePoint told = began;
  int signalled = -1;
  Shims::Callbacks callbacks;
  callbacks.signalled = [&](int signal, bool) { signalled = signal; };
  shims.set(std::move(callbacks));
  while (!shims.complete()) {
    const TimePoint now = Clock::now();
    if (const auto lost = shims.first_lost()) {
      return {kExitUnavailable, "E-RDZV-3",
              fmt::format("place {} ended before the others had come", *lost)};
    }
    if (is_over(job.launcher)) return launcher_gone(job);
    signalfd_siginfo info{};
    if (::read(job.signals.get(), &info, sizeof info) == static_cast<ssize_t>(sizeof info)) {
      const int signal = static_cast<int>(info.ssi_signo);
      return {128 + signal, "E-RDZV-3",
              fmt::format("{} ended the job before it began", signal_name(signal))};
    }
    if (signalled > 0)
      return {128 + signalled, "E-RDZV-3", "the launcher ended the job before it began"};
    if (now >= until) {
      return {kExitUnavailable, "E-RDZV-3",
              fmt::format("after {} s still waiting for {}", whole_seconds(now - began),
                          who_is_missing(shims))};
    }
    if (now - told >= kWaitToldAfter) {
      told = now;
      tell(job, shims,
           fmt::format("regroup: E-WAIT-1 waiting {} s for {}", whole_seconds(now - began),
                       who_is_missing(shims)));
    }
    pollfd entries[] = {
        {shims.fd(), POLLIN, 0}, {job.launcher.get(), POLLIN, 0}, {job.signals.get(), POLLIN, 0}};
    ::poll(entries, 3, 1000);
    shims.turn(Clock::now());
  }
  return Refusal::none();
}

Refusal prepare(HostedJob& job, Shims& shims, JobSetup& setup) {
  Refusal refusal = gather(job, shims);
  if (!refusal.code.empty()) return refusal;
  const control::Program& program = shims.first().program;
  job.options.program = program.arguments;
  if (job.options.ranks == 0)
    job.options.ranks = static_cast<int>(shims.places()) - job.options.spares;
  refusal = check_options(job.options);
  if (!refusal.code.empty()) return refusal;
  setup.job = job.job;
  setup.program_path = program.path;
  return prepare_log_dir(job.options, job.job);
}

/// A launcher that had to be killed leaves its own helpers to this process.
void kill_descendants(TimePoint until) {
  while (Clock::now() < until) {
    const std::vector<pid_t> left = descendants_of(::getpid());
    if (left.empty()) return;
    for (const pid_t pid : left) ::kill(pid, SIGKILL);
    while (::waitpid(-1, nullptr, WNOHANG) > 0) {
    }
    ::poll(nullptr, 0, 1);
  }
}

int end_without_a_job(HostedJob& job, Shims& shims, const Refusal& refusal) {
  tell(job, shims, fmt::format("regroup: {} {}", refusal.code, refusal.text));
  // A launcher whose places are told to end should notice; one that has none has nothing to wait
  // for.
  const bool notices = shims.alive() > 0;
  shims.finish(job.child ? kExitDone : refusal.exit_code, refusal.text, Clock::now() + kEndMax);
  OuterLauncher::end(job.child, notices);
  kill_descendants(Clock::now() + kEndMax);
  return refusal.exit_code;
}

/// Nothing of the launcher's is held: it waits for the end of the pipes that it gave to a shim.
void let_go_of_everything_but(int kept) {
  ::setsid();
  const base::Fd null_fd(::open("/dev/null", O_RDWR | O_CLOEXEC));
  for (const int fd : {0, 1, 2}) {
    if (null_fd) ::dup2(null_fd.get(), fd);
  }
  const auto close_all = [](int from, int to) {
    if (from <= to)
      ::syscall(SYS_close_range, static_cast<unsigned>(from), static_cast<unsigned>(to), 0);
  };
  close_all(3, kept - 1);
  close_all(kept + 1, static_cast<int>(~0U >> 1));
}

std::optional<int> number(const std::string& text) {
  int value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

}  // namespace

Result<base::Fd> open_end_signals() {
  sigset_t set;
  ::sigemptyset(&set);
  for (const int signal : {SIGINT, SIGTERM}) ::sigaddset(&set, signal);
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  base::Fd fd(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd)
    return Status(Code::ResourceExhausted, fmt::format("signalfd: {}", std::strerror(errno)));
  return fd;
}

int host_job(HostedJob job) {
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  if (!job.signals) {
    Result<base::Fd> signals = open_end_signals();
    if (!signals) return refuse({kExitUnavailable, "E-SYS-2", std::string(signals.error().text())});
    job.signals = std::move(*signals);
  }
  Result<std::unique_ptr<Shims>> shims = Shims::create(std::move(job.listener), job.places);
  if (!shims) return refuse({kExitUnavailable, "E-SYS-2", std::string(shims.error().text())});
  JobSetup setup;
  const Refusal refusal = prepare(job, **shims, setup);
  if (!refusal.code.empty()) return end_without_a_job(job, **shims, refusal);
  OuterLauncher outer;
  outer.shims = std::move(*shims);
  outer.pidfd = std::move(job.launcher);
  outer.child = std::move(job.child);
  outer.terminal = std::move(job.terminal);
  return run_job(std::move(job.options), std::move(setup), std::move(outer));
}

Status start_agent(int listener, pid_t launcher, const std::vector<std::string>& words) {
  SpawnRequest request;
  request.path = "/proc/self/exe";
  request.arguments = {
      "regroup", "agent", "--fd", std::to_string(listener), "--launcher", std::to_string(launcher),
      "--"};
  request.arguments.insert(request.arguments.end(), words.begin(), words.end());
  request.environment = own_environment();
  request.kept = {listener};
  request.death_signal = 0;
  Result<Spawned> spawned = spawn(request);
  if (!spawned) return spawned.error();
  // It forks once more, and this one is only the first half: then it is nobody's child here.
  while (::waitpid(spawned->pid, nullptr, 0) < 0 && errno == EINTR) {
  }
  return {};
}

int agent_command(const Arguments& arguments) {
  if (arguments == Arguments{"--stdio"}) return agent_on_host();
  const std::optional<int> fd = arguments.size() >= 5 ? number(arguments[1]) : std::nullopt;
  const std::optional<int> launcher = fd ? number(arguments[3]) : std::nullopt;
  if (!launcher || arguments[0] != "--fd" || arguments[2] != "--launcher" || arguments[4] != "--") {
    fmt::print(stderr, "regroup agent: started by regroup run and regroup exec only\n");
    return kExitBadUsage;
  }
  ExecOptions options;
  const Refusal refusal = parse_exec(Arguments(arguments.begin() + 5, arguments.end()), options);
  if (!refusal.code.empty()) return refuse(refusal);
  if (::fork() != 0) ::_exit(0);
  let_go_of_everything_but(*fd);
  HostedJob job;
  job.options = std::move(options.run);
  job.start_timeout = options.start_timeout;
  job.job = make_job_id();
  job.listener.reset(*fd);
  ::fcntl(*fd, F_SETFD, FD_CLOEXEC);
  if (*launcher > 1) job.launcher.reset(static_cast<int>(::syscall(SYS_pidfd_open, *launcher, 0)));
  return host_job(std::move(job));
}

}  // namespace regroup::launcher
