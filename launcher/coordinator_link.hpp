/// The coordinator as an agent sees it: on the launcher's host a child that is started, restarted
/// whenever it ends and spoken to; on another host only spoken to.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include <regroup/status.hpp>
#include <regroup/types.hpp>

#include "control/channel.hpp"
#include "launcher/coordinator_host.hpp"
#include "launcher/coordinator_wire.hpp"
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
  /// Over TCP: this many attempts in a row to reach a coordinator that runs; then it is killed and
  /// a new one started. From another host attempts never end.
  static constexpr int kAttemptsMax = 6;
  static constexpr std::chrono::milliseconds kAgainMax{250};

  struct Callbacks {
    std::function<void()> up;
    std::function<void(pid_t pid, const std::string& why)> down;  ///< it ended
    /// It runs, and the connection to it is gone.
    std::function<void(const std::string& why)> disconnected;
    std::function<void(membership::CoordinatorMessage)> message;
    std::function<void(const std::string& why)> given_up;
  };

  /// `tcp`: it is spoken to over TCP; none: over a socket pair. `refusals_fd`: where it counts.
  CoordinatorLink(EventLoop& loop, CoordinatorOptions options, std::string job,
                  std::optional<TcpControl> tcp, int refusals_fd, Callbacks callbacks)
      : loop_(loop),
        options_(std::move(options)),
        job_(std::move(job)),
        tcp_(std::move(tcp)),
        refusals_fd_(refusals_fd),
        callbacks_(std::move(callbacks)),
        timeouts_(membership::timeouts_for(options_.detect_budget)),
        detector_(timeouts_) {}
  CoordinatorLink(const CoordinatorLink&) = delete;
  CoordinatorLink& operator=(const CoordinatorLink&) = delete;
  /// Ends it at once and reaps it.
  ~CoordinatorLink();

  /// Starts it, or plans another attempt.
  void start(TimePoint now);
  /// Starts it again when that is due, or ends what is left of it.
  void turn(TimePoint now);
  /// When turn() wants to be called; none: not now.
  [[nodiscard]] std::optional<TimePoint> due() const {
    // At most one of the others at a time.
    return due_ ? due_ : handshake_until_ ? handshake_until_ : kill_due_ ? kill_due_ : beat_due_;
  }
  /// Since when there is no way to it; none: it is reached.
  [[nodiscard]] std::optional<TimePoint> away_since() const { return away_since_; }
  /// Why the last attempt to reach it failed.
  [[nodiscard]] const std::string& away_why() const { return away_why_; }
  /// Messages to a coordinator that is away are dropped: AgentHello tells all of it to the next
  /// one.
  void send(const membership::AgentMessage& message);
  /// A child was reaped. Returns false when it was another one.
  bool reaped(pid_t pid, const ExitStatus& status, TimePoint now);
  /// Its end is expected from now on.
  void stop();

  [[nodiscard]] pid_t pid() const { return process_ ? process_->pid : 0; }
  [[nodiscard]] std::uint32_t restarts() const { return restarts_; }
  /// Where it listens; 0: nowhere.
  [[nodiscard]] std::uint16_t port() const {
    return tcp_ ? tcp_->port.address.port() : std::uint16_t{0};
  }
  /// Of the job; over TCP only.
  [[nodiscard]] const secure::JobSecret& secret() const { return tcp_->secret; }
  [[nodiscard]] bool is_elsewhere() const { return tcp_ && !tcp_->port.fd; }
  void kill();
  void signal(int signal) {
    if (process_) signal_process(*process_, signal);
  }

 private:
  [[nodiscard]] SpawnRequest request(const base::Fd& theirs);
  void connect(TimePoint now);
  void disconnect(TimePoint now, const std::string& why);
  void pump();
  void broken(const Status& why);
  void watch();
  void close();
  void fail(TimePoint now, pid_t pid, const std::string& why);
  void beat(TimePoint now);

  EventLoop& loop_;
  CoordinatorOptions options_;
  std::string job_;
  std::optional<Spawned> process_;
  std::optional<TcpControl> tcp_;
  int refusals_fd_ = -1;
  Callbacks callbacks_;
  membership::Timeouts timeouts_;
  std::optional<control::Channel> lifeline_;  ///< over TCP: the pair whose closing ends it
  std::unique_ptr<CoordinatorWire> wire_;
  bool up_ = false;   ///< the wire is ready, and was told so
  int attempts_ = 0;  ///< to connect, in a row
  std::optional<TimePoint> handshake_until_;
  std::optional<TimePoint> away_since_;
  std::string away_why_;
  std::optional<TimePoint> beat_due_;  ///< to another host, while up
  membership::FailureDetector detector_;
  std::optional<TimePoint> due_;
  /// It closed its channel: how it ends says why, and it gets this long for it.
  std::optional<TimePoint> kill_due_;
  TimePoint started_at_;
  std::uint32_t restarts_ = 0;
  int quick_ends_ = 0;
  bool stopping_ = false;
};

}  // namespace regroup::launcher
