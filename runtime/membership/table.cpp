#include "membership/table.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace regroup::membership {

namespace {

using Handler = void (Membership::*)(const Event&);
struct Entry {
  Cell cell;
  Handler handle = nullptr;
  // Not told by the pointers: under a sanitizer the compiler cannot compare those.
  bool written = false;
};
/// Columns: Gathering, Forming, Installing, Steady, Wedged, Draining, Replacing, Failed, Ended.
using Row = std::array<Entry, kStates>;

constexpr Entry on(Handler handle, const char* what) { return {{what, true}, handle, true}; }

}  // namespace

/// Gives the table its access to the machine's cells.
struct Table {
  static constexpr Entry kOver = on(&Membership::ignore, "ignored: the job is over");
  static constexpr Entry kNoEpoch = on(&Membership::ignore, "dropped: there is no epoch yet");
  static constexpr Entry kNever = {
      {"Started is delivered once, first", false}, &Membership::impossible, true};

  static constexpr Row kStarted = {{
      on(&Membership::start, "takes over the durable state with a new term, waits for all agents"),
      kNever,
      kNever,
      kNever,
      kNever,
      kNever,
      kNever,
      kNever,
      kNever,
  }};
  static constexpr Row kConnected = {{
      on(&Membership::connect, "its AgentHello follows"),
      on(&Membership::connect, "its AgentHello follows"),
      on(&Membership::connect, "its AgentHello follows"),
      on(&Membership::connect, "its AgentHello follows"),
      on(&Membership::connect, "its AgentHello follows"),
      on(&Membership::connect, "its AgentHello follows"),
      on(&Membership::connect, "its AgentHello follows"),
      on(&Membership::connect, "its AgentHello is answered with EndJob"),
      on(&Membership::connect, "its AgentHello is answered with EndJob"),
  }};
  static constexpr Row kDisconnected = {{
      on(&Membership::disconnect, "waits for it again; counts as lost after agent_lost"),
      on(&Membership::disconnect, "counts as lost after agent_lost"),
      on(&Membership::disconnect, "still awaited; counts as lost after agent_lost"),
      on(&Membership::disconnect, "members run on; counts as lost after agent_lost"),
      on(&Membership::disconnect, "its report is still awaited; counts as lost after agent_lost"),
      on(&Membership::disconnect, "its answer is still awaited; counts as lost after agent_lost"),
      on(&Membership::disconnect, "counts as lost after agent_lost"),
      kOver,
      kOver,
  }};
  static constexpr Row kTimer = {{
      on(&Membership::tick, "an agent that stayed away is given up, if another one is here"),
      on(&Membership::tick, "an agent that stayed away is lost with its processes"),
      on(&Membership::tick, "repeats InstallView; an agent that stayed away is lost: wedge(e)"),
      on(&Membership::tick, "an agent that stayed away is lost with its members: wedge(e)"),
      on(&Membership::tick, "repeats WedgeEpoch; an agent that stayed away is lost: next round"),
      on(&Membership::tick, "repeats StoreDecision; an agent that stayed away is lost: next round"),
      on(&Membership::tick, "a wait for exits or exit codes ends; a lost agent: next round"),
      kOver,
      kOver,
  }};
  static constexpr Row kHello = {{
      on(&Membership::hello,
         "learns all it knows; after the last one goes on where the job stands"),
      on(&Membership::hello, "learns; repeats StartProcess for what it never got"),
      on(&Membership::hello, "learns; repeats InstallView"),
      on(&Membership::hello,
         "learns; a loss or a wedge it reports: wedge(e); else a late InstallView"),
      on(&Membership::hello,
         "learns; an undecided round takes a lost agent back; WedgeEpoch again"),
      on(&Membership::hello, "learns; repeats StoreDecision"),
      on(&Membership::hello, "learns; repeats StoreDecision and StartProcess"),
      on(&Membership::repeat_end, "EndJob again"),
      on(&Membership::repeat_end, "EndJob again"),
  }};
  static constexpr Row kJoined = {{
      on(&Membership::joined, "learns"),
      on(&Membership::joined, "the last seat to join: install(1)"),
      on(&Membership::joined, "a spare is ready"),
      on(&Membership::joined, "a spare is ready"),
      on(&Membership::joined, "learns; used when seats are filled"),
      on(&Membership::joined, "learns; used when seats are filled"),
      on(&Membership::joined, "a newcomer or a spare fills its seat; all filled: install(e+1)"),
      kOver,
      kOver,
  }};
  static constexpr Row kHealed = {{
      on(&Membership::healed, "learns who holds state"),
      on(&Membership::healed, "learns who holds state"),
      on(&Membership::healed, "learns who holds state"),
      on(&Membership::healed, "learns who holds state; the first time ever it is made durable"),
      on(&Membership::healed, "learns who holds state"),
      on(&Membership::healed, "learns who holds state"),
      on(&Membership::healed, "learns who holds state"),
      kOver,
      kOver,
  }};
  static constexpr Row kLost = {{
      on(&Membership::lost, "learns; acted upon when all agents are known"),
      on(&Membership::lost, "seat: spare, cold restart or end by policy; spare: refilled"),
      on(&Membership::lost, "member: wedge(e) as far as it exists; spare: refilled"),
      on(&Membership::lost, "member: wedge(e); spare: refilled"),
      on(&Membership::lost, "member: next round with the larger lost set; spare: refilled"),
      on(&Membership::lost, "member: next round with the larger lost set; spare: refilled"),
      on(&Membership::lost, "member: next round; newcomer: its seat is filled anew"),
      kOver,
      kOver,
  }};
  static constexpr Row kFinished = {{
      on(&Membership::finished, "learns"),
      on(&Membership::finished, "seat is over; all over: Ended"),
      on(&Membership::finished, "seat is over; all over: Ended"),
      on(&Membership::finished, "seat is over; all over: Ended"),
      on(&Membership::finished, "no survivor any more; all over: Ended"),
      on(&Membership::finished, "no survivor any more; all over: Ended"),
      on(&Membership::finished, "no survivor any more, its seat stays vacant; all over: Ended"),
      kOver,
      kOver,
  }};
  static constexpr Row kWedged = {{
      on(&Membership::wedged, "remembers that the epoch is wedged there"),
      kNoEpoch,
      on(&Membership::wedged, "of this epoch and nobody lost: wedge(e); older ones are dropped"),
      on(&Membership::wedged, "of this epoch and nobody lost: wedge(e); older ones are dropped"),
      on(&Membership::wedged, "of this round: the last report brings the decision; others dropped"),
      on(&Membership::wedged, "dropped: the decision is out"),
      on(&Membership::wedged, "dropped: the decision stands"),
      kOver,
      kOver,
  }};
  static constexpr Row kStored = {{
      on(&Membership::decision_stored, "dropped: answers an earlier coordinator"),
      kNoEpoch,
      on(&Membership::decision_stored, "dropped: that epoch is left behind"),
      on(&Membership::decision_stored, "dropped: that epoch is left behind"),
      on(&Membership::decision_stored, "dropped: of an earlier round"),
      on(&Membership::decision_stored, "of this round: the last one fences the lost; Replacing"),
      on(&Membership::decision_stored, "dropped: repeated"),
      kOver,
      kOver,
  }};
  static constexpr Row kInstalled = {{
      on(&Membership::installed, "learns"),
      kNoEpoch,
      on(&Membership::installed, "of this view: the last one makes it Steady"),
      on(&Membership::installed, "learns: an agent without members caught up"),
      on(&Membership::installed, "learns; the round goes on"),
      on(&Membership::installed, "learns; the round goes on"),
      on(&Membership::installed, "learns"),
      kOver,
      kOver,
  }};
  static constexpr Row kStartFailed = {{
      on(&Membership::start_failed, "learns; acted upon when all agents are known"),
      on(&Membership::start_failed,
         "seat: a spare, vacant or 75 by policy; spare: no more of them"),
      on(&Membership::start_failed, "spare: no more of them"),
      on(&Membership::start_failed, "spare: no more of them"),
      on(&Membership::start_failed, "learns; used when seats are filled"),
      on(&Membership::start_failed, "learns; used when seats are filled"),
      on(&Membership::start_failed,
         "seat: a spare, vacant or 75 by policy; spare: no more of them"),
      kOver,
      kOver,
  }};
  static constexpr Row kEvict = {{
      on(&Membership::evict, "learns; acted upon when all agents are known"),
      on(&Membership::evict, "the process counts as lost"),
      on(&Membership::evict, "a member counts as lost: wedge(e)"),
      on(&Membership::evict, "a member counts as lost: wedge(e)"),
      on(&Membership::evict, "a member counts as lost: next round"),
      on(&Membership::evict, "a member counts as lost: next round"),
      on(&Membership::evict, "member: next round; newcomer: its seat is filled anew"),
      kOver,
      kOver,
  }};
  static constexpr Row kStop = {{
      on(&Membership::stop, "EndJob to all: Ended"),
      on(&Membership::stop, "EndJob to all: Ended"),
      on(&Membership::stop, "EndJob to all: Ended"),
      on(&Membership::stop, "EndJob to all: Ended"),
      on(&Membership::stop, "EndJob to all: Ended"),
      on(&Membership::stop, "EndJob to all: Ended"),
      on(&Membership::stop, "EndJob to all: Ended"),
      kOver,
      kOver,
  }};

