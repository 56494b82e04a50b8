/// One process's attachment: link, groups, registered state, the epoch that the program has
/// entered.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <span>
#include <string>
#include <vector>

#include <regroup/regroup.hpp>

#include "base/spin_lock.hpp"
#include "collective/algorithm_rules.hpp"
#include "engine/agent_link.hpp"
#include "engine/faults.hpp"
#include "engine/heal.hpp"
#include "engine/kept_memory.hpp"
#include "engine/mirror.hpp"
#include "engine/prologue_progress.hpp"
#include "engine/registered_state.hpp"
#include "engine/state_check.hpp"
#include "metrics/clock.hpp"
#include "metrics/ledger.hpp"

namespace regroup::engine {

class GroupImpl;

/// Thread safety: program_mutex() is held by whoever runs an operation that changes what is below
/// it; the members say which. Groups of one job may be used from different threads.
class JobImpl : public std::enable_shared_from_this<JobImpl> {
 public:
  /// Blocks until the first view. Errors: as Job::attach().
  static Result<std::shared_ptr<JobImpl>> attach(const AttachOptions& options);
  JobImpl(const JobImpl&) = delete;
  JobImpl& operator=(const JobImpl&) = delete;
  ~JobImpl();

  [[nodiscard]] const Seat& seat() const { return link_->seat(); }
  [[nodiscard]] AgentLink& link() { return *link_; }
  [[nodiscard]] RegisteredState& state() { return state_; }
  [[nodiscard]] std::shared_ptr<GroupImpl> world() const { return world_; }
  [[nodiscard]] Epoch epoch() const { return bound_->view.epoch; }

  /// Ok while operations may be tried here: not closed, not forked, the job goes on.
  [[nodiscard]] Status usable() const;

  /// Finds or makes the group of these seats (group-rank order, vacant ones too).
  Result<std::shared_ptr<GroupImpl>> group(const std::string& name, const std::vector<Rank>& seats);

  // ---- steps and epochs: the program's thread --------------------------------------------------

  /// Makes this process a member that holds the state, in the newest view: exchanges who holds
  /// what, heals newcomers. Does nothing when it is one already and nothing was lost. Blocks.
  /// `resume` is then the step to begin (1-based). `goes_on`: the program has a further step to
  /// begin, so that it stops here if the epoch is to end here (spi/planned_end.hpp).
  /// Errors: as next(); Cancelled also when this rank was drained.
  Status enter(bool goes_on = true);
  [[nodiscard]] std::uint64_t resume_step() const { return bound_->view.resume_step; }
  /// True when the program stands in an epoch that is over, or has not yet entered the one that it
  /// is bound to.
  [[nodiscard]] bool must_enter() const;
  /// Saves (first attempt) or restores (retry) the volatile state at the start of `step`.
  Status begin_step(std::uint64_t step, bool retry);
  /// Why the step that was begun cannot be tried again: it was neither committed nor ended by a
  /// loss. Ok when it can.
  [[nodiscard]] Status left_open() const;
  /// As Job::end_epoch().
  Status end_epoch(std::string_view why);
  /// An operation failed for another reason than a loss: trying again would fail alike.
  void note_failure(const Status& status);
  /// Shared memory was found damaged. The step is tried again in fresh memory, but not for ever.
  void note_damage(const Status& status);
  /// Ok when `step` is committed. Blocks.
  Status commit(std::uint64_t step);
  [[nodiscard]] std::uint64_t applied() const { return applied_; }
  /// Steps of all loops made so far: the program makes the same loops in every life.
  [[nodiscard]] std::uint64_t steps_given() const { return steps_given_; }
  void give_steps(std::uint64_t total) { steps_given_ += total; }
  [[nodiscard]] bool in_step() const { return in_step_; }
  [[nodiscard]] std::uint64_t current_step() const { return current_step_; }
  /// As programs and people count: from 0; 0 before the first step too.
  [[nodiscard]] std::uint64_t current_index() const {
    return current_step_ == 0 ? 0 : current_step_ - 1;
  }
  [[nodiscard]] int attempt() const { return attempt_; }

  // ---- for operations --------------------------------------------------------------------------

