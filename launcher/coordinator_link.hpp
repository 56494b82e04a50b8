/// The coordinator as a child of the launcher: started, restarted whenever it ends, spoken to.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include <regroup/status.hpp>
#include <regroup/types.hpp>

#include "control/channel.hpp"
#include "launcher/coordinator_host.hpp"
#include "launcher/event_loop.hpp"
#include "launcher/process.hpp"
#include "launcher/rank_process.hpp"

namespace regroup::launcher {

/// Thread safety: the main thread. Callbacks come from start(), turn() and the loop.
class CoordinatorLink {
 public:
  /// This many ends in a row within kQuickEnd of their start mean that it will not run.
  static constexpr int kQuickEndsMax = 8;
  static constexpr std::chrono::seconds kQuickEnd{2};

  struct Callbacks {
    std::function<void()> up;
    std::function<void(pid_t pid, const std::string& why)> down;
    std::function<void(membership::CoordinatorMessage)> message;
    std::function<void(const std::string& why)> given_up;
  };

  CoordinatorLink(EventLoop& loop, CoordinatorOptions options, std::string job, Callbacks callbacks)
      : loop_(loop),
        options_(std::move(options)),
        job_(std::move(job)),
        callbacks_(std::move(callbacks)) {}
  CoordinatorLink(const CoordinatorLink&) = delete;
  CoordinatorLink& operator=(const CoordinatorLink&) = delete;
  /// Ends it at once and reaps it.
  ~CoordinatorLink();

  /// Starts it, or plans another attempt.
  void start(TimePoint now);
  /// Starts it again when that is due, or ends what is left of it.
  void turn(TimePoint now);
  /// When turn() wants to be called; none: not now.
  [[nodiscard]] std::optional<TimePoint> due() const { return due_ ? due_ : kill_due_; }
  /// Messages to a coordinator that is away are dropped: AgentHello tells all of it to the next
  /// one.
  void send(const membership::AgentMessage& message);
  /// A child was reaped. Returns false when it was another one.
  bool reaped(pid_t pid, const ExitStatus& status, TimePoint now);
  /// Its end is expected from now on.
  void stop();

  [[nodiscard]] pid_t pid() const { return process_ ? process_->pid : 0; }
  [[nodiscard]] std::uint32_t restarts() const { return restarts_; }
  void kill();
  void signal(int signal) {
    if (process_) signal_process(*process_, signal);
  }

 private:
  void pump(std::uint32_t events);
  void watch();
  void close();
  void fail(TimePoint now, pid_t pid, const std::string& why);

  EventLoop& loop_;
  CoordinatorOptions options_;
  std::string job_;
  Callbacks callbacks_;
  std::optional<Spawned> process_;
  std::optional<control::Channel> channel_;
  std::optional<TimePoint> due_;
  /// It closed its channel: how it ends says why, and it gets this long for it.
  std::optional<TimePoint> kill_due_;
  TimePoint started_at_;
  std::uint32_t restarts_ = 0;
  int quick_ends_ = 0;
  bool stopping_ = false;
};

}  // namespace regroup::launcher
