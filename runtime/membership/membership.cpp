#include "membership/membership.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/check.hpp"
#include "base/mutant.hpp"

namespace regroup::membership {

const char* name(State state) {
  switch (state) {
    case State::Gathering: return "Gathering";
    case State::Forming: return "Forming";
    case State::Installing: return "Installing";
    case State::Steady: return "Steady";
    case State::Wedged: return "Wedged";
    case State::Draining: return "Draining";
    case State::Replacing: return "Replacing";
    case State::Failed: return "Failed";
    case State::Ended: return "Ended";
  }
  return "?";
}

const char* name(EventKind kind) {
  switch (kind) {
    case EventKind::Started: return "Started";
    case EventKind::AgentConnected: return "AgentConnected";
    case EventKind::AgentDisconnected: return "AgentDisconnected";
    case EventKind::Timer: return "Timer";
    case EventKind::Hello: return "Hello";
    case EventKind::Joined: return "Joined";
    case EventKind::Healed: return "Healed";
    case EventKind::Lost: return "Lost";
    case EventKind::Finished: return "Finished";
    case EventKind::Wedged: return "Wedged";
    case EventKind::DecisionStored: return "DecisionStored";
    case EventKind::Installed: return "Installed";
    case EventKind::StartFailed: return "StartFailed";
    case EventKind::Evict: return "Evict";
    case EventKind::Stop: return "Stop";
    case EventKind::Drain: return "Drain";
    case EventKind::Scale: return "Scale";
    case EventKind::Parked: return "Parked";
  }
  return "?";
}

namespace {

struct KindOf {
  EventKind operator()(const Started&) const { return EventKind::Started; }
  EventKind operator()(const AgentConnected&) const { return EventKind::AgentConnected; }
  EventKind operator()(const AgentDisconnected&) const { return EventKind::AgentDisconnected; }
  EventKind operator()(const Timer&) const { return EventKind::Timer; }
  EventKind operator()(const FromAgent& event) const { return std::visit(*this, event.message); }
  EventKind operator()(const AgentHello&) const { return EventKind::Hello; }
  EventKind operator()(const ProcessJoined&) const { return EventKind::Joined; }
  EventKind operator()(const ProcessHealed&) const { return EventKind::Healed; }
  EventKind operator()(const ProcessLost&) const { return EventKind::Lost; }
  EventKind operator()(const ProcessFinished&) const { return EventKind::Finished; }
  EventKind operator()(const Wedged&) const { return EventKind::Wedged; }
  EventKind operator()(const DecisionStored&) const { return EventKind::DecisionStored; }
  EventKind operator()(const Installed&) const { return EventKind::Installed; }
  EventKind operator()(const StartFailed&) const { return EventKind::StartFailed; }
  EventKind operator()(const EvictRequest&) const { return EventKind::Evict; }
  EventKind operator()(const StopRequest&) const { return EventKind::Stop; }
  EventKind operator()(const DrainRequest&) const { return EventKind::Drain; }
  EventKind operator()(const ScaleRequest&) const { return EventKind::Scale; }
  EventKind operator()(const Parked&) const { return EventKind::Parked; }
};

AgentId sender(const Event& event) { return std::get<FromAgent>(event).agent; }

template <class M>
const M& message(const Event& event) {
  return std::get<M>(std::get<FromAgent>(event).message);
}

}  // namespace

EventKind kind_of(const Event& event) { return std::visit(KindOf{}, event); }

Membership::Membership(const Timeouts& timeouts) : timeouts_(timeouts) {}

Effects Membership::step(const Event& event, TimePoint now) {
  const EventKind kind = kind_of(event);
  REGROUP_ASSERT(started_ || kind == EventKind::Started);
  now_ = now;
  effects_.clear();
  ++cells_[static_cast<std::size_t>(state_)][static_cast<std::size_t>(kind)];
  if (const auto* from = std::get_if<FromAgent>(&event)) {
    const auto agent = agents_.find(from->agent);
    const bool hello = kind == EventKind::Hello;
    if (agent == agents_.end() || (!hello && !agent->second.said_hello)) {
      note("dropped", fmt::format("{} of agent {}, which has not said AgentHello", name(kind),
                                  from->agent.value()));
      return std::move(effects_);
    }
  }
  dispatch(kind, event);
  react();
  if (losses_changed_) persist();
  arm();
  return std::move(effects_);
}

// ---- cells
// ----------------------------------------------------------------------------------------

void Membership::start(const Event& event) {
  REGROUP_ASSERT(!started_);
  started_ = true;
  const auto& started = std::get<Started>(event);
  REGROUP_ASSERT(!started.agents.empty());
  for (const AgentId id : started.agents) agents_[id];
  if (!started.durable) {
    durable_.config = started.config;
    durable_.term = 1;
    persist();
    return;
  }
  durable_ = *started.durable;
  if (!REGROUP_MUTANT(SAME_TERM)) ++durable_.term;
  next_incarnation_ = durable_.next_incarnation;
  recall_losses();
  index_view();
  // A fresh job waits for its hosts as long as they need to start; a running one knows them.
  for (auto& [id, agent] : agents_) agent.silent_since = now_;
  persist();
  note("coordinator_restarted", fmt::format("term {}: epoch {}, waits for {} agents", durable_.term,
                                            durable_.view.epoch.value(), agents_.size()));
}

void Membership::connect(const Event& event) {
  const auto agent = agents_.find(std::get<AgentConnected>(event).agent);
  if (agent == agents_.end()) return;
  agent->second.connected = true;
  agent->second.said_hello = false;
}

void Membership::disconnect(const Event& event) {
  const auto& [id, silent_for] = std::get<AgentDisconnected>(event);
  const auto agent = agents_.find(id);
  if (agent == agents_.end() || !agent->second.connected) return;
  agent->second.connected = false;
  agent->second.said_hello = false;
  agent->second.silent_since = now_ - silent_for;
  const nanoseconds left = timeouts_.agent_lost - std::min(silent_for, timeouts_.agent_lost);
  note("agent_away", fmt::format("agent {} lost its channel; given up in {} ms", id.value(),
                                 left.count() / 1'000'000));
}

void Membership::tick(const Event& /*event*/) {
  armed_.reset();  // the shell has used it up
  mark_silent_agents();
  resend();
}

void Membership::hello(const Event& event) {
  const AgentId id = sender(event);
  const auto& hello = message<AgentHello>(event);
  Agent& agent = agents_.at(id);
  agent.connected = true;
  agent.said_hello = true;
  agent.silent_since.reset();
  if (agent.lost) {
    agent.lost = false;
    if (state_ == State::Gathering || state_ == State::Wedged) revive(id, hello);
  }
  absorb(id, hello);
  if (state_ != State::Gathering) send_phase(id);
}

void Membership::joined(const Event& event) {
  const auto& joined = message<ProcessJoined>(event);
  if (Process* process = find(joined.incarnation)) process->address = joined.address;
  mark_joined(joined.incarnation);
}

void Membership::healed(const Event& event) {
  mark_healed(message<ProcessHealed>(event).incarnation);
}

void Membership::lost(const Event& event) {
  const auto& lost = message<ProcessLost>(event);
  Process* process = find(lost.incarnation);
  if (process != nullptr && is_alive(*process) && lost.attached) process->joined = true;
  mark_gone(lost.incarnation, lost.evidence, true);
}

void Membership::finished(const Event& event) {
  mark_finished(message<ProcessFinished>(event).incarnation);
}

void Membership::wedged(const Event& event) {
  const auto& wedged = message<membership::Wedged>(event);
  Agent& agent = agents_.at(sender(event));
  agent.wedged = std::max(agent.wedged, wedged.report.epoch);
  if (state_ != State::Wedged) return;
  const bool stale = wedged.report.epoch != durable_.view.epoch || wedged.round != round_;
  if (stale && !REGROUP_MUTANT(STALE_EPOCH_ACCEPTED)) return;
  agent.report = wedged.report;
}

void Membership::decision_stored(const Event& event) {
  const auto& stored = message<DecisionStored>(event);
  if (state_ != State::Draining) return;
  const bool stale = stored.epoch != durable_.view.epoch || stored.round != round_;
  if (stale && !REGROUP_MUTANT(STALE_EPOCH_ACCEPTED)) return;
  agents_.at(sender(event)).stored = true;
}

void Membership::installed(const Event& event) {
  Agent& agent = agents_.at(sender(event));
  agent.installed = std::max(agent.installed, message<Installed>(event).epoch);
  if (REGROUP_MUTANT(STALE_EPOCH_ACCEPTED)) agent.installed = durable_.view.epoch;
}

void Membership::start_failed(const Event& event) {
  const auto& failed = message<StartFailed>(event);
  Process* process = find(failed.incarnation);
  if (process == nullptr) return;
  process->gave_up = true;
  if (!process->seat) spares_given_up_ = true;
  mark_gone(failed.incarnation,
            {.kind = EvidenceKind::Reaped, .text = "start failed: " + failed.why}, true);
}

void Membership::evict(const Event& event) {
  const auto& request = message<EvictRequest>(event);
  Incarnation wanted = request.incarnation;
  const Process* process = find(wanted);
  if (REGROUP_MUTANT(EVICT_NAMES_THE_SEAT) && process != nullptr && process->seat) {
    wanted = live_holder(*process->seat).value_or(wanted);
    process = find(wanted);
  }
  if (process == nullptr || !is_alive(*process)) {
    note("evict_refused",
         fmt::format("incarnation {} does not run (any more): nothing to evict", wanted.value()));
    return;
  }
  mark_gone(wanted, {.kind = EvidenceKind::Requested, .text = "evicted: " + request.why}, false);
}

void Membership::stop(const Event& event) {
  // An earlier coordinator has decided the end already: it is told once every agent is here.
  if (durable_.ended) return;
  const auto& request = message<StopRequest>(event);
  end_job(request.exit_code, request.why);
  state_ = State::Ended;
}

void Membership::repeat_end(const Event& event) {
  const AgentId id = sender(event);
  agents_.at(id).connected = true;
  agents_.at(id).said_hello = true;
  send(id, *durable_.ended);
}

void Membership::ignore(const Event& /*event*/) {}

void Membership::impossible(const Event& event) {
  REGROUP_ASSERT(kind_of(event) == EventKind::Started);
  REGROUP_UNREACHABLE("Started is delivered once, first");
}

// ---- effects
// --------------------------------------------------------------------------------------

void Membership::send(AgentId id, CoordinatorMessage message) {
  // What cannot be sent now is sent again after the agent's next AgentHello.
  if (agents_.at(id).said_hello) effects_.emplace_back(SendTo{id, std::move(message)});
}

void Membership::note(std::string kind, std::string text) {
  effects_.emplace_back(
      SendTo{std::nullopt, Note{.kind = std::move(kind), .text = std::move(text)}});
}

void Membership::persist() {
  if (losses_changed_) {
    durable_.losses = spare_history_.losses();
    for (const auto& [rank, history] : history_) {
      durable_.losses.insert(durable_.losses.end(), history.losses().begin(),
                             history.losses().end());
    }
    losses_changed_ = false;
  }
  effects_.emplace_back(Persist{durable_});
}

void Membership::enter(State next, const std::string& why) {
  note("state", fmt::format("epoch {}: {} -> {}: {}", durable_.view.epoch.value(), name(state_),
                            name(next), why));
  state_ = next;
  waiting_for_.clear();
  const bool waits_for_agents =
      next == State::Installing || next == State::Wedged || next == State::Draining;
  resend_at_.reset();
  if (waits_for_agents) resend_at_ = now_ + timeouts_.resend_every;
}

/// Repeats the order that is unanswered; every order is idempotent.
void Membership::resend() {
  if (!resend_at_ || now_ < *resend_at_) return;
  resend_at_ = now_ + timeouts_.resend_every;
  for (const auto& [id, agent] : agents_) {
    if (is_awaited(id)) send_phase(id);
  }
}

void Membership::arm() {
  std::optional<TimePoint> next;
  const auto sooner = [&next](const std::optional<TimePoint>& at) {
    if (at && (!next || *at < *next)) next = at;
  };
  if (state_ != State::Failed && state_ != State::Ended) {
    sooner(resend_at_);
    if (hold_until_ && *hold_until_ > now_) sooner(hold_until_);
    const bool somebody_here = std::any_of(
        agents_.begin(), agents_.end(), [](const auto& entry) { return entry.second.said_hello; });
    for (const auto& [id, agent] : agents_) {
      if (somebody_here && agent.silent_since && !agent.lost)
        sooner(*agent.silent_since + timeouts_.agent_lost);
    }
  }
  if (!next || next == armed_) return;
  armed_ = next;
  effects_.emplace_back(SetTimer{*next});
}

std::string Membership::explain() const {
  std::string text =
      fmt::format("{} epoch {} term {}", name(state_), durable_.view.epoch.value(), durable_.term);
  for (const auto& [id, agent] : agents_) {
    if (agent.lost) {
      text += fmt::format("; agent {} is lost", id.value());
    } else if (!agent.said_hello) {
      text += fmt::format("; agent {} is away", id.value());
    } else if (is_awaited(id)) {
      text += fmt::format("; agent {} has not answered", id.value());
    }
  }
  for (const auto& [incarnation, process] : processes_) {
    if (!process.seat || process.state != ProcessState::Starting) continue;
    text += fmt::format("; rank {} (incarnation {}) has not joined", process.seat->value(),
                        incarnation.value());
  }
  if (!waiting_for_.empty()) text += "; " + waiting_for_;
  if (durable_.ended) {
    text += fmt::format("; exit code {}: {}", durable_.ended->exit_code, durable_.ended->reason);
  }
  return text;
}

}  // namespace regroup::membership
