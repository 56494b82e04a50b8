/// The processes of the job: a compact model of a rank's program and of its runtime's calls.
/// Completion rules are the shipped ones (spi/agreement.hpp) on real words; between any two
/// micro-steps a crash or a pause may fall.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "tests/sim/core.hpp"
#include "tests/sim/memory.hpp"

namespace regroup::sim {

struct Healing;
struct StateImages;

/// Where a program stands.
enum class At : std::uint8_t {
  Next,    ///< in step.next(): waits for the newest view that has it
  Meet,    ///< waits until all members said what they hold
  Share,   ///< a heal: says which chunks it has
  Plan,    ///< waits for what the others have, then asks the planner
  Take,    ///< newcomer: the chunks that the plan gives it, one by one
  Verify,  ///< newcomer: compares digests
  Judge,   ///< waits until all newcomers have compared
  Enter,   ///< enters its next operation
  Publish,
  Await,
  Reduce,
  Complete,
  Decide,
  Prepare,
  AwaitPrepared,
  StepVerdict,
  Over,   ///< leaves the job in order
  Leave,  ///< runs its last instructions before it exits with 0
};

/// What a process says to its agent, on one channel in this order.
enum class Says : std::uint8_t { Attached, Entered, EndsEpoch, Parked, Detached, Closed };
struct Said {
  Says what = Says::Closed;
  Epoch epoch;
  std::uint64_t number = 0;  ///< Core::sent()
};

struct Process {
  std::uint32_t index = 0;
  Incarnation incarnation;
  std::uint32_t host = 0;
  std::optional<Rank> seat;
  bool alive = true;
  bool attached = false;
  bool exited = false;    ///< ended with exit code 0
  bool killed = false;    ///< a SIGKILL is under way
  bool deaf = false;      ///< closed its channel: it says nothing and hears nothing any more
  std::deque<Said> said;  ///< not read by its agent yet
  // What its agent knows of it.
  bool heard_attach = false;
  bool heard_detach = false;
  bool reported_lost = false;  ///< nothing it says counts any more
  bool gone = false;           ///< reaped
  bool released = false;       ///< was told that it has left its seat
  Nanos paused_until = 0;
  bool queued = false;      ///< a run event is in the queue
  Nanos beat_offset = 0;    ///< time it spent paused: its heart did not beat
  std::uint64_t beats = 0;  ///< its heartbeat counter as last read

  std::shared_ptr<EpochMemory> installed;  ///< newest view its agent told it
  std::shared_ptr<EpochMemory> mine;       ///< the epoch its program entered
  At at = At::Next;
  std::uint64_t step = 0;
  std::uint32_t index_in_step = 0;
  std::array<std::uint64_t, kGroupsMax> numbers{};  ///< operations entered in this epoch
  Operation operation;
  std::uint64_t buffer = 0, input = 0, kept = 0;  ///< in-place buffer, what went in, the kept copy
  std::uint64_t out_seats = 0;
  std::uint64_t step_digest = 0;  ///< results of this step so far
  std::uint64_t applied = 0;      ///< last step applied to the state
  std::uint64_t state = 0;        ///< the state itself
  bool has_state = false;
  bool interrupted = false;  ///< under carry_on: goes on in the next epoch ...
  bool in_commit = false;    ///< ... with this commit, else with this operation

  std::unique_ptr<Healing> healing;  ///< of a newcomer; kept from epoch to epoch
  std::uint32_t heal_round = 0;      ///< of the epoch it entered
};

/// What the ranks tell their agents.
class RankNews {
 public:
  virtual ~RankNews() = default;
  virtual void entered(Process& process) = 0;    ///< holds the state in its epoch now
  virtual void leaves(Process& process) = 0;     ///< the program left the job in order
  virtual void exits(Process& process) = 0;      ///< the program ended with 0
  virtual void fails(Process& process) = 0;      ///< the program ended by an error of the runtime
  virtual void goes_deaf(Process& process) = 0;  ///< the program closed its channel
  virtual void dies(
      Process& process) = 0;  ///< a fault: the listener crashes it, and perhaps others too
  virtual void wedged_itself(Process& process) = 0;
  virtual void parked(Process& process) = 0;  ///< waits at the end of a step for the next view
};

/// Thread safety: none.
class Ranks {
 public:
  explicit Ranks(Core& core);
  ~Ranks();
  Ranks(const Ranks&) = delete;
  Ranks& operator=(const Ranks&) = delete;
  void listen(RankNews* news) { news_ = news; }

  Process& create(Incarnation incarnation, std::uint32_t host, std::optional<Rank> seat);
  Process* find(Incarnation incarnation);
  std::vector<std::unique_ptr<Process>>& all() { return processes_; }

