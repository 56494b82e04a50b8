#include "membership/text.hpp"

#include <fmt/format.h>

#include "membership/policy.hpp"

namespace regroup::membership {

namespace {

std::string seat_of(const std::optional<Rank>& seat) {
  return seat ? fmt::format("rank {}", seat->value()) : "spare";
}

std::string bracketed(const std::vector<Member>& members) {
  std::string text;
  for (const Member& m : members) {
    text += fmt::format("{}{}:{}", text.empty() ? "" : " ", m.rank.value(), m.incarnation.value());
  }
  return "[" + text + "]";
}

std::string cuts(const std::vector<WedgeReport::GroupCut>& groups) {
  std::string text;
  for (const auto& cut : groups) {
    text += fmt::format("{}{}:{}", text.empty() ? "" : " ", cut.group, cut.completed);
  }
  return "[" + text + "]";
}

const char* name(ProcessState state) {
  switch (state) {
    case ProcessState::Starting: return "starting";
    case ProcessState::Joined: return "joined";
    case ProcessState::Healed: return "healed";
    case ProcessState::Gone: return "gone";
    case ProcessState::Finished: return "finished";
    case ProcessState::Released: return "released";
  }
  return "?";
}

std::string round_text(Round round) {
  return fmt::format("{}.{}", round.value() >> 32, round.value() & 0xffffffffU);
}

long long millis(TimePoint at) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(at.time_since_epoch()).count();
}

struct Say {
  std::string operator()(const AgentHello& m) const {
    std::string text = fmt::format("AgentHello installed={}", m.installed.epoch.value());
    for (const ProcessInfo& p : m.processes) {
      text += fmt::format(" {}={}/{}", p.incarnation.value(), seat_of(p.seat), name(p.state));
    }
    return m.wedged ? text + " wedged: " + to_text(*m.wedged) : text;
  }
  std::string operator()(const ProcessJoined& m) const {
    return fmt::format("ProcessJoined {}", m.incarnation.value());
  }
  std::string operator()(const ProcessHealed& m) const {
    return fmt::format("ProcessHealed {}", m.incarnation.value());
  }
  std::string operator()(const ProcessLost& m) const {
    return fmt::format("ProcessLost {} {}{} ({})", m.incarnation.value(),
                       membership::name(m.evidence.kind), m.attached ? "" : " unattached",
                       describe(m.evidence));
  }
  std::string operator()(const ProcessFinished& m) const {
    return fmt::format("ProcessFinished {}", m.incarnation.value());
  }
  std::string operator()(const Wedged& m) const {
    return fmt::format("Wedged round={} {}", round_text(m.round), to_text(m.report));
  }
  std::string operator()(const DecisionStored& m) const {
    return fmt::format("DecisionStored epoch={} round={}", m.epoch.value(), round_text(m.round));
  }
  std::string operator()(const Installed& m) const {
    return fmt::format("Installed {}", m.epoch.value());
  }
  std::string operator()(const StartFailed& m) const {
    return fmt::format("StartFailed {} ({})", m.incarnation.value(), m.why);
  }
  std::string operator()(const EvictRequest& m) const {
    return fmt::format("EvictRequest {} ({})", m.incarnation.value(), m.why);
  }
  std::string operator()(const StopRequest& m) const {
    return fmt::format("StopRequest {} ({})", m.exit_code, m.why);
  }
  std::string operator()(const DrainRequest& m) const {
    std::string who;
    for (const Incarnation incarnation : m.incarnations) {
      who += fmt::format(" {}", incarnation.value());
    }
    return fmt::format("DrainRequest #{}{}{}", m.id, who, m.now ? " now" : "");
  }
  std::string operator()(const ScaleRequest& m) const {
    return fmt::format("ScaleRequest #{} to {}{}", m.id, m.seats, m.now ? " now" : "");
  }
  std::string operator()(const Parked& m) const {
    return fmt::format("Parked {}", m.epoch.value());
  }

