#include "launcher/options.hpp"

#include <fmt/format.h>

#include <charconv>

#include "launcher/exit_codes.hpp"
#include "membership/policy.hpp"

namespace regroup::launcher {

using std::chrono::milliseconds;

Result<milliseconds> parse_duration(std::string_view text, milliseconds bare_unit) {
  double number = 0;
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const std::string_view unit(rest, static_cast<std::size_t>(text.data() + text.size() - rest));
  double scale = -1;
  if (unit.empty()) scale = static_cast<double>(bare_unit.count());
  if (unit == "ms") scale = 1;
  if (unit == "s") scale = 1e3;
  if (unit == "m" || unit == "min") scale = 60e3;
  if (unit == "h") scale = 3600e3;
  // A year is more than any job waits, and keeps the product far from overflow.
  if (error != std::errc{} || scale < 0 || !(number >= 0) || number * scale > 3.2e10) {
    return Status(Code::InvalidArgument,
                  fmt::format("'{}' is no duration; write 15s, 200ms, 2m or 1h", text));
  }
  return milliseconds(static_cast<std::int64_t>(number * scale));
}

std::string_view name(OnLoss policy) {
  switch (policy) {
    case OnLoss::Replay: return "replay";
    case OnLoss::CarryOn: return "carry_on";
    case OnLoss::Replace: return "replace";
    case OnLoss::Shrink: return "shrink";
    case OnLoss::Abort: return "abort";
  }
  return "?";
}

Result<OnLoss> parse_on_loss(std::string_view text) {
  for (const OnLoss policy :
       {OnLoss::Replay, OnLoss::CarryOn, OnLoss::Replace, OnLoss::Shrink, OnLoss::Abort}) {
    if (name(policy) == text) return policy;
  }
  return Status(
      Code::InvalidArgument,
      fmt::format("--on-loss {}: no such policy; choose replay, carry_on, replace, shrink "
                  "or abort",
                  text));
}

Result<ControlKind> parse_control(std::string_view text) {
  if (text == "pair") return ControlKind::Pair;
  if (text == "tcp") return ControlKind::Tcp;
  return Status(Code::InvalidArgument,
                fmt::format("--control {}: choose pair (one host) or tcp (TLS, loopback)", text));
}

Refusal check_options(RunOptions& options) {
  const auto refuse = [](std::string code, std::string text) {
    return Refusal{kExitBadUsage, std::move(code), std::move(text)};
  };
  if (options.ranks < 1 || options.ranks > kRanksMax) {
    return refuse("E-USE-2",
                  fmt::format("-n {}: the number of ranks lies between 1 and {} on one host",
                              options.ranks, kRanksMax));
  }
  if (options.ranks_min == 0)
    options.ranks_min = membership::goes_on_smaller(options.on_loss) ? 1 : options.ranks;
  if (options.ranks_min < 1 || options.ranks_min > options.ranks) {
    return refuse(
        "E-USE-3",
        fmt::format("--min {} does not fit -n {}: it lies between 1 and the number of ranks",
                    options.ranks_min, options.ranks));
  }
  if (options.spares < 0 || options.spares > kRanksMax) {
    return refuse("E-USE-4",
                  fmt::format("--spares {}: between 0 and {}", options.spares, kRanksMax));
  }
  if (options.replacements_max < 0) {
    return refuse("E-USE-5",
                  fmt::format("--max-replacements {}: 0 or more", options.replacements_max));
  }
  if (options.detect_budget < milliseconds(500)) {
    return refuse(
        "E-USE-6",
        fmt::format("--detect-budget {}: at least 500 ms, or a pause of 200 ms would count "
                    "as a loss",
                    options.detect_budget.count()));
  }
  if (options.program.empty()) {
    return refuse("E-USE-7", "no program given: regroup run -n 4 -- ./train --its --flags");
  }
  return {0, "", ""};
}

}  // namespace regroup::launcher
