/// The c10d backend "regroup".
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <regroup/regroup.hpp>

#include "attachment.hpp"
#include "call_queue.hpp"
#include "reconfigure.hpp"
#include "tensors.hpp"
#include "torch_headers.hpp"
#include "work.hpp"

namespace regroup::torch_binding {

/// One group of a torch program. Its calls run in the order in which they are made, one after the
/// other; groups do not wait for each other. A group of one rank needs no launcher.
/// Losses never throw from a call: the Work that it returned fails.
/// Thread safety: any thread; the order of concurrent calls is up to the caller.
class BackendRegroup : public c10d::Backend {
 public:
  using Tensors = std::vector<at::Tensor>;
  using TensorLists = std::vector<Tensors>;
  using WorkPtr = c10::intrusive_ptr<c10d::Work>;
  using Millis = std::chrono::milliseconds;

  /// `ranks`: of the job, in the order of the group; empty: all of them. Blocks for a message to
  /// the launcher and back, not for other ranks. Throws when there is no launcher or the ranks do
  /// not fit the job.
  /// `reconfigurable`: it has no members until reconfigure() names them.
  BackendRegroup(int rank, int size, std::string group_id, const std::vector<std::int64_t>& ranks,
                 Millis timeout, bool reconfigurable = false);
  /// A group that has its members already, ranks of the job; null attachment: this process alone.
  BackendRegroup(int rank, std::vector<int> members, std::string group_id, ProcessGroup group,
                 std::shared_ptr<Attachment> attachment, Millis timeout);
  ~BackendRegroup() override;

  const std::string getBackendName() const override { return "regroup"; }
  c10::intrusive_ptr<Options> getBackendOptions() override { return options_; }
  bool supportsSplitting() const override { return false; }
  bool supportsCoalescing() const override { return true; }
  void setTimeout(Millis timeout) override;

  WorkPtr broadcast(Tensors& tensors, const c10d::BroadcastOptions& opts) override;
  WorkPtr allreduce(Tensors& tensors, const c10d::AllreduceOptions& opts) override;
  WorkPtr allreduce_coalesced(Tensors& tensors,
                              const c10d::AllreduceCoalescedOptions& opts) override;
  WorkPtr reduce(Tensors& tensors, const c10d::ReduceOptions& opts) override;
  WorkPtr allgather(TensorLists& outputs, Tensors& inputs,
                    const c10d::AllgatherOptions& opts) override;
  WorkPtr _allgather_base(at::Tensor& output, at::Tensor& input,
                          const c10d::AllgatherOptions& opts) override;
  WorkPtr allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::AllgatherOptions& opts) override;
  WorkPtr allgather_coalesced(TensorLists& outputs, Tensors& inputs,
                              const c10d::AllgatherOptions& opts) override;
  WorkPtr reduce_scatter(Tensors& outputs, TensorLists& inputs,
                         const c10d::ReduceScatterOptions& opts) override;
  WorkPtr _reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                               const c10d::ReduceScatterOptions& opts) override;
  WorkPtr reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::ReduceScatterOptions& opts) override;
  WorkPtr alltoall_base(at::Tensor& output, at::Tensor& input,
                        std::vector<std::int64_t>& output_splits,
                        std::vector<std::int64_t>& input_splits,
                        const c10d::AllToAllOptions& opts) override;
  WorkPtr alltoall(Tensors& outputs, Tensors& inputs, const c10d::AllToAllOptions& opts) override;
  WorkPtr gather(TensorLists& outputs, Tensors& inputs, const c10d::GatherOptions& opts) override;
  WorkPtr scatter(Tensors& outputs, TensorLists& inputs, const c10d::ScatterOptions& opts) override;
  WorkPtr send(Tensors& tensors, int destination, int tag) override;
  WorkPtr recv(Tensors& tensors, int source, int tag) override;
  WorkPtr recvAnysource(Tensors& tensors, int tag) override;
  WorkPtr barrier(const c10d::BarrierOptions& opts) override;
  void monitoredBarrier(const c10d::BarrierOptions& opts, bool wait_all_ranks) override;

  void startCoalescing() override;
  WorkPtr endCoalescing() override;

  /// No operation: the order of calls is checked by the runtime itself.
  void setSequenceNumberForGroup() override {}
  std::uint64_t getSequenceNumberForGroup() override { return sequence_.load(); }
  c10d::ErrorType getError() override { return error_.load(); }
  /// Calls that have not begun fail at once, later ones too; never blocks. A group whose members
  /// may change ends the epoch: its calls under way fail, too, on all ranks.
  void abort() override;
  /// Fails calls under way, and blocks until they have ended. Returns broken().
  bool let_go();
  /// Whose contributions the group's last operation held, ranks of the job in the order of the
  /// group; all of them before the first one.
  [[nodiscard]] std::vector<int> contributors();
  /// Aborted, or a call has failed: a group of the same members needs the next epoch.
  [[nodiscard]] bool broken() const {
    return aborted_.load() || error_.load() != c10d::ErrorType::SUCCESS;
  }
  /// Ends the group's thread after what was called before; later calls fail.
  void shutdown() override;

