#include "tests/sim/coverage.hpp"

#include <fmt/format.h>

#include <array>

namespace regroup::sim {
namespace {

using membership::EventKind;
using membership::State;

/// Cells that no schedule can reach, each with its reason.
struct Unreachable {
  State state;
  EventKind event;
  const char* why;
};
constexpr std::array<Unreachable, 8> kUnreachable = {{
    {State::Forming, EventKind::Started, "Started is the first event of a machine, once"},
    {State::Installing, EventKind::Started, "Started is the first event of a machine, once"},
    {State::Steady, EventKind::Started, "Started is the first event of a machine, once"},
    {State::Wedged, EventKind::Started, "Started is the first event of a machine, once"},
    {State::Draining, EventKind::Started, "Started is the first event of a machine, once"},
    {State::Replacing, EventKind::Started, "Started is the first event of a machine, once"},
    {State::Failed, EventKind::Started, "Started is the first event of a machine, once"},
    {State::Ended, EventKind::Started, "Started is the first event of a machine, once"},
}};

const char* reason(State state, EventKind event) {
  for (const Unreachable& cell : kUnreachable) {
    if (cell.state == state && cell.event == event) return cell.why;
  }
  return nullptr;
}

}  // namespace

bool print_cells(const membership::CellCounters& cells) {
  std::size_t reached = 0;
  bool explained = true;
  for (std::size_t s = 0; s < membership::kStates; ++s) {
    for (std::size_t e = 0; e < membership::kEventKinds; ++e) {
      if (cells[s][e] != 0) {
        ++reached;
        continue;
      }
      const auto state = static_cast<State>(s);
      const auto event = static_cast<EventKind>(e);
      const char* why = reason(state, event);
      if (!why) explained = false;
      fmt::print("never reached: ({}, {}): {}\n", name(state), name(event),
                 why ? why : "UNEXPLAINED");
    }
  }
  fmt::print("cells: {} of {} reached{}\n", reached, membership::kStates * membership::kEventKinds,
             explained ? ", the others cannot be" : "");
  return explained;
}

}  // namespace regroup::sim