  /// True while calls are recorded, so that a newcomer can be answered and a loss survived: before
  /// the first enter(), where the policy fills a lost seat again.
  [[nodiscard]] bool keeps_prologue() const { return !entered_once_ && meets_; }
  /// Calls go on by themselves after a loss.
  [[nodiscard]] bool carries_on() const { return carries_on_; }
  /// Either of the two.
  [[nodiscard]] bool guides_calls() const { return carries_on_ || keeps_prologue(); }
  /// Under carry_on, of a newcomer before its first step: seats may be vacant that its predecessor
  /// counted, and it counts them too, since all its calls are answered from the record.
  [[nodiscard]] bool repeats_prologue() const;
  [[nodiscard]] std::vector<Rank> all_seats() const;  ///< of the job
  [[nodiscard]] PrologueProgress& prologue() { return prologue_; }
  /// Records a call before it is confirmed. `healed_later`: as in OpOptions.
  Status record(const PrologueCall& call, std::span<const std::byte> result, bool healed_later);
  using EpochShare = std::shared_lock<std::shared_mutex>;
  /// In the prologue: enters an epoch after `than` in which the members have agreed how far they
  /// are, and holds it: while the share lives nobody rewires the groups. Blocks. Errors: Revoked
  /// when epoch `than` ended though nobody was lost, DeadlineExceeded, and those of meet().
  Result<EpochShare> share_epoch(Epoch than, TimePoint until);
  /// Under carry_on: while it lives nobody rewires the groups, which may be about to meet.
  [[nodiscard]] EpochShare hold_epoch() const;

  // ---- carrying on (job_carry_on.cpp): any thread
  // -----------------------------------------------------------------------------------------------

  /// Binds the next view after `lost`, in which the members have not met yet; then `check` says
  /// whether this rank goes on in it. Blocks. Errors: those of a view, of the check.
  Status follow(Epoch lost, TimePoint until, const std::function<Status()>& check);
  /// This rank does not go on with its step: until next() every call answers `why`, which is
  /// returned.
  Status give_up_step(Status why);
  [[nodiscard]] Status given_up() const;
  /// A send or recv was called: a loss before the next commit cannot be carried on over it.
  void note_message();
  /// False behind the last commit of a program with steps: others may have ended.
  [[nodiscard]] bool steps_to_go() const {
    return in_step_ || steps_given_ == 0 || applied_ < steps_given_;
  }
  /// Under the share of the epoch.
  void note_committed(std::uint64_t step);

  /// What executes the group's operations in the bound view: over shared memory if all its members
  /// run on this host, over messages otherwise. Errors: Unsupported (no way to other hosts).
  Result<std::unique_ptr<collective::GroupRunner>> runner(const OpenGroup& group, int me,
                                                          const collective::RunnerOptions& options);
  /// The status of an operation that was lost with `epoch`: names who and why.
  Status lost(Epoch epoch, const std::string& group, std::uint64_t sequence);
  void hit_fault(const FaultPoint& point) {
    const std::lock_guard lock(faults_mutex_);
    faults_.hit(point);
  }
  /// For a commit: what this rank gives others to keep and keeps for them; null: nothing. Behind
  /// it, once all of that has come, note_entrusted().
  [[nodiscard]] const collective::Entrusted* to_entrust(std::uint64_t step);
  void note_entrusted(std::uint64_t step);
  [[nodiscard]] bool has_faults() const { return !faults_.empty(); }
  [[nodiscard]] int cores() const { return cores_; }
  /// REGROUP_VERIFY: results are compared between the ranks.
  [[nodiscard]] bool verifies() const { return verifies_; }
  /// REGROUP_ALGO.
  [[nodiscard]] const collective::AlgorithmRules& algorithms() const { return algorithms_; }
  /// Guards ledger and clock, which operations on several threads share.
  [[nodiscard]] base::SpinLock& ledger_lock() { return ledger_lock_; }
  [[nodiscard]] metrics::Ledger& ledger() { return *ledger_; }
  [[nodiscard]] std::uint64_t now_ns() { return clock_.now_ns(); }

