#include "launcher/launch_environment.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

namespace regroup::launcher {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

using Environment = std::vector<std::string>;

Environment recorded(const std::string& file) {
  std::ifstream in(std::string(REGROUP_TESTDATA) + "/" + file + ".txt");
  EXPECT_TRUE(in) << file;
  Environment out;
  for (std::string line; std::getline(in, line);) {
    if (!line.empty() && line[0] != '#') out.push_back(line);
  }
  return out;
}

struct Expected {
  std::string file;
  LaunchSystem system;
  int rank;
  std::optional<int> size;
  std::optional<int> local_rank;
  std::optional<int> local_size;
  std::string job;
  std::string source;
};

class Recorded : public ::testing::TestWithParam<Expected> {};

TEST_P(Recorded, IsRecognised) {
  const Expected& want = GetParam();
  const auto got = read_launch_environment(recorded(want.file));
  ASSERT_TRUE(got) << got.error().text();
  EXPECT_EQ(got->system, want.system) << title(got->system);
  EXPECT_EQ(got->rank, want.rank);
  EXPECT_EQ(got->size, want.size);
  EXPECT_EQ(got->local_rank, want.local_rank);
  EXPECT_EQ(got->local_size, want.local_size);
  EXPECT_EQ(got->job, want.job);
  EXPECT_EQ(got->source, want.source);
  EXPECT_THAT(got->conflicts, IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(
    Launchers, Recorded,
    ::testing::Values(Expected{"openmpi-4.1.4", LaunchSystem::OpenMpi, 1, 2, 1, 2, "969277441",
                               "OMPI_COMM_WORLD_RANK=1"},
                      Expected{"openmpi-5.0.11", LaunchSystem::OpenMpi, 1, 2, 1, 2,
                               "prterun-vm-22148@1", "OMPI_COMM_WORLD_RANK=1"},
                      Expected{"mpich-4.0.2", LaunchSystem::Hydra, 1, 2, 1, 2, "", "PMI_RANK=1"},
                      Expected{"mpich-5.0.2", LaunchSystem::Hydra, 1, 2, 1, 2, "", "PMI_RANK=1"},
                      Expected{"torchrun", LaunchSystem::Torchrun, 5, 8, 1, 4, "7f3a_0", "RANK=5"},
                      Expected{"srun", LaunchSystem::Srun, 5, 11, 1, 4, "4711.2", "SLURM_PROCID=5"},
                      Expected{"pmix", LaunchSystem::Pmix, 1, std::nullopt, std::nullopt,
                               std::nullopt, "prterun-a-1234@1", "PMIX_RANK=1"}),
    [](const auto& one) {
      std::string out = one.param.file;
      std::replace_if(
          out.begin(), out.end(), [](char c) { return c == '.' || c == '-'; }, '_');
      return out;
    });

TEST(LaunchEnvironment, NothingIsOneRankByHand) {
  const auto got = read_launch_environment({"PATH=/bin", "broken"});
  ASSERT_TRUE(got);
  EXPECT_EQ(got->system, LaunchSystem::None);
  EXPECT_EQ(got->rank, 0);
  EXPECT_EQ(got->size, 1);
  EXPECT_EQ(got->source, "");
}

TEST(LaunchEnvironment, PlainTorchVariables) {
  const auto got = read_launch_environment(
      {"RANK=1", "WORLD_SIZE=2", "MASTER_ADDR=a", "MASTER_PORT=1234", "LOCAL_RANK=1"});
  ASSERT_TRUE(got);
  EXPECT_EQ(got->system, LaunchSystem::TorchEnv);
  EXPECT_EQ(got->rank, 1);
  EXPECT_EQ(got->address, "a:1234");
}

TEST(LaunchEnvironment, OuterRegroupComesFirst) {
  Environment environment = recorded("openmpi-4.1.4");
  environment.insert(environment.end(), {"REGROUP_RANK=3", "REGROUP_RDZV=@x", "REGROUP_JOB_ID=j",
                                         "REGROUP_WORLD_SIZE=4"});
  const auto got = read_launch_environment(environment);
  ASSERT_TRUE(got);
  EXPECT_EQ(got->system, LaunchSystem::Regroup);
  EXPECT_EQ(got->rank, 3);
  EXPECT_EQ(got->address, "@x");
  EXPECT_THAT(got->conflicts, ElementsAre("Open MPI says OMPI_COMM_WORLD_RANK=1 of 2",
                                          "PMIx says PMIX_RANK=1 of 0"));
}

TEST(LaunchEnvironment, MpirunInsideAnAllocationIsNotSrun) {
  Environment environment = recorded("openmpi-4.1.4");
  for (const char* one : {"SLURM_PROCID=0", "SLURM_JOB_ID=7", "SLURM_NTASKS=1"})
    environment.emplace_back(one);
  ASSERT_TRUE(read_launch_environment(environment));
  EXPECT_EQ(read_launch_environment(environment)->system, LaunchSystem::OpenMpi);
}

TEST(LaunchEnvironment, ABatchScriptIsNoTask) {
  for (const char* step : {"batch", "4294967291", ""}) {
    const auto got = read_launch_environment(
        {"SLURM_PROCID=0", "SLURM_JOB_ID=7", std::string("SLURM_STEP_ID=") + step});
    ASSERT_TRUE(got) << step;
    EXPECT_EQ(got->system, LaunchSystem::None) << step;
  }
}

TEST(LaunchEnvironment, SlurmsOwnPmiIsSrun) {
  const auto got = read_launch_environment(
      {"PMI_RANK=1", "PMI_SIZE=2", "SLURM_PROCID=1", "SLURM_STEP_ID=0", "SLURM_STEP_NUM_TASKS=2"});
  ASSERT_TRUE(got);
  EXPECT_EQ(got->system, LaunchSystem::Srun);
}

TEST(LaunchEnvironment, OneProcessAHost) {
  const auto trainer =
      read_launch_environment({"PET_NODE_RANK=1", "PET_NNODES=2", "PET_NPROC_PER_NODE=4",
                               "PET_MASTER_ADDR=m", "PET_MASTER_PORT=29400"});
  ASSERT_TRUE(trainer);
  EXPECT_EQ(trainer->system, LaunchSystem::KubeflowTrainer);
  EXPECT_EQ(trainer->rank, std::nullopt);
  EXPECT_EQ(trainer->size, 8);
  EXPECT_EQ(trainer->host, 1);
  EXPECT_EQ(trainer->address, "m:29400");
  const auto auto_count =
      read_launch_environment({"PET_NODE_RANK=1", "PET_NNODES=2", "PET_NPROC_PER_NODE=2147483648"});
  EXPECT_FALSE(auto_count);
  const auto lws = read_launch_environment({"LWS_WORKER_INDEX=2", "LWS_GROUP_SIZE=4"});
  ASSERT_TRUE(lws);
  EXPECT_EQ(lws->host, 2);
  EXPECT_EQ(lws->hosts, 4);
  const auto volcano = read_launch_environment({"VK_TASK_INDEX=3"});
  ASSERT_TRUE(volcano);
  EXPECT_EQ(volcano->host, 3);
}

TEST(LaunchEnvironment, RefusesWhatCannotBe) {
  const auto text = [](const Environment& environment) {
    const auto got = read_launch_environment(environment);
    return got ? std::string("accepted") : std::string(got.error().text());
  };
  EXPECT_THAT(text({"OMPI_COMM_WORLD_RANK=two"}), HasSubstr("OMPI_COMM_WORLD_RANK=two"));
  EXPECT_THAT(text({"OMPI_COMM_WORLD_RANK="}), HasSubstr("OMPI_COMM_WORLD_RANK="));
  EXPECT_THAT(text({"OMPI_COMM_WORLD_RANK=2", "OMPI_COMM_WORLD_SIZE=2"}),
              HasSubstr("OMPI_COMM_WORLD_RANK=2 does not fit its size 2"));
  EXPECT_THAT(text({"OMPI_COMM_WORLD_RANK=99999999999"}), HasSubstr("99999999999"));
  EXPECT_THAT(
      text({"OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE=2", "OMPI_COMM_WORLD_LOCAL_SIZE=3"}),
      HasSubstr("3 ranks on this host"));
}

TEST(LaunchEnvironment, ThePersonMayChoose) {
  Environment environment = recorded("openmpi-4.1.4");
  environment.emplace_back("REGROUP_LAUNCH=pmix");
  const auto pmix = read_launch_environment(environment);
  ASSERT_TRUE(pmix);
  EXPECT_EQ(pmix->system, LaunchSystem::Pmix);
  EXPECT_EQ(pmix->why, "REGROUP_LAUNCH=pmix");
  environment.back() = "REGROUP_LAUNCH=none";
  EXPECT_EQ(read_launch_environment(environment)->size, 1);
  environment.back() = "REGROUP_LAUNCH=slurm";
  EXPECT_THAT(std::string(read_launch_environment(environment).error().text()),
              HasSubstr("SLURM_PROCID and SLURM_STEP_ID are not set"));
  environment.back() = "REGROUP_LAUNCH=lam";
  EXPECT_THAT(std::string(read_launch_environment(environment).error().text()),
              HasSubstr("names no launcher"));
}

TEST(LaunchEnvironment, ExplainsEachRow) {
  const std::vector<LaunchRow> rows = explain_launch_environment(recorded("mpich-4.0.2"));
  ASSERT_EQ(rows.size(), static_cast<std::size_t>(kLaunchSystems));
  for (const LaunchRow& row : rows) EXPECT_EQ(row.chosen, row.system == LaunchSystem::Hydra);
  const LaunchRow& hydra = rows[static_cast<std::size_t>(LaunchSystem::Hydra)];
  EXPECT_TRUE(hydra.matches);
  EXPECT_EQ(hydra.why, "PMI_RANK and MPI_LOCALRANKID and HYDI_CONTROL_FD are set");
  EXPECT_EQ(rows[static_cast<std::size_t>(LaunchSystem::Srun)].why,
            "SLURM_PROCID and SLURM_STEP_ID are not set");
}

TEST(SlurmTasks, ReadsTheCompressedList) {
  EXPECT_EQ(slurm_tasks("4(x2),3", 0), 4);
  EXPECT_EQ(slurm_tasks("4(x2),3", 1), 4);
  EXPECT_EQ(slurm_tasks("4(x2),3", 2), 3);
  EXPECT_EQ(slurm_tasks("4(x2),3", 3), std::nullopt);
  for (const char* broken : {"", "x", "4(x", "4(x2", "4(xq)", ",", "99999999999"})
    EXPECT_EQ(slurm_tasks(broken, 0), std::nullopt) << broken;
}

}  // namespace
}  // namespace regroup::launcher
