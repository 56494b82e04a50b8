#include "launcher/run_shell.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <utility>
#include <vector>

#include "launcher/descendants.hpp"
#include "launcher/environment.hpp"
#include "launcher/exit_codes.hpp"

namespace regroup::launcher {

using std::chrono::milliseconds;
using std::chrono::seconds;

std::string make_job_id() {
  std::uint64_t number = 0;
  // Six random bytes: enough that no two jobs of a machine meet, short enough to type.
  if (::getrandom(&number, 6, 0) != 6) {
    number = static_cast<std::uint64_t>(::getpid()) << 20 ^
             static_cast<std::uint64_t>(Clock::now().time_since_epoch().count());
  }
  return fmt::format("{:012x}", number & 0xffffffffffffU);
}

namespace {

/// A free port of the loopback interface, held without listening: no other program is given it, and
/// rank 0 can still bind it with SO_REUSEADDR as torch's store does.
base::Fd hold_port(int& port) {
  base::Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t bytes = sizeof address;
  if (!fd || ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
      ::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &bytes) != 0) {
    return {};
  }
  port = ntohs(address.sin_port);
  return fd;
}

int refuse(int exit_code, std::string_view code, std::string_view text) {
  fmt::print(stderr, "regroup: {} {}\n", code, text);
  return exit_code;
}

/// Without a console of its own the agent speaks through a shim.
std::function<void(std::string_view)> console_sink(const OuterLauncher& outer) {
  if (!outer.shims || outer.child) return {};
  return [shims = outer.shims.get()](std::string_view line) { shims->print(line); };
}

}  // namespace

int run_job(RunOptions options, JobSetup setup, OuterLauncher outer) {
  const TimePoint began = Clock::now();
  open_standard_descriptors();
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  ::signal(SIGPIPE, SIG_IGN);
  // A limit of file sizes (ulimit -f) is an error like any other: it is said, with its cause.
  ::signal(SIGXFSZ, SIG_IGN);
  ::signal(SIGTTIN, SIG_IGN);
  ::signal(SIGTTOU, SIG_IGN);
  setup.outer_environment = own_environment();
  Result<EventLog> log =
      EventLog::open(options.log_dir, {.mirror_fd = options.json ? STDOUT_FILENO : -1});
  if (!log) return refuse(kExitNotAllowed, "E-LOG-1", log.error().text());
  Result<EventLoop> loop = EventLoop::create();
  if (!loop) return refuse(kExitUnavailable, "E-SYS-2", loop.error().text());
  Result<std::unique_ptr<BeaconThread>> beacons = BeaconThread::start();
  if (!beacons) return refuse(kExitUnavailable, "E-SYS-2", beacons.error().text());
  RunShell shell(std::move(options), std::move(setup), std::move(*loop), std::move(*log),
                 std::move(*beacons), began, std::move(outer));
  return shell.run();
}

RunShell::RunShell(RunOptions options, JobSetup setup, EventLoop loop, EventLog log,
                   std::unique_ptr<BeaconThread> beacons, TimePoint began, OuterLauncher outer)
    : options_(std::move(options)),
      setup_(std::move(setup)),
      outer_(std::move(outer)),
      began_(began),
      loop_(std::move(loop)),
      log_(std::move(log)),
      console_({.quiet = options_.verbosity == 0,
                .programs = !options_.json,
                .sink = console_sink(outer_)}),
      narrator_(console_, log_, began),
      beacons_(std::move(beacons)),
      supervisor_({.grace = options_.grace}),
      agent_(kLocalAgent, membership::timeouts_for(options_.detect_budget)),
      next_tick_(began + seconds(1)) {}

RunShell::~RunShell() = default;

Status RunShell::begin() {
  if (Status opened = open_signals(); !opened) return opened;
  master_port_holder_ = hold_port(setup_.master_port);
  Result<secure::RefusalCounters> refusals = secure::RefusalCounters::make();
  if (!refusals) return refusals.error();
  refusals_.emplace(std::move(*refusals));
  Result<Guardian> guardian = Guardian::start(setup_.job);
  if (!guardian) return guardian.error();
  guardian_.emplace(std::move(*guardian));
  terminal_ = std::move(outer_.terminal);
  if (!outer_.shims) {
    Result<std::optional<TerminalInput>> terminal = TerminalInput::open();
    if (!terminal) return terminal.error();
    terminal_ = std::move(*terminal);
  }
  if (terminal_) terminal_->start(loop_);
  begin_outer();
  narrator_.job_started(options_, setup_);
  loop_.watch(beacons_->fd(), [this](std::uint32_t) { on_beacons(); });
  Result<ControlSocket> control = ControlSocket::open(setup_.job, *this, &log_);
  if (control) {
    control_.emplace(std::move(*control));
    loop_.watch(control_->fd(), [this](std::uint32_t) { control_->turn(); });
  } else {
    narrator_.warning("E-CTL-1", fmt::format("regroup status and inject cannot reach this job: {}",
                                             control.error().text()));
  }
  return start_coordinator();
}

