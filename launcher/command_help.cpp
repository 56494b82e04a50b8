#include "launcher/command_help.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "launcher/variables.hpp"

namespace regroup::launcher {
namespace {

bool is_flag(const std::string& name) { return name.starts_with("-"); }
bool is_positional(const OptionShape& option) { return !is_flag(option.names.front()); }

std::string names_of(const std::vector<CommandShape>& commands) {
  std::string out;
  for (const CommandShape& command : commands) out += (out.empty() ? "" : " ") + command.name;
  return out;
}

// ---- bash ----

/// The words that may stand after `option`, for a case branch; "" when anything may.
std::string bash_values(const OptionShape& option) {
  if (!option.choices.empty()) return fmt::format("{}", fmt::join(option.choices, " "));
  return "";
}

std::string bash_command(const CommandShape& command) {
  std::vector<std::string> flags;
  std::string positional;
  std::string by_flag;
  for (const OptionShape& option : command.options) {
    if (is_positional(option)) {
      if (positional.empty()) positional = bash_values(option);
      continue;
    }
    flags.insert(flags.end(), option.names.begin(), option.names.end());
    if (!option.takes_value) continue;
    by_flag += fmt::format("        {}) words='{}'; files={};;\n", fmt::join(option.names, "|"),
                           bash_values(option), option.choices.empty() ? "yes" : "");
  }
  std::string out = fmt::format("    {})\n      flags='{}'\n      words='{}'\n", command.name,
                                fmt::join(flags, " "), positional);
  if (!by_flag.empty()) {
    out += "      case \"$before\" in\n" + by_flag + "        *) by_flag=;;\n      esac\n";
  } else {
    out += "      by_flag=\n";
  }
  return out + "      ;;\n";
}

std::string bash_text(const std::vector<CommandShape>& commands) {
  std::string out =
      "# bash completion for regroup: source <(regroup completion bash)\n"
      "_regroup() {\n"
      "  local word=\"${COMP_WORDS[COMP_CWORD]}\" before=\"${COMP_WORDS[COMP_CWORD-1]}\"\n"
      "  local flags= words= files= by_flag=yes at\n"
      "  COMPREPLY=()\n"
      "  if ((COMP_CWORD == 1)); then\n"
      "    COMPREPLY=($(compgen -W '" +
      names_of(commands) +
      " help completion --help --version' -- \"$word\"))\n"
      "    return\n"
      "  fi\n"
      "  # What comes after -- is the program's.\n"
      "  for ((at = 2; at < COMP_CWORD; ++at)); do\n"
      "    if [[ \"${COMP_WORDS[at]}\" == -- ]]; then\n"
      "      if ((at + 1 == COMP_CWORD)); then COMPREPLY=($(compgen -c -f -- \"$word\"))\n"
      "      else COMPREPLY=($(compgen -f -- \"$word\")); fi\n"
      "      return\n"
      "    fi\n"
      "  done\n"
      "  case \"${COMP_WORDS[1]}\" in\n"
      "    help) words='" +
      names_of(commands) +
      "'; by_flag=;;\n"
      "    completion) words='bash zsh'; by_flag=;;\n";
  for (const CommandShape& command : commands) out += bash_command(command);
  return out +
         "  esac\n"
         "  if [[ \"$word\" == -* && -z \"$by_flag\" ]]; then\n"
         "    COMPREPLY=($(compgen -W \"$flags\" -- \"$word\"))\n"
         "  elif [[ -n \"$words\" ]]; then\n"
         "    COMPREPLY=($(compgen -W \"$words\" -- \"$word\"))\n"
         "  elif [[ -n \"$files\" || -z \"$by_flag\" ]]; then\n"
         "    COMPREPLY=($(compgen -f -- \"$word\"))\n"
         "  fi\n"
         "}\n"
         "complete -o filenames -F _regroup regroup\n";
}

// ---- zsh ----

/// For the inside of a single-quoted specification of _arguments.
std::string zsh_escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\'') {
      out += "'\\''";
      continue;
    }
    if (c == '[' || c == ']' || c == ':' || c == '\\') out += '\\';
    out += c == '\n' ? ' ' : c;
  }
  return out;
}

std::string zsh_value(const OptionShape& option) {
  if (!option.choices.empty()) return fmt::format(":value:({})", fmt::join(option.choices, " "));
  return ":value:_files";
}

std::string zsh_command(const CommandShape& command) {
  std::string out = fmt::format("    {})\n      _arguments \\\n", command.name);
  for (const OptionShape& option : command.options) {
    if (is_positional(option)) {
      out += fmt::format("        '*{}' \\\n", zsh_value(option));
      continue;
    }
    const std::string value = option.takes_value ? zsh_value(option) : "";
    for (const std::string& name : option.names)
      out += fmt::format("        '{}[{}]{}' \\\n", name, zsh_escaped(option.help), value);
  }
  return out + "        '*::program:_normal'\n      ;;\n";
}

