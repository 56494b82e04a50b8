/// A process group behind its handle: validates, times and runs operations on the communicator of
/// the entered epoch.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <regroup/regroup.hpp>

#include "collective/runner.hpp"
#include "engine/async_queue.hpp"
#include "engine/open_view.hpp"
#include "engine/prologue.hpp"
#include "metrics/beacon_page.hpp"

namespace regroup::engine {

class JobImpl;

/// The outcome of an asynchronous operation, set once. Thread safety: any thread.
class WorkImpl {
 public:
  explicit WorkImpl(std::optional<Status> done = std::nullopt) : status_(std::move(done)) {}
  void finish(Status status, Contributors contributors = {});
  [[nodiscard]] bool done() const;
  /// While its operation is only collected: FailedPrecondition, at once.
  Status wait();
  void collecting(bool yes);
  /// Once it is done.
  [[nodiscard]] Contributors contributors() const;

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<Status> status_;
  bool collecting_ = false;
  Contributors contributors_;
};

struct Coalesced;

/// Everything that one call of an operation needs. Memory: as the public call says.
struct Request {
  enum class Kind : std::uint8_t { Collective, Send, Recv, Find };
  Kind kind = Kind::Collective;
  collective::OpSpec spec;  ///< of Send, Recv and Find only dtype, count, in or out
  int other = 0;            ///< Send: destination, Recv: source
  /// Find: whose message a Recv behind it is to take.
  std::int64_t* found = nullptr;
  std::uint32_t tag = 0;
  metrics::Operation operation = metrics::Operation::None;
  OpOptions options;
  const char* label = nullptr;       ///< for the fault script; null: the operation's name
  const Coalesced* parts = nullptr;  ///< of a coalesced one; lives as long as the call

  [[nodiscard]] spi::Deadline deadline() const {
    return options.timeout.count() > 0 ? Clock::now() + options.timeout : spi::kNoDeadline;
  }
};

/// Operations that are collected to be carried out as one. Thread safety: none.
struct Coalesced {
  std::vector<Request> requests;
  std::vector<std::shared_ptr<const std::vector<std::size_t>>> counts;  ///< that requests point to
  Status refused;  ///< the first call that could not be collected
  std::shared_ptr<WorkImpl> work = std::make_shared<WorkImpl>();
};

/// Thread safety: perform() and start() from one thread at a time, beside the group's own queue.
class GroupImpl {
 public:
  GroupImpl(JobImpl& job, std::string name);
  GroupImpl(const GroupImpl&) = delete;
  GroupImpl& operator=(const GroupImpl&) = delete;
  ~GroupImpl();

  /// Wires the group for an epoch; the communicator of the epoch before is thrown away.
  Status bind(std::shared_ptr<OpenGroup> group, Epoch epoch);
  /// After this every call answers FailedPrecondition.
  void close() { closed_.store(true); }
  /// Waits for the asynchronous operations; after close() those not begun answer at once. Blocks.
  void finish_async() { async_->finish(); }
  /// In a forked child, where the queue's thread does not exist and cannot be waited for.
  void abandon_in_child() {
    (void)async_.release();
    (void)runner_.release();
  }

  /// In the communicator of the epoch.
  [[nodiscard]] int rank() const { return me_; }
  [[nodiscard]] int size() const { return group_ ? static_cast<int>(group_->seats.size()) : 0; }
  /// As the program counts: the communicator's, but under carry_on those of the step's beginning.
  [[nodiscard]] int public_rank() const { return numbers().mine; }
  [[nodiscard]] int public_size() const { return static_cast<int>(public_seats().size()); }
  [[nodiscard]] const std::vector<Rank>& public_seats() const { return numbers().seats; }
  /// The program is to count the ranks that are there now. Any thread.
  void renumber() { number_as(group_->seats); }
  /// It is to count these, of which some may be vacant by now.
  void number_as(const std::vector<Rank>& seats);
  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] const std::vector<Rank>& present_seats() const { return group_->seats; }
  [[nodiscard]] Epoch epoch() const;
  /// Of the last blocking operation that was Ok.
  [[nodiscard]] Contributors contributors() const;
  /// Ends its epoch on purpose.
  void end_epoch_for(std::string_view why);
  /// Its epoch is over.
  [[nodiscard]] bool wedged() const;
  /// This rank leaves the job: what others wait for must say what this rank did.
  void leave();
  /// On the world, once `step` is committed: whether its epoch is to end there, without a loss.
  [[nodiscard]] bool ends_after(std::uint64_t step) const;

  /// Runs the operation on this thread, or behind the asynchronous ones that are pending. Blocks.
  Status perform(const Request& request);
  /// Runs it on the group's own thread, behind those started before.
  std::shared_ptr<WorkImpl> start(const Request& call);
  /// From here on perform() and start() collect, until end_coalescing(). Errors:
  /// FailedPrecondition when they do already.
  Status begin_coalescing();
  /// Runs what was collected as one operation. Blocks.
  Status end_coalescing(const OpOptions& options);
  /// The same behind the asynchronous operations that are pending.
  std::shared_ptr<WorkImpl> end_coalescing_async(const OpOptions& options);
  /// The step word of the world: Ok once `step` is committed, RankLost when it is not. Behind the
  /// asynchronous operations that are pending. Blocks.
  Status commit(std::uint64_t step);
  Result<std::shared_ptr<GroupImpl>> split(int color, int key, std::string_view name);
  /// For the entry into an epoch: runs without prologue, validation or ledger.
  Status perform_inside(const Request& request, spi::Deadline until = spi::kNoDeadline);

