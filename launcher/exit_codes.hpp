/// Exit codes of our own faults (sysexits.h). A program's own code, or 128 + signal, passes through
/// unchanged.
#pragma once

namespace regroup::launcher {

enum ExitCode : int {
  kExitDone = 0,
  kExitProgramError = 1,  ///< the program broke the rules of the API; no code of its own says so
  kExitBadUsage = 64,     ///< the command line
  kExitNoProgram = 66,    ///< program missing or not executable
  kExitUnavailable = 69,  ///< the machine lacks something, or the coordinator will not run
  kExitFault = 70,        ///< a defect of ours
  kExitTryAgain = 75,     ///< too few ranks left, replacement allowance used
  kExitNotAllowed = 77,   ///< log directory not writable
  kExitTimedOut = 124,    ///< --timeout
};

}  // namespace regroup::launcher
