/// Which (state, event) cells of the membership machine the schedules reached.
#pragma once

#include "membership/membership.hpp"

namespace regroup::sim {

/// Prints how many cells were reached and each one that was not, with the reason why it cannot be.
/// Returns false when a cell was neither reached nor is explained.
[[nodiscard]] bool print_cells(const membership::CellCounters& cells);

}  // namespace regroup::sim