  /// The memory of this view; the first host that asks makes it.
  std::shared_ptr<EpochMemory> memory(const membership::View& view);
  /// The memory of this epoch if any host made it.
  std::shared_ptr<EpochMemory> memory(Epoch epoch);

  void install(Process& process, const std::shared_ptr<EpochMemory>& memory);
  /// It has left its seat as planned, and is told so.
  void release(Process& process);
  void crash(Process& process);
  void finish(Process& process);  ///< it ended with 0
  void pause(Process& process, Nanos length);
  /// Lets the process take a micro-step soon, unless one is queued.
  void wake(Process& process);
  /// Wakes whoever waits for this seat's block, and its owner.
  void changed(EpochMemory& memory, std::int32_t seat);
  /// Whether the program's last step is behind it; liveness mode sets the end.
  void end_after(std::uint64_t step) { steps_ = step; }
  [[nodiscard]] std::uint64_t highest_step() const { return highest_step_; }
  [[nodiscard]] std::uint64_t pauses_short() const { return pauses_short_; }
  [[nodiscard]] std::uint64_t pauses_long() const { return pauses_long_; }
  [[nodiscard]] std::uint64_t operations_done() const { return operations_done_; }
  [[nodiscard]] std::uint64_t damaged_chunks() const { return damaged_chunks_; }
  [[nodiscard]] std::uint64_t resumed_heals() const { return resumed_heals_; }
  [[nodiscard]] std::uint64_t failed_heals() const { return failed_heals_; }
  [[nodiscard]] std::uint64_t carried_on() const { return carried_on_; }

 private:
  void wake(Process& process, Nanos mean);
  void run(Process& p);
  bool fate(Process& p);  ///< true: it died or paused instead of moving
  void next(Process& p);
  void leave(Process& p);
  [[nodiscard]] bool carries_on() const {
    return core_.swarm.job.on_loss == regroup::OnLoss::CarryOn;
  }
  void interrupt(Process& p, bool in_commit);
  void go_on(Process& p);
  // heal.cpp
  bool join(Process& p);
  void meet(Process& p);
  void share_map(Process& p);
  void plan_heal(Process& p);
  void take_chunk(Process& p);
  void verify(Process& p);
  void judge_heal(Process& p);
  void verified(Process& p, bool wrong);
  void holds_state(Process& p);
  void entered(Process& p);
  bool left_behind(Process& p);
  template <class Holds>
  bool await_all(Process& p, Holds holds);
  StateImages& images();
  void begin_step(Process& p);
  void enter_operation(Process& p);
  void publish(Process& p);
  void await_arrivals(Process& p);
  void reduce(Process& p);
  void complete(Process& p);
  void decide(Process& p);
  void revoked(Process& p);
  void done(Process& p);
  void next_operation(Process& p);
  void announce_planned_end(Process& p);
  void prepare(Process& p);
  void await_prepared(Process& p);
  void step_verdict(Process& p);
  void committed(Process& p);
  void over(Process& p);

  EpochMemory& bound(Process& p);  ///< the memory that a call uses
  [[nodiscard]] Operation plan(const EpochMemory& memory, std::uint64_t step,
                               std::uint32_t index) const;
  bool choose_operation(Process& p);
  bool is_last_step(Process& p);
  Block::Lane& lane(Process& p);
  void go(Process& p, At at);
  [[nodiscard]] std::uint32_t operations_of(std::uint64_t step) const;
  std::optional<std::int32_t> reader_behind(Process& p);
  std::optional<std::int32_t> not_arrived(Process& p);
  std::optional<std::int32_t> not_published(Process& p);
  void compute(Process& p, What what);
  void watch(EpochMemory& memory, std::int32_t seat, Process& p);
  [[nodiscard]] Record record_of(const Process& p, What what) const;

  Core& core_;
  RankNews* news_ = nullptr;
  std::vector<std::unique_ptr<Process>> processes_;
  std::vector<std::shared_ptr<EpochMemory>> memories_;
  std::uint64_t steps_ = ~std::uint64_t{0};
  std::uint64_t highest_step_ = 0;
  std::uint64_t operations_done_ = 0;
  std::uint64_t pauses_short_ = 0;
  std::uint64_t pauses_long_ = 0;
  std::uint64_t damaged_chunks_ = 0;
  std::uint64_t resumed_heals_ = 0;
  std::uint64_t failed_heals_ = 0;
  std::uint64_t carried_on_ = 0;
  std::unique_ptr<StateImages> images_;
};

}  // namespace regroup::sim