 private:
  class Scope;
  Status validate(const Request& request) const;
  static Status only_collected(std::string_view what);
  Status validate_parts(const Coalesced& parts) const;
  Status collect(const Request& call, Status status);
  std::unique_ptr<Coalesced> stop_collecting();
  /// Fills part_specs_.
  const collective::OpSpec* specs_of(const Coalesced& parts);
  void enqueue(const Request& request, std::shared_ptr<const void> kept,
               const std::shared_ptr<WorkImpl>& work);
  Status perform_parts(const Request& request, bool background, Contributors* result);
  Status validate_collective(const collective::OpSpec& spec) const;
  Status validate_counts(const collective::OpSpec& spec) const;
  [[nodiscard]] bool is_in_place(const collective::OpSpec& spec) const;
  [[nodiscard]] collective::OpExtent extent_of(const collective::OpSpec& spec) const;
  [[nodiscard]] std::size_t bytes_of(const Request& request) const;
  static std::shared_ptr<const std::vector<std::size_t>> keep_counts(collective::OpSpec& spec);
  /// `result` null: the operation is the program's last blocking one.
  Status perform_now(const Request& request, bool background, Contributors* result);
  Status perform_guided(const Request& request, bool background, Contributors* result);
  void note_result(Contributors* result);
  [[nodiscard]] Contributors contributors_now() const;
  /// Tells the job of a failure that is no loss; passes the status on.
  Status noted(Status status);
  /// group_prologue.cpp: a call before the first step, which outlives losses.
  Status perform_in_prologue(const Request& request, bool background);
  collective::Outcome run_and_confirm(const Request& request, const PrologueCall& call,
                                      bool background, spi::Deadline until);
  collective::Outcome confirm(bool background, spi::Deadline until);
  /// group_carry_on.cpp: calls that go on in the next epoch by themselves.
  Status perform_carrying_on(const Request& request, bool background, Contributors* result);
  collective::Outcome run_uniformly(const Request& request, bool background, spi::Deadline until);
  Status commit_carrying_on(std::uint64_t step, bool background);
  /// `counted`: the seats that the program counted when it made the call.
  [[nodiscard]] Request wired(const Request& request, const std::vector<Rank>& counted) const;
  [[nodiscard]] Status may_carry_on(const Request& request, const std::vector<Rank>& counted) const;
  [[nodiscard]] Status may_repeat(const Request& request, const collective::Outcome& outcome) const;
  [[nodiscard]] bool keeps_input(const Request& request) const;
  collective::Outcome run(const Request& request, bool background, spi::Deadline until);
  collective::Outcome run_once(const Request& request, bool background, spi::Deadline until);
  template <class Once>
  collective::Outcome verified(const Request& request, Once&& once);
  collective::Outcome differs(const Request& request, const std::string& difference);
  collective::Outcome execute(const Request& request, const collective::OpSpec& spec,
                              spi::Deadline until);
  collective::Outcome settle(const Request& request, collective::Outcome outcome);
  Status commit_here(std::uint64_t step, bool background);
  Status commit_now(std::uint64_t step, bool background);
  Status end_epoch(std::string_view why) const;
  static bool epoch_is_over(void* group);
  static void tell_of_wedge(void* group);
  Status to_status(const Request& request, const collective::Outcome& outcome) const;
  [[nodiscard]] PrologueCall call_of(const Request& request) const;
  [[nodiscard]] std::span<std::byte> result_of(const Request& request) const;
  [[nodiscard]] std::span<const std::byte> recorded_of(const Request& request) const;
  void on_instant(collective::Instant instant, std::uint64_t number, std::int64_t chunk);

  JobImpl& job_;
  std::string name_;
  std::shared_ptr<OpenGroup> group_;
  Epoch epoch_;
  int me_ = -1;
  struct Numbers {
    std::vector<Rank> seats;
    int mine = -1;
  };
  [[nodiscard]] const Numbers& numbers() const { return *numbers_.load(std::memory_order_acquire); }
  std::mutex numbers_mutex_;
  std::deque<Numbers> all_numbers_{{}};  ///< of all its epochs, while other threads may read them
  std::atomic<const Numbers*> numbers_{&all_numbers_.front()};
  bool result_is_current_ = false;  ///< the last result is of this communicator
  Contributors last_result_;        ///< otherwise: of which one
  std::unique_ptr<collective::GroupRunner> runner_;
  std::atomic<bool> closed_{false};
  std::uint64_t prologue_calls_ = 0;     ///< collectives of this life that are done
  std::uint64_t prologue_messages_ = 0;  ///< sends and receives of this life that are done
  /// Asynchronous operations not finished yet, and one while operations are collected.
  std::atomic<int> pending_{0};
  std::unique_ptr<Coalesced> collecting_;
  std::vector<collective::OpSpec> part_specs_;  ///< of the coalesced operation in progress
  const char* operation_name_ = "";
  std::uint64_t called_ns_ = 0;  ///< when the operation in progress was called
  /// Last: its thread uses the rest.
  std::unique_ptr<AsyncQueue> async_ = std::make_unique<AsyncQueue>();
};

}  // namespace regroup::engine
