/// One started process of the job, and how it is started.
#pragma once

#include <algorithm>
#include <array>
#include <csignal>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <regroup/status.hpp>
#include <regroup/types.hpp>

#include "control/channel.hpp"
#include "launcher/console.hpp"
#include "launcher/host_orders.hpp"
#include "launcher/options.hpp"
#include "launcher/process.hpp"
#include "launcher/rank_beats.hpp"
#include "metrics/beacon_page.hpp"

namespace regroup::launcher {

/// How a process ended.
struct ExitStatus {
  std::int32_t exit_code = 0;
  std::int32_t signal = 0;  ///< 0: it ended by itself
  bool core = false;
  [[nodiscard]] bool good() const { return exit_code == 0 && signal == 0; }
  /// "killed by SIGKILL", "exited with code 3"
  [[nodiscard]] std::string text() const;
};
/// "SIGKILL"; "signal 77" for one without a name.
[[nodiscard]] std::string signal_name(int signal);
/// What a process that looks after ranks reads from its descriptor of signals.
inline constexpr std::array kHandledSignals = {SIGCHLD, SIGINT,  SIGTERM, SIGHUP,  SIGQUIT,
                                               SIGUSR1, SIGUSR2, SIGTSTP, SIGCONT, SIGWINCH};

/// What the shell knows of one process. Owned by the shell; touched by its thread only.
struct RankProcess {
  Incarnation incarnation;
  std::optional<Rank> seat;  ///< none: a spare
  int local_rank = 0;        ///< of the seat on this host
  bool born_spare = false;   ///< its logs began in a spare's folder
  std::uint32_t life = 0;    ///< lives that its seat had before
  Spawned spawned;
  std::optional<control::Channel> channel;  ///< none once closed
  std::shared_ptr<metrics::PageMapping> page;
  RankBeats beats;
  std::optional<OutputStream> out;  ///< none once at its end
  std::optional<OutputStream> err;
  bool said_hello = false;
  bool attached = false;  ///< said hello and holds its beacon
  bool detached = false;
  bool gone = false;  ///< reaped
  bool reported_lost = false;
  bool released = false;     ///< left its seat as planned
  bool flight_kept = false;  ///< its flight record is in the log directory
  std::optional<ExitStatus> exit;
  std::string fault;  ///< what it said itself before it ended
  Epoch entered;      ///< the newest epoch it entered
  TimePoint started_at;

  /// "rank 2", "spare 5"
  [[nodiscard]] std::string name() const;
  /// The console's prefix: "2", "s5".
  [[nodiscard]] std::string prefix() const;
};

/// What stays the same for all processes of a job.
struct JobSetup {
  std::string job;
  std::string program_path;
  unsigned long descriptors_soft =
      1024;  ///< the limit that programs get: the one the launcher was started with
  std::vector<std::string> outer_environment;
  std::string directory;  ///< of the program; empty: as here
  std::string master_address = "127.0.0.1";
  int master_port = 0;
  HostPlace place;
  /// Ranks of this host, as planned.
  [[nodiscard]] int ranks_here(const RunOptions& options) const {
    return place.nodes == 1 ? options.ranks : static_cast<int>(std::max(1U, place.seats));
  }
  /// Value of REGROUP_HOST_ID.
  [[nodiscard]] std::string host_mark() const;
};

/// What a process needs of its agent before it can be started: its page and its channel, whose
/// other end is `theirs`. Errors: those of Channel::pair() and PageMapping::create().
Result<std::unique_ptr<RankProcess>> prepare_process(Incarnation incarnation,
                                                     std::optional<Rank> seat, std::uint32_t life,
                                                     base::Fd& theirs);
/// The environment that it finds, made from `outer`.
[[nodiscard]] std::vector<std::string> process_environment(const RunOptions& options,
                                                           const JobSetup& setup,
                                                           const RankProcess& process,
                                                           const std::vector<std::string>& outer,
                                                           int control_fd);

/// Starts one process with all that belongs to it. Memory: only reads its arguments.
/// Threads: the main thread. Errors: those of spawn(), open_logs(), Channel::pair() and
/// PageMapping::create().
Result<std::unique_ptr<RankProcess>> start_process(const RunOptions& options, const JobSetup& setup,
                                                   Incarnation incarnation,
                                                   std::optional<Rank> seat, std::uint32_t life,
                                                   int local_rank, int stdin_fd);

}  // namespace regroup::launcher
