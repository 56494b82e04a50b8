#include "launcher/options.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <set>

#include "launcher/environment.hpp"
#include "launcher/exit_codes.hpp"
#include "launcher/preflight.hpp"
#include "launcher/process.hpp"

namespace regroup::launcher {
namespace {

using std::chrono::milliseconds;

TEST(Duration, AcceptsTheFormsOfTheHelpText) {
  EXPECT_EQ(parse_duration("15s").value(), milliseconds(15000));
  EXPECT_EQ(parse_duration("200ms").value(), milliseconds(200));
  EXPECT_EQ(parse_duration("2m").value(), milliseconds(120000));
  EXPECT_EQ(parse_duration("1.5h").value(), milliseconds(5400000));
  EXPECT_EQ(parse_duration("7").value(), milliseconds(7000));
  EXPECT_EQ(parse_duration("7", milliseconds(1)).value(), milliseconds(7));
}

TEST(Duration, RefusesWhatIsNoDuration) {
  for (const char* text : {"", "s", "-1s", "1 week", "nan", "1e300h", "15sec"}) {
    EXPECT_EQ(parse_duration(text).error().code(), Code::InvalidArgument) << text;
  }
}

TEST(Policy, EachHasItsName) {
  EXPECT_EQ(parse_on_loss("replay").value(), OnLoss::Replay);
  EXPECT_EQ(parse_on_loss("shrink").value(), OnLoss::Shrink);
  EXPECT_EQ(parse_on_loss("abort").value(), OnLoss::Abort);
  EXPECT_EQ(parse_on_loss("replace").value(), OnLoss::Replace);
  EXPECT_EQ(parse_on_loss("carry_on").value(), OnLoss::CarryOn);
  EXPECT_EQ(parse_on_loss("panic").error().code(), Code::InvalidArgument);
  EXPECT_EQ(parse_control("pair").value(), ControlKind::Pair);
  EXPECT_EQ(parse_control("tcp").value(), ControlKind::Tcp);
  EXPECT_EQ(parse_control("udp").error().code(), Code::InvalidArgument);
}

Split split_words(const std::vector<std::string>& words) {
  const std::set<std::string> valued = {"-n", "--min", "--spares"};
  return split_arguments(words, [&](const std::string& word) { return valued.contains(word); });
}

TEST(Split, TheProgramKeepsItsOwnFlags) {
  const Split out = split_words({"-n", "4", "--spares=1", "./train", "-n", "9", "--", "x"});
  EXPECT_EQ(out.ours, (std::vector<std::string>{"-n", "4", "--spares=1"}));
  EXPECT_EQ(out.program, (std::vector<std::string>{"./train", "-n", "9", "--", "x"}));
}

TEST(Split, TwoDashesEndOurOptions) {
  const Split out = split_words({"-n", "4", "--", "-odd-name", "a"});
  EXPECT_EQ(out.program, (std::vector<std::string>{"-odd-name", "a"}));
}

TEST(Split, NpMeansN) {
  EXPECT_EQ(split_words({"-np", "4", "x"}).ours, (std::vector<std::string>{"-n", "4"}));
}

RunOptions good() {
  RunOptions options;
  options.ranks = 4;
  options.program = {"true"};
  return options;
}

TEST(Check, RefusesNumbersThatDoNotFit) {
  const auto code = [](auto change) {
    RunOptions options = good();
    change(options);
    const Refusal refusal = check_options(options);
    EXPECT_EQ(refusal.exit_code, refusal.code.empty() ? kExitDone : kExitBadUsage);
    return refusal.code;
  };
  EXPECT_EQ(code([](RunOptions&) {}), "");
  EXPECT_EQ(code([](RunOptions& o) { o.ranks = 0; }), "E-USE-2");
  EXPECT_EQ(code([](RunOptions& o) { o.ranks = 100000; }), "E-USE-2");
  EXPECT_EQ(code([](RunOptions& o) { o.ranks_min = 5; }), "E-USE-3");
  EXPECT_EQ(code([](RunOptions& o) { o.spares = -1; }), "E-USE-4");
  EXPECT_EQ(code([](RunOptions& o) { o.replacements_max = -1; }), "E-USE-5");
  EXPECT_EQ(code([](RunOptions& o) { o.detect_budget = milliseconds(100); }), "E-USE-6");
  EXPECT_EQ(code([](RunOptions& o) { o.program.clear(); }), "E-USE-7");
}

TEST(Check, MinFollowsThePolicy) {
  RunOptions replay = good();
  ASSERT_EQ(check_options(replay).code, "");
  EXPECT_EQ(replay.ranks_min, 4);
  RunOptions shrink = good();
  shrink.on_loss = OnLoss::Shrink;
  ASSERT_EQ(check_options(shrink).code, "");
  EXPECT_EQ(shrink.ranks_min, 1);
}

TEST(Machine, NamesTheKernelFeatureThatIsMissing) {
  EXPECT_EQ(check_kernel({}).code, "");
  EXPECT_EQ(check_kernel(probe_kernel()).code, "");
  const auto text = [](KernelFeatures features) {
    const Refusal refusal = check_kernel(features);
    EXPECT_EQ(refusal.exit_code, kExitUnavailable);
    return refusal.text;
  };
  EXPECT_NE(text({.pidfd = false}).find("pidfd_open"), std::string::npos);
  EXPECT_NE(text({.pidfd_signal = false}).find("pidfd_send_signal"), std::string::npos);
  EXPECT_NE(text({.memfd_seals = false}).find("memfd_create"), std::string::npos);
  EXPECT_NE(text({.robust_futex = false}).find("robust futex"), std::string::npos);
}

TEST(Machine, CountsDescriptorsBeforeTheyRunOut) {
  const RunOptions options = good();
  const std::uint64_t needed = descriptors_needed(options);
  EXPECT_EQ(check_descriptors(options, needed).code, "");
  const Refusal refusal = check_descriptors(options, needed - 1);
  EXPECT_EQ(refusal.exit_code, kExitUnavailable);
  EXPECT_NE(refusal.text.find("ulimit -Hn"), std::string::npos);
}

TEST(Machine, FindsProgramsAsAShellDoes) {
  EXPECT_EQ(find_program("/bin/sh", "").value(), "/bin/sh");
  EXPECT_EQ(find_program("sh", "/nowhere:/bin").value(), "/bin/sh");
  EXPECT_EQ(find_program("no-such-program", "/bin").error().code(), Code::InvalidArgument);
  EXPECT_EQ(find_program("/etc/passwd", "").error().code(), Code::FailedPrecondition);
  EXPECT_EQ(find_program("/etc", "").error().code(), Code::FailedPrecondition);
}

std::string value_of(const std::vector<std::string>& environment, const std::string& key) {
  std::string found = "(unset)";
  for (const std::string& variable : environment) {
    if (!variable.starts_with(key + "=")) continue;
    EXPECT_EQ(found, "(unset)") << key << " stands there twice";
    found = variable.substr(key.size() + 1);
  }
  return found;
}

TEST(Environment, CarriesOursAndTorchsAndDropsOtherLaunchers) {
  const std::vector<std::string> outer = {"HOME=/root",
                                          "OMPI_COMM_WORLD_RANK=7",
                                          "PMI_RANK=7",
                                          "PMIX_RANK=7",
                                          "SLURM_PROCID=7",
                                          "SLURM_JOB_ID=12",
                                          "RANK=7",
                                          "WORLD_SIZE=9",
                                          "REGROUP_RANK=7",
                                          "TORCHELASTIC_RUN_ID=x",
                                          "HOROVOD_RANK=7",
                                          "REGROUP_FAULTS=rank=1:kill",
                                          "PATH=/usr/bin:/bin",
                                          "MASTER_PORT=1"};
  ProcessIdentity identity;
  identity.job = "abc";
  identity.seat = Rank{2};
  identity.ranks = 4;
  identity.local_rank = 1;
  identity.local_size = 4;
  identity.incarnation = Incarnation{9};
  identity.life = 1;
  identity.control_fd = 17;
  identity.master_port = 40000;
  identity.cores = 8;
  const auto environment = make_environment(outer, identity);
  for (const char* gone :
       {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID", "HOROVOD_RANK"}) {
    EXPECT_EQ(value_of(environment, gone), "(unset)") << gone;
  }
  for (const auto& [key, value] :
       std::vector<std::pair<std::string, std::string>>{{"HOME", "/root"},
                                                        {"SLURM_JOB_ID", "12"},
                                                        {"REGROUP_FAULTS", "rank=1:kill"},
                                                        {"REGROUP_RANK", "2"},
                                                        {"RANK", "2"},
                                                        {"LOCAL_RANK", "1"},
                                                        {"ROLE_RANK", "2"},
                                                        {"REGROUP_WORLD_SIZE", "4"},
                                                        {"WORLD_SIZE", "4"},
                                                        {"LOCAL_WORLD_SIZE", "4"},
                                                        {"ROLE_WORLD_SIZE", "4"},
                                                        {"GROUP_RANK", "0"},
                                                        {"GROUP_WORLD_SIZE", "1"},
                                                        {"ROLE_NAME", "default"},
                                                        {"MASTER_ADDR", "127.0.0.1"},
                                                        {"MASTER_PORT", "40000"},
                                                        {"TORCHELASTIC_RUN_ID", "abc"},
                                                        {"TORCHELASTIC_RESTART_COUNT", "1"},
                                                        {"REGROUP_INCARNATION", "9"},
                                                        {"REGROUP_IS_REPLACEMENT", "1"},
                                                        {"REGROUP_SPARE", "0"},
                                                        {"REGROUP_CONTROL_FD", "17"},
                                                        {"OMP_NUM_THREADS", "2"}}) {
    EXPECT_EQ(value_of(environment, key), value) << key;
  }
}

TEST(Environment, ASpareHasNoRankAndTheUsersThreadCountStays) {
  ProcessIdentity identity;
  identity.ranks = 4;
  const auto environment = make_environment({"OMP_NUM_THREADS=3"}, identity);
  EXPECT_EQ(value_of(environment, "RANK"), "(unset)");
  EXPECT_EQ(value_of(environment, "REGROUP_SPARE"), "1");
  EXPECT_EQ(value_of(environment, "OMP_NUM_THREADS"), "3");
}

}  // namespace
}  // namespace regroup::launcher
