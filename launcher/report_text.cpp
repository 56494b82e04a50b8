#include <algorithm>
#include <array>
#include <cstdlib>
#include <utility>

#include <fmt/format.h>

#include "launcher/json_fields.hpp"
#include "launcher/report.hpp"

namespace regroup::launcher {
namespace {

using nlohmann::json;

constexpr std::int64_t kMicro = 1'000;
constexpr std::int64_t kMilli = 1'000'000;
constexpr std::int64_t kSecond = 1'000'000'000;
/// People read the first ones; --json has all.
constexpr std::size_t kLossesShown = 50;

std::string figure(double value, const char* unit) {
  const int decimals = value < 10 ? 2 : value < 100 ? 1 : 0;
  return fmt::format("{:.{}f} {}", value, decimals, unit);
}

std::string headline(const json& report) {
  const json& exit = member(report, "exit");
  std::string program;
  for (const json& part : member(report, "program")) {
    if (part.is_string()) program += (program.empty() ? "" : " ") + part.get<std::string>();
  }
  const json& code = member(exit, "code");
  std::string out =
      fmt::format("job {}  {} ranks  wall {}  {}\n", word(report, "job"), integer(report, "ranks"),
                  duration_text(integer(report, "wall_ns")), program);
  out += fmt::format("exit {} ({}): {}\n", code.is_number() ? code.dump() : "unknown",
                     word(exit, "origin"), word(exit, "reason"));
  if (const json& cause = member(exit, "first_cause"); cause.is_object()) {
    out += fmt::format("first cause: rank {} (incarnation {}) {}\n", integer(cause, "rank"),
                       integer(cause, "incarnation"), word(cause, "text"));
  }
  return out;
}

std::string time_text(const json& report) {
  const json& ledger = member(report, "ledger");
  if (!member(ledger, "measured").is_boolean() || !member(ledger, "measured").get<bool>()) {
    return "time: not measured (the program never attached)\n";
  }
  std::string out =
      fmt::format("ETT {:.2f} % strict (compute only), {:.2f} % with communication\n",
                  100 * real(ledger, "ett_strict"), 100 * real(ledger, "ett_progress"));
  const json& total = member(ledger, "total_ns");
  double sum = 0;
  std::vector<std::pair<double, std::string>> shares;
  for (const auto& [category, ns] : total.items()) {
    if (!ns.is_number()) continue;
    sum += ns.get<double>();
    shares.emplace_back(ns.get<double>(), category);
  }
  std::stable_sort(shares.begin(), shares.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  std::vector<std::string> parts;
  for (const auto& [ns, category] : shares) {
    if (ns > 0 && sum > 0) parts.push_back(fmt::format("{} {:.2f}", category, 100 * ns / sum));
  }
  out += fmt::format("time, %: {}\n", fmt::join(parts, " | "));
  if (integer(ledger, "spare_ns") > 0) {
    out += fmt::format("spares waited {} (in no percentage)\n",
                       duration_text(integer(ledger, "spare_ns")));
  }
  return out;
}

std::string losses_text(const json& report) {
  const json& losses = member(report, "losses");
  if (!losses.is_array() || losses.empty()) return "no losses\n";
  const json& recoveries = member(report, "recoveries");
  std::string out =
      fmt::format("{} lost, {} replaced\n{:>10} {:>5} {:>5} {:>14} {:>10} {:>10} {:>9}  {}\n",
                  losses.size(), member(report, "replacements").size(), "AT", "RANK", "INC",
                  "EVIDENCE", "DETECT", "TOTAL", "BY", "CAUSE");
  for (std::size_t i = 0; i < losses.size() && i < kLossesShown; ++i) {
    const json& loss = losses[i];
    std::string total = "-";
    if (const json& index = member(loss, "recovery");
        index.is_number_unsigned() && index < recoveries.size()) {
      const json& recovery = recoveries[index.get<std::size_t>()];
      if (member(recovery, "complete") == true) {
        total = duration_text(integer(member(recovery, "phases"), "total_ns"));
      }
    }
    const std::string rank =
        loss.contains("rank") ? fmt::format("{}", integer(loss, "rank")) : "spare";
    const std::string detect =
        loss.contains("detect_ns") ? duration_text(integer(loss, "detect_ns")) : "-";
    const std::string by = word(member(loss, "replaced_by"), "how");
    out += fmt::format("{:>10} {:>5} {:>5} {:>14} {:>10} {:>10} {:>9}  {}\n",
                       duration_text(integer(loss, "offset_ns")), rank,
                       integer(loss, "incarnation"), word(loss, "evidence"), detect, total,
                       by.empty() ? "-" : by, word(loss, "text"));
  }
  if (losses.size() > kLossesShown)
    out += fmt::format("({} more: --json)\n", losses.size() - kLossesShown);
  return out;
}

std::string percentiles_text(const json& report) {
  const json& percentiles = member(report, "recovery_percentiles");
  const std::int64_t n = integer(member(percentiles, "total"), "n");
  if (n == 0) return {};
  std::string out =
      fmt::format("recovery by phase, {} complete\n{:>16} {:>10} {:>10} {:>10} {:>10}\n", n, "",
                  "p50", "p99", "mean", "max");
  const auto row = [&](std::string_view phase) {
    const json& figures = member(percentiles, std::string(phase).c_str());
    out += fmt::format(
        "{:>16} {:>10} {:>10} {:>10} {:>10}\n", phase, duration_text(integer(figures, "p50_ns")),
        duration_text(integer(figures, "p99_ns")), duration_text(integer(figures, "mean_ns")),
        duration_text(integer(figures, "max_ns")));
  };
  for (std::size_t i = 0; i < kRecoveryPhases; ++i) row(name(static_cast<RecoveryPhase>(i)));
  row("total");
  return out;
}

std::string heal_text(const json& report) {
  std::string out;
  for (const json& recovery : member(report, "recoveries")) {
    const json& donors = member(recovery, "bytes_from");
    if (!donors.is_array() || donors.empty()) continue;
    std::vector<std::string> parts;
    for (const json& donor : donors) {
      parts.push_back(fmt::format("{} from rank {} to rank {}",
                                  bytes_text(static_cast<std::uint64_t>(integer(donor, "bytes"))),
                                  integer(donor, "donor"), integer(donor, "rank")));
    }
    out += fmt::format("heal in epoch {}: {}\n", integer(recovery, "to_epoch"),
                       fmt::join(parts, ", "));
  }
  return out;
}

}  // namespace

std::string duration_text(std::int64_t ns) {
  const auto value = static_cast<double>(ns);
  const std::int64_t size = std::abs(ns);
  if (size < kMicro) return fmt::format("{} ns", ns);
  if (size < kMilli) return figure(value / kMicro, "us");
  if (size < kSecond) return figure(value / kMilli, "ms");
  const std::int64_t seconds = ns / kSecond;
  if (seconds < 120) return figure(value / kSecond, "s");
  if (seconds < 7200) return fmt::format("{}m{:02}s", seconds / 60, seconds % 60);
  return fmt::format("{}h{:02}m", seconds / 3600, seconds / 60 % 60);
}

std::string bytes_text(std::uint64_t bytes) {
  constexpr std::array<const char*, 5> kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  for (; value >= 1024 && unit + 1 < kUnits.size(); ++unit) value /= 1024;
  return unit == 0 ? fmt::format("{} B", bytes) : figure(value, kUnits[unit]);
}

std::string report_text(const json& report) {
  std::string out = headline(report) + time_text(report) + losses_text(report) +
                    percentiles_text(report) + heal_text(report);
  if (const std::int64_t restarts = integer(report, "coordinator_losses"); restarts > 0) {
    out += fmt::format("coordinator restarted {} times\n", restarts);
  }
  const json& warnings = member(report, "warnings");
  for (const auto& [code, times] : warnings.items())
    out += fmt::format("warning {} x{}\n", code, times.dump());
  return out;
}

}  // namespace regroup::launcher
