/// What an agent does to the arenas of an epoch that lost a member: wedge, report, decide, wake.
/// Order: wedge_all and wake_all on every arena of the domain, read_report, agreement, decide_all
/// and wake_all. Threads: any one thread of the agent at a time. Nothing here blocks.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "spi/shared_slots.hpp"

namespace regroup::spi {

/// Wedges the group word and the step word of every member, those of the dead too. Does not wake.
void wedge_all(const SharedSlots& arena);

struct ArenaReport {
  std::uint64_t completed = 0;  ///< highest completed operation over all members
  std::uint64_t prepared = 0;   ///< lowest prepared step over the members asked for
};
/// After wedge_all; after decide_all it still leads to the same decision. `step_members`: group
/// ranks whose step words count (an empty list: all); pass the world's arena for the step part, and
/// ignore it of any other.
[[nodiscard]] ArenaReport read_report(const SharedSlots& arena,
                                      std::span<const int> step_members = {});

/// After wedge_all, before the first decide_all of the epoch: why these words cannot be what
/// members wrote; none: they can. `first_step`: what the step words began with. Pass the world's
/// arena for the step part, and `members`, as above.
[[nodiscard]] std::optional<std::string> implausible(const SharedSlots& arena,
                                                     std::uint64_t first_step,
                                                     std::span<const int> members = {});

/// Stores the verdict into both words of each survivor. A word that is decided already keeps its
/// verdict.
void decide_all(const SharedSlots& arena, std::span<const int> survivors, std::uint64_t cut,
                std::uint64_t committed_step);

/// Makes every member look at its words again, sleeping or not.
void wake_all(const SharedSlots& arena);

}  // namespace regroup::spi
