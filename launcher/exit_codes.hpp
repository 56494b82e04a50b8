/// Exit codes of our own faults (sysexits.h). A program's own code, or 128 + signal, passes through
/// unchanged.
#pragma once

namespace regroup::launcher {

inline constexpr int kExitDone = 0;
/// The program broke the rules of the API; no code of its own says so.
inline constexpr int kExitProgramError = 1;
inline constexpr int kExitBadUsage = 64;   ///< the command line
inline constexpr int kExitNoProgram = 66;  ///< program missing or not executable
/// The machine lacks something, or the coordinator will not run.
inline constexpr int kExitUnavailable = 69;
inline constexpr int kExitFault = 70;       ///< a defect of ours
inline constexpr int kExitTryAgain = 75;    ///< too few ranks left, replacement allowance used
inline constexpr int kExitNotAllowed = 77;  ///< log directory not writable
inline constexpr int kExitTimedOut = 124;   ///< --timeout

}  // namespace regroup::launcher
