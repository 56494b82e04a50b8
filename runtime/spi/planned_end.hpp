/// How the members of an epoch end it together, at the end of one step and without a loss.
///
/// The agent sets Header::end_wanted on its host. A member that sees it writes the number of the
/// step that it is about to prepare into its own last_step word, before it prepares the step.
/// Whoever returned from commit of a step has seen every member's step word at that number or
/// beyond, hence also every announcement that was made before: all members know of the same last
/// step, and nobody begins the one after it in this epoch. No member can have announced a later
/// one, since it would have had to leave this commit first.
#pragma once

#include "spi/shared_slots.hpp"

namespace regroup::spi {

/// Agent only; any time.
inline void want_end(const SharedSlots& arena) {
  arena.header().end_wanted.store(1, std::memory_order_release);
}

/// Owner only, before it prepares `step`, whose word's exchange publishes it.
inline void announce_last_step(const SharedSlots& arena, int me, std::uint64_t step) {
  if (arena.header().end_wanted.load(std::memory_order_relaxed) == 0) return;
  arena.member(me).last_step.store(step, std::memory_order_relaxed);
}

/// Once `step` is committed: whether it is the last one of this epoch.
[[nodiscard]] inline bool is_last_step(const SharedSlots& arena, std::uint64_t step) {
  if (step == 0) return false;
  for (int member = 0; member < arena.members(); ++member) {
    if (arena.member(member).last_step.load(std::memory_order_relaxed) == step) return true;
  }
  return false;
}

}  // namespace regroup::spi
