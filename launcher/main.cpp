/// The `regroup` program: finds the command and hands it the rest of the words.
#include <fmt/format.h>

#include <string>
#include <string_view>
#include <vector>

#include "launcher/command_help.hpp"
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
    {"mpirun", "the same, its ranks started by an mpirun", regroup::launcher::mpirun_command},
    {"exec", "the same under mpirun, srun or torchrun", regroup::launcher::exec_command},
    {"status", "show the running jobs, rank by rank", regroup::launcher::status_command},
    {"events", "print what happened in a job; -f follows", regroup::launcher::events_command},
    {"report", "losses and causes, recovery by phase, time", regroup::launcher::report_command},
    {"trace", "a job as a Chrome trace, rank by rank", regroup::launcher::trace_command},
    {"drain", "take healthy ranks out of their seats", regroup::launcher::drain_command},
    {"scale", "give a running job fewer or more ranks", regroup::launcher::scale_command},
    {"inject", "rehearse a fault in a running job", regroup::launcher::inject_command},
    {"doctor", "what this machine offers, and what it means", regroup::launcher::doctor_command},
    {"env", "which launcher started this process, and why", regroup::launcher::env_command},
    {"coordinator", "", regroup::launcher::coordinator_command},
    {"agent", "", regroup::launcher::agent_command},
    {"guardian", "", regroup::launcher::guardian_command},
};

std::string usage() {
  std::string text = "usage: regroup COMMAND ...\n\n";
  for (const Command& command : kCommands) {
    if (!command.summary.empty())
      text += fmt::format("  {:<8} {}\n", command.name, command.summary);
  }
  return text + "\nregroup COMMAND --help tells more, and so does regroup help TOPIC:\n" +
         regroup::launcher::topics_text() +
         "regroup completion bash|zsh prints a completion script. A first job: regroup run -n 4 "
         "--spares 1 -- "
         "./train\n";
}

std::vector<regroup::launcher::CommandShape> shapes() {
  std::vector<regroup::launcher::CommandShape> out;
  for (const Command& command : kCommands) {
    if (!command.summary.empty())
      out.push_back(regroup::launcher::shape_of(command.name, command.run));
  }
  return out;
}

/// `regroup help [COMMAND|TOPIC|--man]`
int help(const std::vector<std::string>& words) {
  if (words.size() < 2) {
    fmt::print("{}", usage());
    return regroup::launcher::kExitDone;
  }
  if (words[1] == "--man") {
    fmt::print("{}", regroup::launcher::manual_text(shapes(), REGROUP_VERSION));
    return regroup::launcher::kExitDone;
  }
  for (const Command& command : kCommands) {
    if (command.name == words[1]) return command.run({"--help"});
  }
  const std::string text = regroup::launcher::topic_text(words[1]);
  if (text.empty()) {
    fmt::print(stderr, "E-USE-1 there is no command or topic '{}'\n\n{}", words[1], usage());
    return regroup::launcher::kExitBadUsage;
  }
  fmt::print("{}", text);
  return regroup::launcher::kExitDone;
}

/// `regroup completion SHELL`
int completion(const std::vector<std::string>& words) {
  const auto text = regroup::launcher::completion_text(words.size() > 1 ? words[1] : "", shapes());
  if (!text) {
    fmt::print(stderr, "regroup: {}\n", text.error().text());
    return regroup::launcher::kExitBadUsage;
  }
  fmt::print("{}", *text);
  return regroup::launcher::kExitDone;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (words.empty()) {
    fmt::print(stderr, "{}", usage());
    return regroup::launcher::kExitBadUsage;
  }
  if (words[0] == "--help" || words[0] == "-h") return help({});
  if (words[0] == "help") return help(words);
  if (words[0] == "completion") return completion(words);
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
