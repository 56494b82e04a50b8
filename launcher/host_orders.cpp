#include "launcher/host_orders.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <utility>

#include <nlohmann/json.hpp>

namespace regroup::launcher {
namespace {

using nlohmann::json;

constexpr std::array<std::string_view, 16> kOfThisHost = {
    "DISPLAY", "HOSTNAME",      "HOST",          "LOGNAME",    "OLDPWD",         "PWD",
    "SHLVL",   "SSH_AGENT_PID", "SSH_AUTH_SOCK", "SSH_CLIENT", "SSH_CONNECTION", "SSH_TTY",
    "TERM",    "TMPDIR",        "WINDOWID",      "_"};
constexpr std::array<std::string_view, 3> kOfThisSession = {"XDG_", "DBUS_", "BASH_FUNC_"};

template <std::size_t N>
std::string hex(const std::array<std::byte, N>& bytes) {
  std::string out;
  for (const std::byte b : bytes) out += fmt::format("{:02x}", std::to_integer<int>(b));
  return out;
}

template <std::size_t N>
bool from_hex(std::string_view text, std::array<std::byte, N>& out) {
  if (text.size() != 2 * N) return false;
  for (std::size_t i = 0; i < N; ++i) {
    unsigned value = 0;
    const char* const at = text.data() + 2 * i;
    if (std::from_chars(at, at + 2, value, 16).ptr != at + 2) return false;
    out.at(i) = static_cast<std::byte>(value);
  }
  return true;
}

/// Texts may hold bytes that are not UTF-8: they travel as numbers.
json bytes_of(const std::string& text) {
  json out = json::array();
  for (const char c : text) out.push_back(static_cast<unsigned char>(c));
  return out;
}

json text_of(const std::string& text) {
  const bool plain = std::all_of(text.begin(), text.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte >= 0x20 && byte < 0x7f;
  });
  return plain ? json(text) : bytes_of(text);
}

/// Reads a JSON object; remembers whether anything was missing or of another kind.
class Fields {
 public:
  explicit Fields(const json& object) : object_(object) {}
  [[nodiscard]] bool good() const { return good_; }
  [[nodiscard]] const std::string& missing() const { return missing_; }

  const json* at(const char* key, json::value_t kind) {
    const auto found = object_.find(key);
    const bool there = found != object_.end() &&
                       (found->type() == kind ||
                        (kind == json::value_t::number_integer && found->is_number_integer()));
    if (!there) fail(key);
    return there ? &*found : nullptr;
  }
  template <class Number>
  Number number(const char* key) {
    const json* const found = at(key, json::value_t::number_integer);
    if (found == nullptr) return {};
    const bool negative = !found->is_number_unsigned();
    const auto value = found->get<std::int64_t>();
    const bool fits = negative ? std::in_range<Number>(value)
                               : std::in_range<Number>(found->get<std::uint64_t>());
    if (!fits) fail(key);
    return fits ? static_cast<Number>(value) : Number{};
  }
  bool flag(const char* key) {
    const json* const found = at(key, json::value_t::boolean);
    return found != nullptr && found->get<bool>();
  }
  std::string text(const char* key) {
    const auto found = object_.find(key);
    if (found == object_.end()) {
      fail(key);
      return {};
    }
    return text_in(*found, key);
  }
  std::vector<std::string> texts(const char* key) {
    std::vector<std::string> out;
    const json* const found = at(key, json::value_t::array);
    if (found == nullptr) return out;
    for (const json& one : *found) out.push_back(text_in(one, key));
    return out;
  }
  void fail(const char* key) {
    if (good_) missing_ = key;
    good_ = false;
  }

 private:
  std::string text_in(const json& value, const char* key) {
    if (value.is_string()) return value.get<std::string>();
    std::string out;
    if (!value.is_array()) fail(key);
    for (const json& one : value) {
      if (!one.is_number_unsigned() || one.get<std::uint64_t>() > 255) {
        fail(key);
        return {};
      }
      out.push_back(static_cast<char>(one.get<std::uint64_t>()));
    }
    return out;
  }

