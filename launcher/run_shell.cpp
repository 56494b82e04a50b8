#include "launcher/run_shell.hpp"

#include <fcntl.h>
#include <fmt/format.h>
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

#include <nlohmann/json.hpp>

#include "launcher/descendants.hpp"
#include "launcher/environment.hpp"
#include "launcher/exit_codes.hpp"
#include "launcher/priority.hpp"

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

/// A free port of this address, held without listening: no other program is given it, and rank 0
/// can still bind it with SO_REUSEADDR as torch's store does.
base::Fd hold_port(const secure::SocketAddress& on, int& port) {
  base::Fd fd(::socket(on.family(), SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int yes = 1;
  sockaddr_storage bound{};
  socklen_t bytes = sizeof bound;
  if (!fd || ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) != 0 ||
      ::bind(fd.get(), on.get(), on.bytes()) != 0 ||
      ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&bound), &bytes) != 0) {
    return {};
  }
  const auto address = secure::SocketAddress::from(reinterpret_cast<sockaddr*>(&bound), bytes);
  if (address) port = address->port();
  return fd;
}

int refuse(int exit_code, std::string_view code, std::string_view text) {
  fmt::print(stderr, "regroup: {} {}\n", code, text);
  return exit_code;
}

/// Without a console of its own the agent speaks through a shim, or to the launcher's host.
Console::Options console_options(const RunOptions& options, const OuterLauncher& outer,
                                 Relay* relay) {
  Console::Options out{.quiet = options.verbosity == 0, .programs = !options.json, .sink = {}};
  if (outer.shims && !outer.child)
    out.sink = [shims = outer.shims.get()](std::string_view line) { shims->print(line); };
  if (relay == nullptr) return out;
  // What is of the whole job, the launcher says.
  out.quiet = true;
  out.sink = [relay](std::string_view line) { relay->say(LineKind::Text, line); };
  out.program_sink = [relay](bool is_error, std::string_view lines) {
    relay->say(is_error ? LineKind::Error : LineKind::Output, lines);
  };
  return out;
}

std::unique_ptr<Relay> make_relay(EventLoop& loop, JobHosts& hosts) {
  if (!hosts.role) return nullptr;
  return std::make_unique<Relay>(loop, std::move(hosts.role->pipes.out));
}

EventLog::Options log_options(const RunOptions& options, const JobSetup& setup,
                              const JobHosts& hosts) {
  EventLog::Options out{.mirror_fd = options.json ? STDOUT_FILENO : -1};
  if (!hosts.role) return out;
  out.file = fmt::format("events-{}.jsonl", setup.place.agent.value());
  out.report = false;
  return out;
}

}  // namespace

int run_job(RunOptions options, JobSetup setup, OuterLauncher outer, JobHosts hosts) {
  const TimePoint began =
      Clock::now() - nanoseconds(hosts.role ? hosts.role->age_ns : std::int64_t{0});
  open_standard_descriptors();
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  go_first();
  ::signal(SIGPIPE, SIG_IGN);
  // A limit of file sizes (ulimit -f) is an error like any other: it is said, with its cause.
  ::signal(SIGXFSZ, SIG_IGN);
  ::signal(SIGTTIN, SIG_IGN);
  ::signal(SIGTTOU, SIG_IGN);
  if (!hosts.role) setup.outer_environment = own_environment();
  Result<EventLog> log = EventLog::open(options.log_dir, log_options(options, setup, hosts));
  if (!log) return refuse(kExitNotAllowed, "E-LOG-1", log.error().text());
  Result<EventLoop> loop = EventLoop::create();
  if (!loop) return refuse(kExitUnavailable, "E-SYS-2", loop.error().text());
  Result<std::unique_ptr<BeaconThread>> beacons = BeaconThread::start();
  if (!beacons) return refuse(kExitUnavailable, "E-SYS-2", beacons.error().text());
  RunShell shell(std::move(options), std::move(setup), std::move(*loop), std::move(*log),
                 std::move(*beacons), began, std::move(outer), std::move(hosts));
  return shell.run();
}

