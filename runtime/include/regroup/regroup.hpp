/// Regroup: collectives that survive the loss of ranks.
///
///   auto job = regroup::Job::attach().value();
///   auto world = job.world();
///   job.state().add("params", params);
///   for (auto step = job.steps(100); step.next();) {
///     compute(step.index(), grads);
///     // A rank was lost: this step again.
///     if (!world.all_reduce(grads, regroup::ReduceOp::Avg)) continue;
///     if (!step.commit()) continue;
///     apply(grads);
///   }
///
/// Order of operations: every rank of a group starts the same operations in the same order.
/// Prologue: collectives before the first next() or reform() are made again by the runtime when a
/// rank is lost, and answered from a record in a newcomer; each synchronises its group. send and
/// recv are not: a loss after one of them is Unsupported there.
/// Threads: each object may be used from one thread at a time; different groups from different
/// threads.
/// No hang: every call ends, with Ok or with an error that names the lost rank.
/// Carrying on: under `--on-loss carry_on` all_reduce, reduce, barrier and commit() outlive a loss;
/// they return what the ranks that are left hold, and contributors() says who that is. So does a
/// broadcast whose root lives. What needs the lost rank (operations with a share for each rank, a
/// root, send and recv) returns RankLost on all ranks, and next() begins the step again without it.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <regroup/status.hpp>
#include <regroup/types.hpp>

#define REGROUP_EXPORT __attribute__((visibility("default")))

namespace regroup {

namespace engine {
class JobImpl;
class GroupImpl;
class WorkImpl;
class StepsImpl;
}  // namespace engine

/// Options of one operation.
struct OpOptions {
  /// How long the call may take; 0 waits until the operation is done or a rank is lost.
  nanoseconds timeout{0};
  /// In place and outside a step: keep a copy, so that an aborted operation leaves the buffer as
  /// it was.
  bool keep_input = true;
  /// Of ReduceOp::PremulSum: what each rank's contribution is multiplied by, in double for F64 and
  /// rounded to float for all narrower types. Equal on all ranks; a difference is a mismatch.
  double factor = 1.0;
  /// Before the first step: the result goes into registered state, if by a detour (a buffer that is
  /// copied from), so that heal brings it to a newcomer. No more than 16 MiB of such results are
  /// kept for one; it finds bytes of all ones (NaN) in place of the others, and must not make a
  /// further call of its own before its first next().
  bool healed_later = false;
};

/// Who took part in an operation that ended with Ok: whose contributions a reduction or all_gather
/// holds, and by how many Avg divided.
struct Contributors {
  Epoch epoch;             ///< of the communicator that carried it out; 0: no operation yet
  std::vector<int> ranks;  ///< of the job (Job::rank()), in the order of the group
  bool operator==(const Contributors&) const = default;
};

/// Handle of an asynchronous operation; it ends exactly once.
/// Memory: the buffers of the operation stay valid and untouched until wait() has returned.
/// Threads: may be moved to and waited for on any thread. Dropping it without wait() waits.
class REGROUP_EXPORT Work {
 public:
  Work();
  Work(const Work&) = delete;
  Work& operator=(const Work&) = delete;
  Work(Work&&) noexcept;
  Work& operator=(Work&&) noexcept;
  ~Work();
  /// True once the outcome is known. Never blocks.
  [[nodiscard]] bool done() const;
  /// Blocks until the outcome is known, and returns it; a second call returns the same.
  Status wait();
  /// After wait() returned Ok.
  [[nodiscard]] Contributors contributors() const;

