/// The process around the membership machine: reads the agent's messages, steps the machine,
/// performs its effects in order. All that must survive it stands in its state file before anybody
/// else hears of it, so it may be killed at any instant and started again.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <regroup/status.hpp>
#include <regroup/types.hpp>

#include "base/fd.hpp"
#include "membership/failure_detector.hpp"
#include "membership/types.hpp"

namespace regroup::launcher {

/// The agent of the launcher's own host.
inline constexpr membership::AgentId kLocalAgent{0};

/// What `regroup coordinator` is told.
struct CoordinatorOptions {
  int fd = -1;    ///< its end of a control channel to the agent; its closing ends the coordinator
  int beat = -1;  ///< page in which it shows that it moves; -1: none
  /// Over TCP the channel above carries nothing, and agents come to this port.
  struct Tcp {
    int listening = -1;  ///< the socket that the launcher made
    int secret = -1;     ///< of the job (secure/job_secret.hpp)
    int refusals = -1;   ///< where to count (secure/refusals.hpp)
    std::string job;
  };
  std::optional<Tcp> tcp{};
  std::uint32_t agents = 1;      ///< ids 0..agents-1; more than one come over TCP
  std::filesystem::path state;   ///< made if missing
  membership::JobConfig config;  ///< used when the state file is new
  std::chrono::milliseconds detect_budget{
      std::chrono::duration_cast<std::chrono::milliseconds>(membership::kDetectBudget)};
};
/// The command line that makes `options` again: "coordinator", "--fd", "3", ...
[[nodiscard]] std::vector<std::string> coordinator_arguments(const CoordinatorOptions& options);
/// Reads the words after "coordinator". Errors: InvalidArgument with the usage.
Result<CoordinatorOptions> parse_coordinator(const std::vector<std::string>& arguments);

/// Hosts one membership machine over one channel, or over those of the agents that come to its
/// port.
/// Thread safety: one thread.
class CoordinatorHost {
 public:
  /// Where the tests cut the power: called around each durable write with the number of the record.
  struct Probe {
    std::function<void(std::uint64_t record)> before_persist{};
    std::function<void(std::uint64_t record)> after_persist{};
  };

  /// Errors: those of Wal::open() and of decoding its record.
  static Result<CoordinatorHost> open(CoordinatorOptions options);
  static Result<CoordinatorHost> open(CoordinatorOptions options, Probe probe);
  CoordinatorHost(const CoordinatorHost&) = delete;
  CoordinatorHost& operator=(const CoordinatorHost&) = delete;
  CoordinatorHost(CoordinatorHost&&) noexcept;
  CoordinatorHost& operator=(CoordinatorHost&&) noexcept;
  ~CoordinatorHost();

  /// Blocks until the inherited channel is closed by the agent: Ok. Errors: the state cannot be
  /// written, or the agent sends over that channel what this version does not understand. Whoever
  /// does so over TCP loses its connection, and it is counted.
  Status run();

 private:
  struct Impl;
  explicit CoordinatorHost(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace regroup::launcher
