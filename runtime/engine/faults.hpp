/// Fault script: makes a rank die at an exact point of an exact operation, so that a failure can
/// be replayed.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <regroup/status.hpp>

namespace regroup::engine {

/// Where a rank is right now.
struct FaultPoint {
  std::string_view op;     ///< "all_reduce", "commit", "heal", ...
  std::string_view phase;  ///< "after_copy_in", ...
  std::uint64_t sequence = 0;
  std::uint64_t step = 0;  ///< 0-based index of the step; of no meaning outside steps
  std::uint64_t chunk = 0;
};

/// The rules of REGROUP_FAULTS that concern this life of this rank:
///   "rank=2,inc=0,op=all_reduce,seq=17,phase=after_copy_in:kill;step=3,phase=heal:stop"
/// Keys left out match anything; `inc` counts the lives of the seat (0: the first). Actions: kill
/// stop segv exit. Each rule fires once. Thread safety: hit() from one thread at a time.
class FaultScript {
 public:
  FaultScript() = default;
  /// Keeps the rules for (rank, life). Errors: InvalidArgument, naming the rule that cannot be
  /// read.
  static Result<FaultScript> parse(std::string_view text, Rank rank, std::uint32_t life);

  [[nodiscard]] bool empty() const { return rules_.empty(); }
  /// Performs the action of the first unspent rule that matches. A kill does not return.
  void hit(const FaultPoint& point);

 private:
  enum class Action : std::uint8_t { Kill, Stop, Segv, Exit };
  struct Rule {
    std::optional<std::uint64_t> rank, life, sequence, step, chunk;
    std::string op, phase;  ///< empty: any
    Action action = Action::Kill;
    bool spent = false;
  };
  static Result<Rule> parse_rule(std::string_view text);
  static Status parse_key(std::string_view pair, std::string_view rule_text, Rule& rule);
  static void perform(Action action);

  std::vector<Rule> rules_;
};

}  // namespace regroup::engine
