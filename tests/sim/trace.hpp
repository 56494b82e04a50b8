/// The trace: what happened in the simulated job, in order. Checkers read it, its hash is what a
/// replay must repeat.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "membership/types.hpp"
#include "tests/sim/random.hpp"

namespace regroup::sim {

/// Kinds of records. One sentence each in describe().
enum class What : std::uint8_t {
  Spawn,
  Attach,
  Enter,
  HealBegin,
  HealPlan,
  HealChunk,
  HealEnd,
  Submit,
  Publish,
  Reduce,
  Done,
  Lost,
  HandedOver,
  Prepare,
  Committed,
  StepAborted,
  Finish,
  Crash,
  Deaf,
  Pause,
  Resume,
  Kill,
  Stopped,
  Evidence,
  WedgeWords,
  WordsWedged,
  Decide,
  MakeView,
  LeaveHost,
  HostLost,
  ChannelUp,
  ChannelDown,
  MessageLost,
  MessageTwice,
  Message,
  HealedHeard,
  CoordinatorStart,
  CoordinatorCrash,
  Persist,
  Order,
  Choose,
  Removed,
  EvictAsked,
  StopAsked,
  ChangeAsked,
  Park,
  Released,
  SelfWedge,
  EndJob,
  Liveness,
  Quiet,
};
inline constexpr int kWhatCount = static_cast<int>(What::Quiet) + 1;
[[nodiscard]] const char* name(What what);

/// One line of the trace. Fields that do not apply are left at their defaults.
struct Record {
  Nanos at = 0;
  What what = What::Quiet;
  Rank rank{-1};
  Incarnation incarnation;
  Epoch epoch;
  std::uint32_t group = 0;
  std::uint32_t host = 0;
  std::uint64_t number = 0;  ///< sequence number of an operation, or step
  std::uint64_t digest = 0;
  std::uint64_t seats = 0;  ///< set of contributors, or of members
  std::uint64_t other = 0;
  const membership::View* view = nullptr;  ///< valid during the call only
};
[[nodiscard]] std::string describe(const Record& record);

/// Keeps the hash, and the lines as text when asked to. Thread safety: none.
class Trace {
 public:
  explicit Trace(bool keeps_text) : keeps_text_(keeps_text) {}
  void add(const Record& record);
  /// A line for people only; it is no part of the hash. Build the text only when keeps_text().
  void note(Nanos at, std::string text);
  [[nodiscard]] bool keeps_text() const { return keeps_text_; }
  [[nodiscard]] std::uint64_t hash() const { return hash_; }
  [[nodiscard]] const std::vector<std::string>& lines() const { return lines_; }

 private:
  bool keeps_text_;
  std::uint64_t hash_ = 0;
  std::vector<std::string> lines_;
};

}  // namespace regroup::sim