  const json& object_;
  bool good_ = true;
  std::string missing_;
};

json options_json(const RunOptions& options) {
  json program = json::array();
  for (const std::string& word : options.program) program.push_back(text_of(word));
  return {{"ranks", options.ranks},
          {"ranks_min", options.ranks_min},
          {"spares", options.spares},
          {"on_loss", name(options.on_loss)},
          {"restart", options.restart},
          {"replacements_max", options.replacements_max},
          {"log_dir", text_of(options.log_dir.string())},
          {"grace_ms", options.grace.count()},
          {"detect_budget_ms", options.detect_budget.count()},
          {"verbosity", options.verbosity},
          {"program", std::move(program)}};
}

RunOptions options_of(Fields& in) {
  RunOptions out;
  out.ranks = in.number<int>("ranks");
  out.ranks_min = in.number<int>("ranks_min");
  out.spares = in.number<int>("spares");
  const Result<OnLoss> policy = parse_on_loss(in.text("on_loss"));
  if (!policy) in.fail("on_loss");
  if (policy) out.on_loss = *policy;
  out.restart = in.flag("restart");
  out.replacements_max = in.number<int>("replacements_max");
  out.log_dir = in.text("log_dir");
  out.grace = std::chrono::milliseconds(in.number<std::int64_t>("grace_ms"));
  out.detect_budget = std::chrono::milliseconds(in.number<std::int64_t>("detect_budget_ms"));
  out.verbosity = in.number<int>("verbosity");
  out.program = in.texts("program");
  return out;
}

}  // namespace

std::optional<LineKind> line_kind(std::string_view line) {
  if (line.empty()) return std::nullopt;
  for (const LineKind kind : {LineKind::Greeting, LineKind::Output, LineKind::Error, LineKind::Text,
                              LineKind::Record, LineKind::Alive}) {
    if (line.front() == static_cast<char>(kind)) return kind;
  }
  return std::nullopt;
}

std::string greeting_line(const AgentGreeting& greeting) {
  const json out = {{"regroup", greeting.protocol},
                    {"version", greeting.version},
                    {"host", text_of(greeting.host)}};
  return static_cast<char>(LineKind::Greeting) + out.dump();
}

std::optional<AgentGreeting> parse_greeting(std::string_view line) {
  if (line_kind(line) != LineKind::Greeting) return std::nullopt;
  const json parsed = json::parse(line.substr(1), nullptr, false);
  if (!parsed.is_object()) return std::nullopt;
  Fields in(parsed);
  AgentGreeting out{in.number<std::uint32_t>("regroup"), in.text("version"), in.text("host")};
  return in.good() ? std::optional(std::move(out)) : std::nullopt;
}

std::string orders_line(const HostOrders& orders) {
  json environment = json::array();
  for (const std::string& variable : orders.environment) environment.push_back(text_of(variable));
  const json out = {{"job", orders.job},
                    {"agent", orders.place.agent.value()},
                    {"name", orders.place.name},
                    {"node", orders.place.node},
                    {"nodes", orders.place.nodes},
                    {"first_seat", orders.place.first_seat},
                    {"seats", orders.place.seats},
                    {"coordinator", orders.coordinator},
                    {"port", orders.port},
                    {"secret", hex(orders.secret)},
                    {"master_address", orders.master_address},
                    {"master_port", orders.master_port},
                    {"age_ns", orders.age_ns},
                    {"directory", text_of(orders.directory)},
                    {"environment", std::move(environment)},
                    {"options", options_json(orders.options)}};
  return out.dump();
}

