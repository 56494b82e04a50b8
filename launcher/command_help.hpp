/// Texts that are made from the commands' own descriptions: shell completion and manual pages.
/// Pure.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <regroup/status.hpp>

#include "launcher/command_line.hpp"

namespace regroup::launcher {

/// A script that the shell sources. Errors: InvalidArgument (neither bash nor zsh).
Result<std::string> completion_text(std::string_view shell,
                                    const std::vector<CommandShape>& commands);
/// The manual page regroup(1), in the language of man(7).
[[nodiscard]] std::string manual_text(const std::vector<CommandShape>& commands,
                                      std::string_view version);

/// Pages that belong to no command: `regroup help TOPIC`. Empty: there is no such topic.
[[nodiscard]] std::string topic_text(std::string_view topic);
/// Their names, with what each is about.
[[nodiscard]] std::string topics_text();

}  // namespace regroup::launcher
