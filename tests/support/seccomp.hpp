/// Takes system calls away, as an older kernel or a container's profile does.
#pragma once

#include <cstdint>
#include <initializer_list>

namespace regroup::test {

struct RefusedCall {
  std::uint32_t number = 0;
  int error = 0;
  /// Only with a fourth argument of at least this much (the length of fallocate); 0: always.
  std::uint32_t fourth_min = 0;
};

/// For this process and all that it starts. Async-signal-safe. False when this machine does not
/// let a process do so.
bool refuse_calls(std::initializer_list<RefusedCall> calls);
/// Whether refuse_calls() would succeed here.
[[nodiscard]] bool can_refuse_calls();

}  // namespace regroup::test
