#include "launcher/host_list.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <utility>

namespace regroup::launcher {
namespace {

constexpr std::string_view kBlank = " \t\r";

Status wrong(std::string text) { return {Code::InvalidArgument, "E-HOST-1 " + std::move(text)}; }

std::string_view trimmed(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(kBlank);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kBlank) - begin + 1);
}

template <class Number>
std::optional<Number> number(std::string_view text, Number max) {
  Number value{};
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  if (text.empty() || error != std::errc{} || rest != end || value > max) return std::nullopt;
  return value;
}

/// What names and addresses are made of. A name that began with a dash would be an option to ssh.
bool is_name(std::string_view text) {
  const auto fits = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '-' || c == '_' || c == ':' || c == '%';
  };
  return !text.empty() && text.size() <= kHostNameBytesMax && text.front() != '-' &&
         std::all_of(text.begin(), text.end(), fits);
}

/// "a", "a:2", "user@a:2", "[fd00::1]:2", "fd00::1".
Result<HostEntry> parse_host(std::string_view word) {
  const auto refuse = [word] {
    return wrong(fmt::format("'{}' is no host; write a, a:2, user@a:2 or [fd00::1]:2",
                             word.substr(0, kHostNameBytesMax)));
  };
  HostEntry out;
  std::string_view rest = word;
  if (const std::size_t at = rest.find('@'); at != std::string_view::npos) {
    out.user = rest.substr(0, at);
    rest.remove_prefix(at + 1);
    if (!is_name(out.user)) return refuse();
  }
  std::string_view slots;
  if (rest.starts_with('[')) {
    const std::size_t end = rest.find(']');
    if (end == std::string_view::npos) return refuse();
    out.name = rest.substr(1, end - 1);
    rest.remove_prefix(end + 1);
    if (!rest.empty() && rest.front() != ':') return refuse();
    slots = rest.empty() ? rest : rest.substr(1);
    if (!rest.empty() && slots.empty()) return refuse();
  } else if (std::count(rest.begin(), rest.end(), ':') == 1) {
    const std::size_t colon = rest.find(':');
    out.name = rest.substr(0, colon);
    slots = rest.substr(colon + 1);
    if (slots.empty()) return refuse();
  } else {
    out.name = rest;  // several colons: an address of version 6
  }
  if (!is_name(out.name)) return refuse();
  if (slots.empty()) return out;
  out.slots = number<std::uint32_t>(slots, kSlotsMax);
  if (!out.slots) return refuse();
  return out;
}

/// Splits at commas that stand in no brackets.
std::vector<std::string_view> words_of(std::string_view text) {
  std::vector<std::string_view> out;
  int depth = 0;
  std::size_t begin = 0;
  for (std::size_t i = 0; i <= text.size(); ++i) {
    if (i < text.size() && text[i] == '[') ++depth;
    if (i < text.size() && text[i] == ']') --depth;
    if (i < text.size() && (text[i] != ',' || depth > 0)) continue;
    out.push_back(trimmed(text.substr(begin, i - begin)));
    begin = i + 1;
  }
  return out;
}

/// One piece of "[10,20-25]": 20 to 25, with as many digits as written.
Status add_range(std::string_view range, const std::string& before, const std::string& after,
                 std::vector<std::string>& out) {
  const std::size_t dash = range.find('-');
  const std::string_view first_text = range.substr(0, dash);
  const std::string_view last_text =
      dash == std::string_view::npos ? first_text : range.substr(dash + 1);
  const auto first = number<std::uint32_t>(first_text, 99'999'999);
  const auto last = number<std::uint32_t>(last_text, 99'999'999);
  if (!first || !last || *last < *first || *last - *first >= kHostsMax) {
    return wrong(fmt::format("'{}' is no range of hosts; write 3 or 10-25, at most {} hosts",
                             range.substr(0, kHostNameBytesMax), kHostsMax));
  }
  for (std::uint32_t i = *first; i <= *last; ++i)
    out.push_back(fmt::format("{}{:0{}}{}", before, i, first_text.size(), after));
  return {};
}