Status RunShell::start_coordinator() {
  std::optional<TcpControl> tcp;
  if (options_.control == ControlKind::Tcp) {
    Result<TcpControl> made = TcpControl::make(setup_.job);
    if (!made) return made.error();
    tcp.emplace(std::move(*made));
  }
  CoordinatorOptions coordinator;
  coordinator.state = options_.log_dir / "coordinator.state";
  // A state file of an earlier job in the same directory would make this one go on where that one
  // ended.
  ::unlink(coordinator.state.c_str());
  coordinator.detect_budget = options_.detect_budget;
  Result<CoordinatorWatch> watch = CoordinatorWatch::make(options_.detect_budget);
  if (!watch) return watch.error();
  coordinator_watch_.emplace(std::move(*watch));
  coordinator.beat = coordinator_watch_->fd();
  coordinator.config = {static_cast<std::uint32_t>(options_.ranks),
                        static_cast<std::uint32_t>(options_.ranks_min),
                        static_cast<std::uint32_t>(options_.spares),
                        options_.on_loss,
                        static_cast<std::uint32_t>(options_.replacements_max),
                        options_.restart};
  CoordinatorLink::Callbacks callbacks;
  callbacks.up = [this] {
    coordinator_watch_->begin(job_now());
    // Over TCP a connection may come back without a restart.
    if (std::exchange(restarts_told_, coordinator_->restarts()) != coordinator_->restarts())
      narrator_.coordinator_restarted(coordinator_->pid(), coordinator_->restarts());
    post(membership::host::ChannelUp{});
  };
  callbacks.down = [this](pid_t pid, const std::string& why) {
    coordinator_watch_->end();
    if (!ending_) narrator_.coordinator_lost(pid, why);
    post(membership::host::ChannelDown{});
  };
  callbacks.disconnected = [this](const std::string& why) {
    if (!ending_) {
      narrator_.note({"control", fmt::format("connection to the coordinator lost: {}", why)},
                     options_.verbosity > 1);
    }
    post(membership::host::ChannelDown{});
  };
  callbacks.message = [this](membership::CoordinatorMessage message) {
    if (const auto* order = std::get_if<membership::WedgeEpoch>(&message)) round_ = order->round;
    if (const auto* order = std::get_if<membership::StoreDecision>(&message)) round_ = order->round;
    post(membership::host::FromCoordinator{std::move(message)});
    drain();
  };
  callbacks.given_up = [this](const std::string& why) {
    narrator_.warning("E-COORD-1", fmt::format("the coordinator does not run: {}", why));
    end_job(kExitUnavailable, "launcher", "the coordinator does not run", false);
  };
  coordinator_ =
      std::make_unique<CoordinatorLink>(loop_, std::move(coordinator), setup_.job, std::move(tcp),
                                        refusals_->fd(), std::move(callbacks));
  coordinator_->start(Clock::now());
  return {};
}

int RunShell::run() {
  if (const Status began = begin(); !began)
    return refuse(kExitUnavailable, "E-SYS-2", began.text());
  drain();
  while (!all_gone_) turn();
  return finish();
}

void RunShell::turn() {
  loop_.turn(next_deadline());
  timers();
  drain();
  narrator_.flush(Clock::now());
}

TimePoint RunShell::next_deadline() const {
  TimePoint at = next_tick_;
  const auto sooner = [&](std::optional<TimePoint> other) {
    if (other && *other < at) at = *other;
  };
  sooner(supervisor_timer_);
  sooner(agent_timer_);
  sooner(first_operation_due_);
  sooner(coordinator_->due());
  if (const auto look = coordinator_watch_->due()) sooner(*look + stopped_for_);
  sooner(narrator_.due());
  sooner(stop_due_);
  if (options_.timeout.count() > 0 && !ending_) sooner(began_ + options_.timeout + stopped_for_);
  return at;
}

void RunShell::timers() {
  const TimePoint now = Clock::now();
  look_at_coordinator();
  coordinator_->turn(now);
  if (supervisor_timer_ && *supervisor_timer_ <= now) {
    supervisor_timer_.reset();
    post(supervisor::TimerFired{});
  }
  if (agent_timer_ && *agent_timer_ <= now) {
    agent_timer_.reset();
    read_beats();
  }
  if (options_.timeout.count() > 0 && !ending_ && now >= began_ + options_.timeout + stopped_for_) {
    narrator_.warning("E-TIME-1",
                      fmt::format("the job did not end within --timeout ({} ms); ending it",
                                  options_.timeout.count()));
    end_job(kExitTimedOut, "launcher", "timeout", false);
  }
  if (stop_due_) go_on_stopping();
  if (first_operation_due_ && *first_operation_due_ <= now) look_for_first_operation();
  if (now >= next_tick_) {
    next_tick_ = now + seconds(1);
    tick();
  }
}

