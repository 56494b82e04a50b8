/// The variables that a user may set, for `regroup env`. docs/environment.md describes them.
#pragma once

#include <array>
#include <string_view>

namespace regroup::launcher {

struct Variable {
  std::string_view name;
  std::string_view fallback;  ///< what holds when it is not set
  std::string_view meaning;
};

inline constexpr std::array kUserVariables = {
    Variable{"REGROUP_ALGO", "the built-in choice", "which algorithm carries which operation"},
    Variable{"REGROUP_CHECK_STATE", "0; 1 in debug builds of the library",
             "1: a step must not change registered state before its commit"},
    Variable{"REGROUP_FAULTS", "none", "fault script for exact replays"},
    Variable{"REGROUP_LAUNCH", "the first that matches", "which outer launcher's variables count"},
    Variable{"REGROUP_TUNING", "30 us, 1 us, 1 GB/s", "what the network between hosts is like"},
    Variable{"REGROUP_VERIFY", "0", "1: results are compared between the ranks"},
};

/// What the launcher sets for each process of a job, and takes out of what a process inherits.
inline constexpr std::array<std::string_view, 15> kOwnVariables = {
    "REGROUP_RANK",       "REGROUP_WORLD_SIZE",     "REGROUP_LOCAL_RANK", "REGROUP_LOCAL_SIZE",
    "REGROUP_NODE_RANK",  "REGROUP_NUM_NODES",      "REGROUP_JOB_ID",     "REGROUP_INCARNATION",
    "REGROUP_LIFE",       "REGROUP_IS_REPLACEMENT", "REGROUP_SPARE",      "REGROUP_RUN_DIR",
    "REGROUP_CONTROL_FD", "REGROUP_RDZV",           "REGROUP_HOST_ID"};

}  // namespace regroup::launcher
