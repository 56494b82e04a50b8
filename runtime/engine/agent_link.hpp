/// A process's conversation with its agent, and the engine thread that carries it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <regroup/status.hpp>

#include "base/fd.hpp"
#include "control/channel.hpp"
#include "control/key_value_store.hpp"
#include "engine/message_link.hpp"
#include "engine/open_view.hpp"
#include "metrics/beacon.hpp"
#include "metrics/beacon_page.hpp"

namespace regroup::engine {

/// The seat that this process holds.
struct Seat {
  Rank rank;
  Incarnation incarnation;
  std::uint32_t ranks = 1;  ///< seats of the job
  std::uint32_t ranks_on_host = 1;
  OnLoss on_loss = OnLoss::Replay;
  std::string job;
  bool replacement = false;
  std::uint32_t life = 0;  ///< lives this seat had before
};

/// Owns the control channel, the death beacon and the engine thread. The thread beats, receives
/// what the agent says; it never waits for the program.
/// Thread safety: all public functions from any thread. Destroying it detaches in order.
class AgentLink {
 public:
  /// Says hello and, for a spare, waits until it is given a seat (the process ends with 0 if the
  /// job ends first). Blocks. Errors: DeadlineExceeded, Unsupported (protocol), ResourceExhausted,
  /// Cancelled.
  static Result<std::unique_ptr<AgentLink>> connect(base::Fd control, TimePoint until);
  /// A job of one rank in this process, without any agent.
  static Result<std::unique_ptr<AgentLink>> alone();

  AgentLink(const AgentLink&) = delete;
  AgentLink& operator=(const AgentLink&) = delete;
  ~AgentLink();

  [[nodiscard]] const Seat& seat() const { return seat_; }
  /// The way to other hosts. Errors: why there is none; FailedPrecondition when the job has no
  /// other hosts.
  [[nodiscard]] Result<MessageLink*> messages() const;
  [[nodiscard]] metrics::BeaconPage& page() const { return page_->page(); }
  /// Memory that this seat's last life left ("mirror", "prologue"); empty if there is none. Gives
  /// it away.
  [[nodiscard]] base::Fd take_kept(const std::string& what);

  /// The first view after `than` that has this process in its seat. Blocks.
  /// Errors: DeadlineExceeded, Cancelled (the job ends), Fenced (removed), ResourceExhausted
  /// (memory, descriptors).
  Result<std::shared_ptr<OpenView>> await_view(Epoch than, TimePoint until);
  /// The arena of a group in `epoch`, made by the agent if it is new. Blocks. Errors: as
  /// await_view(), and RankLost when that epoch ended meanwhile.
  Result<std::shared_ptr<OpenGroup>> attach_group(Epoch epoch, const std::string& name,
                                                  const std::vector<Rank>& seats, TimePoint until);
  /// What the agent said about the end of `epoch`, waiting for it a little; empty if it never came.
  [[nodiscard]] std::optional<control::LossNotice> loss_of(Epoch epoch, TimePoint until);
  /// Ok while the job goes on; else why it does not.
  [[nodiscard]] Status running() const;

  /// Asks the job's key-value store; the request's id is chosen here. Blocks. Errors:
  /// DeadlineExceeded (it is not waited for any longer), Cancelled, those of the store.
  Result<control::StoreReply> ask_store(control::StoreRequest request, TimePoint until);

  /// Hands memory to the agent that shall outlive this process.
  Status keep_memory(const std::string& what, int fd, std::uint64_t bytes);
  Status entered(control::Entered message);
  /// This rank wedged its own words of `epoch`: the agent is to end it.
  Status send_end_epoch(Epoch epoch, const std::string& why);
  /// Whether the agent has installed a later epoch than this one.
  [[nodiscard]] bool has_newer(Epoch epoch) const {
    return newest_epoch_.load(std::memory_order_acquire) > epoch.value();
  }
  /// Tells the agent that this process cannot go on, and why.
  Status fault(const Status& why);
  /// The program waits at the end of the last step of `epoch`.
  Status parked(Epoch epoch);
  /// This process has left its seat by a planned change, and running() says so.
  [[nodiscard]] bool released() const { return released_.load(std::memory_order_acquire); }

  /// Tells the agent that the end of the beacon, soon, is no loss: the exit code says what it is.
  void leave();
  /// In a forked child: lets go of the channel. Nothing else of this object may be used there.
  void abandon_in_child();

 private:
  explicit AgentLink(std::optional<control::Channel> channel) : channel_(std::move(channel)) {}

  Status greet(TimePoint until);
  Status await_seat(TimePoint until);
  void open_messages();
  void start_engine();
  void engine_main(const std::stop_token& stop);
  void serve_channel();
  void handle(control::AgentToRank message, std::vector<base::Fd> fds);
  void take_reply(control::StoreReply reply);
  void install(const control::ViewInstalled& message, std::vector<base::Fd> fds);
  void take_seat(const control::Assign& message, std::vector<base::Fd> fds);
  void fail(Status why);
  Status send(const control::RankMessage& message, std::span<const int> fds = {});
  void wake_engine() const;
  template <class Ready>
  Status await(std::unique_lock<std::mutex>& lock, TimePoint until, const char* what, Ready ready);

  /// Receive side: engine thread; send side: send_mutex_
  std::optional<control::Channel> channel_;
  std::mutex send_mutex_;
  std::optional<metrics::PageMapping> page_;
  Seat seat_;
  std::unique_ptr<MessageLink> messages_;  ///< null: see no_messages_
  Status no_messages_{Code::FailedPrecondition, "this job has no other hosts"};
  base::Fd wake_;  ///< eventfd

  mutable std::mutex mutex_;  ///< guards all below
  std::condition_variable changed_;
  bool seated_ = false;
  std::map<std::string, base::Fd> kept_;
  std::shared_ptr<OpenView> newest_;
  std::atomic<std::uint64_t> newest_epoch_{0};  ///< of newest_
  /// Answers to attach_group, of groups_epoch_
  std::map<std::string, std::shared_ptr<OpenGroup>> groups_ready_;
  Epoch groups_epoch_;
  std::optional<Status> refused_;
  std::uint64_t store_requests_ = 0;
  /// Requests that are waited for, by id, with their answers.
  std::map<std::uint64_t, std::optional<control::StoreReply>> store_replies_;
  std::optional<control::KeyValueStore> own_store_;  ///< of a job without an agent
  std::optional<control::LossNotice> last_loss_;
  Status ended_;  ///< not Ok: the job is over for this process
  std::atomic<bool> released_{false};
  std::atomic<bool> over_{false};  ///< ended_ is not Ok; asked by each operation, without the lock

  std::jthread engine_;  ///< last: joins before the rest goes
};

}  // namespace regroup::engine
