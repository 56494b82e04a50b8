/// Views, evidence and the words of the conversation between coordinator and agents.
///
/// Coordinator (Membership machine) and each host's agent (HostAgent machine) are pure: step(event,
/// now) -> effects. The messages here are exactly what crosses the control channel between them;
/// control/ encodes them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include <regroup/types.hpp>

namespace regroup::membership {

/// One host's agent, numbered by the coordinator's configuration; a host is an agent's id, never a
/// name.
using AgentId = StrongId<struct AgentIdTag, std::uint32_t>;
/// Number of one recovery round; grows when a further loss starts the recovery over.
using Round = StrongId<struct RoundTag, std::uint64_t>;

/// What a member says of itself so that members on other hosts reach it; only they understand it.
using MemberAddress = std::vector<std::byte>;
inline constexpr std::size_t kMemberAddressBytesMax = 4096;

/// Where the member of one seat runs.
struct SeatPlace {
  AgentId host;
  std::uint32_t life = 0;  ///< which life of the seat it is; 0: the first
  MemberAddress address;   ///< empty: it gave none
  bool operator==(const SeatPlace&) const = default;
};

/// The membership at one epoch: seats[r] is the incarnation in seat r, 0 when vacant.
struct View {
  Epoch epoch;
  std::vector<Incarnation> seats;
  std::uint64_t parent = 0;       ///< digest() of the view before
  std::uint64_t resume_step = 1;  ///< the step (1-based) at which its members start
  bool operator==(const View&) const = default;
};
/// Chain hash over epoch, seats, resume step and parent.
[[nodiscard]] std::uint64_t digest(const View& view);

enum class EvidenceKind : std::uint8_t {
  Beacon,         ///< robust futex: owner died
  Reaped,         ///< child reaped (exit status known)
  ChannelClosed,  ///< control channel closed
  Silence,        ///< heartbeat silence, confirmed
  Requested,      ///< evicted on request
  AgentLost,      ///< its whole host is gone
};
[[nodiscard]] const char* name(EvidenceKind kind);

struct Evidence {
  EvidenceKind kind = EvidenceKind::Beacon;
  std::string
      text;  ///< for people: "killed by SIGKILL; in all_reduce seq 17 of step 3, phase reduce"
  std::int32_t exit_code = -1;  ///< exit code, -1 unknown or by signal
  std::int32_t signal = 0;
  bool operator==(const Evidence&) const = default;
};

/// What an agent read from its members' wedged words (those of dead and evicted members too).
struct WedgeReport {
  Epoch epoch;
  struct GroupCut {
    std::uint32_t group = 0;      ///< group id within the domain; 0 is the world
    std::uint64_t completed = 0;  ///< highest completed sequence number
    bool operator==(const GroupCut&) const = default;
  };
  std::vector<GroupCut> groups;
  std::uint64_t prepared = 0;  ///< lowest prepared step over the members it reports
  bool operator==(const WedgeReport&) const = default;
};

enum class ProcessState : std::uint8_t {
  Starting,
  Joined,
  Healed,
  Gone,
  Finished,
  Released,  ///< left its seat by a planned change; it ends by itself, and its end means nothing
};
/// The process takes no part in the job any more.
[[nodiscard]] bool is_over(ProcessState state);
[[nodiscard]] bool contains(const std::vector<Member>& members, Incarnation incarnation);

struct ProcessInfo {
  Incarnation incarnation;
  std::optional<Rank> seat;  ///< none: a spare
  ProcessState state = ProcessState::Starting;
  Evidence evidence;      ///< when Gone
  MemberAddress address;  ///< while it may become a member or is one
  bool operator==(const ProcessInfo&) const = default;
};

// ---- agent -> coordinator
// -----------------------------------------------------------------------------------------

/// First message on a (re)connected channel: all that the agent knows, so that a restarted
/// coordinator goes on.
struct AgentHello {
  AgentId agent;
  View installed;                      ///< epoch 0: none
  std::vector<ProcessInfo> processes;  ///< all it ever started, gone ones too
  std::optional<WedgeReport> wedged;   ///< when the installed epoch is wedged here
  bool operator==(const AgentHello&) const = default;
};
struct ProcessJoined {
  Incarnation incarnation;
  MemberAddress address;
  bool operator==(const ProcessJoined&) const = default;
};
/// A newcomer holds the state now (or an original member entered its first step).
struct ProcessHealed {
  Incarnation incarnation;
  bool operator==(const ProcessHealed&) const = default;
};
struct ProcessLost {
  Incarnation incarnation;
  Evidence evidence;
  bool attached = true;
  bool operator==(const ProcessLost&) const = default;
};
/// Ended with exit code 0.
struct ProcessFinished {
  Incarnation incarnation;
  bool operator==(const ProcessFinished&) const = default;
};
struct Wedged {
  Round round;
  WedgeReport report;
  bool operator==(const Wedged&) const = default;
};
/// The decision of this round stands in the words of all survivors on this host, removed members
/// are killed.
struct DecisionStored {
  Epoch epoch;
  Round round;
  bool operator==(const DecisionStored&) const = default;
};
struct Installed {
  Epoch epoch;
  bool operator==(const Installed&) const = default;
};
/// The supervisor gives a seat or spare up (start failed, limit of replacements reached).
struct StartFailed {
  Incarnation incarnation;
  std::string why;
  bool operator==(const StartFailed&) const = default;
};
/// A person's wish: evict this process. It names the life, not the seat: the wish may wait for a
/// channel, and must not hit whoever has the seat by then.
struct EvictRequest {
  Incarnation incarnation;
  std::string why;
  bool operator==(const EvictRequest&) const = default;
};
/// Ctrl-C or the like: end the job in order.
struct StopRequest {
  std::string why;
  std::int32_t exit_code = 0;
  bool operator==(const StopRequest&) const = default;
};

/// A person's wish, which Answer answers: these processes leave their seats, and others take them.
/// They are named by their lives, as in EvictRequest.
struct DrainRequest {
  std::uint64_t id = 0;  ///< the agent's; comes back in the answer
  std::vector<Incarnation> incarnations;
  bool now = false;  ///< do not wait for the end of a step
  bool operator==(const DrainRequest&) const = default;
};
/// A person's wish, which Answer answers: so many seats are to be occupied.
struct ScaleRequest {
  std::uint64_t id = 0;
  std::uint32_t seats = 0;
  bool now = false;
  bool operator==(const ScaleRequest&) const = default;
};
/// Answer to ParkEpoch: every member here stands at the end of the same step and waits for the next
/// view.
struct Parked {
  Epoch epoch;
  bool operator==(const Parked&) const = default;
};

using AgentMessage = std::variant<AgentHello, ProcessJoined, ProcessHealed, ProcessLost,
                                  ProcessFinished, Wedged, DecisionStored, Installed, StartFailed,
                                  EvictRequest, StopRequest, DrainRequest, ScaleRequest, Parked>;

// ---- coordinator -> agent
// -----------------------------------------------------------------------------------------

/// Start a process; `seat` none: a spare. The incarnation was never used before.
struct StartProcess {
  Incarnation incarnation;
  std::optional<Rank> seat;
  std::uint32_t life = 0;  ///< of the seat, as in SeatPlace
  bool operator==(const StartProcess&) const = default;
};
/// Wedge every word of this epoch and report. `lost`: all members known to be lost so far.
struct WedgeEpoch {
  Epoch epoch;
  Round round;
  std::vector<Member> lost;
  bool operator==(const WedgeEpoch&) const = default;
};
/// Store these verdicts into the survivors' words; kill what is left of the removed.
struct StoreDecision {
  Epoch epoch;
  Round round;
  std::vector<WedgeReport::GroupCut> cuts;
  std::uint64_t committed_step = 0;
  std::vector<Member> lost;
  bool operator==(const StoreDecision&) const = default;
};
/// Make this view current: fresh shared memory, then tell its members.
struct InstallView {
  View view;
  std::vector<Member> lost;
  std::vector<Member> released;   ///< told that they are free to end; not killed
  std::vector<SeatPlace> places;  ///< of each seat; a vacant one's says nothing
  bool operator==(const InstallView&) const = default;
};
/// End everything, with this exit code and reason.
struct EndJob {
  std::int32_t exit_code = 0;
  std::string reason;
  bool operator==(const EndJob&) const = default;
};
/// One line for events.jsonl and for people: a decision and its reason.
struct Note {
  std::string kind;
  std::string text;
  bool operator==(const Note&) const = default;
};

/// A planned change of members: the ranks are to stop at the end of a step, the same for all, and
/// to wait there for the next view.
struct ParkEpoch {
  Epoch epoch;
  bool operator==(const ParkEpoch&) const = default;
};
/// To DrainRequest and ScaleRequest. Accepted means durable, not done.
struct Answer {
  std::uint64_t id = 0;
  bool accepted = false;
  std::string text;
  bool operator==(const Answer&) const = default;
};

using CoordinatorMessage = std::variant<StartProcess, WedgeEpoch, StoreDecision, InstallView,
                                        EndJob, Note, ParkEpoch, Answer>;

/// What one host is for.
struct HostPlan {
  std::uint32_t seats = 0;  ///< it holds so many at first
  bool used = true;         ///< processes may be started there
  bool operator==(const HostPlan&) const = default;
};

/// What the job asked for.
struct JobConfig {
  std::uint32_t ranks = 1;      ///< -n
  std::uint32_t ranks_min = 1;  ///< --min
  std::uint32_t spares = 0;     ///< --spares
  OnLoss on_loss = OnLoss::Replay;
  std::uint32_t replacements_max = 10;  ///< per seat and hour, losses without progress only
  bool restart_unattached = false;      ///< --restart: replace programs that never attach
  std::vector<HostPlan> hosts;          ///< by agent; empty: all alike
  /// Whether processes may be started there.
  [[nodiscard]] bool may_run(AgentId agent) const {
    return agent.value() >= hosts.size() || hosts[agent.value()].used;
  }
  bool operator==(const JobConfig&) const = default;
};

/// One loss of a seat that no committed step has wiped out.
struct Loss {
  Rank rank{-1};  ///< -1: of a spare
  Incarnation incarnation;
  std::uint64_t step = 0;  ///< that was being computed
  TimePoint at;
  bool operator==(const Loss&) const = default;
};

/// A change of one seat that a person asked for; the next view that can carries it out.
struct PlannedChange {
  Rank rank;
  Incarnation incarnation;  ///< who leaves the seat; 0: nobody, it is vacant and is to be filled
  bool vacate = false;      ///< the seat stays vacant
  bool now = false;         ///< do not wait for the end of a step
  bool operator==(const PlannedChange&) const = default;
};

/// What is decided of an epoch, once and for all: whoever decides next in this epoch says the same.
struct Decision {
  std::vector<WedgeReport::GroupCut> cuts;
  std::uint64_t committed_step = 0;
  /// Members that it goes on without though their hosts have not confirmed their end. They never
  /// come back.
  std::vector<Incarnation> without;
  bool operator==(const Decision&) const = default;
};

/// The coordinator's durable state.
struct DurableState {
  JobConfig config;
  View view;  ///< last installed or about to be
  Incarnation next_incarnation{1};
  std::uint64_t term = 0;  ///< how often a coordinator took this state over; makes rounds unique
  bool state_exists =
      false;  ///< somebody held state worth healing from: the job never begins again in silence
  std::optional<EndJob> ended;    ///< the job's end is decided
  std::vector<Loss> losses;       ///< in their order: what poisons a step and bounds replacements
  Epoch progress_seen;            ///< the epoch whose progress has already wiped `losses`
  Incarnation newcomers_from{1};  ///< processes from here on were started after the view was made
  std::vector<PlannedChange> planned;  ///< asked for and not carried out yet
  std::vector<Member> released;        ///< left by a planned change, and not known to have ended
  std::optional<Decision> decision;    ///< of the epoch of `view`
  bool operator==(const DurableState&) const = default;
};

}  // namespace regroup::membership
