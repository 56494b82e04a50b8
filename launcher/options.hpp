/// What `regroup run` was asked for.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <regroup/status.hpp>
#include <regroup/types.hpp>

#include "launcher/exit_codes.hpp"
#include "spi/shared_slots.hpp"

namespace regroup::launcher {

/// As many as one arena holds.
inline constexpr int kRanksMax = spi::kMembersMax;

/// How agent and coordinator speak: over an inherited socket pair, or over TCP.
enum class ControlKind : std::uint8_t { Pair, Tcp };

struct RunOptions {
  int ranks = 1;
  int ranks_min = 0;  ///< 0: not given; then all of them, or 1 with `shrink`
  int spares = 0;
  OnLoss on_loss = OnLoss::Replay;
  bool restart = false;
  int replacements_max = 10;
  std::filesystem::path log_dir;  ///< empty: runs/<job>
  bool json = false;
  std::chrono::milliseconds grace{15000};
  std::chrono::milliseconds timeout{0};  ///< 0: none
  std::chrono::milliseconds detect_budget{1500};
  ControlKind control = ControlKind::Pair;
  int verbosity = 1;  ///< 0 quiet, 1 normal, 2 verbose
  std::vector<std::string> program;
  bool operator==(const RunOptions&) const = default;
};

/// An answer to a wrong command line or an unfit machine: what people read, and the exit code that
/// scripts read.
struct Refusal {
  int exit_code = 64;
  std::string code;  ///< "E-USE-1"
  std::string text;

  /// All is well.
  [[nodiscard]] static Refusal none() { return {kExitDone, "", ""}; }
  /// What is there or was given can be used by nobody here.
  [[nodiscard]] static Refusal unusable(std::string code, std::string text) {
    return {kExitUnavailable, std::move(code), std::move(text)};
  }
};

/// "15s", "200ms", "2m", "1h"; a bare number counts in `bare_unit`. Errors: InvalidArgument that
/// shows the forms.
Result<std::chrono::milliseconds> parse_duration(
    std::string_view text, std::chrono::milliseconds bare_unit = std::chrono::seconds(1));
/// Errors: InvalidArgument (no such policy), Unsupported (a policy that is not offered yet, by
/// name).
Result<OnLoss> parse_on_loss(std::string_view text);
[[nodiscard]] std::string_view name(OnLoss policy);
/// "pair" or "tcp". Errors: InvalidArgument.
Result<ControlKind> parse_control(std::string_view text);

/// Where `arguments` (those after `run`) stop being ours: index of the program's name, or size()
/// when there is none. `takes_value(option)` says whether an option consumes the argument after it.
/// A `--` before it is skipped by the caller: it stands at the returned index minus one.
struct Split {
  std::vector<std::string> ours;
  std::vector<std::string> program;
};
template <class TakesValue>
[[nodiscard]] Split split_arguments(const std::vector<std::string>& arguments,
                                    TakesValue&& takes_value) {
  Split out;
  std::size_t i = 0;
  for (; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    if (word == "--") {
      ++i;
      break;
    }
    if (word.size() < 2 || word[0] != '-') break;
    // Everybody's fingers know -np; a parser of single letters would read it as -n p.
    const bool np = word == "-np";
    out.ours.push_back(np ? "-n" : word);
    if (word.find('=') == std::string::npos && takes_value(out.ours.back()) &&
        i + 1 < arguments.size()) {
      out.ours.push_back(arguments[++i]);
    }
  }
  out.program.assign(arguments.begin() + static_cast<std::ptrdiff_t>(i), arguments.end());
  return out;
}

/// Checks what can be checked without touching the machine, and fills in what follows from the
/// rest. Returns the refusal of the first thing that is wrong; an empty code means none.
[[nodiscard]] Refusal check_options(RunOptions& options);

}  // namespace regroup::launcher