RunShell::RunShell(RunOptions options, JobSetup setup, EventLoop loop, EventLog log,
                   std::unique_ptr<BeaconThread> beacons, TimePoint began, OuterLauncher outer,
                   JobHosts hosts)
    : options_(std::move(options)),
      setup_(std::move(setup)),
      outer_(std::move(outer)),
      hosts_(std::move(hosts)),
      began_(began),
      loop_(std::move(loop)),
      relay_(make_relay(loop_, hosts_)),
      log_(std::move(log)),
      console_(console_options(options_, outer_, relay_.get())),
      narrator_(console_, log_, began),
      beacons_(std::move(beacons)),
      supervisor_({.grace = options_.grace}),
      agent_(setup_.place.agent, membership::timeouts_for(options_.detect_budget)),
      arenas_(setup_.place.nodes > 1 || hosts_.fleet || hosts_.role),
      next_tick_(Clock::now() + seconds(1)) {
  if (!relay_) return;
  log_.listen([this](const Stamp&, EventKind kind, const nlohmann::json& fields) {
    nlohmann::json line = fields;
    line["kind"] = name(kind);
    relay_->say(LineKind::Record,
                line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  });
}

RunShell::~RunShell() = default;

Status RunShell::begin() {
  if (Status opened = open_signals(); !opened) return opened;
  if (!hosts_.role) {
    const secure::SocketAddress on =
        hosts_.fleet ? hosts_.fleet->listen : secure::SocketAddress::loopback();
    setup_.master_address = on.host();
    master_port_holder_ = hold_port(on, setup_.master_port);
  }
  Result<secure::RefusalCounters> refusals = secure::RefusalCounters::make();
  if (!refusals) return refusals.error();
  refusals_.emplace(std::move(*refusals));
  Result<Guardian> guardian = start_guardian();
  if (!guardian) return guardian.error();
  guardian_.emplace(std::move(*guardian));
  if (hosts_.role) {
    loop_.watch(beacons_->fd(), [this](std::uint32_t) { on_beacons(); });
    const Status started = start_coordinator();
    if (started) begin_role();
    return started;
  }
  terminal_ = std::move(outer_.terminal);
  if (!outer_.shims) {
    Result<std::optional<TerminalInput>> terminal = TerminalInput::open();
    if (!terminal) return terminal.error();
    terminal_ = std::move(*terminal);
  }
  if (terminal_) terminal_->start(loop_);
  begin_outer();
  std::vector<std::string> names;
  if (hosts_.fleet) {
    for (const HostPlace& place : hosts_.fleet->places) {
      if (hosts_.fleet->plans[place.agent.value()].used) names.push_back(place.name);
    }
  }
  narrator_.job_started(options_, setup_, names);
  loop_.watch(beacons_->fd(), [this](std::uint32_t) { on_beacons(); });
  Result<ControlSocket> control = ControlSocket::open(setup_.job, *this, &log_);
  if (control) {
    control_.emplace(std::move(*control));
    loop_.watch(control_->fd(), [this](std::uint32_t) { control_->turn(); });
  } else {
    narrator_.warning("E-CTL-1", fmt::format("regroup status and inject cannot reach this job: {}",
                                             control.error().text()));
  }
  Status started = start_coordinator();
  if (started) start_fleet();
  return started;
}

Result<Guardian> RunShell::start_guardian() const {
  // The launcher's cleans up after all of the job on this machine; that of another host's agent may
  // share the machine with the launcher, in a container for instance.
  return Guardian::start(setup_.job, hosts_.role ? "REGROUP_HOST_ID=" + setup_.host_mark()
                                                 : "REGROUP_JOB_ID=" + setup_.job);
}

Status RunShell::prepare_coordinator(CoordinatorOptions& coordinator,
                                     std::optional<TcpControl>& tcp) {
  coordinator.detect_budget = options_.detect_budget;
  if (hosts_.role) {
    // Its address is needed here, too: for what people read.
    const secure::SocketAddress there = hosts_.role->coordinator.port.address;
    tcp.emplace(std::move(hosts_.role->coordinator));
    hosts_.role->coordinator.port.address = there;
    return {};
  }
  if (options_.control == ControlKind::Tcp || hosts_.fleet) {
    Result<TcpControl> made = hosts_.fleet ? TcpControl::make(setup_.job, hosts_.fleet->listen)
                                           : TcpControl::make(setup_.job);
    if (!made) return made.error();
    tcp.emplace(std::move(*made));
  }
  coordinator.state = options_.log_dir / "coordinator.state";
  // A state file of an earlier job in the same directory would make this one go on where that one
  // ended.
  ::unlink(coordinator.state.c_str());
  Result<CoordinatorWatch> watch = CoordinatorWatch::make(options_.detect_budget);
  if (!watch) return watch.error();
  coordinator_watch_.emplace(std::move(*watch));
  coordinator.beat = coordinator_watch_->fd();
  coordinator.config = {static_cast<std::uint32_t>(options_.ranks),
                        static_cast<std::uint32_t>(options_.ranks_min),
                        static_cast<std::uint32_t>(options_.spares),
                        options_.on_loss,
                        static_cast<std::uint32_t>(options_.replacements_max),
                        options_.restart,
                        {}};
  if (!hosts_.fleet) return {};
  coordinator.agents = static_cast<std::uint32_t>(hosts_.fleet->plans.size());
  coordinator.config.hosts = hosts_.fleet->plans;
  return {};
}

Status RunShell::start_coordinator() {
  CoordinatorOptions coordinator;
  std::optional<TcpControl> tcp;
  if (Status prepared = prepare_coordinator(coordinator, tcp); !prepared) return prepared;
  CoordinatorLink::Callbacks callbacks;
  callbacks.up = [this] {
    if (coordinator_watch_) coordinator_watch_->begin(job_now());
    if (hosts_.role) reached_coordinator();
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
  while (!all_gone_ || !hosts_gone()) turn();
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
  if (coordinator_watch_) {
    if (const auto look = coordinator_watch_->due()) sooner(*look + stopped_for_);
  }
  if (fleet_) sooner(fleet_->due());
  sooner(narrator_.due());
  sooner(stop_due_);
  if (options_.timeout.count() > 0 && !ending_) sooner(began_ + options_.timeout + stopped_for_);
  return at;
}

void RunShell::timers() {
  const TimePoint now = Clock::now();
  look_at_coordinator();
  coordinator_->turn(now);
  if (fleet_) fleet_->turn(now);
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
    end_hosts(now);
    tick();
  }
}

void RunShell::look_at_coordinator() {
  if (!coordinator_watch_) return;
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
    begin_ending({exit_code, std::move(origin), std::move(reason), Clock::now()});
    post(membership::host::Stop{ending_->reason, exit_code});
  }
  post(supervisor::EndRequested{now});
  if (!fleet_) return;
  fleet_->end();
  // One that the coordinator does not reach hears it so.
  fleet_->tell_all({now ? HostWord::Kind::EndNow : HostWord::Kind::End, 0, {}});
}

void RunShell::begin_ending(Ending ending) {
  ending_ = std::move(ending);
  for (auto& [incarnation, process] : processes_) {
    if (process->said_hello) send(*process, control::Stop{ending_->exit_code, ending_->reason});
  }
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
  if (hosts_.role) return finish_role();
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
    if (coordinator_ && coordinator_->pid() > 0) {
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
