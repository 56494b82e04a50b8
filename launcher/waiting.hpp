/// How a wait is told of.
#pragma once

#include <chrono>
#include <cstdint>

#include <regroup/types.hpp>

namespace regroup::launcher {

/// Whoever waits so long for something says so, then again as often.
inline constexpr std::chrono::seconds kWaitToldAfter{10};

[[nodiscard]] inline std::int64_t whole_seconds(Clock::duration time) {
  return std::chrono::duration_cast<std::chrono::seconds>(time).count();
}

}  // namespace regroup::launcher