void RunShell::look_at_coordinator() {
  const std::optional<std::string> stuck = coordinator_watch_->look(job_now());
  if (!stuck) return;
  narrator_.warning("E-COORD-2",
                    fmt::format("the coordinator (pid {}) is stopped or stuck: {}; killing it, the "
                                "next one goes on from its state",
                                coordinator_->pid(), *stuck));
  coordinator_->kill();
}

void RunShell::drain() {
  // Effects that raise events do so by post(): each machine's effects are performed in order, none
  // in between.
  if (draining_) return;
  draining_ = true;
  while (!pending_.empty()) {
    const Pending event = std::move(pending_.front());
    pending_.pop_front();
    if (const auto* mine = std::get_if<supervisor::Event>(&event)) {
      for (const auto& effect : supervisor_.step(*mine, job_now())) {
        std::visit([this](const auto& e) { perform(e); }, effect);
      }
    } else {
      for (const auto& effect : agent_.step(std::get<membership::host::Event>(event), job_now())) {
        std::visit([this](const auto& e) { perform(e); }, effect);
      }
    }
  }
  draining_ = false;
}

void RunShell::end_job(int exit_code, std::string origin, std::string reason, bool now) {
  if (!ending_) {
    ending_ = Ending{exit_code, std::move(origin), std::move(reason), Clock::now()};
    for (auto& [incarnation, process] : processes_) {
      if (process->said_hello) send(*process, control::Stop{exit_code, ending_->reason});
    }
    post(membership::host::Stop{ending_->reason, exit_code});
  }
  post(supervisor::EndRequested{now});
}

int RunShell::finish() {
  coordinator_->stop();
  say_who_was_refused();
  // Shims end what they forked, and a launcher that is our child goes after them.
  if (!outer_.shims) sweep_all();
  for (auto& [incarnation, process] : processes_) {
    if (process->out) process->out->finish(console_, process->prefix());
    if (process->err) process->err->finish(console_, process->prefix());
  }
  coordinator_.reset();
  keep_flights(processes_.size());
  events::JobEnded ended;
  ended.exit_code = ending_ ? ending_->exit_code : kExitFault;
  ended.origin = ending_ ? ending_->origin : "launcher";
  ended.reason = ending_ ? ending_->reason : "ended without a reason";
  ended.ranks_finished = finished_;
  ended.replaced = narrator_.replaced();
  narrator_.job_ended(ended, options_.ranks, Clock::now(),
                      (options_.log_dir / "report.json").string());
  finish_outer(ended.exit_code, ended.reason);
  return ended.exit_code;
}

void RunShell::sweep_all() {
  constexpr seconds kSweepMax{10};
  const TimePoint until = Clock::now() + kSweepMax;
  while (Clock::now() < until) {
    bool any = false;
    const std::vector<pid_t> all = descendants_of(::getpid());
    // The coordinator ends by itself, and whatever helps it to (a leak check at exit is a process).
    std::vector<pid_t> spared;
    if (coordinator_) {
      spared = descendants_of(coordinator_->pid());
      spared.push_back(coordinator_->pid());
    }
    if (guardian_) spared.push_back(guardian_->pid());
    for (const pid_t pid : all) {
      if (std::ranges::find(spared, pid) != spared.end()) continue;
      if (runs(pid)) ::kill(pid, SIGKILL);
      any = true;
    }
    if (!any) return;
    // Orphans come to us one level at a time as their parents die.
    ::poll(nullptr, 0, 1);
    reap();
  }
  narrator_.warning(
      "E-SWEEP-1",
      "some processes of this job do not die; they sit in the kernel (see ps, state D)");
}

RankProcess* RunShell::find(Incarnation incarnation) {
  const auto found = processes_.find(incarnation);
  return found == processes_.end() ? nullptr : found->second.get();
}

RankProcess* RunShell::holder(Rank rank) {
  const auto index = static_cast<std::size_t>(rank.value());
  const membership::View& view = agent_.installed();
  if (rank.value() >= 0 && index < view.seats.size()) return find(view.seats[index]);
  // No view yet (or a program that never attaches): the newest process that was started for this
  // seat.
  RankProcess* newest = nullptr;
  for (auto& [incarnation, process] : processes_) {
    if (process->seat == rank && !process->gone) newest = process.get();
  }
  return newest;
}

}  // namespace regroup::launcher
