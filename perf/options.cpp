#include "perf/options.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdlib>
#include <utility>

namespace regroup::perf {
namespace {

constexpr std::size_t kSizesMax = 1000;
constexpr std::size_t kBytesMax = std::size_t{1} << 40;

constexpr const char* kDescription =
    "Measures a collective on the ranks of a job, with the flags and columns of nccl-tests.\n"
    "  regroup run -n 4 -- regroup-perf all_reduce -b 8 -e 128M -f 4\n"
    "Collectives: all_reduce reduce broadcast all_gather reduce_scatter barrier sendrecv\n"
    "  all_to_all gather scatter all_gather_v reduce_scatter_v all_to_all_v gather_v scatter_v";

/// What CLI11 fills in before it is checked and converted.
struct Words {
  std::string collective;
  std::string begin = "8";
  std::string end;
  double factor = 0;
  std::string step;
  std::vector<std::string> sizes;
  std::string dtype = "f32";
  std::string op = "sum";
  std::string mode = "streaming";
  std::string places = "both";
  std::string kill;
  std::string resident = "0";
  std::string state = "0";
};

Status bad(std::string text) { return {Code::InvalidArgument, std::move(text)}; }

Status sizes_of(const Words& words, std::vector<std::size_t>& sizes) {
  for (const std::string& text : words.sizes) {
    auto size = parse_size(text);
    if (!size) return size.error();
    sizes.push_back(*size);
  }
  if (!sizes.empty()) return {};
  auto begin = parse_size(words.begin);
  if (!begin) return begin.error();
  auto end = parse_size(words.end.empty() ? words.begin : words.end);
  if (!end) return end.error();
  if (*end < *begin) return bad(fmt::format("-e {} is below -b {}", words.end, words.begin));
  if (!words.step.empty()) {
    auto step = parse_size(words.step);
    if (!step) return step.error();
    if (*step == 0) return bad("-i 0: the sizes would not grow");
    for (std::size_t s = *begin; s <= *end && sizes.size() < kSizesMax; s += *step) {
      sizes.push_back(s);
    }
    return {};
  }
  const double factor = words.factor == 0 ? 2 : words.factor;
  if (factor <= 1) return bad(fmt::format("-f {}: the sizes would not grow", factor));
  auto size = static_cast<double>(*begin);
  while (size <= static_cast<double>(*end)) {
    sizes.push_back(static_cast<std::size_t>(size));
    if (size == 0) break;
    size *= factor;
  }
  return {};
}

template <class T>
std::string names_of(int count) {
  std::string names;
  for (int i = 0; i < count; ++i) {
    names += fmt::format("{}{}", i == 0 ? "" : ", ", name(static_cast<T>(i)));
  }
  return names;
}

template <class T, class ParseFn>
Status choose(const std::string& text, int all, std::vector<T>& out, ParseFn&& parse,
              const std::string& choices) {
  out.clear();
  if (text == "all") {
    for (int i = 0; i < all; ++i) out.push_back(static_cast<T>(i));
    return {};
  }
  const auto value = parse(text);
  if (!value) return bad(fmt::format("'{}': choose {} or all", text, choices));
  out.push_back(*value);
  return {};
}

Status parse_kill(const std::string& text, std::optional<Kill>& out) {
  if (text.empty()) return {};
  char* end = nullptr;
  Kill kill{.rank = 0, .op = 0};
  kill.rank = static_cast<int>(std::strtol(text.c_str(), &end, 10));
  const bool rank_read = end != text.c_str();
  if (*end == '@') {
    const char* const op = end + 1;
    kill.op = std::strtoull(op, &end, 10);
    if (end == op) kill.op = 0;
  }
  if (!rank_read || *end != '\0' || kill.rank < 0 || kill.op == 0) {
    return bad(
        fmt::format("--kill {}: say RANK@OPERATION, both numbers; operations count from 1", text));
  }
  out = kill;
  return {};
}

Status convert(const Words& words, Options& options) {
  if (!options.tune_file.empty()) {
    if (words.collective.empty()) return {};
    return bad(fmt::format("--tune measures the network, not {}", words.collective));
  }
  if (words.collective.empty()) return bad("which collective? all_reduce, say");
  const auto collective = parse_collective(words.collective);
  if (!collective) {
    std::string all;
    for (const Collective one : kCollectives) all += fmt::format(" {}", name(one));
    return bad(fmt::format("'{}' is no collective; there are{}", words.collective, all));
  }
  options.collective = *collective;
  if (auto status = sizes_of(words, options.sizes); !status) return status;
  if (*collective == Collective::Barrier) options.sizes = {0};
  if (auto status = choose(words.dtype, kDTypeCount, options.dtypes, parse_dtype,
                           names_of<DType>(kDTypeCount));
      !status)
    return status;
  if (auto status = choose(words.op, kReduceOpCount, options.ops, parse_op,
                           names_of<ReduceOp>(kReduceOpCount));
      !status)
    return status;
  if (!reduces(*collective)) options.ops = {ReduceOp::Sum};
  options.mode = words.mode == "isolated" ? Mode::Isolated : Mode::Streaming;
  options.places = words.places == "in"    ? Places::InPlace
                   : words.places == "out" ? Places::OutOfPlace
                                           : Places::Both;
  if (auto status = parse_kill(words.kill, options.kill); !status) return status;
  if (options.kill && *collective != Collective::AllReduce) {
    return bad("--kill measures all_reduce: its result shows who took part");
  }
  if (options.kill && !options.compare.empty()) {
    return bad("--kill and --compare do not go together; perf/kills.py compares kills with ULFM");
  }
  auto resident = parse_size(words.resident);
  if (!resident) return resident.error();
  options.resident_bytes = *resident;
  auto state = parse_size(words.state);
  if (!state) return state.error();
  options.state_bytes = *state;
  return {};
}

void declare_sizes(CLI::App& app, Words& words) {
  app.add_option("collective", words.collective, "what to measure");
  app.add_option("-b,--minbytes", words.begin, "first size, e.g. 8, 64K, 1M (default 8)");
  app.add_option("-e,--maxbytes", words.end, "last size (default: the first)");
  app.add_option("-f,--stepfactor", words.factor, "each size is this times the one before (2)");
  app.add_option("-i,--stepbytes", words.step, "each size is this more than the one before");
  app.add_option("--sizes", words.sizes, "these sizes instead, separated by commas")
      ->delimiter(',');
  app.add_option("-d,--datatype", words.dtype, "f64 f32 f16 bf16 i32 i64 u8 or all (f32)");
  app.add_option("-o,--op", words.op, "sum avg prod min max or all (sum)");
}

void declare_measuring(CLI::App& app, Words& words, Options& options) {
  app.add_option("-r,--root", options.root, "root of reduce and broadcast (0)")
      ->check(CLI::NonNegativeNumber);
  app.add_option("-n,--iters", options.iterations,
                 "operations in a block (default: what fits into --time)");
  app.add_option("-w,--warmup_iters", options.warmups, "operations before each block, at most (5)");
  app.add_option("--time", options.block_seconds, "seconds a block without -n lasts (0.05)")
      ->check(CLI::PositiveNumber);
  app.add_option("--blocks", options.blocks, "blocks; a figure is their median (5)")
      ->check(CLI::Range(1, 100000));
  app.add_option("-c,--check_iters", options.checks,
                 "operations of each row whose every value is checked, beside the timed ones (1)");
  app.add_flag("--check", options.check_all, "check as many operations as a block has");
  app.add_option("--mode", words.mode, "streaming: back to back; isolated: a barrier before each")
      ->check(CLI::IsMember({"streaming", "isolated"}));
  app.add_option("--inplace", words.places, "both, in or out (both)")
      ->check(CLI::IsMember({"both", "in", "out"}));
  app.add_flag("!--no-bind", options.bind,
               "leave the ranks where the system puts them (default: each is bound to a core of "
               "its own where there are enough, as Open MPI does with two ranks)");
  app.add_option("--algo", options.algorithm,
                 "an algorithm's name (docs/environment.md), or rules in the form of REGROUP_ALGO");
  app.add_option("--json", options.json_file, "write machine, settings and results there");
}

void declare_other_modes(CLI::App& app, Words& words, Options& options) {
  app.add_option("--compare", options.compare,
                 "measure these too, in turns with ours: mpi, gloo, or single ones by name "
                 "(openmpi4 openmpi5 mpich4 mpich5 gloo self noft)")
      ->delimiter(',');
  app.add_option("--rivals", options.rivals_dir,
                 "where perf/rivals/setup.sh put them (default: build/rivals)");
  app.add_option("--kill", words.kill,
                 "RANK@OP: kill this rank in its operation OP of each round, and measure the loss");
  app.add_option("--kills", options.kills, "rounds with a kill (10)")->check(CLI::Range(1, 100000));
  app.add_option("--resident", words.resident, "with --kill: memory that each rank touches (0)");
  app.add_option("--state", words.state, "with --kill: state that a newcomer is given (0)");
  app.add_option("--tune", options.tune_file,
                 "instead of a collective: measure the network between two hosts, and write what "
                 "REGROUP_TUNING takes to this file");
  app.add_option("--serve", options.serve_dir, "for --compare: be measured by another program");
}

}  // namespace

Result<std::size_t> parse_size(const std::string& text) {
  char* end = nullptr;
  const double number = std::strtod(text.c_str(), &end);
  double unit = 1;
  std::string suffix(end);
  if (!suffix.empty() && (suffix.back() == 'B' || suffix.back() == 'b')) suffix.pop_back();
  if (suffix == "K" || suffix == "k" || suffix == "Ki") unit = 1024.0;
  if (suffix == "M" || suffix == "m" || suffix == "Mi") unit = 1024.0 * 1024;
  if (suffix == "G" || suffix == "g" || suffix == "Gi") unit = 1024.0 * 1024 * 1024;
  const bool read = end != text.c_str() && (suffix.empty() || unit != 1);
  if (!read || !(number >= 0) || number * unit > static_cast<double>(kBytesMax)) {
    return bad(fmt::format("'{}' is no size; say 8, 64K, 1M or 2G", text));
  }
  return static_cast<std::size_t>(number * unit);
}

Parsed parse_options(std::vector<std::string> arguments) {
  Parsed parsed;
  Words words;
  CLI::App app(kDescription, "regroup-perf");
  app.footer(
      "Exit codes: 0 all was measured and is right; 1 wrong values, or a failure; 64 wrong words;\n"
      "69 one of --compare ended or did not start, all else is as with 0.");
  app.set_version_flag("--version", REGROUP_VERSION);
  declare_sizes(app, words);
  declare_measuring(app, words, parsed.options);
  declare_other_modes(app, words, parsed.options);
  if (!arguments.empty()) arguments.erase(arguments.begin());
  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
  try {
    app.parse(reversed);
  } catch (const CLI::CallForHelp&) {
    return {.exit_code = 0, .text = app.help()};
  } catch (const CLI::CallForVersion&) {
    return {.exit_code = 0, .text = fmt::format("regroup-perf {}\n", REGROUP_VERSION)};
  } catch (const CLI::ParseError& error) {
    return {.exit_code = kExitBadUsage,
            .text = fmt::format("regroup-perf: {}; --help lists all flags\n", error.what())};
  }
  if (auto status = convert(words, parsed.options); !status) {
    parsed.exit_code = kExitBadUsage;
    parsed.text = fmt::format("regroup-perf: {}\n", status.text());
  }
  return parsed;
}

}  // namespace regroup::perf
