/// One line for people about a message between agent and coordinator.
#pragma once

#include <string>

#include "membership/types.hpp"

namespace regroup::sim {

[[nodiscard]] std::string text_of(const membership::AgentMessage& message);
[[nodiscard]] std::string text_of(const membership::CoordinatorMessage& message);

}  // namespace regroup::sim
