/// What this machine offers, and what each thing means for a job.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace regroup::launcher {

enum class Health : std::uint8_t {
  Good,
  Hint,     ///< a job runs; it could run better
  Absent,   ///< not here and not needed
  Missing,  ///< no job runs without it
};
/// "ok", "hint", "absent", "missing".
[[nodiscard]] std::string_view name(Health health);

struct Finding {
  std::string name;
  Health health = Health::Good;
  std::string value;
  std::string meaning;
};

/// Looks at kernel, processor, memory, limits, launchers and libraries. Blocks while it asks each
/// MPI that it finds for its version.
[[nodiscard]] std::vector<Finding> examine_machine();

// ---- the judgements, apart from the machine ----

/// "max 100000" or "150000 100000" of cpu.max: cores, 0 for no limit.
[[nodiscard]] double quota_of(std::string_view cpu_max);
[[nodiscard]] Finding judge_cores(int online, int allowed, double quota);
/// `pattern` as in /proc/sys/kernel/core_pattern.
[[nodiscard]] Finding judge_core_dumps(std::string_view pattern, bool limit_is_zero);
[[nodiscard]] Finding judge_descriptors(std::uint64_t hard_limit);

}  // namespace regroup::launcher
