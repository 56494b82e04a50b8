/// Whether the program keeps the rule "registered state changes only after commit()".
#pragma once

#include <cstdint>
#include <vector>

#include <regroup/status.hpp>

#include "engine/registered_state.hpp"
#include "state/digest.hpp"

namespace regroup::engine {

/// Digests of the registered tensors as a step found them. Reads all of the state at each step,
/// so it is a tool for finding defects, not for production. Thread safety: the program's thread.
class StateCheck {
 public:
  /// REGROUP_CHECK_STATE says 1 or 0; unset: builds with assertions check, others do not.
  [[nodiscard]] static bool wanted();

  /// The step begins with the state as it is now.
  void take(const RegisteredState& state);
  /// Ok when it still is. Errors: FailedPrecondition naming the tensor and the step (0-based).
  [[nodiscard]] Status check(const RegisteredState& state, std::uint64_t step) const;

 private:
  std::vector<state::Digest> digests_;
};

}  // namespace regroup::engine
