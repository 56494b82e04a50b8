#include "collective/algorithm_rules.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <sstream>
#include <string>
#include <utility>

namespace regroup::collective {
namespace {

constexpr const char* kForm = "all_reduce:0-32k:oneshot;32k-:twoshot";

Status refuse(std::string_view rule, std::string_view why) {
  return {Code::InvalidArgument,
          fmt::format("REGROUP_ALGO: rule '{}': {}; the form is {}", rule, why, kForm)};
}

std::optional<OpKind> parse_kind(std::string_view text) {
  for (int i = 0; i < spi::kSingleKindCount; ++i) {
    const auto kind = static_cast<OpKind>(i);
    if (text == spi::name(kind)) return kind;
  }
  return std::nullopt;
}

std::optional<Algorithm> parse_algorithm(std::string_view text) {
  for (int i = 0; i < kAlgorithmCount; ++i) {
    const auto algorithm = static_cast<Algorithm>(i);
    if (text == name(algorithm)) return algorithm;
  }
  return std::nullopt;
}

std::string all_algorithms() {
  std::string all;
  for (int i = 0; i < kAlgorithmCount; ++i)
    all += fmt::format("{}{}", i == 0 ? "" : ", ", name(static_cast<Algorithm>(i)));
  return all;
}

std::optional<std::size_t> parse_bytes(std::string_view text) {
  std::size_t shift = 0;
  if (!text.empty()) {
    const char unit = text.back();
    shift = unit == 'k' || unit == 'K'   ? 10
            : unit == 'm' || unit == 'M' ? 20
            : unit == 'g'                ? 30
                                         : 0;
    if (shift != 0) text.remove_suffix(1);
  }
  std::size_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  if (number > std::numeric_limits<std::size_t>::max() >> shift) return std::nullopt;
  return number << shift;
}

/// Cuts off what stands before the last `mark`; all of it when there is none.
std::string_view take_last(std::string_view& text, char mark) {
  const auto at = text.rfind(mark);
  const std::string_view last = at == std::string_view::npos ? text : text.substr(at + 1);
  text = at == std::string_view::npos ? std::string_view() : text.substr(0, at);
  return last;
}

}  // namespace

Result<AlgorithmRules::Rule> AlgorithmRules::parse_rule(std::string_view text,
                                                        std::optional<OpKind> kind) {
  std::string_view rest = text;
  const std::string_view algorithm_text = take_last(rest, ':');
  const std::string_view range = take_last(rest, ':');
  Rule rule{.kind = kind};
  if (!rest.empty()) {
    rule.kind = parse_kind(rest);
    if (!rule.kind) return refuse(text, fmt::format("'{}' is no operation", rest));
  }
  const auto algorithm = parse_algorithm(algorithm_text);
  if (!algorithm) {
    return refuse(text, fmt::format("'{}' is none of {}", algorithm_text, all_algorithms()));
  }
  rule.algorithm = *algorithm;
  const auto dash = range.find('-');
  if (dash == std::string_view::npos) return refuse(text, "FROM-TO is missing");
  const auto from = parse_bytes(range.substr(0, dash));
  if (!from) return refuse(text, fmt::format("'{}' is no size", range.substr(0, dash)));
  rule.from = *from;
  if (const std::string_view to = range.substr(dash + 1); !to.empty()) {
    const auto bytes = parse_bytes(to);
    if (!bytes) return refuse(text, fmt::format("'{}' is no size", to));
    rule.to = *bytes;
  }
  return rule;
}

Result<NetworkCost> parse_tuning(std::string_view text) {
  NetworkCost cost;
  double gbps = cost.bytes_per_us / 1000;
  const std::pair<std::string_view, double*> names[] = {{"net_latency_us", &cost.latency_us},
                                                        {"net_message_us", &cost.message_us},
                                                        {"net_gbps", &gbps}};
  std::istringstream lines{std::string(text)};
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with('#')) continue;
    std::istringstream words(line);
    for (std::string word; words >> word;) {
      const auto equals = std::min(word.find('='), word.size());
      const std::string_view digits =
          std::string_view(word).substr(std::min(equals + 1, word.size()));
      double value = 0;
      const auto [end, error] =
          std::from_chars(digits.data(), digits.data() + digits.size(), value);
      const bool number = error == std::errc() && end == digits.data() + digits.size();
      const auto known = std::ranges::find(
          names, word.substr(0, equals), [](const auto& each) { return std::string(each.first); });
      if (known == std::end(names) || !number || !(value > 0) || !(value < 1e9)) {
        return Status(Code::InvalidArgument,
                      fmt::format("REGROUP_TUNING: '{}' is none of net_latency_us=NUMBER, "
                                  "net_message_us=NUMBER, net_gbps=NUMBER",
                                  word));
      }
      *known->second = value;
    }
  }
  cost.bytes_per_us = gbps * 1000;
  return cost;
}

Result<AlgorithmRules> AlgorithmRules::parse(std::string_view text) {
  AlgorithmRules rules;
  std::optional<OpKind> kind;
  while (!text.empty()) {
    const auto end = std::min(text.find(';'), text.size());
    const std::string_view part = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (part.empty()) continue;
    auto rule = parse_rule(part, kind);
    if (!rule) return rule.error();
    kind = rule->kind;
    rules.rules_.push_back(*rule);
  }
  return rules;
}

std::optional<Algorithm> AlgorithmRules::pick(OpKind kind, std::size_t bytes) const {
  for (const Rule& rule : rules_) {
    if (rule.kind && *rule.kind != kind) continue;
    if (bytes >= rule.from && bytes < rule.to) return rule.algorithm;
  }
  return std::nullopt;
}

}  // namespace regroup::collective
