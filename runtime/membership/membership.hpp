/// The coordinator's machine: who is a member of which epoch, and how a loss leads to the next
/// epoch.
///
///   evidence -> wedge(e) -> reports of all agents -> decision (cut, committed step) -> stored by
///   all -> fence
///            -> replace | shrink | end -> install(e+1)
///
/// Pure: step(event, now) -> effects. No clock, thread, socket, file or random source inside. One
/// (state, event) cell = one entry of the table in table.hpp, which is also what dispatches.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <unordered_set>
#include <variant>
#include <vector>

#include "membership/failure_detector.hpp"
#include "membership/policy.hpp"
#include "membership/types.hpp"

namespace regroup::membership {

// ---- events
// -----------------------------------------------------------------------------------------------

/// First event of a machine, exactly once. `durable` none: a fresh job.
struct Started {
  std::optional<DurableState> durable;  ///< what the last Persist of an earlier coordinator left
  JobConfig config;                     ///< used when durable is none
  std::vector<AgentId> agents;          ///< all hosts of the job
};
struct AgentConnected {
  AgentId agent;
};
struct AgentDisconnected {
  AgentId agent;
  nanoseconds silent_for{0};  ///< before that
};
/// The instant asked for by the last SetTimer has come (or any other instant: an early one does no
/// harm).
struct Timer {};
/// One message, tagged with its sender. The first message on each connection is AgentHello.
struct FromAgent {
  AgentId agent;
  AgentMessage message;
};

using Event = std::variant<Started, AgentConnected, AgentDisconnected, Timer, FromAgent>;

// ---- effects
// -----------------------------------------------------------------------------------------------

struct SendTo {
  std::optional<AgentId> agent;  ///< none: every agent that has a channel
  CoordinatorMessage message;
  bool operator==(const SendTo&) const = default;
};
/// Must be durable before any later effect of the same list is performed.
struct Persist {
  DurableState state;
  bool operator==(const Persist&) const = default;
};
/// Deliver Timer at this instant; replaces the instant asked for before.
struct SetTimer {
  TimePoint at;
  bool operator==(const SetTimer&) const = default;
};

using Effect = std::variant<SendTo, Persist, SetTimer>;
using Effects = std::vector<Effect>;

// ---- states
// -----------------------------------------------------------------------------------------------

enum class State : std::uint8_t {
  Gathering,   ///< started or restarted: waits until every agent has said what it knows
  Forming,     ///< seats are started, the first view waits for all of them to join
  Installing,  ///< the view is durable and on its way; waits until every agent has installed it
  Steady,      ///< members run; nothing to do
  Wedged,      ///< a loss: the epoch completes nothing more; waits for the reports of all agents
  Draining,    ///< the decision is out; waits until it stands in all survivors' words and the lost
               ///< are fenced
  Replacing,   ///< decided and fenced; waits for newcomers to join
  Failed,      ///< ended by a loss or fault; names the first cause
  Ended,       ///< ended in order
};
inline constexpr std::size_t kStates = 9;
[[nodiscard]] const char* name(State state);

enum class EventKind : std::uint8_t {
  Started,
  AgentConnected,
  AgentDisconnected,
  Timer,
  Hello,
  Joined,
  Healed,
  Lost,
  Finished,
  Wedged,
  DecisionStored,
  Installed,
  StartFailed,
  Evict,
  Stop,
  Drain,
  Scale,
  Parked,
};
inline constexpr std::size_t kEventKinds = 18;
[[nodiscard]] const char* name(EventKind kind);
[[nodiscard]] EventKind kind_of(const Event& event);

/// How often each (state, event) cell was reached: reached[state][event].
using CellCounters = std::array<std::array<std::uint64_t, kEventKinds>, kStates>;

/// The coordinator's membership machine.
/// Thread safety: one thread. Never blocks. Memory: one entry per process ever started and per
/// agent.
class Membership {
 public:
  explicit Membership(const Timeouts& timeouts = timeouts_for(kDetectBudget));

  /// Handles one event. The effects are to be performed in order.
  [[nodiscard]] Effects step(const Event& event, TimePoint now);

  [[nodiscard]] State state() const { return state_; }
  /// The view last made (installed, or on its way in Installing). Epoch 0: none yet.
  [[nodiscard]] const View& view() const { return durable_.view; }
  /// Whether the view's epoch is decided, and without this member: it never comes back.
  [[nodiscard]] bool was_left_behind(Incarnation incarnation) const;
  /// State, epoch, who is missing and why, in one line for people.
  [[nodiscard]] std::string explain() const;
  /// Exit code and reason once Failed or Ended.
  [[nodiscard]] const std::optional<EndJob>& end() const { return durable_.ended; }
  [[nodiscard]] const CellCounters& cells_reached() const { return cells_; }