 private:
  friend class ProcessGroup;
  explicit Work(std::shared_ptr<engine::WorkImpl> impl);
  std::shared_ptr<engine::WorkImpl> impl_;
};

/// Ranks that reduce together. Survives views: after a loss it is wired anew for the next epoch.
/// A handle: copies mean the same group. Group ranks are 0..size()-1 in seat order of the group.
/// Under `--on-loss carry_on` a loss in mid step changes neither: they are those of the step's
/// beginning until it is committed or begun again.
///
/// Every collective: all ranks of the group call it with the same operation, count, type and root,
/// in the same order; a mismatch is InvalidArgument on all of them with both sides named. Counts
/// are in elements. Buffers are contiguous, need no alignment, and belong to the caller again when
/// the call returns (or wait() does). `in` and `out` are equal (in place) or do not overlap. Where
/// one of them holds a share of each rank, the other may also be this rank's own share in there.
/// Blocks until done. Errors: InvalidArgument, RankLost, Revoked, DeadlineExceeded (the operation
/// itself then ends the epoch for the group), FailedPrecondition.
class REGROUP_EXPORT ProcessGroup {
 public:
  ProcessGroup() = default;
  [[nodiscard]] int rank() const;  ///< mine in this group
  [[nodiscard]] int size() const;  ///< seats of the group, vacant ones not counted
  [[nodiscard]] std::string name() const;
  [[nodiscard]] Epoch epoch() const;  ///< of the communicator in use
  /// Of this group's last blocking operation that returned Ok. The same on all ranks of the group.
  [[nodiscard]] Contributors contributors() const;

  /// out[i] = in[i] of all ranks combined; `count` elements in and out.
  Status all_reduce(const void* in, void* out, std::size_t count, DType type, ReduceOp op,
                    OpOptions options = {});
  /// As all_reduce; only `root` receives. On the others Ok means handed over: it is not an outcome.
  Status reduce(const void* in, void* out, std::size_t count, DType type, ReduceOp op, int root,
                OpOptions options = {});
  /// `count` elements of root's buffer into everybody's. On root Ok means handed over.
  Status broadcast(void* buffer, std::size_t count, DType type, int root, OpOptions options = {});
  /// `count` elements from each rank, concatenated in rank order: out holds count * size()
  /// elements.
  Status all_gather(const void* in, void* out, std::size_t count, DType type,
                    OpOptions options = {});
  /// in holds count * size() elements; out gets this rank's `count` of the combined ones.
  Status reduce_scatter(const void* in, void* out, std::size_t count, DType type, ReduceOp op,
                        OpOptions options = {});
  /// `count` elements to each rank: in and out hold count * size() elements. The share of out that
  /// comes from rank r stands at r, and is what stood in r's input at this rank.
  Status all_to_all(const void* in, void* out, std::size_t count, DType type,
                    OpOptions options = {});
  /// `count` elements from each rank into root's out, concatenated in rank order; the others' out
  /// is not used, and Ok means handed over there.
  Status gather(const void* in, void* out, std::size_t count, DType type, int root,
                OpOptions options = {});
  /// `count` elements of root's in, which holds count * size(), to each rank; the others' in is not
  /// used. On root Ok means handed over; its own share is in its out.
  Status scatter(const void* in, void* out, std::size_t count, DType type, int root,
                 OpOptions options = {});

  /// The same with shares of different sizes: counts[r] elements (0 is allowed) are rank r's, the
  /// same counts on all ranks, one for each. The buffer that holds all shares has them in rank
  /// order without gaps. In place means a share at its own place; equal buffers are refused.
  /// Memory: the counts may go when the call returns, of the asynchronous ones too.
  Status all_gather_v(const void* in, void* out, std::span<const std::size_t> counts, DType type,
                      OpOptions options = {});
  Status reduce_scatter_v(const void* in, void* out, std::span<const std::size_t> counts,
                          DType type, ReduceOp op, OpOptions options = {});
  Status gather_v(const void* in, void* out, std::span<const std::size_t> counts, DType type,
                  int root, OpOptions options = {});
  Status scatter_v(const void* in, void* out, std::span<const std::size_t> counts, DType type,
                   int root, OpOptions options = {});
  /// send_counts[r] elements of in go to rank r, recv_counts[r] of out come from it; shares lie in
  /// rank order without gaps, 0 is allowed. What one rank sends must be what the other receives:
  /// else all ranks get InvalidArgument that names the two. Not in place.
  Status all_to_all_v(const void* in, std::span<const std::size_t> send_counts, void* out,
                      std::span<const std::size_t> recv_counts, DType type, OpOptions options = {});
  /// Returns when all ranks of the group have called it.
  Status barrier(OpOptions options = {});
  /// Point to point, matched by (source, destination, tag) in order. Ok means handed over.
  Status send(const void* data, std::size_t count, DType type, int destination,
              std::uint32_t tag = 0, OpOptions options = {});
  /// Receives exactly `count` elements; another count from the sender is InvalidArgument.
  Status recv(void* data, std::size_t count, DType type, int source, std::uint32_t tag = 0,
              OpOptions options = {});
  /// As recv(), of the first message with that tag that is found, whoever sends it: its source.
  Result<int> recv_any(void* data, std::size_t count, DType type, std::uint32_t tag = 0,
                       OpOptions options = {});

