/// The `regroup` program: finds the command and hands it the rest of the words.
#include <fmt/format.h>

#include <string>
#include <string_view>
#include <vector>

#include "launcher/commands.hpp"
#include "launcher/exit_codes.hpp"

namespace {

using regroup::launcher::Arguments;

struct Command {
  std::string_view name;
  std::string_view summary;  ///< empty: not for people
  int (*run)(const Arguments&);
};

constexpr Command kCommands[] = {
    {"run", "run a program as the ranks of a job on this host", regroup::launcher::run_command},
    {"status", "show the running jobs, rank by rank", regroup::launcher::status_command},
    {"events", "print what happened in a job; -f follows", regroup::launcher::events_command},
    {"report", "losses and causes, recovery by phase, time", regroup::launcher::report_command},
    {"inject", "rehearse a fault in a running job", regroup::launcher::inject_command},
    {"coordinator", "", regroup::launcher::coordinator_command},
    {"guardian", "", regroup::launcher::guardian_command},
};

std::string usage() {
  std::string text = "usage: regroup COMMAND ...\n\n";
  for (const Command& command : kCommands) {
    if (!command.summary.empty())
      text += fmt::format("  {:<8} {}\n", command.name, command.summary);
  }
  return text +
         "\nregroup COMMAND --help tells more. A first job: regroup run -n 4 --spares 1 -- "
         "./train\n";
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (words.empty()) {
    fmt::print(stderr, "{}", usage());
    return regroup::launcher::kExitBadUsage;
  }
  if (words[0] == "--help" || words[0] == "-h" || words[0] == "help") {
    fmt::print("{}", usage());
    return regroup::launcher::kExitDone;
  }
  if (words[0] == "--version" || words[0] == "version") {
    fmt::print("regroup {}\n", REGROUP_VERSION);
    return regroup::launcher::kExitDone;
  }
  for (const Command& command : kCommands) {
    if (command.name == words[0]) return command.run(Arguments(words.begin() + 1, words.end()));
  }
  fmt::print(stderr, "E-USE-1 there is no command '{}'\n\n{}", words[0], usage());
  return regroup::launcher::kExitBadUsage;
}
