/// Messages and effects as one line of text each: for transcripts, traces and logs.
#pragma once

#include <string>

#include "membership/host_agent.hpp"
#include "membership/membership.hpp"

namespace regroup::membership {

[[nodiscard]] std::string to_text(const View& view);
[[nodiscard]] std::string to_text(const WedgeReport& report);
[[nodiscard]] std::string to_text(const AgentMessage& message);
[[nodiscard]] std::string to_text(const CoordinatorMessage& message);
[[nodiscard]] std::string to_text(const DurableState& state);
[[nodiscard]] std::string to_text(const Event& event);
[[nodiscard]] std::string to_text(const Effect& effect);
[[nodiscard]] std::string to_text(const host::Event& event);
[[nodiscard]] std::string to_text(const host::Effect& effect);

}  // namespace regroup::membership