 private:
  explicit JobImpl(std::unique_ptr<AgentLink> link);
  Status start(TimePoint until);
  Result<std::shared_ptr<GroupImpl>> find_or_attach(const std::string& name,
                                                    const std::vector<Rank>& seats);
  Status bind(std::shared_ptr<OpenView> view);
  Status bind_groups();
  Status enter_bound();
  /// The program stands at the end of the last step of its epoch.
  [[nodiscard]] bool at_planned_end() const;
  /// Where the program stands when it asks for the next step.
  enum class Standing : std::uint8_t { Inside, Outside, GivenUp, PlannedEnd, Over };
  [[nodiscard]] Standing standing(bool goes_on) const;
  Status move_on(Standing from);
  void tell_of_wedge(Epoch wedged);
  Result<std::shared_ptr<OpenView>> next_view(Epoch than, TimePoint until);
  Status await_next_view(TimePoint until);
  Status catch_up(Epoch than, TimePoint until);
  /// Where a member stands when it meets the others in a new epoch. Travels as it is.
  enum class Stand : std::uint64_t {
    Outside,       ///< it does not hold the state, or does not go on with its step
    BetweenSteps,  ///< it is in next()
    InStep,
  };
  struct MeetInfo;
  Status lend_prologue(std::span<const PrologueInfo> all, TimePoint until);
  /// One member to one other, inside the entry into an epoch.
  Status pass(bool give, std::size_t other, std::span<std::byte> bytes, TimePoint until);
  Status meet(bool in_next, TimePoint until);
  [[nodiscard]] Stand stand(bool in_next) const;
  Status settle_stands(std::span<const Stand> all, bool in_next);
  /// The step is to begin again, or the next one: with the ranks that are there now.
  void begin_anew();
  /// From here on the program counts the ranks that are there now.
  void renumber();
  class HealRecord;
  Status exchange_and_heal(control::Entered& report);
  Status prepare_first_entry();
  Status too_often_damaged();
  // job_mirror.cpp: volatile state that outlives its process, here and on other hosts
  Status start_mirror(std::uint64_t step);
  Result<bool> inherit_mirror(std::uint64_t step);
  Status bring_mirrors(std::uint64_t step);
  Status bring_mirror(std::size_t to, std::uint64_t step);
  Status entrust_anew(std::uint64_t step);
  [[nodiscard]] bool entrusts() const;
  [[nodiscard]] std::optional<std::size_t> keeper_of(std::size_t member) const;
  Status tell_all(std::uint64_t mine, std::vector<std::uint64_t>& all);
  /// Says why this rank cannot go on, and passes it on.
  Status give_up(Status status);
  void book(metrics::Category category);
  static Status keep_prologue(void* job, int fd, std::uint64_t bytes);

  std::unique_ptr<AgentLink> link_;
  std::uint64_t fork_count_;
  std::atomic<bool> closed_{false};
  int cores_ = 1;
  std::mutex faults_mutex_;
  FaultScript faults_;
  collective::AlgorithmRules algorithms_;
  collective::MessageTuning messages_tuning_;
  bool verifies_ = false;

  base::SpinLock ledger_lock_;
  metrics::FastClock clock_;
  std::optional<metrics::Ledger> ledger_;

  /// In the prologue, and under carry_on: who rewires groups holds it alone.
  mutable std::shared_mutex epoch_mutex_;
  std::shared_ptr<OpenView> bound_;  ///< the epoch that the program uses
  std::shared_ptr<GroupImpl> world_;
  mutable std::mutex groups_mutex_;
  std::map<std::string, std::shared_ptr<GroupImpl>> groups_;

  RegisteredState state_;
  std::optional<StateCheck> state_check_;  ///< empty: not asked for
  bool holds_state_ = false;
  bool entered_once_ = false;
  Epoch entered_;              ///< last epoch that enter() completed
  std::uint64_t applied_ = 0;  ///< steps whose commit was Ok here, or healed
  HealBook heal_book_;

  std::uint64_t steps_given_ = 0;
  bool in_step_ = false;
  std::uint64_t current_step_ = 0;
  mutable std::mutex failure_mutex_;
  Status step_failure_;    ///< first failure in this step that is no loss
  Status given_up_;        ///< not Ok: why this rank does not go on with its step; as the one above
  bool messages_ = false;  ///< sent or received since the last commit; likewise
  Epoch numbered_;         ///< under carry_on: whose ranks the program counts
  int attempt_ = 0;
  int damaged_attempts_ = 0;  ///< since the last commit; under failure_mutex_
  Status last_damage_;
  std::vector<std::byte> saved_volatile_;

  /// Of other seats, what they entrusted to this rank: two generations each, by the step's parity.
  struct Generations {
    std::uint64_t steps[2] = {};
    std::vector<std::byte> bytes[2];
  };
  std::map<Rank, Generations> entrusted_;
  std::optional<std::uint64_t> brought_;  ///< of a newcomer: as of which step its own was brought
  collective::Entrusted to_entrust_;
  std::vector<std::byte> entrusting_;  ///< this rank's own

  std::optional<KeptMemory> mirror_memory_;
  std::optional<Mirror> mirror_;
  PrologueProgress prologue_;
  bool meets_ = false;  ///< the policy fills seats, so that members meet newcomers
  bool carries_on_ = false;
  Epoch met_ = Epoch(1);  ///< last epoch whose members agreed; in the first all begin alike
};

}  // namespace regroup::engine