  std::string operator()(const StartProcess& m) const {
    return fmt::format("StartProcess {} as {}", m.incarnation.value(), seat_of(m.seat));
  }
  std::string operator()(const WedgeEpoch& m) const {
    return fmt::format("WedgeEpoch {} round={} lost={}", m.epoch.value(), round_text(m.round),
                       bracketed(m.lost));
  }
  std::string operator()(const StoreDecision& m) const {
    return fmt::format("StoreDecision {} round={} cuts={} committed={} lost={}", m.epoch.value(),
                       round_text(m.round), cuts(m.cuts), m.committed_step, bracketed(m.lost));
  }
  std::string operator()(const InstallView& m) const {
    return fmt::format("InstallView {} lost={}{}", to_text(m.view), bracketed(m.lost),
                       m.released.empty() ? "" : " released=" + bracketed(m.released));
  }
  std::string operator()(const EndJob& m) const {
    return fmt::format("EndJob {} ({})", m.exit_code, m.reason);
  }
  std::string operator()(const Note& m) const { return fmt::format("Note {}: {}", m.kind, m.text); }
  std::string operator()(const ParkEpoch& m) const {
    return fmt::format("ParkEpoch {}", m.epoch.value());
  }
  std::string operator()(const Answer& m) const {
    return fmt::format("Answer #{} {} ({})", m.id, m.accepted ? "accepted" : "refused", m.text);
  }

  std::string operator()(const Started& e) const {
    return (e.durable ? "Started " + to_text(*e.durable) : std::string("Started fresh")) +
           fmt::format(" agents={}", e.agents.size());
  }
  std::string operator()(const AgentConnected& e) const {
    return fmt::format("AgentConnected {}", e.agent.value());
  }
  std::string operator()(const AgentDisconnected& e) const {
    return fmt::format("AgentDisconnected {}", e.agent.value());
  }
  std::string operator()(const Timer& /*event*/) const { return "Timer"; }
  std::string operator()(const FromAgent& e) const {
    return fmt::format("agent {}: {}", e.agent.value(), to_text(e.message));
  }

  std::string operator()(const SendTo& e) const {
    return fmt::format("-> {}: {}", e.agent ? fmt::format("agent {}", e.agent->value()) : "all",
                       to_text(e.message));
  }
  std::string operator()(const Persist& e) const { return "Persist " + to_text(e.state); }
  std::string operator()(const SetTimer& e) const {
    return fmt::format("SetTimer {} ms", millis(e.at));
  }

  std::string operator()(const host::ChannelUp& /*event*/) const { return "ChannelUp"; }
  std::string operator()(const host::ChannelDown& /*event*/) const { return "ChannelDown"; }
  std::string operator()(const host::FromCoordinator& e) const {
    return "coordinator: " + to_text(e.message);
  }
  std::string operator()(const host::Lost& e) const {
    return fmt::format("Lost {} {} ({})", e.incarnation.value(), membership::name(e.evidence.kind),
                       describe(e.evidence));
  }
  std::string operator()(const host::Joined& e) const {
    return fmt::format("Joined {}", e.incarnation.value());
  }
  std::string operator()(const host::Healed& e) const {
    return fmt::format("Healed {}", e.incarnation.value());
  }
  std::string operator()(const host::Finished& e) const {
    return fmt::format("Finished {}{}", e.incarnation.value(), e.detached ? "" : " not detached");
  }
  std::string operator()(const host::StartFailed& e) const {
    return fmt::format("StartFailed {} ({})", e.incarnation.value(), e.why);
  }
  std::string operator()(const host::WedgeWanted& e) const {
    return fmt::format("WedgeWanted {} ({})", e.epoch.value(), e.why);
  }
  std::string operator()(const host::WordsWedged& e) const {
    return "WordsWedged " + to_text(e.report);
  }
  std::string operator()(const host::DecisionWritten& e) const {
    return fmt::format("DecisionWritten {}", e.epoch.value());
  }
  std::string operator()(const host::ViewMade& e) const {
    return fmt::format("ViewMade {}", e.epoch.value());
  }
  std::string operator()(const host::BeatsRead& e) const {
    return fmt::format("BeatsRead of {}", e.beats.size());
  }
  std::string operator()(const host::Evict& e) const {
    return fmt::format("Evict {} ({})", e.incarnation.value(), e.why);
  }
  std::string operator()(const host::Stop& e) const {
    return fmt::format("Stop {} ({})", e.exit_code, e.why);
  }
  std::string operator()(const host::Drain& e) const {
    return (*this)(DrainRequest{e.id, e.incarnations, e.now});
  }
  std::string operator()(const host::Scale& e) const {
    return (*this)(ScaleRequest{e.id, e.seats, e.now});
  }
  std::string operator()(const host::Parked& e) const {
    return fmt::format("Parked {} in {}", e.incarnation.value(), e.epoch.value());
  }

