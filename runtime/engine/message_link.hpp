/// This process's way to members on other hosts.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include <regroup/status.hpp>

#include "collective/message_hub.hpp"
#include "collective/message_runner.hpp"
#include "engine/open_view.hpp"

namespace regroup::engine {

/// Holds the channels of this process, one a member: they outlive an epoch, members do not. Thread
/// safety: any thread.
class MessageLink {
 public:
  /// Loads the transport's module, from beside this library or where libraries are, and opens a
  /// port. Errors: Unsupported (no module), and the transport's.
  static Result<std::unique_ptr<MessageLink>> open();
  explicit MessageLink(std::unique_ptr<spi::MessagePort> port);

  /// What others need to reach this process.
  [[nodiscard]] const membership::MemberAddress& address() const { return address_; }
  [[nodiscard]] collective::MessageHub& hub() { return hub_; }

  /// From here on messages of earlier epochs are stale.
  void begin_epoch(Epoch epoch);
  /// Connects to those of the group's members that are not connected. `me`: own group rank.
  /// Errors: Internal (a member without address), and the transport's.
  Result<collective::MessageMembers> reach(const OpenGroup& group, const OpenView& view, int me);
  /// These members are dead: what is under way to and from them ends now.
  void close(const std::vector<Member>& lost);

 private:
  Result<int> channel_to(Incarnation incarnation, const membership::MemberAddress& address);

  membership::MemberAddress address_;
  collective::MessageHub hub_;
  std::map<Incarnation, int> channels_;  ///< with the hub's lock
};

/// Whether all of these seats' members run on one host.
[[nodiscard]] bool on_one_host(const std::vector<Rank>& seats, const OpenView& view);

}  // namespace regroup::engine
