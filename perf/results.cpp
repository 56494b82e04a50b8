#include "perf/results.hpp"

#include <fmt/format.h>
#include <sched.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <numeric>

#include "perf/statistics.hpp"

namespace regroup::perf {
namespace {

constexpr double kGiga = 1e9;

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::string processor_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) != 0) continue;
    const auto colon = line.find(':');
    if (colon != std::string::npos && colon + 2 <= line.size()) return line.substr(colon + 2);
  }
  return "unknown";
}

nlohmann::json caches() {
  nlohmann::json out = nlohmann::json::array();
  for (int i = 0; i < 8; ++i) {
    const std::string folder = fmt::format("/sys/devices/system/cpu/cpu0/cache/index{}/", i);
    const std::string level = first_line(folder + "level");
    if (level.empty()) break;
    out.push_back({{"level", std::atoi(level.c_str())},
                   {"type", first_line(folder + "type")},
                   {"size", first_line(folder + "size")},
                   {"cores", first_line(folder + "shared_cpu_list")}});
  }
  return out;
}

std::string cell(double value) {
  if (value >= 10000) return fmt::format("{:.0f}", value);
  if (value >= 100) return fmt::format("{:.1f}", value);
  return fmt::format("{:.2f}", value);
}

std::string half_line(const std::optional<Row>& row) {
  if (!row) return fmt::format("  {:>7}  {:>6}  {:>6}  {:>5}", "N/A", "N/A", "N/A", "N/A");
  const std::string wrong = row->checked == 0 ? "N/A" : fmt::format("{}", row->wrong);
  return fmt::format("  {:>7}  {:>6}  {:>6}  {:>5}", cell(row->time_us()), cell(row->alg_gbps()),
                     cell(row->bus_gbps()), wrong);
}

std::string workload_columns(const Workload& w) {
  return fmt::format("{:>12}  {:>12}  {:>8}  {:>6}  {:>6}", w.bytes(), w.count, nccl_name(w.dtype),
                     reduces(w.collective) ? name(w.op) : "none",
                     has_root(w.collective) ? w.root : -1);
}

}  // namespace

double Row::time_us() const { return median(us); }
double Row::p90_us() const { return percentile(us, 0.9); }

double Row::alg_gbps() const {
  const double seconds = time_us() * 1e-6;
  return seconds > 0 ? static_cast<double>(workload.bytes()) / seconds / kGiga : 0;
}

std::string table_head(const Options& options, int ranks) {
  const bool streaming = options.mode == Mode::Streaming;
  std::string text = fmt::format(
      "# regroup-perf {}: {} on {} ranks, {}\n"
      "# time: median over {} blocks of {}, of the slowest rank\n#\n",
      REGROUP_VERSION, name(options.collective), ranks,
      streaming ? "streaming (back to back)" : "isolated (a barrier before each operation)",
      options.blocks, streaming ? "the mean over a block" : "single operations");
  text += fmt::format("# {:>10}  {:>12}  {:>8}  {:>6}  {:>6}  {:>29}   {:>28}\n", "", "", "", "",
                      "", "out-of-place", "in-place");
  const auto half = fmt::format("  {:>7}  {:>6}  {:>6}  {:>5}", "time", "algbw", "busbw", "#wrong");
  const auto unit = fmt::format("  {:>7}  {:>6}  {:>6}  {:>5}", "(us)", "(GB/s)", "(GB/s)", "");
  text += fmt::format("# {:>10}  {:>12}  {:>8}  {:>6}  {:>6}{}{}\n", "size", "count", "type",
                      "redop", "root", half, half);
  text += fmt::format("# {:>10}  {:>12}  {:>8}  {:>6}  {:>6}{}{}\n", "(B)", "(elements)", "", "",
                      "", unit, unit);
  return text;
}

std::string table_line(const std::optional<Row>& out_of_place, const std::optional<Row>& in_place) {
  const Row& any = out_of_place ? *out_of_place : *in_place;
  return workload_columns(any.workload) + half_line(out_of_place) + half_line(in_place) + "\n";
}

std::string rival_line(const Row& rival, const Row& ours) {
  const double ours_us = ours.time_us();
  return fmt::format("#   {:<28} {:>12} {:>10} us  p90 {:>10}  {:>7.2f} x ours  wrong {}\n",
                     rival.implementation, rival.workload.bytes(), cell(rival.time_us()),
                     cell(rival.p90_us()), ours_us > 0 ? rival.time_us() / ours_us : 0,
                     rival.wrong);
}

std::string table_foot(const std::vector<Row>& rows) {
  std::uint64_t wrong = 0;
  double sum = 0;
  std::size_t ours = 0;
  for (const Row& row : rows) {
    wrong += row.wrong;
    if (row.implementation != "regroup") continue;
    sum += row.bus_gbps();
    ++ours;
  }
  return fmt::format("# Out of bounds values : {} {}\n# Avg bus bandwidth    : {:.4f}\n", wrong,
                     wrong == 0 ? "OK" : "FAILED", ours > 0 ? sum / static_cast<double>(ours) : 0);
}

nlohmann::json to_json(const Workload& w) {
  return {{"collective", name(w.collective)},
          {"ranks", w.ranks},
          {"bytes", w.bytes()},
          {"count", w.count},
          {"dtype", name(w.dtype)},
          {"op", reduces(w.collective) ? name(w.op) : "none"},
          {"in_place", w.in_place}};
}

nlohmann::json to_json(const Row& row) {
  nlohmann::json out = to_json(row.workload);
  out.update({
      {"implementation", row.implementation},
      {"mode", row.mode == Mode::Streaming ? "streaming" : "isolated"},
      {"algorithm", row.algorithm},
      {"time_us", row.time_us()},
      {"p90_us", row.p90_us()},
      {"alg_gbps", row.alg_gbps()},
      {"bus_gbps", row.bus_gbps()},
      {"cpu_s", row.cpu_s},
      {"iterations", row.iterations},
      {"wrong", row.wrong},
      {"checked", row.checked},
  });
  // Single operations would be thousands of values; blocks are the few that a reader compares.
  if (row.mode == Mode::Streaming) out["blocks_us"] = row.us;
  return out;
}

nlohmann::json describe_machine() {
  utsname kernel{};
  (void)::uname(&kernel);
  struct sysinfo memory {};
  (void)::sysinfo(&memory);
  cpu_set_t usable;
  CPU_ZERO(&usable);
  (void)::sched_getaffinity(0, sizeof usable, &usable);
  double load[3] = {0, 0, 0};
  (void)::getloadavg(load, 3);
  return {{"cpu", processor_model()},
          {"cores", ::sysconf(_SC_NPROCESSORS_ONLN)},
          {"cores_usable", CPU_COUNT(&usable)},
          {"caches", caches()},
          {"memory_bytes", static_cast<std::uint64_t>(memory.totalram) * memory.mem_unit},
          {"kernel", fmt::format("{} {}", kernel.sysname, kernel.release)},
          {"huge_pages_shmem", first_line("/sys/kernel/mm/transparent_hugepage/shmem_enabled")},
          {"huge_pages", first_line("/sys/kernel/mm/transparent_hugepage/enabled")},
          {"load_1m", load[0]}};
}

}  // namespace regroup::perf
