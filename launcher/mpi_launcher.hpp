/// What the mpiruns of this world are called and want. Pure.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <regroup/status.hpp>

namespace regroup::launcher {

struct MpiLauncher {
  enum class Family { OpenMpi, Hydra };
  Family family = Family::OpenMpi;
  std::string version;  ///< "4.1.4"
  std::string path;

  /// "Open MPI 4.1.4", "MPICH 5.0.2"
  [[nodiscard]] std::string title() const;
};

/// What `mpirun --version` printed. Errors: Unsupported (none of ours; shows its first line).
Result<MpiLauncher> read_mpi_version(std::string_view text);

/// Where the words behind `regroup mpirun` go: ours, mpirun's and the program's. What stands in
/// front of `--` is mpirun's own unless `is_ours(option)`; `takes_value(option)` says whether an
/// option of ours consumes the word after it.
struct MpirunWords {
  std::vector<std::string> ours;
  std::vector<std::string> theirs;
  std::vector<std::string> program;
};
template <class IsOurs, class TakesValue>
[[nodiscard]] MpirunWords split_mpirun_words(const std::vector<std::string>& words,
                                             IsOurs&& is_ours, TakesValue&& takes_value) {
  MpirunWords out;
  std::size_t i = 0;
  for (; i < words.size() && words[i] != "--"; ++i) {
    // Everybody's fingers know -np; a parser of single letters would read it as -n p.
    const std::string word = words[i] == "-np" ? "-n" : words[i];
    const std::size_t equals = word.find('=');
    const std::string option = word.substr(0, equals);
    if (!is_ours(option)) {
      out.theirs.push_back(words[i]);
      continue;
    }
    out.ours.push_back(word);
    if (equals == std::string::npos && takes_value(option) && i + 1 < words.size())
      out.ours.push_back(words[++i]);
  }
  for (++i; i < words.size(); ++i) out.program.push_back(words[i]);
  return out;
}

/// What `regroup mpirun` has mpirun do.
struct MpirunPlan {
  int ranks = 1;
  int spares = 0;
  std::vector<std::string> theirs;  ///< the user's own flags for mpirun
  std::string regroup;              ///< path of this program
  std::string agent;                ///< where its agent listens
  std::vector<std::string> program;
};
/// The whole command line, mpirun's path first.
[[nodiscard]] std::vector<std::string> mpirun_command_line(const MpiLauncher& launcher,
                                                           const MpirunPlan& plan);
/// What stands in front of the agent that is to run on {host}, alone, and with the streams of this
/// mpirun as its own. `theirs`: the user's own flags.
[[nodiscard]] std::vector<std::string> mpirun_starter(const MpiLauncher& launcher,
                                                      const std::vector<std::string>& theirs);
/// As a shell would take it, for people to copy.
[[nodiscard]] std::string shell_line(const std::vector<std::string>& words);

}  // namespace regroup::launcher
