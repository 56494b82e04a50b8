#include "membership/host_agent.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/mutant.hpp"
#include "membership/policy.hpp"

namespace regroup::membership {

namespace {

bool holds_seat(const View& view, Incarnation incarnation) {
  return std::find(view.seats.begin(), view.seats.end(), incarnation) != view.seats.end();
}

/// Later evidence of the same loss adds what earlier evidence could not know. Returns whether
/// anything is new.
bool upgrade(Evidence& known, const Evidence& later) {
  const bool status_new =
      known.exit_code < 0 && known.signal == 0 && (later.exit_code >= 0 || later.signal != 0);
  const bool proof_new = !is_proof(known.kind) && is_proof(later.kind);
  if (!status_new && !proof_new) return false;
  if (status_new) {
    known.exit_code = later.exit_code;
    known.signal = later.signal;
  }
  if (proof_new) known.kind = later.kind;
  if (!later.text.empty() && known.text.find(later.text) == std::string::npos) {
    known.text += (known.text.empty() ? "" : "; ") + later.text;
  }
  return true;
}

}  // namespace

HostAgent::HostAgent(AgentId id, const Timeouts& timeouts)
    : id_(id), timeouts_(timeouts), detector_(timeouts) {}

host::Effects HostAgent::step(const host::Event& event, TimePoint now) {
  now_ = now;
  effects_.clear();
  std::visit([this](const auto& alternative) { on(alternative); }, event);
  return std::move(effects_);
}

// ---- the channel
// ----------------------------------------------------------------------------------

void HostAgent::on(const host::ChannelUp& /*event*/) {
  channel_up_ = true;
  send(hello());
  while (!requests_.empty()) {
    send(std::move(requests_.front()));
    requests_.pop_front();
  }
  // The wish may have been lost with the channel; only the end of the job answers it.
  if (stop_ && !ending_ && !REGROUP_MUTANT(STOP_SAID_ONCE)) send(*stop_);
  for (const auto& [id, wish] : unanswered_) send(wish);
  report_parked();
}

void HostAgent::on(const host::ChannelDown& /*event*/) { channel_up_ = false; }

void HostAgent::on(const host::FromCoordinator& event) {
  std::visit([this](const auto& message) { order(message); }, event.message);
}

AgentHello HostAgent::hello() const {
  AgentHello hello{.agent = id_, .installed = installed_};
  for (const auto& [incarnation, process] : processes_) {
    hello.processes.push_back(process);
    if (is_over(process.state)) hello.processes.back().address.clear();
  }
  if (words_ != Words::Open && words_ != Words::Wedging) hello.wedged = report_;
  return hello;
}

void HostAgent::send(AgentMessage message) {
  // Without a channel nothing is queued: the next AgentHello carries all of it.
  if (channel_up_) effects_.emplace_back(host::SendCoordinator{std::move(message)});
}

void HostAgent::request(AgentMessage message) {
  if (channel_up_) {
    send(std::move(message));
  } else if (requests_.size() < kPendingRequestsMax) {
    requests_.push_back(std::move(message));
  } else {
    log("request_dropped", "too many requests while the coordinator is away; ask again later");
  }
}

void HostAgent::log(std::string kind, std::string text) {
  effects_.emplace_back(host::Log{Note{.kind = std::move(kind), .text = std::move(text)}});
}

// ---- processes
// ------------------------------------------------------------------------------------

bool HostAgent::is_member(const ProcessInfo& process) const {
  return holds_seat(installed_, process.incarnation);
}

void HostAgent::on(const host::Joined& event) {
  const auto it = processes_.find(event.incarnation);
  if (it == processes_.end() || it->second.state != ProcessState::Starting) return;
  it->second.state = ProcessState::Joined;
  it->second.address = event.address;
  detector_.watch(event.incarnation, now_);
  effects_.emplace_back(host::SetTimer{detector_.next_check()});
  send(ProcessJoined{event.incarnation, event.address});
}

void HostAgent::on(const host::Healed& event) {
  const auto it = processes_.find(event.incarnation);
  if (it == processes_.end() || it->second.state != ProcessState::Joined) return;
  it->second.state = ProcessState::Healed;
  send(ProcessHealed{event.incarnation});
}

void HostAgent::on(const host::Finished& event) {
  const auto it = processes_.find(event.incarnation);
  if (it != processes_.end() && it->second.state == ProcessState::Released) {
    return send(ProcessFinished{event.incarnation});
  }
  if (it == processes_.end() || is_over(it->second.state)) {
    // It was evicted and had ended by itself before the kill reached it: it is dead all the same.
    if (it != processes_.end() && it->second.state == ProcessState::Gone) {
      on(host::Lost{event.incarnation, {.kind = EvidenceKind::Reaped, .exit_code = 0}});
    }
    return;
  }
  ProcessInfo& process = it->second;
  if (!event.detached && process.state != ProcessState::Starting && !ending_) {
    // Its group may wait for it in the middle of an operation, so the epoch must end as if it had
    // died.
    lose(process, {.kind = EvidenceKind::Reaped,
                   .text = "ended with code 0 without leaving the job",
                   .exit_code = 0});
    return;
  }
  process.state = ProcessState::Finished;
  detector_.forget(event.incarnation);
  send(ProcessFinished{event.incarnation});
  report_parked();
}

void HostAgent::on(const host::StartFailed& event) {
  const auto it = processes_.find(event.incarnation);
  if (it == processes_.end() || is_over(it->second.state)) return;
  it->second.state = ProcessState::Gone;
  it->second.evidence = {.kind = EvidenceKind::Reaped, .text = "start failed: " + event.why};
  detector_.forget(event.incarnation);
  send(StartFailed{event.incarnation, event.why});
}

void HostAgent::on(const host::Lost& event) {
  const auto it = processes_.find(event.incarnation);
  if (it == processes_.end() || it->second.state == ProcessState::Finished) return;
  ProcessInfo& process = it->second;
  if (process.state == ProcessState::Released) {
    // Out of its seat already: nobody lost anything, and what it was stays known.
    return send(ProcessLost{process.incarnation, event.evidence});
  }
  if (process.state == ProcessState::Gone) {
    if (upgrade(process.evidence, event.evidence)) {
      send(ProcessLost{process.incarnation, process.evidence});
    }
    return;
  }
  lose(process, event.evidence);
}

void HostAgent::lose(ProcessInfo& process, const Evidence& evidence, bool superseded) {
  const bool attached = process.state != ProcessState::Starting;
  process.state = ProcessState::Gone;
  process.evidence = evidence;
  detector_.forget(process.incarnation);
  if (is_member(process)) {
    if (process.seat && !contains(lost_, process.incarnation)) {
      lost_.push_back({*process.seat, process.incarnation});
    }
    // First of all: from here on no survivor can complete anything that the decision would not know
    // of.
    if (!ending_) wedge();
    if (words_ != Words::Open && words_ != Words::Wedging) tell_ranks();
  }
  if (evidence.kind != EvidenceKind::Reaped) {
    effects_.emplace_back(host::Kill{process.incarnation, describe(evidence), superseded});
  }
  send(ProcessLost{process.incarnation, evidence, attached});
}

void HostAgent::on(const host::BeatsRead& event) {
  for (const auto& [incarnation, counter] : event.beats) detector_.beat(incarnation, counter, now_);
  for (const FailureDetector::Finding& finding : detector_.check(now_)) {
    const auto it = processes_.find(finding.incarnation);
    if (it == processes_.end() || is_over(it->second.state)) continue;
    switch (finding.verdict) {
      case FailureDetector::Verdict::Suspected:
        log("suspected",
            fmt::format("incarnation {}: {}", finding.incarnation.value(), finding.why));
        break;
      case FailureDetector::Verdict::Cleared:
        log("cleared", fmt::format("incarnation {}: {}", finding.incarnation.value(), finding.why));
        break;
      case FailureDetector::Verdict::Confirmed:
        lose(it->second, {.kind = EvidenceKind::Silence, .text = finding.why});
        break;
    }
  }
  effects_.emplace_back(host::SetTimer{detector_.next_check()});
}

void HostAgent::on(const host::Evict& event) {
  request(EvictRequest{event.incarnation, event.why});
}
void HostAgent::on(const host::Stop& event) {
  if (!stop_) stop_ = StopRequest{event.why, event.exit_code};
  if (!ending_) send(*stop_);
}

void HostAgent::ask(std::uint64_t id, AgentMessage message) {
  if (ending_ || unanswered_.size() >= kPendingRequestsMax) {
    const std::string why = ending_ ? "the job is ending: " + ending_->reason
                                    : "too many wishes are unanswered; ask again later";
    effects_.emplace_back(host::Answered{{id, false, why}});
    return;
  }
  send(message);
  unanswered_.emplace(id, std::move(message));
}

void HostAgent::on(const host::Drain& event) {
  ask(event.id, DrainRequest{event.id, event.incarnations, event.now});
}

void HostAgent::on(const host::Scale& event) {
  ask(event.id, ScaleRequest{event.id, event.seats, event.now});
}

void HostAgent::order(const Answer& message) {
  // A wish that was said again after a broken channel may be answered twice.
  if (unanswered_.erase(message.id) == 0) return;
  effects_.emplace_back(host::Answered{message});
}

std::string HostAgent::explain() const {
  const auto word = [this] {
    switch (words_) {
      case Words::Open: return "open";
      case Words::Wedging: return "being wedged";
      case Words::Wedged: return "wedged, waits for the decision";
      case Words::Deciding: return "decision being written";
      case Words::Decided: return "decided, waits for the next view";
    }
    return "?";
  };
  std::string text =
      fmt::format("agent {}: epoch {} {}, coordinator {}", id_.value(), installed_.epoch.value(),
                  word(), channel_up_ ? "reachable" : "away");
  if (making_) text += fmt::format(", makes epoch {}", making_->view.epoch.value());
  if (pending_) text += fmt::format(", epoch {} waits", pending_->view.epoch.value());
  if (ending_) text += ", ending: " + ending_->reason;
  return text;
}

}  // namespace regroup::membership