  template <class T>
  Status all_reduce(std::span<const T> in, std::span<T> out, ReduceOp op, OpOptions options = {}) {
    if (in.size() != out.size()) return size_mismatch("all_reduce", in.size(), out.size());
    return all_reduce(in.data(), out.data(), in.size(), DTypeOf<T>::value, op, options);
  }
  /// In place, over anything that is a contiguous range of an element type.
  template <class Range>
  Status all_reduce(Range&& inout, ReduceOp op, OpOptions options = {}) {
    const std::span view(inout);
    return all_reduce(view.data(), view.data(), view.size(),
                      DTypeOf<typename decltype(view)::value_type>::value, op, options);
  }
  template <class Range>
  Status broadcast(Range&& buffer, int root, OpOptions options = {}) {
    const std::span view(buffer);
    return broadcast(view.data(), view.size(), DTypeOf<typename decltype(view)::value_type>::value,
                     root, options);
  }

  /// The same operations, started and not awaited. Those of one group run in call order, on a
  /// thread of the group that the first of them starts; different groups do not wait for each
  /// other. The call order of each group's operations is the same on all its ranks, whatever the
  /// order between groups.
  Work all_reduce_async(const void* in, void* out, std::size_t count, DType type, ReduceOp op,
                        OpOptions options = {});
  Work reduce_async(const void* in, void* out, std::size_t count, DType type, ReduceOp op, int root,
                    OpOptions options = {});
  Work broadcast_async(void* buffer, std::size_t count, DType type, int root,
                       OpOptions options = {});
  Work all_gather_async(const void* in, void* out, std::size_t count, DType type,
                        OpOptions options = {});
  Work reduce_scatter_async(const void* in, void* out, std::size_t count, DType type, ReduceOp op,
                            OpOptions options = {});
  Work all_to_all_async(const void* in, void* out, std::size_t count, DType type,
                        OpOptions options = {});
  Work gather_async(const void* in, void* out, std::size_t count, DType type, int root,
                    OpOptions options = {});
  Work scatter_async(const void* in, void* out, std::size_t count, DType type, int root,
                     OpOptions options = {});
  Work all_gather_v_async(const void* in, void* out, std::span<const std::size_t> counts,
                          DType type, OpOptions options = {});
  Work reduce_scatter_v_async(const void* in, void* out, std::span<const std::size_t> counts,
                              DType type, ReduceOp op, OpOptions options = {});
  Work gather_v_async(const void* in, void* out, std::span<const std::size_t> counts, DType type,
                      int root, OpOptions options = {});
  Work scatter_v_async(const void* in, void* out, std::span<const std::size_t> counts, DType type,
                       int root, OpOptions options = {});
  Work all_to_all_v_async(const void* in, std::span<const std::size_t> send_counts, void* out,
                          std::span<const std::size_t> recv_counts, DType type,
                          OpOptions options = {});
  Work barrier_async(OpOptions options = {});

  /// Several operations as one: what is called between begin_coalescing() and end_coalescing() is
  /// collected, and carried out at the end in call order. All of it has one outcome, the same on
  /// all ranks, roots included: after RankLost every in-place input is what it was. All ranks
  /// coalesce the same calls. A collected call returns Ok when it is valid, or its error, which
  /// end_coalescing() then returns, too, having done nothing; an asynchronous one returns a Work
  /// that ends with all of them. Not for send, recv, split, stabilize and commit. Before the first
  /// step, and under carry_on, each call is carried out as if it were called alone: there calls
  /// outlive losses by themselves.
  /// Memory: all buffers stay valid and untouched until the end has returned, or its Work.
  /// `options`: the timeout is that of all together; the rest counts for each call as given there.
  Status begin_coalescing();
  Status end_coalescing(OpOptions options = {});
  Work end_coalescing_async(OpOptions options = {});

