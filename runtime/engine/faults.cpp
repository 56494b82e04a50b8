#include "engine/faults.hpp"

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <charconv>

namespace regroup::engine {
namespace {

Status unreadable(std::string_view rule, std::string_view why) {
  return {Code::InvalidArgument,
          fmt::format("REGROUP_FAULTS: cannot read \"{}\": {}. Example: "
                      "rank=2,inc=0,op=all_reduce,seq=17,phase=after_copy_in:kill",
                      rule, why)};
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (!text.empty()) {
    const auto end = std::min(text.find(separator), text.size());
    if (end > 0) parts.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return parts;
}

}  // namespace

Status FaultScript::parse_key(std::string_view pair, std::string_view rule_text, Rule& rule) {
  const auto equals = pair.find('=');
  if (equals == std::string_view::npos) {
    return unreadable(rule_text, fmt::format("\"{}\" is not key=value", pair));
  }
  const auto key = pair.substr(0, equals);
  const auto value = pair.substr(equals + 1);
  if (key == "op") return rule.op = value, Status();
  if (key == "phase") return rule.phase = value, Status();
  std::uint64_t number = 0;
  const auto parsed = std::from_chars(value.data(), value.data() + value.size(), number);
  if (parsed.ec != std::errc() || parsed.ptr != value.data() + value.size()) {
    return unreadable(rule_text, fmt::format("\"{}\" is not a number", value));
  }
  if (key == "rank") return rule.rank = number, Status();
  if (key == "inc") return rule.life = number, Status();
  if (key == "seq") return rule.sequence = number, Status();
  if (key == "step") return rule.step = number, Status();
  if (key == "chunk") return rule.chunk = number, Status();
  return unreadable(
      rule_text,
      fmt::format("unknown key \"{}\"; there are rank inc op seq step chunk phase", key));
}

Result<FaultScript::Rule> FaultScript::parse_rule(std::string_view text) {
  const auto colon = text.rfind(':');
  if (colon == std::string_view::npos) return unreadable(text, "no action after a colon");
  Rule rule;
  const auto action = text.substr(colon + 1);
  if (action == "kill") {
    rule.action = Action::Kill;
  } else if (action == "stop") {
    rule.action = Action::Stop;
  } else if (action == "segv") {
    rule.action = Action::Segv;
  } else if (action == "exit") {
    rule.action = Action::Exit;
  } else {
    return unreadable(text,
                      fmt::format("unknown action \"{}\"; there are kill stop segv exit", action));
  }
  for (const auto pair : split(text.substr(0, colon), ',')) {
    if (auto status = parse_key(pair, text, rule); !status) return status;
  }
  return rule;
}

Result<FaultScript> FaultScript::parse(std::string_view text, Rank rank, std::uint32_t life) {
  FaultScript script;
  for (const auto part : split(text, ';')) {
    auto rule = parse_rule(part);
    if (!rule) return rule.error();
    if (rule->rank.value_or(static_cast<std::uint64_t>(rank.value())) !=
        static_cast<std::uint64_t>(rank.value())) {
      continue;
    }
    if (rule->life.value_or(life) != life) continue;
    script.rules_.push_back(std::move(*rule));
  }
  return script;
}

void FaultScript::hit(const FaultPoint& point) {
  for (auto& rule : rules_) {
    if (rule.spent || (!rule.op.empty() && rule.op != point.op)) continue;
    if (!rule.phase.empty() && rule.phase != point.phase) continue;
    if (rule.sequence.value_or(point.sequence) != point.sequence) continue;
    if (rule.step.value_or(point.step) != point.step) continue;
    if (rule.chunk.value_or(point.chunk) != point.chunk) continue;
    rule.spent = true;
    perform(rule.action);
    return;
  }
}

void FaultScript::perform(Action action) {
  switch (action) {
    case Action::Kill: ::kill(::getpid(), SIGKILL); break;
    case Action::Stop: ::kill(::getpid(), SIGSTOP); break;
    case Action::Segv:
      ::signal(SIGSEGV, SIG_DFL);
      ::kill(::getpid(), SIGSEGV);
      break;
    case Action::Exit: ::_exit(3);
  }
}

}  // namespace regroup::engine
