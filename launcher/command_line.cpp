#include "launcher/command_line.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "launcher/exit_codes.hpp"

namespace regroup::launcher {
namespace {

/// Where a description goes instead of parsing; null: parse.
CommandShape* wanted_shape = nullptr;

/// The words of an option that was given CLI::IsMember.
std::vector<std::string> choices_of(const CLI::Option& option) {
  const std::string type = option.get_type_name();
  const std::size_t open = type.find('{');
  const std::size_t close = type.find('}', open);
  std::vector<std::string> out;
  if (open == std::string::npos || close == std::string::npos) return out;
  std::string word;
  for (const char c : type.substr(open + 1, close - open - 1) + ",") {
    if (c != ',') {
      word += c;
      continue;
    }
    out.push_back(word);
    word.clear();
  }
  return out;
}

OptionShape shape_of(const CLI::Option& option) {
  OptionShape out;
  for (const std::string& name : option.get_snames()) out.names.push_back("-" + name);
  for (const std::string& name : option.get_lnames()) out.names.push_back("--" + name);
  if (out.names.empty()) out.names.push_back(option.get_name());
  out.help = option.get_description();
  out.takes_value = option.get_items_expected_max() > 0;
  out.required = option.get_required();
  out.choices = choices_of(option);
  return out;
}

}  // namespace

bool only_described(const CLI::App& app) {
  if (wanted_shape == nullptr) return false;
  wanted_shape->help = app.get_description();
  for (const CLI::Option* option : app.get_options())
    wanted_shape->options.push_back(shape_of(*option));
  wanted_shape = nullptr;
  return true;
}

CommandShape shape_of(std::string_view name, int (*command)(const Arguments&)) {
  CommandShape out;
  out.name = name;
  wanted_shape = &out;
  command({});
  wanted_shape = nullptr;
  return out;
}

std::optional<int> parse_command_line(CLI::App& app, std::string_view command,
                                      const Arguments& arguments) {
  if (only_described(app)) return kExitDone;
  try {
    app.parse(Arguments(arguments.rbegin(), arguments.rend()));
  } catch (const CLI::CallForHelp&) {
    fmt::print("{}", app.help());
    return kExitDone;
  } catch (const CLI::ParseError& error) {
    fmt::print(stderr, "E-USE-1 regroup {}: {}. \"regroup {} --help\" tells more.\n", command,
               error.what(), command);
    return kExitBadUsage;
  }
  return std::nullopt;
}

int say_failure(const Status& status) {
  fmt::print(stderr, "regroup: {}\n", status.text());
  return status.code() == Code::Unauthenticated ? kExitNotAllowed : kExitUnavailable;
}

int say_no_job(const Status& status) {
  fmt::print(stderr, "regroup: {}\n", status.text());
  return status.code() == Code::InvalidArgument ? kExitBadUsage : kExitUnavailable;
}

}  // namespace regroup::launcher