/// "gnode[10,20-25]:4" -> "gnode10:4", ...; a word that begins with a bracket is an address.
Result<std::vector<std::string>> expanded(std::string_view word) {
  const std::size_t open = word.find('[');
  const std::size_t close = word.find(']');
  std::vector<std::string> out;
  if (open == std::string_view::npos || open == 0 || word[open - 1] == '@') {
    out.emplace_back(word);
    return out;
  }
  if (close == std::string_view::npos || close < open || word.find('[', close) != word.npos)
    return wrong(fmt::format("'{}': one pair of brackets a name", word.substr(0, 64)));
  const std::string before(word.substr(0, open));
  const std::string after(word.substr(close + 1));
  for (const std::string_view range : words_of(word.substr(open + 1, close - open - 1))) {
    if (Status added = add_range(range, before, after, out); !added) return added;
    if (out.size() > kHostsMax) break;
  }
  return out;
}

Status add(std::vector<HostEntry>& hosts, HostEntry host) {
  if (hosts.size() >= kHostsMax) return wrong(fmt::format("at most {} hosts", kHostsMax));
  const bool twice = std::any_of(hosts.begin(), hosts.end(),
                                 [&](const HostEntry& other) { return other.name == host.name; });
  if (twice) {
    return wrong(fmt::format("host {} is listed twice; name it once, with all its slots: {}:4",
                             host.name, host.name));
  }
  hosts.push_back(std::move(host));
  return {};
}

Result<std::vector<HostEntry>> none_is_wrong(std::vector<HostEntry> hosts) {
  if (hosts.empty()) return wrong("the list of hosts is empty");
  return hosts;
}

Status read_token(std::string_view token, HostEntry& host) {
  const std::size_t equals = token.find('=');
  const std::string_view key = token.substr(0, equals);
  const std::string_view value =
      equals == std::string_view::npos ? std::string_view() : token.substr(equals + 1);
  if (token == "spare") {
    host.spare = true;
  } else if (key == "slots") {
    host.slots = number<std::uint32_t>(value, kSlotsMax);
    if (!host.slots) return wrong(fmt::format("slots={}: a number up to {}", value, kSlotsMax));
  } else if (key == "ssh_port") {
    host.ssh_port = number<std::uint16_t>(value, 65535);
    if (!host.ssh_port) return wrong(fmt::format("ssh_port={} is no port", value));
  } else if (key != "max_slots" && key != "max-slots" && key != "gpus" && key != "zone") {
    return wrong(fmt::format("'{}' is not known; a host may have slots=, spare and ssh_port=",
                             token.substr(0, 64)));
  }
  return {};
}

Status read_line(std::string_view line, std::vector<HostEntry>& hosts) {
  std::vector<std::string_view> tokens;
  while (!line.empty()) {
    const std::size_t end = line.find_first_of(kBlank);
    tokens.push_back(line.substr(0, end));
    line = end == std::string_view::npos ? std::string_view() : trimmed(line.substr(end));
  }
  const Result<std::vector<std::string>> names = expanded(tokens.front());
  if (!names) return names.error();
  for (const std::string& name : *names) {
    Result<HostEntry> host = parse_host(name);
    if (!host) return host.error();
    for (std::size_t i = 1; i < tokens.size(); ++i) {
      if (Status read = read_token(tokens[i], *host); !read) return read;
    }
    if (Status added = add(hosts, std::move(*host)); !added) return added;
  }
  return {};
}

}  // namespace

