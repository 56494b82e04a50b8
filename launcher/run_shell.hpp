/// The thin shell of `regroup run`: launcher, agent and supervisor of one job on this host, in one
/// thread.
///
/// It reads what happens (signals, exits, beacons, messages of ranks and coordinator), gives it to
/// the two machines (SupervisorMachine: processes; HostAgent: membership), and performs their
/// effects in order.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include <regroup/status.hpp>
#include <regroup/types.hpp>

#include "control/key_value_store.hpp"
#include "launcher/beacon_thread.hpp"
#include "launcher/control_socket.hpp"
#include "launcher/coordinator_link.hpp"
#include "launcher/coordinator_watch.hpp"
#include "launcher/epoch_arenas.hpp"
#include "launcher/event_loop.hpp"
#include "launcher/guardian.hpp"
#include "launcher/job_hosts.hpp"
#include "launcher/narrator.hpp"
#include "launcher/options.hpp"
#include "launcher/rank_process.hpp"
#include "launcher/relay.hpp"
#include "launcher/shims.hpp"
#include "launcher/terminal_input.hpp"
#include "membership/host_agent.hpp"
#include "supervisor/supervisor_machine.hpp"

namespace regroup::launcher {

/// Who started the places of a job, if `regroup run` did not.
struct OuterLauncher {
  std::unique_ptr<Shims> shims;  ///< all there; none: this process forks the ranks itself
  base::Fd pidfd;                ///< its end ends the job
  std::optional<Spawned> child;  ///< it is a child of this process

  std::optional<TerminalInput> terminal;  ///< standard input of `child`

  /// Waits for its end if it `notices` that its places are gone, then asks, then kills; reaps it.
  /// Blocks.
  static void end(std::optional<Spawned>& child, bool notices);
};

/// A new job's id: random, unique enough to find its processes by it.
[[nodiscard]] std::string make_job_id();

/// Runs the job to its end and returns the process's exit code. Threads: the main thread, once a
/// process.
int run_job(RunOptions options, JobSetup setup, OuterLauncher outer = {}, JobHosts hosts = {});

/// Thread safety: one thread, the one that made it; it must be the main thread (parent death
/// signals).
class RunShell final : public JobControl {
 public:
  RunShell(RunOptions options, JobSetup setup, EventLoop loop, EventLog log,
           std::unique_ptr<BeaconThread> beacons, TimePoint began, OuterLauncher outer,
           JobHosts hosts);
  ~RunShell() override;
  RunShell(const RunShell&) = delete;
  RunShell& operator=(const RunShell&) = delete;

  /// Blocks until the job is over. Returns the exit code.
  int run();

  // JobControl: what people may ask for from outside.
  [[nodiscard]] JobStatus status() override;
  Status signal(Rank rank, int signal) override;
  Status evict(Rank rank, const std::string& why) override;
  Result<std::uint64_t> drain(const std::vector<Rank>& ranks, bool now) override;
  std::uint64_t scale(std::uint32_t seats, bool now) override;
  [[nodiscard]] std::optional<Wish> wish(std::uint64_t id) override;
  Status kill_coordinator() override;
  [[nodiscard]] std::optional<metrics::Doing> doing(Rank rank) override;
  [[nodiscard]] Result<nlohmann::json> flight(Rank rank) override;
  void refused_other_user() override;

 private:
  using Pending = std::variant<supervisor::Event, membership::host::Event>;
  using ProcessMap = std::map<Incarnation, std::unique_ptr<RankProcess>>;

  // run_shell.cpp: the loop, the queue of events, the end.
  Status begin();
  [[nodiscard]] Result<Guardian> start_guardian() const;
  Status prepare_coordinator(CoordinatorOptions& coordinator, std::optional<TcpControl>& tcp);
  Status start_coordinator();
  void turn();
  [[nodiscard]] TimePoint next_deadline() const;
  /// Time as the machines see it: what this job spent stopped has not passed.
  [[nodiscard]] TimePoint job_now() const { return Clock::now() - stopped_for_; }
  void timers();
  void look_at_coordinator();
  void post(supervisor::Event event) { pending_.emplace_back(std::move(event)); }
  void post(membership::host::Event event) { pending_.emplace_back(std::move(event)); }
  void drain();
  void end_job(int exit_code, std::string origin, std::string reason, bool now);
  struct Ending {
    int exit_code = 0;
    std::string origin;
    std::string reason;
    TimePoint since;
  };
  void begin_ending(Ending ending);
  int finish();
  void sweep_all();
  void remember_cause(const RankProcess& process, const membership::Evidence& evidence);

