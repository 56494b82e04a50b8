/// One host's agent machine: it stands between the evidence of its processes, the words of the
/// installed epoch and the coordinator. Proof of a death wedges the epoch here at once, before the
/// coordinator is asked or even reachable.
///
/// Pure: step(event, now) -> effects. The shell forks, reads beacons, touches words, makes arenas.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "membership/failure_detector.hpp"
#include "membership/types.hpp"

namespace regroup::membership {

namespace host {

// ---- events
// -----------------------------------------------------------------------------------------------

/// The channel to the coordinator is up (first or again) or down.
struct ChannelUp {};
struct ChannelDown {};
/// A message of the coordinator, in the order of the channel.
struct FromCoordinator {
  CoordinatorMessage message;
};
/// Sign that a process is lost. Later signs of the same loss may follow (Beacon, then Reaped with
/// the exit status).
struct Lost {
  Incarnation incarnation;
  Evidence evidence;
};
/// The process attached: it is warm and may become a member.
struct Joined {
  Incarnation incarnation;
  MemberAddress address;
};
/// The process entered its epoch: it holds the state.
struct Healed {
  Incarnation incarnation;
};
/// Reaped with exit code 0. `detached`: it had left the job in order (or never attached).
struct Finished {
  Incarnation incarnation;
  bool detached = true;
};
/// The supervisor could not start it or gives it up.
struct StartFailed {
  Incarnation incarnation;
  std::string why;
};
/// A rank wedged its own word (deadline passed, mismatch): the epoch must end though nobody is
/// lost.
struct WedgeWanted {
  Epoch epoch;
  std::string why;
};
/// Answer to WedgeWords: every word is wedged, and this is what they said at that instant.
struct WordsWedged {
  WedgeReport report;
};
/// Answer to WriteDecision.
struct DecisionWritten {
  Epoch epoch;
};
/// Answer to MakeView: arenas made, local members told.
struct ViewMade {
  Epoch epoch;
};
/// The shell's reading of all heartbeat counters, right after the instant asked for by SetTimer.
struct BeatsRead {
  std::vector<std::pair<Incarnation, std::uint64_t>> beats;
};
/// A person's wish.
struct Evict {
  Incarnation incarnation;
  std::string why;
};
struct Stop {
  std::string why;
  std::int32_t exit_code = 0;
};
/// A person's wish; Answered answers it. `id` is never used twice.
struct Drain {
  std::uint64_t id = 0;
  std::vector<Incarnation> incarnations;
  bool now = false;
};
struct Scale {
  std::uint64_t id = 0;
  std::uint32_t seats = 0;
  bool now = false;
};
/// The rank waits at the end of a step for the next view, or has left the job in order.
struct Parked {
  Incarnation incarnation;
  Epoch epoch;
};

using Event = std::variant<ChannelUp, ChannelDown, FromCoordinator, Lost, Joined, Healed, Finished,
                           StartFailed, WedgeWanted, WordsWedged, DecisionWritten, ViewMade,
                           BeatsRead, Evict, Stop, Drain, Scale, Parked>;

// ---- effects
// -----------------------------------------------------------------------------------------------

/// fetch_or the wedge bit into every word of this epoch (dead and evicted members' too), wake
/// waiters, then WordsWedged.
struct WedgeWords {
  Epoch epoch;
  bool operator==(const WedgeWords&) const = default;
};
/// Store the verdicts into the words of all members that are not in `lost`, wake waiters, then
/// DecisionWritten.
struct WriteDecision {
  Epoch epoch;
  std::vector<WedgeReport::GroupCut> cuts;  ///< a group that is missing here: cut 0
  std::uint64_t committed_step = 0;
  std::vector<Member> lost;
  bool operator==(const WriteDecision&) const = default;
};
/// Make the arenas (step words start at resume_step - 1), give `assigned` their seats, tell the
/// local members, then ViewMade.
struct MakeView {
  View view;
  std::vector<Member> local;      ///< members on this host
  std::vector<Member> assigned;   ///< those of `local` that were not members of the epoch before
  std::string cause;              ///< why the epoch before ended
  std::vector<SeatPlace> places;  ///< of each seat of the view
  bool operator==(const MakeView&) const = default;
};
struct Spawn {
  StartProcess process;
  bool operator==(const Spawn&) const = default;
};
/// SIGKILL, if it still runs.
struct Kill {
  Incarnation incarnation;
  std::string why;
  bool superseded = false;  ///< a newcomer whose seat another one took first: nobody lost anything
  bool operator==(const Kill&) const = default;
};
/// The epoch is wedged on this host: tell every local member.
struct TellRanks {
  Epoch epoch;
  std::vector<Member> lost;
  std::string text;
  bool operator==(const TellRanks&) const = default;
};
struct SendCoordinator {
  AgentMessage message;
  bool operator==(const SendCoordinator&) const = default;
};
/// Stop every process of this host and end.
struct EndAll {
  EndJob end;
  bool operator==(const EndAll&) const = default;
};
/// For the event log and for people.
struct Log {
  Note note;
  bool operator==(const Log&) const = default;
};
/// Read all heartbeat counters at this instant and deliver BeatsRead; replaces the instant asked
/// for before.
struct SetTimer {
  TimePoint at;
  bool operator==(const SetTimer&) const = default;
};

/// Tell the ranks through the memory of this epoch that it is to end after a step.
struct AskPark {
  Epoch epoch;
  bool operator==(const AskPark&) const = default;
};
/// The process left its seat as planned: tell it. It runs on, and ends by itself.
struct Release {
  Member member;
  std::uint64_t resume_step = 1;  ///< of the view without it
  bool operator==(const Release&) const = default;
};
struct Answered {
  Answer answer;
  bool operator==(const Answered&) const = default;
};

using Effect = std::variant<WedgeWords, WriteDecision, MakeView, Spawn, Kill, TellRanks,
                            SendCoordinator, EndAll, Log, SetTimer, AskPark, Release, Answered>;
using Effects = std::vector<Effect>;

}  // namespace host

inline constexpr std::size_t kPendingRequestsMax =
    16;  ///< wishes of people kept while the coordinator is away

/// One host's agent machine.
/// Thread safety: one thread. Never blocks. Memory: one entry per process ever started here;
/// everything else is bounded.
class HostAgent {
 public:
  explicit HostAgent(AgentId id, const Timeouts& timeouts = timeouts_for(kDetectBudget));