std::string zsh_text(const std::vector<CommandShape>& commands) {
  std::string out =
      "#compdef regroup\n"
      "# zsh completion for regroup: save as _regroup in a folder of $fpath\n"
      "_regroup() {\n"
      "  if ((CURRENT == 2)); then\n"
      "    local -a commands=(\n";
  for (const CommandShape& command : commands)
    out += fmt::format("      '{}:{}'\n", command.name, zsh_escaped(command.help));
  out +=
      "      'help:explain a command or a topic'\n"
      "      'completion:print the completion script of a shell'\n"
      "    )\n"
      "    _describe command commands\n"
      "    return\n"
      "  fi\n"
      "  local command=\"$words[2]\"\n"
      "  shift words\n"
      "  ((CURRENT--))\n"
      "  case \"$command\" in\n";
  out += fmt::format("    help) _values topic {};;\n    completion) _values shell bash zsh;;\n",
                     names_of(commands));
  for (const CommandShape& command : commands) out += zsh_command(command);
  return out + "  esac\n}\ncompdef _regroup regroup\n";
}

// ---- man ----

std::string man_escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\') {
      out += "\\e";
    } else if (c == '-') {
      out += "\\-";
    } else {
      // A line that begins with a dot or a quote would be a request.
      if ((c == '.' || c == '\'') && (out.empty() || out.back() == '\n')) out += "\\&";
      out += c;
    }
  }
  return out;
}

std::string man_command(const CommandShape& command) {
  std::string out = fmt::format(".SS regroup {}\n{}\n", command.name, man_escaped(command.help));
  for (const OptionShape& option : command.options) {
    std::vector<std::string> names;
    for (const std::string& name : option.names) names.push_back(man_escaped(name));
    out += fmt::format(".TP\n.B {}{}\n{}\n", fmt::join(names, ", "),
                       option.takes_value && !is_positional(option) ? " VALUE" : "",
                       man_escaped(option.help));
  }
  return out;
}

struct Topic {
  std::string_view name;
  std::string_view about;
};
constexpr std::array kTopics = {Topic{"environment", "the variables that a user may set"},
                                Topic{"exit-codes", "what regroup run and mpirun end with"}};

constexpr std::string_view kExitCodesText =
    "0        all seats ended with 0\n"
    "N        the first cause was a program that exited with N\n"
    "128+S    the first cause was a program that died by signal S\n"
    "64       wrong command line\n"
    "66       the program, or mpirun, was not found or cannot be executed\n"
    "69       this machine lacks something (regroup doctor), the coordinator will not run, or\n"
    "         mpirun ended before its places\n"
    "70       a defect of Regroup\n"
    "75       too few ranks left to go on, or the allowance of replacements is used up\n"
    "77       the log directory cannot be made or written\n"
    "124      --timeout passed\n"
    "130,143  ended by Ctrl-C, by SIGTERM\n";

}  // namespace

Result<std::string> completion_text(std::string_view shell,
                                    const std::vector<CommandShape>& commands) {
  if (shell == "bash") return bash_text(commands);
  if (shell == "zsh") return zsh_text(commands);
  return Status(Code::InvalidArgument,
                fmt::format("E-USE-1 completion '{}': say bash or zsh", shell));
}

std::string manual_text(const std::vector<CommandShape>& commands, std::string_view version) {
  std::string out = fmt::format(
      ".TH REGROUP 1 \"\" \"regroup {}\" \"User commands\"\n"
      ".SH NAME\nregroup \\- run jobs whose ranks may die\n"
      ".SH SYNOPSIS\n.B regroup\n.I COMMAND\n...\n"
      ".SH DESCRIPTION\nStarts the ranks of a job, replaces those that are lost, and shows what "
      "happened.\n.SH COMMANDS\n",
      version);
  for (const CommandShape& command : commands) out += man_command(command);
  out += ".SH ENVIRONMENT\n";
  for (const Variable& variable : kUserVariables) {
    out += fmt::format(".TP\n.B {}\n{} (default: {})\n", variable.name,
                       man_escaped(variable.meaning), man_escaped(variable.fallback));
  }
  out += fmt::format(".SH EXIT STATUS\nOf regroup run:\n.nf\n{}.fi\n", man_escaped(kExitCodesText));
  return out;
}

std::string topic_text(std::string_view topic) {
  if (topic == "exit-codes") return std::string(kExitCodesText);
  if (topic != "environment") return "";
  std::string out;
  for (const Variable& variable : kUserVariables)
    out += fmt::format("{:<18} {} (default: {})\n", variable.name, variable.meaning,
                       variable.fallback);
  return out + "regroup env --all shows what holds here.\n";
}

std::string topics_text() {
  std::string out;
  for (const Topic& topic : kTopics) out += fmt::format("  {:<12} {}\n", topic.name, topic.about);
  return out;
}

}  // namespace regroup::launcher