  // run_shell_signals.cpp: signals and children.
  Status open_signals();
  void on_signals();
  void on_signal(int signal);
  void forward(int signal);
  void begin_stop();
  void go_on_stopping();
  void stop_here();
  void reap();
  void reaped(pid_t pid, const ExitStatus& status);
  void sweep(Incarnation incarnation);

  // run_shell_ranks.cpp: the conversation with ranks, and their output.
  void watch_process(RankProcess& process);
  void watch_channel(RankProcess& process);
  void watch_output(RankProcess& process, std::optional<OutputStream>& stream);
  void on_channel(Incarnation incarnation, std::uint32_t events);
  void pump_channel(RankProcess& process);
  void close_channel(RankProcess& process);
  void send(RankProcess& process, const control::AgentToRank& message,
            const std::vector<int>& fds = {});
  void on_beacons();
  void on_message(RankProcess& process, control::RankMessage message, std::vector<base::Fd> fds);
  void on(RankProcess& process, const control::Hello& message);
  void on(RankProcess& process, const control::BeaconHeld& message);
  void on(RankProcess& process, const control::AttachGroup& message);
  void on(RankProcess& process, const control::Entered& message);
  void on(RankProcess& process, const control::Detach& message);
  void on(RankProcess& process, const control::Fault& message);
  void on(RankProcess& process, const control::EndEpoch& message);
  void on(RankProcess& process, const control::RankParked& message);
  void on(RankProcess& process, const control::StoreRequest& message);
  void keep(RankProcess& process, const control::KeepMemory& message, std::vector<base::Fd> fds);
  /// `was_vacant`: nobody had the seat in the epoch before.
  void assign(RankProcess& process, bool was_vacant = false);

  // run_shell_effects.cpp: what the machines decided.
  void perform(const supervisor::Fork& effect);
  void perform(const supervisor::Signal& effect);
  void perform(const supervisor::Sweep& effect);
  void perform(const supervisor::Lost& effect);
  void perform(const supervisor::Finished& effect);
  void perform(const supervisor::GaveUp& effect);
  void perform(const supervisor::SetTimer& effect);
  void perform(const supervisor::AllGone& effect);
  void perform(const membership::host::WedgeWords& effect);
  void perform(const membership::host::WriteDecision& effect);
  void perform(const membership::host::MakeView& effect);
  void perform(const membership::host::Spawn& effect);
  void perform(const membership::host::Kill& effect);
  void perform(const membership::host::TellRanks& effect);
  void perform(const membership::host::SendCoordinator& effect);
  void perform(const membership::host::EndAll& effect);
  void perform(const membership::host::Log& effect);
  void perform(const membership::host::SetTimer& effect);
  void perform(const membership::host::AskPark& effect);
  void perform(const membership::host::Release& effect);
  void perform(const membership::host::Answered& effect);
  [[nodiscard]] bool is_at(Rank seat, const membership::host::MakeView& effect) const;
  void seat_newcomers(const membership::host::MakeView& effect, const membership::View& before,
                      std::vector<Narrator::Newcomer>& newcomers);
  void add_newcomers_elsewhere(const membership::host::MakeView& effect,
                               const membership::View& before,
                               std::vector<Narrator::Newcomer>& newcomers) const;
  std::uint32_t next_life(Rank seat, std::uint32_t known);
  void tell_view(RankProcess& process, const std::string& cause);
  void read_beats();
  [[nodiscard]] membership::Evidence evidence_of(const RankProcess& process,
                                                 const supervisor::Lost& effect) const;

  // run_shell_outer.cpp: ranks that shims fork.
  void begin_outer();
  void start_by_shim(const supervisor::Fork& effect, std::uint32_t life);
  void on_shim_started(Incarnation incarnation, Spawned spawned);
  void on_shim_exited(Incarnation incarnation, const ExitStatus& status);
  void on_shim_lost(std::uint32_t place, const std::vector<Incarnation>& hosted);
  void on_outer_signal(int signal, bool again);
  void on_launcher_end();
  void finish_outer(int exit_code, const std::string& reason);

  // run_shell_hosts.cpp: other hosts.
  [[nodiscard]] bool is_elsewhere(Rank seat) const;
  [[nodiscard]] int local_rank(Rank seat) const;
  void start_fleet();
  [[nodiscard]] HostOrders orders_for(membership::AgentId id) const;
  void on_host_line(membership::AgentId id, LineKind kind, std::string_view text);
  void on_host_event(membership::AgentId id, std::string_view text);
  void note_elsewhere(membership::AgentId id, EventKind kind, const nlohmann::json& fields);
  void on_host_gone(membership::AgentId id, const std::string& why, bool greeted,
                    std::optional<nanoseconds> again);
  void say_which_hosts_are_missing();
  void end_hosts(TimePoint now);
  [[nodiscard]] bool hosts_gone() const;
  Status signal_elsewhere(Rank rank, int signal);
  void add_elsewhere(JobStatus& out) const;
  void begin_role();
  void on_launcher_word();
  void take_words();
  void end_here(int exit_code, const std::string& why, bool now = true);
  void reached_coordinator();
  void look_for_coordinator(TimePoint now);
  int finish_role();

