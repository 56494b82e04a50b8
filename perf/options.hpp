/// The command line of regroup-perf.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <regroup/status.hpp>

#include "perf/workload.hpp"

namespace regroup::perf {

inline constexpr int kExitBadUsage = 64;
inline constexpr int kExitRivalGone = 69;  ///< all else was measured, and is right

enum class Mode : std::uint8_t {
  Streaming,  ///< operations back to back, the clock read around a block of them
  Isolated,   ///< a barrier before each operation, the clock read around each
};
enum class Places : std::uint8_t { Both, OutOfPlace, InPlace };

/// Who is lost, and when: rank R in its operation number `op` of a round, from 1.
struct Kill {
  int rank = 0;
  std::uint64_t op = 1;
};

struct Options {
  Collective collective = Collective::AllReduce;
  std::vector<std::size_t> sizes;
  std::vector<DType> dtypes{DType::F32};
  std::vector<ReduceOp> ops{ReduceOp::Sum};
  int root = 0;
  std::uint64_t iterations = 0;  ///< 0: as many as fit into block_seconds
  std::uint64_t warmups = 5;
  double block_seconds = 0.05;
  int blocks = 5;
  Mode mode = Mode::Streaming;
  Places places = Places::Both;
  std::uint64_t checks = 1;
  bool check_all = false;
  bool bind = true;       ///< bind_to_core() where there is a core for each rank
  std::string algorithm;  ///< REGROUP_ALGO's form, or one algorithm's name; empty: the choice
  std::string json_file;
  std::vector<std::string> compare;
  std::string rivals_dir;
  std::optional<Kill> kill;
  std::uint64_t kills = 10;
  std::size_t resident_bytes = 0;
  std::size_t state_bytes = 0;  ///< registered: a newcomer gets it from the others
  std::string serve_dir;
  std::string tune_file;  ///< not empty: measure the network and write REGROUP_TUNING there
};

/// What parsing ended in: options, or an exit code with a text for standard output (help) or error.
struct Parsed {
  Options options;
  std::optional<int> exit_code;
  std::string text;
};
/// Pure. The first of `arguments` is the program's own name.
[[nodiscard]] Parsed parse_options(std::vector<std::string> arguments);

/// "8", "64K", "1M", "2G", "1.5M": binary units. Errors: InvalidArgument.
[[nodiscard]] Result<std::size_t> parse_size(const std::string& text);

}  // namespace regroup::perf
