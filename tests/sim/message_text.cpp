#include "tests/sim/message_text.hpp"

#include <fmt/format.h>

namespace regroup::sim {

using namespace membership;  // NOLINT(google-build-using-namespace): all alternatives of two
                             // variants

namespace {

std::string text(const std::vector<Member>& members) {
  std::string out;
  for (const Member& m : members)
    out += fmt::format(" {}/{}", m.rank.value(), m.incarnation.value());
  return out;
}
std::string text(const View& view) {
  std::string out = fmt::format("epoch {} resume {} seats", view.epoch.value(), view.resume_step);
  for (const Incarnation seat : view.seats) out += fmt::format(" {}", seat.value());
  return out;
}
std::string text(const WedgeReport& report) {
  std::string out = fmt::format("epoch {} prepared {}", report.epoch.value(), report.prepared);
  for (const auto& cut : report.groups)
    out += fmt::format(" group {} completed {}", cut.group, cut.completed);
  return out;
}

struct Words {
  std::string operator()(const AgentHello& m) const {
    std::string out = fmt::format("Hello of agent {}, {}", m.agent.value(), text(m.installed));
    for (const auto& p : m.processes) {
      out += fmt::format("; inc {} seat {} state {}", p.incarnation.value(),
                         p.seat ? p.seat->value() : -1, static_cast<int>(p.state));
    }
    if (m.wedged) out += "; wedged " + text(*m.wedged);
    return out;
  }
  std::string operator()(const ProcessJoined& m) const {
    return fmt::format("Joined {}", m.incarnation.value());
  }
  std::string operator()(const ProcessHealed& m) const {
    return fmt::format("Healed {}", m.incarnation.value());
  }
  std::string operator()(const ProcessLost& m) const {
    return fmt::format("Lost {} by {} {}", m.incarnation.value(), name(m.evidence.kind),
                       m.evidence.text);
  }
  std::string operator()(const ProcessFinished& m) const {
    return fmt::format("Finished {}", m.incarnation.value());
  }
  std::string operator()(const Wedged& m) const {
    return fmt::format("Wedged round {} {}", m.round.value(), text(m.report));
  }
  std::string operator()(const DecisionStored& m) const {
    return fmt::format("DecisionStored epoch {} round {}", m.epoch.value(), m.round.value());
  }
  std::string operator()(const Installed& m) const {
    return fmt::format("Installed epoch {}", m.epoch.value());
  }
  std::string operator()(const StartFailed& m) const {
    return fmt::format("StartFailed {}", m.incarnation.value());
  }
  std::string operator()(const EvictRequest& m) const {
    return fmt::format("EvictRequest {}", m.incarnation.value());
  }
  std::string operator()(const StopRequest& m) const {
    return fmt::format("StopRequest code {}", m.exit_code);
  }
  std::string operator()(const DrainRequest& m) const {
    std::string out = fmt::format("DrainRequest {}{}", m.id, m.now ? " now" : "");
    for (const Incarnation who : m.incarnations) out += fmt::format(" {}", who.value());
    return out;
  }
  std::string operator()(const ScaleRequest& m) const {
    return fmt::format("ScaleRequest {} to {}{}", m.id, m.seats, m.now ? " now" : "");
  }
  std::string operator()(const Parked& m) const {
    return fmt::format("Parked epoch {}", m.epoch.value());
  }
  std::string operator()(const ParkEpoch& m) const {
    return fmt::format("ParkEpoch {}", m.epoch.value());
  }
  std::string operator()(const Answer& m) const {
    return fmt::format("Answer {} {}: {}", m.id, m.accepted ? "accepted" : "refused", m.text);
  }
  std::string operator()(const StartProcess& m) const {
    return fmt::format("StartProcess {} seat {}", m.incarnation.value(),
                       m.seat ? m.seat->value() : -1);
  }
  std::string operator()(const WedgeEpoch& m) const {
    return fmt::format("WedgeEpoch {} round {} lost{}", m.epoch.value(), m.round.value(),
                       text(m.lost));
  }
  std::string operator()(const StoreDecision& m) const {
    return fmt::format("StoreDecision epoch {} round {} step {} lost{}", m.epoch.value(),
                       m.round.value(), m.committed_step, text(m.lost));
  }
  std::string operator()(const InstallView& m) const {
    return fmt::format("InstallView {} lost{} released{}", text(m.view), text(m.lost),
                       text(m.released));
  }
  std::string operator()(const EndJob& m) const {
    return fmt::format("EndJob {}: {}", m.exit_code, m.reason);
  }
  std::string operator()(const Note& m) const { return fmt::format("Note {}: {}", m.kind, m.text); }
};

}  // namespace

std::string text_of(const AgentMessage& message) { return "-> " + std::visit(Words{}, message); }
std::string text_of(const CoordinatorMessage& message) {
  return "<- " + std::visit(Words{}, message);
}

}  // namespace regroup::sim
