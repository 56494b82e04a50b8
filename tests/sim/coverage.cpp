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
constexpr const char* kOnce = "Started is the first event of a machine, once";
constexpr const char* kNoEpoch = "before the first view there is no epoch to answer for";
constexpr std::array<Unreachable, 15> kUnreachable = {{
    {State::Forming, EventKind::Started, kOnce},
    {State::Installing, EventKind::Started, kOnce},
    {State::Steady, EventKind::Started, kOnce},
    {State::Wedged, EventKind::Started, kOnce},
    {State::Draining, EventKind::Started, kOnce},
    {State::Replacing, EventKind::Started, kOnce},
    {State::Failed, EventKind::Started, kOnce},
    {State::Ended, EventKind::Started, kOnce},
    {State::Forming, EventKind::Healed, "nobody enters an epoch before the first view"},
    {State::Forming, EventKind::Wedged, kNoEpoch},
    {State::Forming, EventKind::DecisionStored, kNoEpoch},
    {State::Forming, EventKind::Parked, kNoEpoch},
    {State::Forming, EventKind::Installed, kNoEpoch},
    {State::Forming, EventKind::Finished,
     "simulated programs end at their last step only; programs that never attach: golden "
     "transcripts never_attached*"},
    {State::Failed, EventKind::Finished,
     "a job fails after a round of wedge and decision: whoever could still end has ended by then"},
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