Result<std::vector<HostEntry>> parse_host_list(std::string_view text) {
  std::vector<HostEntry> hosts;
  for (const std::string_view word : words_of(text)) {
    const Result<std::vector<std::string>> names = expanded(word);
    if (!names) return names.error();
    for (const std::string& name : *names) {
      Result<HostEntry> host = parse_host(name);
      if (!host) return host.error();
      if (Status added = add(hosts, std::move(*host)); !added) return added;
    }
  }
  return none_is_wrong(std::move(hosts));
}

Result<std::vector<HostEntry>> parse_host_file(std::string_view text) {
  std::vector<HostEntry> hosts;
  for (std::size_t number = 1; !text.empty(); ++number) {
    std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    line = trimmed(line.substr(0, line.find('#')));
    if (line.empty()) continue;
    if (const Status read = read_line(line, hosts); !read)
      return Status(read.code(), fmt::format("{} (line {})", read.text(), number));
  }
  return none_is_wrong(std::move(hosts));
}

Result<std::vector<HostEntry>> parse_slurm(std::string_view nodes, std::string_view tasks) {
  Result<std::vector<HostEntry>> hosts = parse_host_list(nodes);
  if (!hosts) return hosts;
  std::vector<std::uint32_t> slots;
  for (const std::string_view word : words_of(tasks)) {
    const std::size_t times = word.find("(x");
    const auto count = number<std::uint32_t>(word.substr(0, times), kSlotsMax);
    std::optional<std::uint32_t> repeat = 1;
    if (times != std::string_view::npos) {
      repeat = word.ends_with(')')
                   ? number<std::uint32_t>(word.substr(times + 2, word.size() - times - 3),
                                           static_cast<std::uint32_t>(kHostsMax))
                   : std::nullopt;
    }
    if (!count || !repeat || slots.size() + *repeat > kHostsMax)
      return wrong(fmt::format("'{}' is no number of tasks; Slurm writes 4 or 4(x2)", word));
    slots.insert(slots.end(), *repeat, *count);
  }
  if (slots.size() != hosts->size()) {
    return wrong(
        fmt::format("Slurm names {} hosts and the tasks of {}", hosts->size(), slots.size()));
  }
  for (std::size_t i = 0; i < slots.size(); ++i) (*hosts)[i].slots = slots[i];
  return hosts;
}

Result<std::vector<membership::HostPlan>> plan_seats(const std::vector<HostEntry>& hosts, int ranks,
                                                     std::uint32_t slots_default) {
  std::vector<membership::HostPlan> plans;
  auto left = static_cast<std::uint32_t>(ranks);
  std::uint64_t slots = 0;
  for (const HostEntry& host : hosts) {
    const std::uint32_t here = host.spare ? 0 : host.slots.value_or(slots_default);
    slots += here;
    plans.push_back({std::min(here, left), true});
    left -= plans.back().seats;
  }
  if (left == 0) return plans;
  return wrong(fmt::format(
      "-n {}: {} ranks do not fit, the {} host{} of the list {} {} slot{}; write a:4 for a host "
      "with 4",
      ranks, ranks, hosts.size(), hosts.size() == 1 ? "" : "s", hosts.size() == 1 ? "has" : "have",
      slots, slots == 1 ? "" : "s"));
}

Result<std::vector<std::string>> split_words(std::string_view text) {
  std::vector<std::string> out;
  std::string word;
  bool inside = false;
  char quote = 0;
  for (const char c : text) {
    if (quote != 0 ? c == quote : (c == '\'' || c == '"')) {
      quote = quote != 0 ? '\0' : c;
      inside = true;
    } else if (quote == 0 && (c == ' ' || c == '\t')) {
      if (inside) out.push_back(std::exchange(word, {}));
      inside = false;
    } else {
      word += c;
      inside = true;
    }
  }
  if (inside) out.push_back(word);
  if (quote != 0 || out.empty()) {
    return Status(
        Code::InvalidArgument,
        fmt::format("'{}' is no command; write for instance \"ip netns exec {{host}}\"", text));
  }
  return out;
}

}  // namespace regroup::launcher