  std::string operator()(const host::WedgeWords& e) const {
    return fmt::format("WedgeWords {}", e.epoch.value());
  }
  std::string operator()(const host::WriteDecision& e) const {
    return fmt::format("WriteDecision {} cuts={} committed={} lost={}", e.epoch.value(),
                       cuts(e.cuts), e.committed_step, bracketed(e.lost));
  }
  std::string operator()(const host::MakeView& e) const {
    return fmt::format("MakeView {} local={} assigned={} cause={}", to_text(e.view),
                       bracketed(e.local), bracketed(e.assigned), e.cause);
  }
  std::string operator()(const host::Spawn& e) const { return "Spawn " + (*this)(e.process); }
  std::string operator()(const host::Kill& e) const {
    return fmt::format("Kill {}{} ({})", e.incarnation.value(), e.superseded ? " superseded" : "",
                       e.why);
  }
  std::string operator()(const host::TellRanks& e) const {
    return fmt::format("TellRanks {} lost={} ({})", e.epoch.value(), bracketed(e.lost), e.text);
  }
  std::string operator()(const host::SendCoordinator& e) const {
    return "-> coordinator: " + to_text(e.message);
  }
  std::string operator()(const host::EndAll& e) const { return "EndAll " + (*this)(e.end); }
  std::string operator()(const host::Log& e) const {
    return "Log " + e.note.kind + ": " + e.note.text;
  }
  std::string operator()(const host::AskPark& e) const {
    return fmt::format("AskPark {}", e.epoch.value());
  }
  std::string operator()(const host::Release& e) const {
    return fmt::format("Release {} at {}", bracketed({e.member}), e.resume_step);
  }
  std::string operator()(const host::Answered& e) const { return "Answered " + (*this)(e.answer); }
  std::string operator()(const host::SetTimer& e) const {
    return fmt::format("SetTimer {} ms", millis(e.at));
  }
};

}  // namespace

std::string to_text(const View& view) {
  std::string seats;
  for (const Incarnation seat : view.seats) {
    seats += (seats.empty() ? "" : " ") +
             (seat == Incarnation{} ? std::string("-") : std::to_string(seat.value()));
  }
  return fmt::format("{} seats=[{}] resume={}", view.epoch.value(), seats, view.resume_step);
}

std::string to_text(const WedgeReport& report) {
  return fmt::format("epoch={} done={} prepared={}", report.epoch.value(), cuts(report.groups),
                     report.prepared);
}

std::string to_text(const DurableState& state) {
  std::string text =
      fmt::format("term={} view {} next={}{}", state.term, to_text(state.view),
                  state.next_incarnation.value(), state.state_exists ? " state" : "");
  for (const Loss& loss : state.losses) {
    text += fmt::format(" lost {}:{}@{}", loss.rank.value(), loss.incarnation.value(), loss.step);
  }
  for (const PlannedChange& change : state.planned) {
    text += fmt::format(" planned {}:{}{}", change.rank.value(), change.incarnation.value(),
                        change.vacate ? " vacate" : "");
  }
  if (!state.released.empty()) text += " released=" + bracketed(state.released);
  if (const auto& decision = state.decision) {
    text += fmt::format(" decided cuts={} committed={}", cuts(decision->cuts),
                        decision->committed_step);
    for (const Incarnation without : decision->without)
      text += fmt::format(" without {}", without.value());
  }
  return state.ended ? text + fmt::format(" ended={}", state.ended->exit_code) : text;
}

std::string to_text(const AgentMessage& message) { return std::visit(Say{}, message); }
std::string to_text(const CoordinatorMessage& message) { return std::visit(Say{}, message); }
std::string to_text(const Event& event) { return std::visit(Say{}, event); }
std::string to_text(const Effect& effect) { return std::visit(Say{}, effect); }
std::string to_text(const host::Event& event) { return std::visit(Say{}, event); }
std::string to_text(const host::Effect& effect) { return std::visit(Say{}, effect); }

}  // namespace regroup::membership