  // run_shell_watch.cpp: never silent while blocked.
  void tick();
  /// Writes the flight records of at most `files` processes that ended, the oldest first.
  void keep_flights(std::size_t files);
  void look_for_first_operation();
  void say_who_was_refused();
  void say_who_is_missing();
  void say_who_stalls();
  void say_who_does_not_end();
  void end_for_the_left(const control::ViewInstalled::Group& group, const metrics::Doing& oldest,
                        const std::string& left);

  [[nodiscard]] RankProcess* find(Incarnation incarnation);
  [[nodiscard]] RankProcess* holder(Rank rank);
  [[nodiscard]] std::optional<Incarnation> in_seat(Rank rank);

  RunOptions options_;
  JobSetup setup_;
  OuterLauncher outer_;
  JobHosts hosts_;
  TimePoint began_;
  EventLoop loop_;
  std::unique_ptr<Relay> relay_;  ///< of another host's agent
  EventLog log_;
  Console console_;
  Narrator narrator_;
  std::unique_ptr<BeaconThread> beacons_;
  std::optional<Guardian> guardian_;
  std::optional<CoordinatorWatch> coordinator_watch_;
  std::optional<secure::RefusalCounters> refusals_;
  secure::RefusalCounts refusals_told_{};
  std::unique_ptr<CoordinatorLink> coordinator_;
  std::uint32_t restarts_told_ = 0;
  std::unique_ptr<HostFleet> fleet_;  ///< of the launcher of a job on several hosts
  std::optional<ControlSocket> control_;
  base::Fd signal_fd_;
  base::Fd master_port_holder_;
  std::optional<TerminalInput> terminal_;

  supervisor::SupervisorMachine supervisor_;
  membership::HostAgent agent_;
  std::deque<Pending> pending_;
  bool draining_ = false;
  std::optional<TimePoint> supervisor_timer_;
  std::optional<TimePoint> agent_timer_;

  ProcessMap processes_;
  std::deque<Incarnation> flights_;      ///< whose flight records are kept, in the order of writing
  std::map<Rank, std::uint32_t> lives_;  ///< lives begun in each seat
  std::map<Rank, std::map<std::string, base::Fd>> kept_;  ///< memory that outlives a seat's process
  std::map<Rank, Incarnation> last_in_seat_;              ///< of the views so far
  control::KeyValueStore store_;  ///< the ranks' own; a client is an incarnation
  EpochArenas arenas_;
  std::vector<membership::SeatPlace> places_;  ///< of the seats of the newest view
  std::uint64_t detached_beats_ = 0;
  std::string cause_;  ///< the first loss that mattered
  membership::Round round_;

  /// A planned change that a person asked for.
  struct Asked {
    std::vector<Incarnation> leaving;
    std::optional<std::uint32_t> seats;
    Wish wish;
  };
  std::uint64_t keep_wish(Asked asked);
  void look_at_wishes();
  std::map<std::uint64_t, Asked> wishes_;  ///< the newest ones
  std::uint64_t wishes_asked_ = 0;

  /// A process on another host, as far as its agent told.
  struct Elsewhere {
    membership::AgentId host;
    std::optional<Rank> rank;
    std::int32_t pid = 0;
    std::string state;
  };
  std::map<Incarnation, Elsewhere> elsewhere_;
  std::set<membership::AgentId> hosts_reached_;  ///< whose agents have reached the coordinator
  std::optional<TimePoint> let_go_at_;
  LineReader words_{4096};  ///< of the launcher
  bool reached_ = false;    ///< this agent has reached the coordinator once

  std::optional<Ending> ending_;
  bool all_gone_ = false;
  std::uint32_t finished_ = 0;
  nanoseconds stopped_for_{0};         ///< in all, by SIGTSTP
  std::optional<TimePoint> stop_due_;  ///< whoever has not stopped until then is made to
  bool stop_forced_ = false;           ///< SIGSTOP is sent
  TimePoint next_tick_;
  /// After a recovery: when to look again whether an operation of the new epoch is complete.
  std::optional<TimePoint> first_operation_due_;
  nanoseconds first_operation_wait_{};
  std::optional<TimePoint> first_attach_;
  TimePoint wait_told_;
  TimePoint stall_told_;
  TimePoint wedged_since_;
};

}  // namespace regroup::launcher