 private:
  friend struct Table;

  struct Process {
    AgentId agent;
    std::optional<Rank> seat;  ///< the seat it was started for or has taken; none: a spare
    ProcessState state = ProcessState::Starting;
    bool joined = false;       ///< attached at some time
    bool holds_state = false;  ///< somebody may heal from it
    bool counted = false;      ///< its loss stands in its seat's history
    bool gave_up = false;      ///< its supervisor will not start this seat again
    bool revoked = false;      ///< declared gone here; its agent has not confirmed it yet
    Evidence evidence;         ///< when Gone
    MemberAddress address;
  };
  struct Agent {
    bool connected = false;
    bool said_hello = false;  ///< on this connection
    bool lost = false;        ///< given up: all its processes count as gone
    std::optional<TimePoint> silent_since;
    Epoch installed;
    Epoch wedged;                       ///< it says that this epoch is wedged there, asked or not
    std::optional<WedgeReport> report;  ///< of the current round
    bool stored = false;                ///< the current decision
    Epoch parked;                       ///< all its members stand at the end of a step of it
  };

  // Cells of the table: they take knowledge in; react() draws the conclusions. table.cpp says which
  // cell is which.
  void start(const Event& event);
  void connect(const Event& event);
  void disconnect(const Event& event);
  void tick(const Event& event);
  void hello(const Event& event);
  void joined(const Event& event);
  void healed(const Event& event);
  void lost(const Event& event);
  void finished(const Event& event);
  void wedged(const Event& event);
  void decision_stored(const Event& event);
  void installed(const Event& event);
  void start_failed(const Event& event);
  void evict(const Event& event);
  void stop(const Event& event);
  void drain(const Event& event);
  void scale(const Event& event);
  void refuse_forming(const Event& event);
  void refuse_over(const Event& event);
  void parked(const Event& event);
  void repeat_end(const Event& event);
  void ignore(const Event& event);
  void impossible(const Event& event);

  // Knowledge (membership_knowledge.cpp).
  [[nodiscard]] Process* find(Incarnation incarnation);
  [[nodiscard]] const Process* find(Incarnation incarnation) const;
  void absorb(AgentId id, const AgentHello& hello);
  void absorb_process(AgentId id, const ProcessInfo& info, Epoch seen);
  [[nodiscard]] bool was_left_out(const ProcessInfo& info, Epoch seen) const;
  void revive(AgentId id, const AgentHello& hello);
  void mark_joined(Incarnation incarnation);
  void mark_healed(Incarnation incarnation);
  void mark_gone(Incarnation incarnation, const Evidence& evidence, bool confirmed);
  void mark_finished(Incarnation incarnation);
  void mark_silent_agents();
  void remember(const Loss& loss);
  void recall_losses();
  [[nodiscard]] bool was_counted(const Process& process, Incarnation incarnation) const;
  void set_seat(Incarnation incarnation, Rank rank);
  void seat_member(Incarnation incarnation);
  void order_holders(Rank rank);
  void index_view();
  [[nodiscard]] bool is_member(Incarnation incarnation) const;
  [[nodiscard]] static bool is_alive(const Process& process);
  [[nodiscard]] static bool ended_clean(const Process& process);
  [[nodiscard]] bool status_unknown(const Process& process) const;
  [[nodiscard]] std::vector<Member> lost_members() const;
  [[nodiscard]] std::vector<Incarnation> survivors() const;
  [[nodiscard]] std::vector<Member> with_revoked(std::vector<Member> members) const;
  [[nodiscard]] bool hosts_member(AgentId id) const;
  [[nodiscard]] bool is_awaited(AgentId id) const;
  [[nodiscard]] bool has_quorum(std::string& why) const;
  [[nodiscard]] bool anybody_joined() const;
  [[nodiscard]] bool any_seat_over() const;
  [[nodiscard]] bool all_agents_known() const;
  [[nodiscard]] std::optional<Incarnation> live_holder(Rank rank) const;
  [[nodiscard]] std::optional<Incarnation> last_of(Rank rank) const;
  [[nodiscard]] std::optional<Incarnation> free_spare(std::optional<AgentId> preferred) const;
  [[nodiscard]] std::uint32_t free_spares() const;
  [[nodiscard]] std::uint32_t seats_left_without(Rank rank) const;