#ifdef C10D_BACKEND_HAS_RECONFIGURE
  bool supportsReconfigure() const override { return memberships_ != nullptr; }
  c10d::ReconfigureHandle get_reconfigure_handle() const override;
  /// Blocks until all members named have called it; the Work is done. Throws, and the group is what
  /// it was: when the number was used before, when a member does not come in time or is lost.
  WorkPtr reconfigure(const c10d::ReconfigureOptions& opts) override;
#endif
#ifdef C10D_BACKEND_HAS_HOOKS
  void registerAbortHook(std::int64_t id, c10d::AbortHook hook) override;
  void unregisterAbortHook(std::int64_t id) override;
#endif

  /// Blocks until no call is under way.
  void wait_idle() { queue_.wait_idle(); }
  /// Whether it was so by then.
  bool wait_idle(CallQueue::TimePoint until) { return queue_.wait_idle(until); }

 private:
  /// What the runtime is to do with tensors that were found usable.
  using Body = std::function<Status(ProcessGroup&, const OpOptions&)>;
  struct Call {
    c10d::OpType type = c10d::OpType::UNKNOWN;
    const char* name = "";
    Tensors inputs;
    Tensors outputs;
    Body body;
    Millis timeout{};
    bool in_background = true;
    /// Of a use to the ranks that are left, where the job goes on with fewer.
    bool fewer_do = false;
    /// Point to point: (lower rank, higher rank, direction); decides the order within a batch.
    std::optional<std::array<int, 3>> edge;
    int source = -1;
    /// Of a message from anybody: `body` says here whose it was.
    std::shared_ptr<int> found_source;
    bool healed_later = false;
  };

  WorkPtr begin(Call call);
  WorkPtr launch(Call call);
  void run(const Call& call, RegroupWork& work);
  [[nodiscard]] Status perform(const Call& call);
  [[nodiscard]] std::string label() const;
  void open_members(int rank, int size, const std::vector<int>& members);
  void require_members(const char* name);
  void run_abort_hooks();
  [[nodiscard]] RegroupWork::Ranks who_took_part();
  [[nodiscard]] Millis timeout_of(Millis wanted) const;

  c10::intrusive_ptr<Options> options_;
  std::string group_id_;
  std::shared_ptr<Attachment> attachment_;  ///< null: a group of one rank
  ProcessGroup group_;
  std::atomic<Millis> timeout_;
  std::atomic<std::uint64_t> sequence_{0};
  std::atomic<c10d::ErrorType> error_{c10d::ErrorType::SUCCESS};
  std::atomic<bool> aborted_{false};
  RegroupWork::Ranks members_;  ///< ranks of the job
  bool fewer_do_ = false;       ///< the job goes on with those that are left
  std::mutex last_mutex_;
  RegroupWork::Ranks last_;  ///< where fewer_do_: of the last operation
  bool ends_epoch_ = false;  ///< abort() does
  /// Of a reconfigurable group, else null. It has members once `configured_`.
  std::unique_ptr<Memberships> memberships_;
  std::atomic<bool> configured_{true};
  std::mutex hooks_mutex_;
  std::map<std::int64_t, std::function<void()>> abort_hooks_;
  std::mutex batch_mutex_;
  std::optional<std::vector<Call>> batch_;  ///< between startCoalescing and endCoalescing
  CallQueue queue_;
};

/// From now on, calls of this thread give results that heal brings to newcomers anyway
/// (OpOptions::healed_later), or not. Returns what it was before.
bool set_healed_later(bool healed_later);

/// Blocks until no group of this process has a call under way.
void wait_for_all_calls();
/// Ends the threads of all groups, if soon none of them has a call under way. Returns whether.
bool shut_down_all();

}  // namespace regroup::torch_binding
