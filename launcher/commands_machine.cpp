/// Commands that look at the machine and at the environment, not at a job.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "launcher/command_line.hpp"
#include "launcher/commands.hpp"
#include "launcher/doctor.hpp"
#include "launcher/environment.hpp"
#include "launcher/exit_codes.hpp"
#include "launcher/launch_environment.hpp"
#include "launcher/variables.hpp"

namespace regroup::launcher {
namespace {

using nlohmann::json;

constexpr int kDoctorSchema = 1;
constexpr int kEnvSchema = 1;

std::string figure(const std::optional<int>& value) {
  return value ? fmt::format("{}", *value) : "unknown";
}
json figure_json(const std::optional<int>& value) { return value ? json(*value) : json(); }

json rows_json(const std::vector<LaunchRow>& rows) {
  json out = json::array();
  for (const LaunchRow& row : rows) {
    out.push_back({{"system", name(row.system)},
                   {"title", title(row.system)},
                   {"matches", row.matches},
                   {"chosen", row.chosen},
                   {"why", row.why}});
  }
  return out;
}

json variables_json(bool all) {
  json out = json::array();
  for (const Variable& variable : kUserVariables) {
    const char* value = std::getenv(std::string(variable.name).c_str());
    if (value == nullptr && !all) continue;
    out.push_back({{"name", variable.name},
                   {"value", value != nullptr ? json(value) : json()},
                   {"default", variable.fallback},
                   {"origin", value != nullptr ? "environment" : "default"},
                   {"meaning", variable.meaning}});
  }
  for (const std::string_view own : kOwnVariables) {
    const char* value = std::getenv(std::string(own).c_str());
    if (value == nullptr && !all) continue;
    out.push_back({{"name", own},
                   {"value", value != nullptr ? json(value) : json()},
                   {"default", "set for each process of a job"},
                   {"origin", value != nullptr ? "a launcher" : "not set"},
                   {"meaning", "docs/environment.md"}});
  }
  return out;
}

json environment_json(bool all, Status& refusal) {
  const std::vector<std::string> environment = own_environment();
  const Result<LaunchEnvironment> found = read_launch_environment(environment);
  json out = {{"v", kEnvSchema},
              {"rows", rows_json(explain_launch_environment(environment))},
              {"variables", variables_json(all)}};
  if (!found) {
    refusal = found.error();
    out["error"] = refusal.text();
    return out;
  }
  out["found"] = {{"system", name(found->system)},
                  {"title", title(found->system)},
                  {"rank", figure_json(found->rank)},
                  {"size", figure_json(found->size)},
                  {"local_rank", figure_json(found->local_rank)},
                  {"local_size", figure_json(found->local_size)},
                  {"host", figure_json(found->host)},
                  {"hosts", figure_json(found->hosts)},
                  {"job", found->job},
                  {"address", found->address},
                  {"why", found->why},
                  {"conflicts", found->conflicts}};
  return out;
}

void print_environment(const json& all) {
  fmt::print("who started this process: the first row that matches counts\n");
  for (const json& row : all["rows"]) {
    fmt::print("  {} {:<16} {:<26} {}\n",
               row["chosen"] == true    ? "->"
               : row["matches"] == true ? " +"
                                        : "  ",
               row["system"].get<std::string>(), row["title"].get<std::string>(),
               row["why"].get<std::string>());
  }
  if (all.contains("found")) {
    const json& found = all["found"];
    const auto number = [&](const char* key) {
      return figure(found[key].is_null() ? std::nullopt : std::optional(found[key].get<int>()));
    };
    fmt::print("\nrank {} of {}, on this host {} of {}, host {} of {}\n", number("rank"),
               number("size"), number("local_rank"), number("local_size"), number("host"),
               number("hosts"));
    for (const json& conflict : found["conflicts"])
      fmt::print("also set: {}\n", conflict.get<std::string>());
  }
  if (all["variables"].empty()) return;
  fmt::print("\nvariables of Regroup\n");
  for (const json& variable : all["variables"]) {
    fmt::print("  {:<24} {} ({}; default: {})\n", variable["name"].get<std::string>(),
               variable["value"].is_null() ? "-" : variable["value"].get<std::string>(),
               variable["origin"].get<std::string>(), variable["default"].get<std::string>());
  }
}

}  // namespace

int doctor_command(const Arguments& arguments) {
  CLI::App app("Shows what this machine offers to a job, and what each thing means for it.",
               "regroup doctor");
  bool as_json = false;
  app.add_flag("--json", as_json, "one JSON object (docs/schemas/doctor.md)");
  if (const std::optional<int> done = parse_command_line(app, "doctor", arguments)) return *done;
  const std::vector<Finding> findings = examine_machine();
  const bool good = std::none_of(findings.begin(), findings.end(), [](const Finding& finding) {
    return finding.health == Health::Missing;
  });
  json out = {{"v", kDoctorSchema}, {"ok", good}, {"checks", json::array()}};
  std::size_t hints = 0;
  for (const Finding& finding : findings) {
    hints += finding.health == Health::Hint ? 1 : 0;
    out["checks"].push_back({{"name", finding.name},
                             {"state", name(finding.health)},
                             {"value", finding.value},
                             {"meaning", finding.meaning}});
    if (as_json) continue;
    fmt::print("{:<8} {:<15} {}\n", name(finding.health), finding.name, finding.value);
    if (!finding.meaning.empty()) fmt::print("{:<24} {}\n", "", finding.meaning);
  }
  if (as_json) {
    fmt::print("{}\n", out.dump());
  } else {
    fmt::print("\n{}\n",
               !good        ? std::string("jobs cannot run here: see what is missing")
               : hints == 0 ? std::string("jobs run here")
                            : fmt::format("jobs run here; {} hint{}", hints, hints > 1 ? "s" : ""));
  }
  return good ? kExitDone : kExitUnavailable;
}

int env_command(const Arguments& arguments) {
  CLI::App app("Shows which launcher started this process, what else matched, and why.",
               "regroup env");
  bool as_json = false;
  bool all = false;
  app.add_flag("--all", all, "each variable of Regroup with its default and origin");
  app.add_flag("--json", as_json, "one JSON object (docs/schemas/env.md)");
  if (const std::optional<int> done = parse_command_line(app, "env", arguments)) return *done;
  Status refusal;
  const json out = environment_json(all, refusal);
  if (as_json) {
    fmt::print("{}\n", out.dump());
  } else {
    print_environment(out);
  }
  if (refusal) return kExitDone;
  fmt::print(stderr, "regroup: {}\n", refusal.text());
  return kExitBadUsage;
}

}  // namespace regroup::launcher
