/// REGROUP_ALGO: which algorithm carries which operation, in place of the built-in choice. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string_view>
#include <vector>

#include <regroup/status.hpp>

#include "collective/schedule.hpp"
#include "collective/schedule_messages.hpp"

namespace regroup::collective {

/// Rules "[OPERATION:]FROM-[TO]:ALGORITHM", separated by `;`. A rule without operation is of the
/// one before it, or of all when there is none. Sizes are bytes of the call's `count`, with k, m or
/// g for binary units; TO is not included, and left out it is no limit. The first rule that fits
/// counts; an algorithm that cannot carry the operation is ignored. Thread safety: a value.
class AlgorithmRules {
 public:
  AlgorithmRules() = default;
  /// Errors: InvalidArgument that names the rule and shows the form.
  static Result<AlgorithmRules> parse(std::string_view text);
  [[nodiscard]] bool empty() const { return rules_.empty(); }
  /// Empty: the built-in choice.
  [[nodiscard]] std::optional<Algorithm> pick(OpKind kind, std::size_t bytes) const;

 private:
  struct Rule {
    std::optional<OpKind> kind;  ///< empty: all
    std::size_t from = 0;
    std::size_t to = std::numeric_limits<std::size_t>::max();
    Algorithm algorithm = Algorithm::OneShot;
  };
  static Result<Rule> parse_rule(std::string_view text, std::optional<OpKind> kind);
  std::vector<Rule> rules_;
};

/// REGROUP_TUNING: what the network is like, as `net_latency_us=30 net_message_us=1 net_gbps=1.2`;
/// words in any order, lines starting with # left out, so that a file may hold it. Errors:
/// InvalidArgument that names the word.
Result<NetworkCost> parse_tuning(std::string_view text);

}  // namespace regroup::collective
