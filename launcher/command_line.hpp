/// How the commands read their words. The same descriptions that parse them make --help, the help
/// pages and the shell completion.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <regroup/status.hpp>

#include "launcher/commands.hpp"

namespace CLI {
class App;
}

namespace regroup::launcher {

/// None: parsed. Otherwise the exit code of a command that ends here (help asked for, or wrong
/// words).
std::optional<int> parse_command_line(CLI::App& app, std::string_view command,
                                      const Arguments& arguments);

/// Ends a command that got no answer: prints why, and is its exit code.
int say_failure(const Status& status);
/// Ends a command that found no job to ask, or several (only_job()).
int say_no_job(const Status& status);

/// One option or positional of a command.
struct OptionShape {
  std::vector<std::string> names;  ///< "-n", "--ranks"; one without dashes is a positional
  std::string help;
  bool takes_value = false;
  bool required = false;
  std::vector<std::string> choices;  ///< the words that it takes, where it says so
};
/// One command of the program.
struct CommandShape {
  std::string name;
  std::string help;
  std::vector<OptionShape> options;
};

/// What a command accepts, from its own description: calls it so that it stops where it would
/// parse. Threads: one at a time.
[[nodiscard]] CommandShape shape_of(std::string_view name, int (*command)(const Arguments&));
/// For a command that parses by itself: true when shape_of() asked, and the command returns.
[[nodiscard]] bool only_described(const CLI::App& app);

}  // namespace regroup::launcher
