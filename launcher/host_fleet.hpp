/// The agents on the other hosts of a job, as the launcher sees them: started through a starter
/// (ssh, or what --starter says), given their orders, heard, and started again when they are gone.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <regroup/status.hpp>
#include <regroup/types.hpp>

#include "launcher/event_loop.hpp"
#include "launcher/host_list.hpp"
#include "launcher/host_orders.hpp"
#include "launcher/process.hpp"
#include "launcher/rank_process.hpp"

namespace regroup::launcher {

/// How an agent is started on a host.
struct Starter {
  std::vector<std::string> words;  ///< {host}, {user} and {target} are filled in; empty: ssh
  std::string agent;               ///< path of regroup on the other hosts
};
/// The command line that starts the agent of this host. Pure.
[[nodiscard]] std::vector<std::string> starter_words(const Starter& starter, const HostEntry& host);

/// Thread safety: the main thread. Never blocks. Callbacks come from turn(), reaped() and the loop.
class HostFleet {
 public:
  struct Callbacks {
    /// The orders for this host, once its agent has said who it is.
    std::function<HostOrders(membership::AgentId)> orders;
    /// A line of its agent, without the letter.
    std::function<void(membership::AgentId, LineKind, std::string_view)> line;
    /// Its starter ended, or could not be started. `greeted`: an agent had been there. The next
    /// attempt comes `again` later; none: no further one.
    std::function<void(membership::AgentId, const std::string& why, bool greeted,
                       std::optional<nanoseconds> again)>
        gone;
  };

  /// `hosts` by agent; this host itself is not among them. Memory: `loop` outlives this object.
  HostFleet(EventLoop& loop, Starter starter, std::map<membership::AgentId, HostEntry> hosts,
            std::vector<std::string> environment, Callbacks callbacks);
  HostFleet(const HostFleet&) = delete;
  HostFleet& operator=(const HostFleet&) = delete;
  /// Kills the starters that are left and reaps them.
  ~HostFleet();

  void start(TimePoint now);
  void turn(TimePoint now);
  [[nodiscard]] std::optional<TimePoint> due() const;
  /// A child was reaped. False: it was another one.
  bool reaped(pid_t pid, const ExitStatus& status, TimePoint now);

  void tell(membership::AgentId id, const HostWord& word);
  void tell_all(const HostWord& word);
  /// Nobody is started again from now on. Agents end when the job does.
  void end() { ending_ = true; }
  /// Closes the agents' inputs: whoever is left ends.
  void let_go();
  /// Kills what is left of the starters.
  void kill();
  [[nodiscard]] bool all_gone() const;
  /// Whether nobody is left but those from whom nothing comes (any more): the way there is cut.
  [[nodiscard]] bool only_silent_left(TimePoint now) const;
  /// Hosts whose agent has not said who it is.
  [[nodiscard]] std::vector<membership::AgentId> missing() const;
  [[nodiscard]] const std::string& name(membership::AgentId id) const;
  [[nodiscard]] std::vector<pid_t> pids() const;

 private:
  struct Host {
    HostEntry entry;
    std::optional<Spawned> process;
    base::Fd in;
    base::Fd out;
    base::Fd err;
    std::string to_write;
    LineReader lines{std::size_t{1} << 20};
    LineReader errors{4096};
    std::string last_error;  ///< what it said last on its standard error
    bool greeted = false;
    std::optional<TimePoint> greeting_until;
    TimePoint heard_at;
    std::optional<TimePoint> due;
    int attempts = 0;
  };
  void start(membership::AgentId id, Host& host, TimePoint now);
  void fail(membership::AgentId id, Host& host, TimePoint now, const std::string& why);
  template <class TakeFn>
  void read_all(base::Fd& stream, TakeFn&& take);
  void read_out(membership::AgentId id);
  void read_err(membership::AgentId id);
  void take_line(membership::AgentId id, Host& host, const std::string& line);
  void take_greeting(membership::AgentId id, Host& host, const std::string& line);
  void write(membership::AgentId id, Host& host);
  void close(Host& host);
  void close_input(Host& host);

  EventLoop& loop_;
  Starter starter_;
  std::vector<std::string> environment_;
  Callbacks callbacks_;
  std::map<membership::AgentId, Host> hosts_;
  bool ending_ = false;
};

}  // namespace regroup::launcher
