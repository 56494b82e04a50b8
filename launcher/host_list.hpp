/// Which hosts a job may use: one reader for the forms in which launchers write them. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <regroup/status.hpp>

#include "membership/types.hpp"

namespace regroup::launcher {

inline constexpr std::size_t kHostsMax = 256;
inline constexpr std::uint32_t kSlotsMax = 4096;  ///< of one host
inline constexpr std::size_t kHostNameBytesMax = 255;

/// One host of the list.
struct HostEntry {
  std::string name;                    ///< as the starter takes it: a name or an address
  std::string user;                    ///< "user@name"; empty: not given
  std::optional<std::uint32_t> slots;  ///< ranks that fit; none: not given
  bool spare = false;                  ///< holds no seat at first
  std::optional<std::uint16_t> ssh_port;
  bool operator==(const HostEntry&) const = default;
  /// "user@name"
  [[nodiscard]] std::string target() const { return user.empty() ? name : user + "@" + name; }
};

/// "a:2,b:2", "gnode[10,20-25]:4", "[fd00::1]:2", "user@a". Errors: InvalidArgument that names the
/// word and shows the forms.
Result<std::vector<HostEntry>> parse_host_list(std::string_view text);
/// A file's lines, each of one of these forms, # begins a comment:
///   a slots=2      (Open MPI, DeepSpeed; also max_slots=)
///   a:2            (MPICH, Horovod's discovery)
///   a              with any of: spare, ssh_port=22, slots=2
/// Errors: InvalidArgument that names the line.
Result<std::vector<HostEntry>> parse_host_file(std::string_view text);
/// Slurm's SLURM_STEP_NODELIST ("gnode[10,20-25],b1") and SLURM_STEP_TASKS_PER_NODE ("4(x2),3").
/// Errors: InvalidArgument.
Result<std::vector<HostEntry>> parse_slurm(std::string_view nodes, std::string_view tasks);

/// A command typed in one piece: splits at blanks, quotes hold words together. Errors:
/// InvalidArgument (no word, open quote).
Result<std::vector<std::string>> split_words(std::string_view text);

/// Which seats each host holds at first: in the order of the list, up to its slots. A host without
/// a number of slots has `slots_default`. Errors: InvalidArgument (fewer slots than ranks).
Result<std::vector<membership::HostPlan>> plan_seats(const std::vector<HostEntry>& hosts, int ranks,
                                                     std::uint32_t slots_default);

}  // namespace regroup::launcher