  /// New groups out of this one: ranks with equal `color` form one, ordered by `key`, then by
  /// rank. Collective. A negative color joins none and gets FailedPrecondition on use. `name`
  /// identifies the group to newcomers; it must be the same on all ranks and new in the job.
  Result<ProcessGroup> split(int color, int key, std::string_view name);

  /// Returns Ok once what this group completed holds even if the ranks that saw it die.
  /// Collective, blocks.
  Status stabilize(OpOptions options = {});

 private:
  friend class Job;
  friend class engine::JobImpl;
  static Status size_mismatch(std::string_view operation, std::size_t in, std::size_t out);
  explicit ProcessGroup(std::shared_ptr<engine::GroupImpl> impl);
  std::shared_ptr<engine::GroupImpl> impl_;
};

/// What a newcomer must be given. Register before the first next(); every rank registers the same
/// names, types and sizes in the same order.
/// Memory: the registered buffers stay valid, at the same address, until the Job is destroyed.
class REGROUP_EXPORT State {
 public:
  /// Replicated state, equal on all ranks between steps: healed from the other ranks. In a step it
  /// changes after commit() only; REGROUP_CHECK_STATE=1 checks that.
  State& add(std::string_view name, void* data, std::size_t bytes);
  /// This seat's own state that changes before commit (random generators, loader positions): saved
  /// by next(), restored on a retry, mirrored with commit so that a newcomer in this seat gets it.
  State& add_volatile(std::string_view name, void* data, std::size_t bytes);

  template <class Range>
    requires requires(Range& r) { std::span(r); }
  State& add(std::string_view name, Range& range) {
    const std::span view(range);
    return add(name, view.data(), view.size_bytes());
  }
  template <class T>
    requires(std::is_trivially_copyable_v<T> && !requires(T& r) { std::span(r); })
  State& add_volatile(std::string_view name, T& value) {
    return add_volatile(name, &value, sizeof(T));
  }
  template <class T>
    requires(std::is_trivially_copyable_v<T> && !requires(T& r) { std::span(r); })
  State& add(std::string_view name, T& value) {
    return add(name, &value, sizeof(T));
  }

 private:
  friend class Job;
  explicit State(engine::JobImpl* job) : job_(job) {}
  engine::JobImpl* job_;
};

/// The loop of transactions. A step begins with next(), holds operations, and ends with commit().
/// Threads: the thread that made it.
class REGROUP_EXPORT Steps {
 public:
  Steps(const Steps&) = delete;
  Steps& operator=(const Steps&) = delete;
  Steps(Steps&&) noexcept;
  Steps& operator=(Steps&&) noexcept;
  ~Steps();
  /// Begins the next step, or the same one again after a loss; a newcomer blocks here until it is
  /// healed. False when all steps are committed, when the job cannot go on, or when the step before
  /// failed for a reason that trying again would not mend: status() tells which.
  [[nodiscard]] bool next();
  /// 0-based number of the step that next() began.
  [[nodiscard]] std::uint64_t index() const;
  /// How often this step was begun; 1 the first time.
  [[nodiscard]] int attempt() const;
  /// Ok once all ranks hold the step's results: change state only after it. Otherwise continue
  /// with next(), which begins this step again. Blocks.
  Status commit();
  /// Why next() returned false: Ok when all steps are committed, Cancelled when the job is ending
  /// or this rank was drained (Job::drained()).
  [[nodiscard]] Status status() const;

