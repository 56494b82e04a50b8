/// regroup-sim: whole jobs under seeded faults, in virtual time, with the shipped machines.
#include "tests/sim/program.hpp"

int main(int argc, char** argv) {
  const std::span<char* const> all(argv, static_cast<std::size_t>(argc));
  return regroup::sim::run_program("regroup-sim", all.subspan(1));
}