  // Planned changes (membership_plan.cpp).
  void answer(const Event& event, bool accepted, std::string text);
  [[nodiscard]] std::string refuse_change() const;
  [[nodiscard]] std::string refuse_drain(Incarnation incarnation, std::uint32_t stay) const;
  [[nodiscard]] std::string refuse_scale(std::uint32_t seats) const;
  [[nodiscard]] std::vector<Rank> occupied() const;
  void plan_scale(std::uint32_t seats, bool now);
  [[nodiscard]] std::uint32_t newcomers_planned() const;
  [[nodiscard]] bool leaves(Incarnation incarnation) const;
  [[nodiscard]] bool plan_ready() const;
  [[nodiscard]] std::string plan_text() const;
  void follow_plan();
  void drop_plan();
  void vacate_planned();
  void fill_later(Rank rank);
  [[nodiscard]] bool all_parked() const;
  void carry_out_plan();
  bool carry_out(PlannedChange& change);
  [[nodiscard]] bool may_release(Incarnation incarnation) const;
  void release(Incarnation incarnation, Rank rank);
  void forget_released(Incarnation incarnation);
  [[nodiscard]] bool was_released(Incarnation incarnation) const;

  void dispatch(EventKind kind, const Event& event);

  // Conclusions (membership_recovery.cpp).
  void react();
  void react_once();
  void resume();
  void begin_round(const std::string& why);
  void check_reports();
  void decide();
  [[nodiscard]] Decision draw_decision() const;
  void note_progress();
  void leave_behind();
  void check_stored();
  void check_installed();
  void install();

  // Seats (membership_seats.cpp).
  void form();
  void fill_seats();
  void revoke(Incarnation incarnation, const std::string& why);
  bool fill_all();
  bool fill_seat(Rank rank, std::uint32_t& spares);
  bool fill_by_policy(Rank rank, Incarnation last, std::uint32_t& spares);
  bool vacate_finished(Rank rank);
  void give_seat(Incarnation spare, Rank rank);
  [[nodiscard]] SeatLoss loss_of(Rank rank, Incarnation last, bool spare_left);
  void refill_spares();
  void check_over();
  [[nodiscard]] std::int32_t final_code(std::string& reason) const;
  [[nodiscard]] bool lacks_holder() const;
  void end_without_holder();
  [[nodiscard]] bool somebody_goes_on() const;
  [[nodiscard]] bool hold();
  void end_job(std::int32_t exit_code, std::string reason);
  void start_process(std::optional<Rank> seat);
  bool start_newcomer(Rank rank, const std::string& why = {});
  [[nodiscard]] std::optional<AgentId> place(std::optional<Rank> seat) const;
  [[nodiscard]] AgentId first_host(Rank rank, const std::vector<AgentId>& here) const;
  [[nodiscard]] std::uint32_t life_of(Rank rank, Incarnation incarnation) const;
  [[nodiscard]] std::vector<SeatPlace> places() const;

  // Effects.
  void send(AgentId id, CoordinatorMessage message);
  void send_phase(AgentId id);
  void resend();
  void note(std::string kind, std::string text);
  void persist();
  void arm();
  void enter(State next, const std::string& why);

  Timeouts timeouts_;
  State state_ = State::Gathering;
  bool started_ = false;
  DurableState durable_;
  Incarnation next_incarnation_{1};  ///< durable_.next_incarnation runs ahead of it
  std::map<AgentId, Agent> agents_;
  std::map<Incarnation, Process> processes_;
  // Indexes over processes_ and the view, so that a large job costs no more per seat than a small
  // one.
  std::map<Rank, std::vector<Incarnation>>
      in_seat_;                              ///< all that ever had it, in the order of getting it
  std::unordered_set<Incarnation> members_;  ///< of the view
  std::set<AgentId> member_hosts_;           ///< agents of the members that are known
  std::set<Rank> vacant_;                    ///< seats that stay empty
  std::map<Rank, SeatHistory> history_;
  SeatHistory spare_history_;
  bool losses_changed_ = false;  ///< since the last Persist
  bool spares_given_up_ = false;
  bool parking_ = false;  ///< the members of this epoch were asked to stop at the end of a step
  std::optional<Incarnation> first_cause_;  ///< whose loss began the present recovery
  std::uint32_t rounds_ = 0;
  Round round_;
  std::vector<Member> round_lost_;  ///< what the round in progress knows to be lost
  std::vector<Member> removed_;     ///< who left with the view being installed
  std::optional<TimePoint> hold_until_;
  std::optional<TimePoint> resend_at_;
  std::optional<TimePoint> armed_;
  std::string waiting_for_;
  TimePoint now_{};
  Effects effects_;
  CellCounters cells_{};
};

}  // namespace regroup::membership