 private:
  friend class Job;
  explicit Steps(std::unique_ptr<engine::StepsImpl> impl);
  std::unique_ptr<engine::StepsImpl> impl_;
};

/// Small keys and values that all processes of the job share, kept by the launcher: they outlive
/// every rank, so that a newcomer finds what its predecessor left. For what has to meet before a
/// group exists; not for data. At most 65,536 keys, 512 KiB a value, 64 MiB in all. A call costs a
/// message to the launcher and back. Threads: any. Every call blocks until it is answered; 0 waits
/// without a limit.
/// Errors: InvalidArgument, ResourceExhausted (a limit), DeadlineExceeded, Cancelled (the job
/// ends).
class REGROUP_EXPORT Store {
 public:
  Status set(std::string_view key, std::string_view value);
  /// Waits until the key is there.
  Result<std::string> get(std::string_view key, nanoseconds timeout = nanoseconds{0});
  /// Waits until all keys are there, at one moment.
  Status wait(std::span<const std::string> keys, nanoseconds timeout = nanoseconds{0});
  [[nodiscard]] Result<bool> has(std::span<const std::string> keys);
  /// Adds to a decimal number (an absent key is 0) and returns the sum.
  Result<std::int64_t> add(std::string_view key, std::int64_t amount);
  /// Sets the key if it holds `expected`, and returns what it holds then. An absent key counts as
  /// an empty one.
  Result<std::string> compare_set(std::string_view key, std::string_view expected,
                                  std::string_view desired);
  /// True if the key was there.
  Result<bool> erase(std::string_view key);
  [[nodiscard]] Result<std::int64_t> size();

 private:
  friend class Job;
  explicit Store(std::shared_ptr<engine::JobImpl> job) : job_(std::move(job)) {}
  std::shared_ptr<engine::JobImpl> job_;
};

/// How attach() behaves.
struct AttachOptions {
  nanoseconds timeout = std::chrono::seconds(120);  ///< how long to wait for the other ranks
};

/// This process's place in the job. A handle to one attachment; the last copy's end detaches in
/// order.
class REGROUP_EXPORT Job {
 public:
  /// Reads what the launcher set (nothing set: a job of one rank) and waits for the first view. A
  /// spare blocks here until it is given a seat, and ends the process with code 0 when the job
  /// ends without needing it.
  /// Errors: FailedPrecondition (twice in one process image), DeadlineExceeded, Fenced,
  /// Unsupported.
  static Result<Job> attach(AttachOptions options = {});

  [[nodiscard]] int rank() const;  ///< this seat
  [[nodiscard]] int size() const;  ///< seats of the job, vacant ones included
  [[nodiscard]] Incarnation incarnation() const;
  [[nodiscard]] OnLoss on_loss() const;  ///< as the launcher was told
  /// True when this process took over a seat that somebody else held before.
  [[nodiscard]] bool is_replacement() const;
  /// True once this process has left its seat by `regroup drain` or `regroup scale`: the step
  /// before is committed, the job goes on without it, and every further call returns Cancelled. The
  /// program is to end.
  [[nodiscard]] bool drained() const;
  [[nodiscard]] ProcessGroup world() const;
  /// The group of these ranks of the job, which become its ranks 0.. in the order given; made by
  /// whoever asks first, found by the others. Not collective: only its members call it, each when
  /// it likes. Survives views; a newcomer finds it again under its name (1 to 256 bytes). `ranks`
  /// name this rank, are distinct, and are the same in every call with this name. At most 128
  /// groups in a job; each has shared memory of its own. Blocks for a message to the launcher and
  /// back.
  /// Errors: InvalidArgument, ResourceExhausted, RankLost (the epoch ended; enter the next one),
  /// Cancelled.
  Result<ProcessGroup> group(std::string_view name, std::span<const int> ranks);
  [[nodiscard]] Store store();
  [[nodiscard]] State state();
  /// The job's steps 0..total-1. One loop at a time.
  [[nodiscard]] Steps steps(std::uint64_t total);
  /// Without steps (`--on-loss replace`): enters the newest view, healing newcomers. Called once
  /// when the set-up is over, and after each RankLost or Revoked; then run the request again. The
  /// registered state must be equal on all ranks that had it: change it after an operation in
  /// which all ranks receive (all_reduce, all_gather, barrier), whose outcome is the same on all.
  /// Collective among the members; blocks. Errors: those of next().
  Status reform();
  /// Ends the epoch for all ranks, none of which is lost: calls under way return Revoked, and each
  /// enters the next epoch by next() or reform(). For whoever finds that the ranks do not do the
  /// same any more. Threads: any, but not beside next(), commit() and reform(). Does not block.
  Status end_epoch(std::string_view why);

 private:
  explicit Job(std::shared_ptr<engine::JobImpl> impl);
  std::shared_ptr<engine::JobImpl> impl_;
};

}  // namespace regroup
