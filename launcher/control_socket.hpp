/// How a person talks to a running job: an abstract socket `@regroup/<uid>/<job>` that the
/// launcher answers, one JSON request a connection. Nothing of it lies in the file system.
/// docs/schemas/status.md describes the answers.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include <regroup/status.hpp>
#include <regroup/types.hpp>

#include "metrics/beacon_page.hpp"

namespace regroup::launcher {

class EventLog;

inline constexpr int kStatusSchema = 1;

/// What `regroup status` shows of one process.
struct ProcessStatus {
  std::optional<Rank> rank;  ///< none: a spare
  Incarnation incarnation;
  std::int32_t pid = 0;
  std::string state;  ///< starting, joined, healed, gone, finished
  std::string host;
  metrics::Doing doing;
};

/// What `regroup status` shows of one job.
struct JobStatus {
  std::string job;
  std::string state;  ///< in the words of the membership machine: forming, steady, ...
  std::string log_dir;
  std::int32_t pid = 0;
  std::uint32_t ranks = 0;
  std::uint32_t spares_wanted = 0;
  Epoch epoch;
  std::uint64_t replaced = 0;
  std::int64_t uptime_ns = 0;
  std::uint64_t now_ns = 0;          ///< CLOCK_MONOTONIC: ages are counted from here
  std::int32_t coordinator_pid = 0;  ///< 0: being restarted
  std::uint32_t coordinator_restarts = 0;
  std::uint16_t coordinator_port = 0;  ///< on the loopback interface; 0: none
  std::map<std::string, std::uint64_t, std::less<>> refused;  ///< by cause, those that happened
  std::vector<ProcessStatus> processes;  ///< seats in order, then spares; no gone ones
};
[[nodiscard]] nlohmann::json to_json(const JobStatus& status);

/// What became of a planned change that a person asked for.
struct Wish {
  bool answered = false;
  bool accepted = false;  ///< by the coordinator; its answer is durable
  bool done = false;      ///< a view without those who were to leave, with those who were to come
  bool dropped = false;   ///< accepted, and given up later
  std::string text;       ///< the coordinator's words
};
[[nodiscard]] nlohmann::json to_json(const Wish& wish);

/// What the launcher lets a person do to its job. The launcher implements it.
/// Thread safety: called on the thread that calls ControlSocket::turn(). Never blocks.
class JobControl {
 public:
  virtual ~JobControl() = default;
  [[nodiscard]] virtual JobStatus status() = 0;
  /// Sends `signal` to the process that holds this seat now. Errors: FailedPrecondition (seat
  /// vacant).
  virtual Status signal(Rank rank, int signal) = 0;
  /// Takes the process out of the job as if it had been lost. Errors: FailedPrecondition (seat
  /// vacant).
  virtual Status evict(Rank rank, const std::string& why) = 0;
  /// Asks the coordinator that the processes in these seats leave them. Returns the wish's number.
  /// Errors: FailedPrecondition (a seat is vacant).
  virtual Result<std::uint64_t> drain(const std::vector<Rank>& ranks, bool now) = 0;
  /// Asks the coordinator that so many seats be occupied. Returns the wish's number.
  virtual std::uint64_t scale(std::uint32_t seats, bool now) = 0;
  /// None: there is no wish of this number (any more).
  [[nodiscard]] virtual std::optional<Wish> wish(std::uint64_t id) = 0;
  /// SIGKILLs the coordinator. Errors: FailedPrecondition (there is none at the moment).
  virtual Status kill_coordinator() = 0;
  /// What the process in this seat is doing now, from its beacon page; empty when the seat is
  /// vacant.
  [[nodiscard]] virtual std::optional<metrics::Doing> doing(Rank rank) = 0;
  /// flight_json() of the process in this seat, with `monotonic_ns` and `offset_ns` of now. Errors:
  /// FailedPrecondition (seat vacant).
  [[nodiscard]] virtual Result<nlohmann::json> flight(Rank rank) = 0;
  /// Another user's process connected and was turned away.
  virtual void refused_other_user() = 0;
};

/// When an injected action takes place; all that is set must hold. Empty: at once.
struct Trigger {
  std::optional<std::uint64_t> step;      ///< this step or a later one was begun
  std::optional<std::uint64_t> sequence;  ///< in this operation or a later one
  std::string phase;                      ///< in this phase of an operation
  [[nodiscard]] bool holds(const metrics::Doing& doing) const;
  [[nodiscard]] bool immediate() const { return !step && !sequence && phase.empty(); }
  [[nodiscard]] std::string text() const;
  /// "step=3", "seq=17", "phase=reduce", or several with commas. Errors: InvalidArgument.
  static Result<Trigger> parse(std::string_view text);
};

/// The launcher's end. Serves requests of the same user and of root only (peer credentials), each
/// at most kRequestBytesMax long and kRequestTime in all; more than kConnectionsMax at once wait
/// in the kernel's queue.
/// Thread safety: one thread. Never blocks.
class ControlSocket {
 public:
  static constexpr std::size_t kRequestBytesMax = 64 * 1024;
  static constexpr std::chrono::seconds kRequestTime{2};
  static constexpr std::size_t kConnectionsMax = 16;
  static constexpr std::size_t kArmedMax = 64;  ///< injected actions that wait for their instant

  /// Memory: `control` and `log` (may be null) outlive this object.
  /// Errors: FailedPrecondition (a job of this name runs already), InvalidArgument (name too long
  /// or with '/'), ResourceExhausted.
  static Result<ControlSocket> open(const std::string& job, JobControl& control, EventLog* log);
  ControlSocket(const ControlSocket&) = delete;
  ControlSocket& operator=(const ControlSocket&) = delete;
  ControlSocket(ControlSocket&&) noexcept;
  ControlSocket& operator=(ControlSocket&&) noexcept;
  ~ControlSocket();

  /// Readable when turn() has something to do, timeouts and armed actions included: put it into
  /// the launcher's epoll.
  [[nodiscard]] int fd() const;
  /// Serves what is ready.
  void turn();

 private:
  struct Impl;
  explicit ControlSocket(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// ---- the asking side ---------------------------------------------------------------------------

/// A job whose launcher listens on this machine.
struct RunningJob {
  std::uint32_t uid = 0;
  std::string job;
  bool operator==(const RunningJob&) const = default;
};
/// The jobs named in the text of /proc/net/unix, sorted.
[[nodiscard]] std::vector<RunningJob> parse_running_jobs(std::string_view proc_net_unix);
/// Those of this user; of everybody for root.
[[nodiscard]] std::vector<RunningJob> running_jobs();

/// The one running job of this user whose name begins so.
/// Errors: FailedPrecondition (none), InvalidArgument (several; the text names them).
[[nodiscard]] Result<RunningJob> only_job(const std::string& wanted);

/// A launcher answers within a turn of its loop; more means that it is stopped.
inline constexpr std::chrono::seconds kAnswerTime{5};

/// Asks one job and waits for the answer.
/// Errors: FailedPrecondition (no such job), Unauthenticated (the socket is not the job owner's),
/// DeadlineExceeded, InvalidArgument (the job refused the request: its text).
Result<nlohmann::json> ask(const RunningJob& job, const nlohmann::json& request, TimePoint until);

}  // namespace regroup::launcher
