/// RunShell: a job whose processes are forked by the shims of another launcher.
#include <fmt/format.h>
#include <poll.h>
#include <sys/wait.h>

#include <cerrno>
#include <csignal>

#include "launcher/descendants.hpp"
#include "launcher/exit_codes.hpp"
#include "launcher/run_shell.hpp"

namespace regroup::launcher {

namespace sv = supervisor;

void OuterLauncher::end(std::optional<Spawned>& child, bool notices) {
  if (!child) return;
  constexpr std::chrono::seconds kAlone{5};
  constexpr std::chrono::seconds kAsked{2};
  const auto gone = [&](std::chrono::milliseconds wait) {
    pollfd entry{child->pidfd.get(), POLLIN, 0};
    return ::poll(&entry, 1, static_cast<int>(wait.count())) > 0;
  };
  if (!gone(notices ? kAlone : kAlone * 0)) {
    if (notices) {
      fmt::print(stderr,
                 "regroup: E-MPI-3 mpirun (pid {}) has not ended {} s after its places: {}\n",
                 child->pid, kAlone.count(), "ending it");
    }
    signal_group(*child, SIGTERM);
    if (!gone(kAsked)) signal_group(*child, SIGKILL);
  }
  while (::waitpid(child->pid, nullptr, 0) < 0 && errno == EINTR) {
  }
  child.reset();
}

void RunShell::begin_outer() {
  if (!outer_.shims) return;
  Shims::Callbacks callbacks;
  callbacks.started = [this](Incarnation id, Spawned spawned) {
    on_shim_started(id, std::move(spawned));
  };
  callbacks.refused = [this](Incarnation id, std::string why, bool again) {
    processes_.erase(id);
    post(sv::StartRefused{id, std::move(why), again && outer_.shims->alive() > 0});
  };
  callbacks.exited = [this](Incarnation id, const ExitStatus& status) {
    on_shim_exited(id, status);
    return status.good();
  };
  callbacks.signalled = [this](int signal, bool again) { on_outer_signal(signal, again); };
  callbacks.lost = [this](std::uint32_t place, const std::vector<Incarnation>& hosted) {
    on_shim_lost(place, hosted);
  };
  outer_.shims->set(std::move(callbacks));
  loop_.watch(outer_.shims->fd(), [this](std::uint32_t) {
    outer_.shims->turn(Clock::now());
    drain();
  });
  if (!outer_.pidfd) return;
  loop_.watch(outer_.pidfd.get(), [this](std::uint32_t) {
    loop_.forget(outer_.pidfd.get());
    on_launcher_end();
    drain();
  });
}

void RunShell::start_by_shim(const sv::Fork& effect, std::uint32_t life) {
  base::Fd theirs;
  Result<std::unique_ptr<RankProcess>> prepared =
      prepare_process(effect.incarnation, effect.seat, life, theirs);
  Status status = prepared ? Status() : prepared.error();
  if (status) {
    status = outer_.shims->start(
        effect.incarnation, effect.seat, static_cast<std::uint32_t>(options_.ranks),
        [&](const std::vector<std::string>& outer) {
          return process_environment(options_, setup_, **prepared, outer, -1);
        },
        theirs.get());
  }
  if (!status) {
    return post(sv::StartRefused{effect.incarnation, std::string(status.text()),
                                 status.code() == Code::ResourceExhausted});
  }
  processes_[effect.incarnation] = std::move(*prepared);
}

void RunShell::on_shim_started(Incarnation incarnation, Spawned spawned) {
  RankProcess* process = find(incarnation);
  if (process == nullptr) return;
  process->spawned = std::move(spawned);
  narrator_.process_started(*process);
  watch_process(*process);
  post(sv::StartSucceeded{incarnation});
  // It may have come and gone: its shim's next message must find the machine informed.
  drain();
}

void RunShell::on_shim_exited(Incarnation incarnation, const ExitStatus& status) {
  // What others said before this one ended counts before its end does, as in reap().
  for (auto& [id, process] : processes_) pump_channel(*process);
  RankProcess* process = find(incarnation);
  if (process == nullptr || process->gone) return;
  if (!status.good()) signal_group(process->spawned, SIGKILL);
  reaped(process->spawned.pid, status);
}

void RunShell::on_shim_lost(std::uint32_t place, const std::vector<Incarnation>& hosted) {
  if (!ending_) {
    narrator_.warning("E-SHIM-1",
                      fmt::format("the shim of place {} is gone, and the process that it had "
                                  "started with it; another place starts the next one",
                                  place));
  }
  for (const Incarnation incarnation : hosted) {
    RankProcess* process = find(incarnation);
    if (process == nullptr || process->gone) continue;
    // The kernel kills it (parent death signal); nobody is left to say that it has ended.
    signal_process(process->spawned, SIGKILL);
    const int fd = process->spawned.pidfd.get();
    loop_.watch(fd, [this, incarnation, fd](std::uint32_t) {
      loop_.forget(fd);
      on_shim_exited(incarnation, {.signal = SIGKILL});
      const std::string marker = fmt::format("REGROUP_INCARNATION={}", incarnation.value());
      for (const pid_t pid : processes_with("REGROUP_JOB_ID=" + setup_.job)) {
        if (has_variable(pid, marker)) ::kill(pid, SIGKILL);
      }
      drain();
    });
  }
  if (outer_.shims->alive() == 0)
    end_job(128 + SIGKILL, "launcher", "all its places are gone", true);
}

void RunShell::on_outer_signal(int signal, bool again) {
  if (signal == 0)
    return end_job(kExitUnavailable, "launcher", "the launcher that started its places is gone",
                   true);
  // A launcher tells every place; only what it repeats to one is a second wish.
  if (ending_ && !again) return;
  on_signal(signal);
}

void RunShell::on_launcher_end() {
  // It may have ended because its places did: then that is the cause.
  outer_.shims->turn(Clock::now());
  on_outer_signal(0, false);
}

void RunShell::finish_outer(int exit_code, const std::string& reason) {
  constexpr std::chrono::seconds kEndMax{5};
  if (!outer_.shims) return;
  // A launcher that is our child need not say anything about a code that this process ends with.
  outer_.shims->finish(outer_.child ? kExitDone : exit_code, reason, Clock::now() + kEndMax);
  OuterLauncher::end(outer_.child, true);
  sweep_all();
}

}  // namespace regroup::launcher
