/// What an agent and a shim say to each other. A shim (`regroup exec`) is what another launcher
/// started in a rank's place: it forks the rank for the agent and watches it.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include <regroup/types.hpp>

#include "control/messages.hpp"

namespace regroup::control {

/// What a shim starts: the command line that it was given, and where.
struct Program {
  std::string path;                      ///< resolved
  std::vector<std::string> arguments;    ///< argv[0] included
  std::vector<std::string> environment;  ///< KEY=VALUE
  std::string directory;
  bool operator==(const Program&) const = default;
};

// ---- shim -> agent ----

/// First message. Descriptors: none.
struct ShimHello {
  std::uint32_t protocol = kProtocolVersion;
  std::uint32_t place = 0;   ///< rank that the launcher gave it
  std::uint32_t places = 0;  ///< how many it started
  std::int32_t pid = 0;
  std::uint64_t descriptors_soft = 0;  ///< the limit that its programs get
  Program program;
  bool operator==(const ShimHello&) const = default;
};
/// Answer to ShimStart. Descriptor 0 = pidfd of the process.
struct ShimStarted {
  Incarnation incarnation;
  std::int32_t pid = 0;
  bool operator==(const ShimStarted&) const = default;
};
/// Answer to ShimStart. `again`: the system was short of something and may not be soon.
struct ShimRefused {
  Incarnation incarnation;
  std::string why;
  bool again = false;
  bool operator==(const ShimRefused&) const = default;
};
/// It has ended and is not reaped yet: its number still means it. signal 0: it ended by itself.
struct ShimExited {
  Incarnation incarnation;
  std::int32_t exit_code = 0;
  std::int32_t signal = 0;
  bool core = false;
  bool operator==(const ShimExited&) const = default;
};
/// The launcher wants this place to end (SIGTERM, SIGINT), or the launcher itself is gone
/// (signal 0).
struct ShimSignalled {
  std::int32_t signal = 0;
  bool operator==(const ShimSignalled&) const = default;
};

using ShimMessage = std::variant<ShimHello, ShimStarted, ShimRefused, ShimExited, ShimSignalled>;

// ---- agent -> shim ----

/// Start this. Descriptor 0 = the process's end of its channel to the agent; its number is put into
/// the environment by the shim. `input`: it gets the shim's standard input.
struct ShimStart {
  Incarnation incarnation;
  Program program;
  std::uint64_t descriptors_soft = 0;
  bool input = false;
  bool operator==(const ShimStart&) const = default;
};
/// Answer to ShimExited: reap it, and end what it left behind unless `keep`.
struct ShimReap {
  Incarnation incarnation;
  bool keep = false;
  bool operator==(const ShimReap&) const = default;
};
/// A line for people, onto standard error.
struct ShimPrint {
  std::string text;
  bool operator==(const ShimPrint&) const = default;
};
/// This place is taken: another job of the same launcher is not over yet. Try again.
struct ShimBusy {
  std::string why;
  bool operator==(const ShimBusy&) const = default;
};
/// The job is over: end with this code.
struct ShimEnd {
  std::int32_t exit_code = 0;
  std::string reason;
  bool operator==(const ShimEnd&) const = default;
};

using AgentToShim = std::variant<ShimStart, ShimReap, ShimPrint, ShimBusy, ShimEnd>;

}  // namespace regroup::control