  /// Handles one event. The effects are to be performed in order.
  [[nodiscard]] host::Effects step(const host::Event& event, TimePoint now);

  /// The view whose arenas exist. Epoch 0: none yet.
  [[nodiscard]] const View& installed() const { return installed_; }
  [[nodiscard]] const std::map<Incarnation, ProcessInfo>& processes() const { return processes_; }
  [[nodiscard]] bool is_wedged() const { return words_ != Words::Open; }
  [[nodiscard]] bool is_ending() const { return ending_.has_value(); }
  [[nodiscard]] std::string explain() const;

 private:
  /// How far the words of the installed epoch have come.
  enum class Words : std::uint8_t { Open, Wedging, Wedged, Deciding, Decided };

  void on(const host::ChannelUp& event);
  void on(const host::ChannelDown& event);
  void on(const host::FromCoordinator& event);
  void on(const host::Lost& event);
  void on(const host::Joined& event);
  void on(const host::Healed& event);
  void on(const host::Finished& event);
  void on(const host::StartFailed& event);
  void on(const host::WedgeWanted& event);
  void on(const host::WordsWedged& event);
  void on(const host::DecisionWritten& event);
  void on(const host::ViewMade& event);
  void on(const host::BeatsRead& event);
  void on(const host::Evict& event);
  void on(const host::Stop& event);
  void on(const host::Drain& event);
  void on(const host::Scale& event);
  void on(const host::Parked& event);

  void order(const StartProcess& message);
  void order(const WedgeEpoch& message);
  void order(const StoreDecision& message);
  void order(const InstallView& message);
  void order(const EndJob& message);
  void order(const Note& message);
  void order(const ParkEpoch& message);
  void order(const Answer& message);

  [[nodiscard]] bool is_member(const ProcessInfo& process) const;
  [[nodiscard]] AgentHello hello() const;
  void lose(ProcessInfo& process, const Evidence& evidence, bool superseded = false);
  void wedge();
  void tell_ranks();
  void report();
  void write_decision();
  void try_install();
  void fence(const View& view);
  void send(AgentMessage message);
  void request(AgentMessage message);
  void ask(std::uint64_t id, AgentMessage message);
  void report_parked();
  void release(ProcessInfo& process, std::uint64_t resume_step);
  void log(std::string kind, std::string text);

  AgentId id_;
  Timeouts timeouts_;
  FailureDetector detector_;
  bool channel_up_ = false;
  std::optional<EndJob> ending_;
  View installed_;
  Words words_ = Words::Open;
  WedgeReport report_;
  std::optional<WedgeEpoch> asked_;          ///< the newest wedge order
  std::optional<StoreDecision> decision_;    ///< the newest decision of the installed epoch
  std::optional<InstallView> making_;        ///< MakeView is under way
  std::optional<InstallView> pending_;       ///< waits for the decision or for making_
  std::optional<host::WedgeWanted> wanted_;  ///< a rank wedged itself in the view under way
  Epoch barrier_;  ///< epochs up to here are never made any more: they were wedged unseen
  std::string cause_;
  std::vector<Member> lost_;  ///< of the installed epoch, as far as known here
  std::map<Incarnation, ProcessInfo> processes_;
  std::deque<AgentMessage> requests_;
  std::map<std::uint64_t, AgentMessage> unanswered_;  ///< said again on every channel
  bool park_ordered_ = false;                         ///< in the installed epoch
  std::set<Incarnation> parked_;                      ///< likewise
  std::optional<StopRequest> stop_;  ///< said again on every channel until the job ends
  TimePoint now_{};
  host::Effects effects_;
};

}  // namespace regroup::membership
