/// regroup-sim-mutants: regroup-sim with one rule broken, which --mutant names.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "base/mutant.hpp"
#include "tests/sim/program.hpp"

namespace regroup::sim {
namespace {

struct Named {
  std::string_view name;
  Mutant mutant;
};
constexpr std::array kMutants = {
#define REGROUP_MUTANT_NAME(name) Named{#name, Mutant::name},
#include "mutant_names.inc"
#undef REGROUP_MUTANT_NAME
};

constexpr std::string_view kHelp =
    "regroup-sim-mutants takes what regroup-sim takes, and\n"
    "  --mutant NAME        breaks this rule; without it none is broken\n"
    "  --list-mutants       prints the names\n";

int refuse(std::string_view why) {
  fmt::print(stderr, "regroup-sim-mutants: {}\n{}", why, kHelp);
  return 64;
}

int run(std::span<char* const> arguments) {
  std::string program = "regroup-sim-mutants";
  std::vector<char*> others;
  for (auto word = arguments.begin(); word != arguments.end(); ++word) {
    const std::string_view flag = *word;
    if (flag == "--list-mutants") {
      for (const Named& named : kMutants) fmt::print("{}\n", named.name);
      return 0;
    }
    if (flag != "--mutant") {
      others.push_back(*word);
      continue;
    }
    if (broken_rule != Mutant::None) return refuse("one mutant at a time");
    if (++word == arguments.end()) return refuse("--mutant needs a name");
    const std::string_view name = *word;
    const auto* found = std::find_if(kMutants.begin(), kMutants.end(),
                                     [name](const Named& named) { return named.name == name; });
    if (found == kMutants.end()) return refuse(fmt::format("no mutant is called '{}'", name));
    broken_rule = found->mutant;
    program += fmt::format(" --mutant {}", name);
  }
  return run_program(program, others);
}

}  // namespace
}  // namespace regroup::sim

int main(int argc, char** argv) {
  const std::span<char* const> all(argv, static_cast<std::size_t>(argc));
  return regroup::sim::run(all.subspan(1));
}
