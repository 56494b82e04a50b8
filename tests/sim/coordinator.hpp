/// The coordinator: the shipped Membership, its durable store, and the channels to the agents with
/// their faults.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "membership/membership.hpp"
#include "tests/sim/agents.hpp"
#include "tests/sim/core.hpp"

namespace regroup::sim {

class Coordinator final : public Uplink {
 public:
  Coordinator(Core& core, Agents& agents, FaultCount& faults);
  void start();
  void send_up(std::uint32_t host, membership::AgentMessage message) override;
  void agent_gone(std::uint32_t host) override { break_channel(host); }

  /// One direction of one channel swallows everything from now on; after a while both ends notice.
  void partition(std::uint32_t host, bool to_agent, Nanos length);
  /// Never to be reached again.
  void isolate(std::uint32_t host);
  [[nodiscard]] bool is_isolated(std::uint32_t host) const { return channels_[host].isolated; }
  /// A fresh job waits for hosts that never came: telling of those is the starter's business, not
  /// the machines'.
  [[nodiscard]] bool knows(std::uint32_t host) const { return channels_[host].met && store_; }
  /// Liveness mode: partitions end, a dead coordinator comes back.
  void heal();

  [[nodiscard]] const membership::Membership* machine() const { return machine_.get(); }
  /// Cells reached by all lives of the coordinator; call it once, at the end.
  [[nodiscard]] const membership::CellCounters& cells() { return collect_cells(), cells_; }
  [[nodiscard]] const std::optional<membership::EndJob>& ended() const { return end_; }
  [[nodiscard]] std::uint64_t views() const { return views_; }
  [[nodiscard]] std::uint64_t rounds() const { return rounds_.size(); }
  [[nodiscard]] std::uint64_t lives() const { return lives_; }

 private:
  struct Channel {
    bool up = false;         ///< both ends hold it
    bool agent_up = false;   ///< the agent believes so
    std::uint64_t life = 0;  ///< messages of an earlier life are lost
    Nanos up_clear_at = 0;   ///< order within a channel: nothing overtakes
    Nanos down_clear_at = 0;
    bool cut_up = false, cut_down = false;
    bool isolated = false;
    bool met = false;  ///< was up at some time
    std::uint64_t in_flight = 0;
  };

  void step(const membership::Event& event);
  bool perform(const membership::Effect& effect);
  void note_holder(const membership::Event& event);
  void send_down(std::uint32_t host, const membership::CoordinatorMessage& message);
  void record_order(std::uint32_t host, const membership::CoordinatorMessage& message);
  void note_removed(const std::vector<Member>& lost, Epoch epoch);
  void break_channel(std::uint32_t host);
  void reconnect(std::uint32_t host, Nanos after);
  void reconnect_at_start(std::uint32_t host);
  void crash();
  void collect_cells();
  void agent_notices(std::uint32_t host);
  template <class Message, class Deliver>
  void transfer(std::uint32_t host, Nanos& clear_at, Message message, Deliver deliver);

  Core& core_;
  Agents& agents_;
  FaultCount& faults_;
  std::unique_ptr<membership::Membership> machine_;
  std::optional<membership::DurableState> store_;
  std::vector<Channel> channels_;
  std::uint64_t life_ = 0;  ///< of the coordinator; events of an earlier one are void
  std::uint64_t timer_ = 0;
  bool restarting_ = false;
  membership::CellCounters cells_{};
  std::optional<membership::EndJob> end_;
  std::uint64_t views_ = 0;
  std::uint64_t lives_ = 0;
  std::set<std::uint64_t> rounds_;
  std::set<Epoch> chosen_;
};

}  // namespace regroup::sim
