/// The (state, event) table of the membership machine. step() dispatches through it, so the printed
/// table is the code.
#pragma once

#include <string>

#include "membership/membership.hpp"

namespace regroup::membership {

/// One cell: what takes the event in, and what follows from it in that state.
struct Cell {
  const char* what = nullptr;  ///< one sentence for people
  bool possible = true;  ///< false: the shell never delivers this; doing so is a defect and aborts
};

/// What the machine does with this event in this state.
[[nodiscard]] const Cell& cell(State state, EventKind event);
/// The whole table as Markdown: one row an event, one column a state.
[[nodiscard]] std::string table_markdown();

}  // namespace regroup::membership