  static constexpr Row kDrain = {{
      on(&Membership::refuse_forming, "refused: not all hosts are here yet"),
      on(&Membership::refuse_forming, "refused: the job has not formed yet"),
      on(&Membership::drain, "planned, or refused with a reason; waits for Steady"),
      on(&Membership::drain,
         "planned, or refused; newcomers ready: ParkEpoch, or wedge(e) at once"),
      on(&Membership::drain, "planned, or refused; the view under way may carry it out"),
      on(&Membership::drain, "planned, or refused; the view under way may carry it out"),
      on(&Membership::drain, "planned, or refused; the view under way may carry it out"),
      on(&Membership::refuse_over, "refused: the job is over"),
      on(&Membership::refuse_over, "refused: the job is over"),
  }};
  static constexpr Row kScale = {{
      on(&Membership::refuse_forming, "refused: not all hosts are here yet"),
      on(&Membership::refuse_forming, "refused: the job has not formed yet"),
      on(&Membership::scale, "planned, or refused with a reason; waits for Steady"),
      on(&Membership::scale,
         "planned, or refused; newcomers ready: ParkEpoch, or wedge(e) at once"),
      on(&Membership::scale, "planned, or refused; the view under way may carry it out"),
      on(&Membership::scale, "planned, or refused; the view under way may carry it out"),
      on(&Membership::scale, "planned, or refused; the view under way may carry it out"),
      on(&Membership::refuse_over, "refused: the job is over"),
      on(&Membership::refuse_over, "refused: the job is over"),
  }};
  static constexpr Row kParked = {{
      on(&Membership::parked, "remembers that the members of the epoch wait there"),
      kNoEpoch,
      on(&Membership::parked, "of this epoch: remembered; older ones are dropped"),
      on(&Membership::parked, "all members stand at the end of one step: wedge(e), nobody is lost"),
      on(&Membership::parked, "dropped: the epoch is over"),
      on(&Membership::parked, "dropped: the epoch is over"),
      on(&Membership::parked, "dropped: the epoch is over"),
      kOver,
      kOver,
  }};

