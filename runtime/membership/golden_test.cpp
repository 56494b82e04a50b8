// Golden transcripts: each file in testdata/ is a script, a line "----", and all that must happen.
// To write them anew after a change: REGROUP_REGENERATE=1, then read the difference before you
// believe it.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "membership/world_for_tests.hpp"

namespace regroup::membership::testing {
namespace {

std::vector<std::string> scripts() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(REGROUP_TESTDATA)) {
    if (entry.path().extension() == ".txt") names.push_back(entry.path().stem().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

class Golden : public ::testing::TestWithParam<std::string> {};

TEST_P(Golden, Transcript) {
  const std::filesystem::path path =
      std::filesystem::path(REGROUP_TESTDATA) / (GetParam() + ".txt");
  std::ifstream in(path);
  std::string script;
  World world;
  for (std::string line; std::getline(in, line) && line != "----";) {
    script += line + "\n";
    world.line(line);
  }
  std::stringstream expected;
  expected << in.rdbuf();
  in.close();
  for (const std::string& failure : world.failures()) ADD_FAILURE() << failure;
  if (std::getenv("REGROUP_REGENERATE") != nullptr) {
    std::ofstream(path) << script << "----\n" << world.transcript();
    return;
  }
  EXPECT_EQ(world.transcript(), expected.str());
}

INSTANTIATE_TEST_SUITE_P(Scripts, Golden, ::testing::ValuesIn(scripts()),
                         [](const auto& named) { return named.param; });

}  // namespace
}  // namespace regroup::membership::testing
