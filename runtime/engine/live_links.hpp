/// What has to happen to a process's attachments when it forks or exits without destroying them.
#pragma once

#include <cstdint>

namespace regroup::engine {

class AgentLink;

/// The attachments of this process. A forked child may use none of them: it closes their channels,
/// so that its life does not hide its parent's death, and every call on them answers
/// FailedPrecondition. At exit() the agent is told that the process leaves in order. Thread
/// safety: any thread.
class LiveLinks {
 public:
  static void add(AgentLink& link);
  static void remove(AgentLink& link);
  /// Grows by one in every forked child: an object made under another count belongs to an ancestor.
  static std::uint64_t fork_count();
};

}  // namespace regroup::engine