  /// One row per EventKind, in its order.
  static constexpr std::array<Row, kEventKinds> kRows = {
      kStarted,     kConnected, kDisconnected, kTimer,  kHello,  kJoined,
      kHealed,      kLost,      kFinished,     kWedged, kStored, kInstalled,
      kStartFailed, kEvict,     kStop,         kDrain,  kScale,  kParked};

  static constexpr bool is_complete() {
    return std::all_of(kRows.begin(), kRows.end(), [](const Row& row) {
      return std::all_of(row.begin(), row.end(), [](const Entry& entry) { return entry.written; });
    });
  }

  static const Entry& at(State state, EventKind event) {
    return kRows[static_cast<std::size_t>(event)][static_cast<std::size_t>(state)];
  }
  static void dispatch(Membership& machine, EventKind kind, const Event& event) {
    (machine.*at(machine.state_, kind).handle)(event);
  }
};
static_assert(Table::is_complete(), "a (state, event) cell is missing");

const Cell& cell(State state, EventKind event) { return Table::at(state, event).cell; }

std::string table_markdown() {
  std::string text = "| event |";
  std::string rule = "|---|";
  for (std::size_t state = 0; state < kStates; ++state) {
    text += fmt::format(" {} |", name(static_cast<State>(state)));
    rule += "---|";
  }
  text += "\n" + rule + "\n";
  for (std::size_t event = 0; event < kEventKinds; ++event) {
    const auto kind = static_cast<EventKind>(event);
    text += fmt::format("| {} |", name(kind));
    for (std::size_t state = 0; state < kStates; ++state) {
      const Cell& entry = cell(static_cast<State>(state), kind);
      text += fmt::format(" {}{} |", entry.possible ? "" : "impossible: ", entry.what);
    }
    text += "\n";
  }
  return text;
}

void Membership::dispatch(EventKind kind, const Event& event) {
  Table::dispatch(*this, kind, event);
}

}  // namespace regroup::membership
