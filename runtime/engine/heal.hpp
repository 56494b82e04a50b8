/// Heal: the members of a new epoch find out who holds the state and bring it to those who do not.
///
/// A collective on the callers' threads: under `replay` every survivor stands in next() anyway, so
/// nobody changes the state while it is read. Who sends what is state::plan_heal's decision, the
/// same on every member.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include <regroup/status.hpp>

#include "engine/group.hpp"
#include "engine/registered_state.hpp"
#include "state/planner.hpp"

namespace regroup::engine {

/// Group ranks of the members with and without the state; equal on all of them.
struct HealRound {
  std::vector<Rank> donors;
  std::vector<Rank> newcomers;
};

/// What a heal that a loss interrupted had brought by then. It counts as long as the state to be
/// brought is the same, that is, the step to resume at.
struct HealBook {
  std::uint64_t resume = 0;
  std::optional<state::HealProgress> progress;
};

/// Thread safety: the program's thread.
class Healer {
 public:
  using FaultHook = std::function<void(const char* phase, std::uint64_t chunk)>;
  /// Memory: world, state and book outlive it. The hook is called before each chunk is given
  /// ("give") or taken ("take") and before the digests are compared ("verify").
  Healer(GroupImpl& world, const RegisteredState& state, HealBook& book, FaultHook hook);

  /// Collective over the world. Errors: those of an operation; FailedPrecondition when nobody
  /// holds the state; InvalidArgument when the members registered different state.
  Result<HealRound> exchange(bool holds_state);

  /// Collective over the world; afterwards every newcomer has all tensors, verified by digest, and
  /// its book says what came from whom (group ranks). Errors: those of an operation; Internal when
  /// digests differ again and again.
  Status run(const HealRound& round);

 private:
  Result<state::HealPlan> plan(const HealRound& round);
  Status transfer(const HealRound& round);
  Status give(const state::HealPlan& plan);
  Status take(const state::HealPlan& plan);
  Status move_chunk(bool give, Rank other, state::Chunk chunk);
  /// True when all newcomers have what the donors have.
  Result<bool> verify(const HealRound& round);
  Status collective(spi::OpKind kind, DType type, const void* in, void* out, std::size_t count);

  GroupImpl& world_;
  const RegisteredState& state_;
  HealBook& book_;
  FaultHook hook_;
  std::optional<state::Layout> layout_;
};

}  // namespace regroup::engine
