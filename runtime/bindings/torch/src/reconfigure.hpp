/// torch's membership API (2.14 and later): a group is told again and again who belongs to it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <regroup/regroup.hpp>

#include "attachment.hpp"

namespace regroup::torch_binding {

/// This process's part in the memberships of one group. Thread safety: one thread at a time, but
/// for handle(), which any may call.
class Memberships {
 public:
  using Millis = std::chrono::milliseconds;

  struct Joined {
    ProcessGroup group;  ///< empty: this process alone
    int rank = 0;
    std::vector<int> members;  ///< ranks of the job
  };

  /// `attachment`: null in a process without a launcher, which can only be alone.
  Memberships(std::string group_id, std::shared_ptr<Attachment> attachment);

  /// Names this process to the others; a new one after a failed join.
  [[nodiscard]] std::string handle() const;
  /// Makes the group of these handles, whose positions are the new ranks, under a number that was
  /// never used. `epoch_is_over`: something has failed, so that the job enters its next epoch,
  /// which waits for all its living processes, members or not, without a limit. Else it blocks
  /// until all members have called it, or for `timeout`. Throws.
  Joined join(std::int64_t uuid, std::vector<std::string> handles, bool ordered, Millis timeout,
              bool epoch_is_over);

 private:
  Joined join_once(std::int64_t uuid, const std::vector<std::string>& handles, Millis timeout,
                   bool epoch_is_over);
  void claim(std::int64_t uuid, const std::vector<std::string>& handles);
  [[nodiscard]] std::string key_of(std::int64_t uuid, const std::string& what) const;
  Status meet(std::int64_t uuid, const std::vector<int>& seats, TimePoint until, bool epoch_is_over,
              ProcessGroup& group);
  /// Blocks until all members are here. True: they enter the next epoch first.
  Result<bool> pass_gate(const std::string& gate, std::size_t size, TimePoint until,
                         bool epoch_is_over);
  Status meet_in_this_epoch(const std::vector<int>& seats, TimePoint until, ProcessGroup& group);

  std::string group_id_;
  std::shared_ptr<Attachment> attachment_;
  std::string prefix_;
  std::atomic<int> failures_{0};
  std::set<std::int64_t> used_;
};

}  // namespace regroup::torch_binding
