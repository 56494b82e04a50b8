#include "launcher/descendants.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <charconv>
#include <memory>
#include <optional>

#include "base/fd.hpp"

namespace regroup::launcher {
namespace {

std::optional<std::string> read_whole(const std::string& path) {
  const base::Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return std::nullopt;
  std::string out;
  char buffer[8192];
  ssize_t got;
  while ((got = ::read(fd.get(), buffer, sizeof buffer)) > 0)
    out.append(buffer, static_cast<std::size_t>(got));
  if (got < 0) return std::nullopt;
  return out;
}

std::vector<pid_t> numbers_in(const std::string& folder) {
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(folder.c_str()), &::closedir);
  std::vector<pid_t> out;
  while (dir) {
    const dirent* entry = ::readdir(dir.get());
    if (entry == nullptr) break;
    const std::string_view text(entry->d_name);
    pid_t number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error == std::errc{} && end == text.data() + text.size()) out.push_back(number);
  }
  return out;
}

/// The fields after the command's name, which may itself hold spaces and parentheses: "S 1234 ...".
std::string_view after_name(std::string_view stat) {
  const std::size_t end = stat.rfind(") ");
  return end == std::string_view::npos ? std::string_view() : stat.substr(end + 2);
}

/// Field `number` of proc(5)'s stat, counted as there; the state, field 3, is the first after the
/// name.
std::optional<std::string> stat_field(pid_t pid, int number) {
  const std::optional<std::string> stat = read_whole(fmt::format("/proc/{}/stat", pid));
  if (!stat) return std::nullopt;
  std::string_view fields = after_name(*stat);
  for (int i = 3; i < number; ++i) {
    const std::size_t end = fields.find(' ');
    if (end == std::string_view::npos) return std::nullopt;
    fields.remove_prefix(end + 1);
  }
  return std::string(fields.substr(0, fields.find_first_of(" \n")));
}

void append_numbers(std::string_view text, std::vector<pid_t>& out) {
  const char* at = text.data();
  const char* const end = text.data() + text.size();
  while (at < end) {
    pid_t pid = 0;
    const auto [next, error] = std::from_chars(at, end, pid);
    if (error != std::errc{}) return;
    out.push_back(pid);
    at = next + 1;
  }
}

}  // namespace

pid_t parent_of(pid_t pid) {
  const std::optional<std::string> text = stat_field(pid, 4);
  pid_t parent = -1;
  if (text) std::from_chars(text->data(), text->data() + text->size(), parent);
  return parent;
}

std::optional<std::uint64_t> start_time_of(pid_t pid) {
  const std::optional<std::string> text = stat_field(pid, 22);
  std::uint64_t ticks = 0;
  if (!text || std::from_chars(text->data(), text->data() + text->size(), ticks).ec != std::errc{})
    return std::nullopt;
  return ticks;
}

std::vector<pid_t> children_of(pid_t pid) {
  std::vector<pid_t> out;
  for (const pid_t thread : numbers_in(fmt::format("/proc/{}/task", pid))) {
    const auto listed = read_whole(fmt::format("/proc/{}/task/{}/children", pid, thread));
    if (listed) {
      append_numbers(*listed, out);
      continue;
    }
    // A kernel without this file: ask every process for its parent.
    out.clear();
    for (const pid_t other : numbers_in("/proc")) {
      if (parent_of(other) == pid) out.push_back(other);
    }
    return out;
  }
  return out;
}

std::vector<pid_t> descendants_of(pid_t pid) {
  std::vector<pid_t> out = children_of(pid);
  for (std::size_t i = 0; i < out.size(); ++i) {
    for (const pid_t child : children_of(out[i])) out.push_back(child);
  }
  return out;
}

bool has_variable(pid_t pid, std::string_view key_value) {
  const auto environment = read_whole(fmt::format("/proc/{}/environ", pid));
  if (!environment) return false;
  const std::string wanted = std::string(1, '\0') + std::string(key_value) + '\0';
  return (std::string(1, '\0') + *environment + '\0').find(wanted) != std::string::npos;
}

std::vector<pid_t> processes_with(std::string_view key_value) {
  std::vector<pid_t> out;
  for (const pid_t pid : numbers_in("/proc")) {
    if (has_variable(pid, key_value)) out.push_back(pid);
  }
  return out;
}

bool runs(pid_t pid) {
  const auto stat = read_whole(fmt::format("/proc/{}/stat", pid));
  if (!stat) return false;
  const std::string_view fields = after_name(*stat);
  return !fields.empty() && fields[0] != 'Z' && fields[0] != 'X';
}

bool wants_to_run(pid_t thread) {
  const auto stat = read_whole(fmt::format("/proc/{}/stat", thread));
  return stat && after_name(*stat).starts_with('R');
}

std::optional<int> dying_status(pid_t pid) {
  constexpr int kExitCode = 52;
  const std::optional<std::string> text = stat_field(pid, kExitCode);
  int status = 0;
  if (text) std::from_chars(text->data(), text->data() + text->size(), status);
  if (status == 0) return std::nullopt;
  return status;
}

}  // namespace regroup::launcher
