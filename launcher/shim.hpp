/// The shim: what another launcher started in a rank's place. It forks the rank, watches and reaps
/// it and passes signals on; all decisions are the agent's.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>

#include <regroup/status.hpp>
#include <regroup/types.hpp>

#include "base/fd.hpp"
#include "control/channel.hpp"
#include "launcher/event_loop.hpp"
#include "launcher/process.hpp"

namespace regroup::launcher {

/// What a shim is at the start.
struct ShimSetup {
  control::ShimHello hello;
  std::string launcher;  ///< for people: "mpirun (pid 42)"
  pid_t launcher_pid = 0;
};

/// Thread safety: the main thread (it forks with parent death signals).
class Shim {
 public:
  /// How a conversation with the agent ended.
  enum class Outcome { Ended, Busy, AgentGone, LauncherGone };

  /// Errors: ResourceExhausted.
  static Result<std::unique_ptr<Shim>> create(ShimSetup setup, base::Fd agent);
  Shim(const Shim&) = delete;
  Shim& operator=(const Shim&) = delete;

  /// Serves the agent until the conversation is over; then nothing that it forked is left. Blocks.
  Outcome run();
  /// After Ended.
  [[nodiscard]] int exit_code() const { return exit_code_; }

 private:
  struct Child {
    Spawned process;
    bool told = false;  ///< the agent knows that it has ended
  };
  Shim(ShimSetup setup, base::Fd agent, EventLoop loop)
      : setup_(std::move(setup)), agent_(std::move(agent)), loop_(std::move(loop)) {}

  Status open_signals();
  Status watch_launcher();
  void watch_agent();
  void on_agent(std::uint32_t events);
  void on(const control::ShimStart& message, std::vector<base::Fd> fds);
  void on(const control::ShimReap& message, std::vector<base::Fd> fds);
  void on(const control::ShimPrint& message, std::vector<base::Fd> fds);
  void on(const control::ShimBusy& message, std::vector<base::Fd> fds);
  void on(const control::ShimEnd& message, std::vector<base::Fd> fds);
  void on_signals();
  void look_at_children();
  void send(const control::ShimMessage& message, const std::vector<int>& fds = {});
  void end(Outcome outcome);
  void sweep(bool everything);

  ShimSetup setup_;
  control::Channel agent_;
  EventLoop loop_;
  base::Fd signal_fd_;
  base::Fd launcher_fd_;
  std::map<Incarnation, Child> children_;
  std::optional<Outcome> outcome_;
  std::optional<TimePoint> patience_;  ///< the launcher is gone, and the agent has until then
  int exit_code_ = 0;
};

}  // namespace regroup::launcher
