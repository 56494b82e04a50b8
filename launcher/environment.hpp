/// The environment that a started process finds.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <regroup/types.hpp>

namespace regroup::launcher {

/// What its variables say.
struct ProcessIdentity {
  std::string job;
  std::string run_dir;
  std::optional<Rank> seat;  ///< none: a spare; it then learns its rank by attaching
  int ranks = 1;
  int local_rank = 0;  ///< of the seat on this host
  int local_size = 1;  ///< ranks on this host
  std::uint32_t node = 0;
  std::uint32_t nodes = 1;
  std::string host_mark;  ///< by which this host's guardian finds its processes
  Incarnation incarnation;
  std::uint32_t life = 0;  ///< lives that this seat had before
  int control_fd = -1;
  std::string master_address = "127.0.0.1";
  int master_port = 0;  ///< there, free, kept for the job
  int replacements_max = 0;
  int cores = 1;
};

/// That of this process, KEY=VALUE. Threads: while nobody changes it.
[[nodiscard]] std::vector<std::string> own_environment();

/// `outer` (KEY=VALUE) without what other launchers and an outer Regroup left there, plus the
/// variables of docs/environment.md. A restarted child that found an outer launcher's variables
/// would register itself there as the rank that just died. Pure.
[[nodiscard]] std::vector<std::string> make_environment(const std::vector<std::string>& outer,
                                                        const ProcessIdentity& identity);

}  // namespace regroup::launcher
