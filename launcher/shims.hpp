/// The agent's side of the shims: processes that another launcher (mpirun, srun, torchrun) started
/// in the ranks' places, and that fork the ranks for this agent.
#pragma once

#include <functional>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <regroup/status.hpp>
#include <regroup/types.hpp>

#include "base/fd.hpp"
#include "control/channel.hpp"
#include "launcher/event_loop.hpp"
#include "launcher/rank_process.hpp"

namespace regroup::launcher {

/// Thread safety: one thread. Never blocks, but in finish(). Callbacks come from turn() only.
class Shims {
 public:
  /// What happens; the shell sets it before its first turn(). start() and print() may be called
  /// from within.
  struct Callbacks {
    std::function<void(Incarnation, Spawned)> started;
    std::function<void(Incarnation, std::string why, bool again)> refused;
    /// Returns whether what the process left running may stay until the job's end.
    std::function<bool(Incarnation, ExitStatus)> exited;
    /// The launcher wants a place to end: signal 0 means that the launcher is gone. `again`: it
    /// said so to the same place before.
    std::function<void(int signal, bool again)> signalled;
    /// A shim is gone, and with it, by the kernel's hand, the processes that it had forked.
    std::function<void(std::uint32_t place, std::vector<Incarnation>)> lost;
  };

  /// Takes over a listening socket. `places`: how many shims make the job complete; 0: as the first
  /// one says. Errors: ResourceExhausted.
  static Result<std::unique_ptr<Shims>> create(base::Fd listener, std::uint32_t places);

  [[nodiscard]] int fd() const { return loop_.fd(); }
  /// Waits for something until then, and handles all there is.
  void turn(TimePoint until) { loop_.turn(until); }
  void set(Callbacks callbacks) { callbacks_ = std::move(callbacks); }

  [[nodiscard]] std::uint32_t places() const { return places_; }
  [[nodiscard]] bool complete() const { return places_ > 0 && shims_.size() == places_; }
  /// Places whose shim has not come.
  [[nodiscard]] std::vector<std::uint32_t> missing() const;
  /// A shim that came and is gone; none: all are there.
  [[nodiscard]] std::optional<std::uint32_t> first_lost() const;
  [[nodiscard]] std::size_t alive() const;
  /// What the lowest place was asked to run. There is one once a shim has come.
  [[nodiscard]] const control::ShimHello& first() const { return shims_.begin()->second.hello; }

  /// Has a process started: in its seat's own place, or another one if that shim is gone; a spare
  /// where no seat is. Errors: FailedPrecondition (no shim left), ResourceExhausted.
  Status start(Incarnation incarnation, std::optional<Rank> seat, std::uint32_t ranks,
               const std::function<std::vector<std::string>(const std::vector<std::string>& outer)>&
                   environment,
               int control_fd);
  /// A line for people, on the standard error of the lowest place that is left.
  void print(std::string_view line);
  /// Ends all shims with this code and waits until they are gone, or `until`.
  void finish(int exit_code, const std::string& reason, TimePoint until);

 private:
  struct Shim {
    control::ShimHello hello;
    std::optional<control::Channel> channel;  ///< none: gone
    std::set<Incarnation> hosts;              ///< forked here and not reaped
    std::set<Incarnation> starting;
    bool signalled = false;
  };
  struct Stranger {
    control::Channel channel;
    TimePoint until;
  };

  Shims(EventLoop loop, base::Fd listener, std::uint32_t places);
  void accept_all();
  void listen_to(std::list<Stranger>::iterator stranger);
  void on_hello(std::list<Stranger>::iterator stranger);
  void on_shim(std::uint32_t place, std::uint32_t events);
  void on(std::uint32_t place, Shim& shim, const control::ShimStarted& message,
          std::vector<base::Fd> fds);
  void on(std::uint32_t place, Shim& shim, const control::ShimRefused& message,
          std::vector<base::Fd> fds);
  void on(std::uint32_t place, Shim& shim, const control::ShimExited& message,
          std::vector<base::Fd> fds);
  void on(std::uint32_t place, Shim& shim, const control::ShimSignalled& message,
          std::vector<base::Fd> fds);
  void on(std::uint32_t place, Shim& shim, const control::ShimHello& message,
          std::vector<base::Fd> fds);
  void send(std::uint32_t place, Shim& shim, const control::AgentToShim& message,
            const std::vector<int>& fds = {});
  void watch(std::uint32_t place, Shim& shim);
  void lose(std::uint32_t place, Shim& shim);
  [[nodiscard]] std::optional<std::uint32_t> place_for(std::optional<Rank> seat,
                                                       std::uint32_t ranks) const;

  EventLoop loop_;
  base::Fd listener_;
  std::uint32_t places_;
  Callbacks callbacks_;
  std::map<std::uint32_t, Shim> shims_;  ///< by place; stays after the shim is gone
  std::list<Stranger> strangers_;        ///< connected, have not said who they are
};

}  // namespace regroup::launcher
