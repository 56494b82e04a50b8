/// A whole control plane in one thread for tests: the machines of the coordinator and of each host,
/// joined by channels that can be held or cut, and shells that answer at once. Driven by script
/// lines; writes down all that happens.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "membership/host_agent.hpp"
#include "membership/membership.hpp"

namespace regroup::membership::testing {

/// Thread safety: one thread. A script that does not settle ends with the line "does not settle".
class World {
 public:
  /// Performs one script line; what it means stands in world_for_tests.cpp beside the word.
  void line(const std::string& text);

  [[nodiscard]] const std::string& transcript() const { return transcript_; }
  [[nodiscard]] const Membership& coordinator() const { return *coordinator_; }
  [[nodiscard]] const HostAgent& agent(std::uint32_t id) const { return *hosts_.at(id).machine; }
  /// "Steady epoch 2 seats=[1 2 5 4] resume=3", with the exit code once the job has ended.
  [[nodiscard]] std::string summary() const;
  /// Lines "expect ..." that did not hold.
  [[nodiscard]] const std::vector<std::string>& failures() const { return failures_; }

 private:
  struct Host {
    std::unique_ptr<HostAgent> machine;
    bool linked = false;
    std::set<Incarnation> running;
    std::optional<TimePoint> timer;
    /// What the words of each epoch would say if they were wedged now.
    std::map<Epoch, WedgeReport> words;
  };
  struct Packet {
    std::uint32_t agent = 0;
    bool to_coordinator = false;
    CoordinatorMessage order;
    AgentMessage answer;
    [[nodiscard]] std::string kind() const;
  };

  using Words = std::vector<std::string>;
  void configure(const Words& words);
  void start(std::optional<std::uint64_t> only = std::nullopt);
  void link(std::uint32_t agent);
  void unlink(std::uint32_t agent);
  void crash();
  void set_words(const Words& words);
  void for_each_running(const std::string& which, bool heal);
  void park(const std::string& which);
  void lose(Incarnation incarnation, const Evidence& evidence);
  void end_process(Incarnation incarnation, int code, bool detached);
  void wait(std::int64_t milliseconds);
  void settle();
  void deliver(const Packet& packet);
  void coordinate(const Event& event);
  void host_event(std::uint32_t agent, const host::Event& event);
  void perform(std::uint32_t agent, const host::Effect& effect);
  void write(const std::string& text);
  [[nodiscard]] std::uint32_t host_of(Incarnation incarnation) const;
  [[nodiscard]] Incarnation member(const std::string& word) const;

  Timeouts timeouts_ = timeouts_for(kDetectBudget);
  JobConfig config_;
  TimePoint now_{};
  std::unique_ptr<Membership> coordinator_;
  std::optional<DurableState> disk_;
  std::optional<TimePoint> timer_;
  std::map<std::uint32_t, Host> hosts_;
  std::deque<Packet> network_;
  std::deque<std::pair<std::uint32_t, host::Event>> pending_;  ///< answers of shells
  std::set<std::string> held_;
  std::uint64_t wishes_ = 0;
  std::string transcript_;
  std::vector<std::string> failures_;
};

}  // namespace regroup::membership::testing
