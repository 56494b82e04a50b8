// Prints the parts of ARCHITECTURE.md that are generated from code.
#include <cstdio>

#include "membership/table.hpp"

int main() {
  std::fputs(regroup::membership::table_markdown().c_str(), stdout);
  return 0;
}