Result<HostOrders> parse_orders(std::string_view line) {
  const auto wrong = [](std::string_view what) {
    return Status(Code::InvalidArgument,
                  fmt::format("E-HOST-4 these are no orders for an agent: {}", what));
  };
  if (line.size() > kOrdersBytesMax) return wrong("too long");
  const json parsed = json::parse(line, nullptr, false);
  if (!parsed.is_object()) return wrong("no JSON object");
  Fields in(parsed);
  HostOrders out;
  out.job = in.text("job");
  out.place.agent = membership::AgentId{in.number<std::uint32_t>("agent")};
  out.place.name = in.text("name");
  out.place.node = in.number<std::uint32_t>("node");
  out.place.nodes = in.number<std::uint32_t>("nodes");
  out.place.first_seat = in.number<std::uint32_t>("first_seat");
  out.place.seats = in.number<std::uint32_t>("seats");
  out.coordinator = in.text("coordinator");
  out.port = in.number<std::uint16_t>("port");
  if (!from_hex(in.text("secret"), out.secret)) in.fail("secret");
  out.master_address = in.text("master_address");
  out.master_port = in.number<std::uint16_t>("master_port");
  out.age_ns = in.number<std::int64_t>("age_ns");
  out.directory = in.text("directory");
  out.environment = in.texts("environment");
  if (const json* const options = in.at("options", json::value_t::object)) {
    Fields inner(*options);
    out.options = options_of(inner);
    if (!inner.good()) in.fail(inner.missing().c_str());
  }
  if (!in.good()) return wrong(fmt::format("'{}' is missing or damaged", in.missing()));
  RunOptions checked = out.options;
  if (const Refusal refusal = check_options(checked); !refusal.code.empty())
    return wrong(refusal.text);
  return out;
}

std::string word_line(const HostWord& word) {
  switch (word.kind) {
    case HostWord::Kind::Forward: return fmt::format("forward {}", word.signal);
    case HostWord::Kind::Signal:
      return fmt::format("signal {} {}", word.signal, word.incarnation.value());
    case HostWord::Kind::End: return "end";
    case HostWord::Kind::EndNow: return "end-now";
  }
  return "";
}

std::optional<HostWord> parse_word(std::string_view line) {
  if (line == "end-now") return HostWord{};
  if (line == "end") return HostWord{HostWord::Kind::End, 0, {}};
  const auto number = [](std::string_view text, auto& value) {
    const char* const end = text.data() + text.size();
    return !text.empty() && std::from_chars(text.data(), end, value).ptr == end;
  };
  HostWord out;
  const std::size_t space = line.find(' ');
  if (space == std::string_view::npos) return std::nullopt;
  const std::string_view kind = line.substr(0, space);
  std::string_view rest = line.substr(space + 1);
  if (kind == "forward") {
    out.kind = HostWord::Kind::Forward;
  } else if (kind == "signal") {
    out.kind = HostWord::Kind::Signal;
    const std::size_t second = rest.find(' ');
    std::uint64_t incarnation = 0;
    if (second == std::string_view::npos || !number(rest.substr(second + 1), incarnation))
      return std::nullopt;
    out.incarnation = Incarnation{incarnation};
    rest = rest.substr(0, second);
  } else {
    return std::nullopt;
  }
  if (!number(rest, out.signal) || out.signal < 1 || out.signal > 64) return std::nullopt;
  return out;
}

std::optional<std::string> LineReader::next() {
  const std::size_t end = held_.find('\n');
  const std::size_t bytes = std::min(end, held_.size());
  if (end == std::string::npos && bytes < bytes_max_) return std::nullopt;
  const bool whole = end != std::string::npos && end <= bytes_max_;
  std::string line = held_.substr(0, whole ? end : bytes_max_);
  held_.erase(0, line.size() + (whole ? 1 : 0));
  return line;
}

std::vector<std::string> travelling(const std::vector<std::string>& outer) {
  std::vector<std::string> out;
  for (const std::string& variable : outer) {
    const std::string_view key = std::string_view(variable).substr(0, variable.find('='));
    const bool stays =
        std::find(kOfThisHost.begin(), kOfThisHost.end(), key) != kOfThisHost.end() ||
        std::any_of(kOfThisSession.begin(), kOfThisSession.end(),
                    [key](std::string_view prefix) { return key.starts_with(prefix); });
    if (!stays) out.push_back(variable);
  }
  return out;
}

}  // namespace regroup::launcher
