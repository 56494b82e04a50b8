#include "launcher/mpi_launcher.hpp"

#include <gtest/gtest.h>

#include <set>

namespace regroup::launcher {
namespace {

using Words = std::vector<std::string>;
using Family = MpiLauncher::Family;

TEST(MpiVersion, KnowsTheFourThatWereMeasured) {
  struct Known {
    std::string_view text;
    Family family;
    std::string_view title;
  };
  const Known all[] = {
      {"mpirun (Open MPI) 4.1.4\n\nReport bugs to http://x/\n", Family::OpenMpi, "Open MPI 4.1.4"},
      {"mpirun.openmpi (OpenRTE) 4.1.4\n", Family::OpenMpi, "Open MPI 4.1.4"},
      {"mpirun (Open MPI) 5.0.11\n", Family::OpenMpi, "Open MPI 5.0.11"},
      {"HYDRA build details:\n    Version:                 4.0.2\n    CC: gcc\n", Family::Hydra,
       "MPICH 4.0.2"},
      {"HYDRA build details:\n    Version:    5.0.2\n", Family::Hydra, "MPICH 5.0.2"}};
  for (const Known& known : all) {
    const auto read = read_mpi_version(known.text);
    ASSERT_TRUE(read) << known.text;
    EXPECT_EQ(read->family, known.family);
    EXPECT_EQ(read->title(), known.title);
  }
}

TEST(MpiVersion, RefusesOthersAndShowsWhatTheySaid) {
  for (const char* text : {"", "slurm 22.05.8", "prterun (PRRTE) 3.0.12\n", "(Open MPI)",
                           "HYDRA build details:\n", "mpirun (Open MPI) of mine"}) {
    const auto read = read_mpi_version(text);
    ASSERT_FALSE(read) << text;
    EXPECT_EQ(read.error().code(), Code::Unsupported);
  }
  EXPECT_NE(read_mpi_version("slurm 22.05.8\nmore").error().text().find("'slurm 22.05.8'"),
            std::string_view::npos);
}

MpirunWords split(const Words& words) {
  const std::set<std::string> ours = {"-n", "--spares", "-v"};
  return split_mpirun_words(
      words, [&](const std::string& word) { return ours.contains(word); },
      [](const std::string& word) { return word != "-v"; });
}

TEST(MpirunWords, WhatIsNotOursGoesToMpirunInItsOrder) {
  const MpirunWords out = split({"--host", "localhost:4", "-np", "3", "-v", "--mca", "btl", "self",
                                 "--spares=1", "-x", "A=b", "--", "./train", "-n", "9", "--"});
  EXPECT_EQ(out.ours, (Words{"-n", "3", "-v", "--spares=1"}));
  EXPECT_EQ(out.theirs, (Words{"--host", "localhost:4", "--mca", "btl", "self", "-x", "A=b"}));
  EXPECT_EQ(out.program, (Words{"./train", "-n", "9", "--"}));
}

TEST(MpirunWords, WithoutTwoDashesThereIsNoProgram) {
  EXPECT_TRUE(split({"-n", "3", "./train"}).program.empty());
  EXPECT_TRUE(split({"-n", "3", "--"}).program.empty());
  EXPECT_TRUE(split({}).program.empty());
}

TEST(MpirunStarter, IsAloneOnItsHostAndHasAllItsCores) {
  const Words theirs = {"--mca", "btl", "self"};
  EXPECT_EQ(
      mpirun_starter({Family::OpenMpi, "5.0.11", "/m"}, theirs),
      (Words{"/m", "--mca", "btl", "self", "-n", "1", "--host", "{host}", "--bind-to", "none"}));
  EXPECT_EQ(mpirun_starter({Family::Hydra, "4.0.2", "/m"}, {}),
            (Words{"/m", "-n", "1", "-hosts", "{host}", "-bind-to", "none"}));
}

TEST(MpirunCommandLine, AddsSparesAndWhatKeepsTheOthersAlive) {
  MpirunPlan plan{2, 0, {"--host", "localhost"}, "/bin/regroup", "place", {"./a", "x"}};
  const Words tail = {"/bin/regroup", "exec", "--agent", "place", "--", "./a", "x"};
  const auto expect = [&](const MpiLauncher& launcher, Words head) {
    head.insert(head.end(), tail.begin(), tail.end());
    EXPECT_EQ(mpirun_command_line(launcher, plan), head);
  };
  const MpiLauncher open_mpi{Family::OpenMpi, "5.0.11", "/m"};
  const MpiLauncher hydra{Family::Hydra, "4.0.2", "/m"};
  expect(open_mpi, {"/m", "--enable-recovery", "--host", "localhost", "-n", "2"});
  expect(hydra, {"/m", "--host", "localhost", "-n", "2"});
  plan.spares = 3;
  expect(open_mpi,
         {"/m", "--enable-recovery", "--oversubscribe", "--host", "localhost", "-n", "5"});
  expect(hydra, {"/m", "--host", "localhost", "-n", "5"});
}

TEST(ShellLine, CanBeCopied) {
  EXPECT_EQ(shell_line({"/a/b", "-x", "A=b", "it's", "", "a b"}),
            R"(/a/b -x A=b 'it'\''s' '' 'a b')");
}

}  // namespace
}  // namespace regroup::launcher
