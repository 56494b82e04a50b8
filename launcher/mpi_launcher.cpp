#include "launcher/mpi_launcher.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.hpp"

namespace regroup::launcher {
namespace {

/// The word behind `mark`, or "" if `text` does not hold it.
std::string word_after(std::string_view text, std::string_view mark) {
  const std::size_t found = text.find(mark);
  if (found == std::string_view::npos) return "";
  text.remove_prefix(found + mark.size());
  text.remove_prefix(std::min(text.size(), text.find_first_not_of(" \t")));
  return std::string(text.substr(0, text.find_first_of(" \t\r\n")));
}

/// Flags with which the loss of one place leaves the others alone, and places for spares.
std::vector<std::string> flags_of(const MpiLauncher& launcher, const MpirunPlan& plan) {
  switch (launcher.family) {
    case MpiLauncher::Family::OpenMpi:
      // A spare sleeps: that there are as many cores as ranks is enough.
      if (plan.spares > 0) return {"--enable-recovery", "--oversubscribe"};
      return {"--enable-recovery"};
    case MpiLauncher::Family::Hydra: return {};  // it has none: docs/mpirun.md
  }
  REGROUP_UNREACHABLE("family of launchers");
}

bool is_plain(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
         std::string_view("-_./=:,+@%").find(c) != std::string_view::npos;
}

std::string shell_word(const std::string& word) {
  if (!word.empty() && std::all_of(word.begin(), word.end(), is_plain)) return word;
  std::string out = "'";
  for (const char c : word) {
    if (c == '\'') {
      out += "'\\''";
    } else {
      out += c;
    }
  }
  return out + "'";
}

}  // namespace

std::string MpiLauncher::title() const {
  return fmt::format("{} {}", family == Family::OpenMpi ? "Open MPI" : "MPICH", version);
}

Result<MpiLauncher> read_mpi_version(std::string_view text) {
  using Family = MpiLauncher::Family;
  struct Mark {
    Family family;
    std::string_view head;     ///< how the text makes itself known
    std::string_view version;  ///< what the version stands behind
  };
  // OpenRTE: what mpirun of Open MPI 4 calls itself under any name but mpirun and mpiexec.
  constexpr Mark kMarks[] = {{Family::OpenMpi, "(Open MPI)", "(Open MPI)"},
                             {Family::OpenMpi, "(OpenRTE)", "(OpenRTE)"},
                             {Family::Hydra, "HYDRA build details", "Version:"}};
  for (const Mark& mark : kMarks) {
    if (text.find(mark.head) == std::string_view::npos) continue;
    std::string version = word_after(text, mark.version);
    if (!version.empty() && version.front() >= '0' && version.front() <= '9')
      return MpiLauncher{mark.family, std::move(version), ""};
  }
  return Status(Code::Unsupported,
                fmt::format("'{}' names neither Open MPI nor MPICH",
                            text.substr(0, std::min<std::size_t>(text.find('\n'), 80))));
}

std::vector<std::string> mpirun_command_line(const MpiLauncher& launcher, const MpirunPlan& plan) {
  std::vector<std::string> out = {launcher.path};
  const auto append = [&](const std::vector<std::string>& words) {
    out.insert(out.end(), words.begin(), words.end());
  };
  append(flags_of(launcher, plan));
  append(plan.theirs);
  append({"-n", std::to_string(plan.ranks + plan.spares), plan.regroup, "exec", "--agent",
          plan.agent, "--"});
  append(plan.program);
  return out;
}

std::vector<std::string> mpirun_starter(const MpiLauncher& launcher,
                                        const std::vector<std::string>& theirs) {
  const bool open_mpi = launcher.family == MpiLauncher::Family::OpenMpi;
  std::vector<std::string> out = {launcher.path};
  out.insert(out.end(), theirs.begin(), theirs.end());
  // One place for all ranks of that host: it has all its cores.
  for (const char* word : {"-n", "1", open_mpi ? "--host" : "-hosts", "{host}",
                           open_mpi ? "--bind-to" : "-bind-to", "none"})
    out.emplace_back(word);
  return out;
}

std::string shell_line(const std::vector<std::string>& words) {
  std::string out;
  for (const std::string& word : words) out += (out.empty() ? "" : " ") + shell_word(word);
  return out;
}

}  // namespace regroup::launcher
