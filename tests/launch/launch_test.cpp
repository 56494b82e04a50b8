/// `regroup run` as people use it: programs that know nothing of Regroup, bad input, exit codes,
/// signals, logs, and nothing left behind.
#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <sstream>

#include "launcher/descendants.hpp"
#include "tests/support/job.hpp"

namespace regroup::test {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using Words = std::vector<std::string>;

class Launch : public testing::Test {
 protected:
  /// run -n RANKS FLAGS --log-dir TEMP -- PROGRAM
  [[nodiscard]] Words line(const Words& flags, const Words& program) const {
    Words words = {"run", "--log-dir", logs().string()};
    words.insert(words.end(), flags.begin(), flags.end());
    words.emplace_back("--");
    words.insert(words.end(), program.begin(), program.end());
    return words;
  }
  [[nodiscard]] Words shell(const Words& flags, const std::string& script) const {
    return line(flags, {"/bin/sh", "-c", script});
  }
  [[nodiscard]] std::filesystem::path logs() const { return temp_.path() / "logs"; }
  TempDir temp_;
};

// ---- programs that never attach
// -------------------------------------------------------------------

TEST_F(Launch, AForeignProgramRunsUnharmed) {
  const Ended ended = run(line({"-n", "3"}, {"/bin/echo", "hello"}));
  EXPECT_EQ(ended.exit_code, 0);
  for (const char* text : {"0: hello\n", "1: hello\n", "2: hello\n"}) {
    EXPECT_THAT(ended.out, HasSubstr(text));
  }
}

TEST_F(Launch, TheProgramsOwnExitCodePassesThrough) {
  EXPECT_EQ(run(shell({"-n", "2"}, "[ $RANK = 1 ] && exit 3; exec sleep 100")).exit_code, 3);
}

TEST_F(Launch, TheAgentGoesFirstAndRanksAsTheLauncherWasStarted) {
  const int ours = ::getpriority(PRIO_PROCESS, 0);
  const std::string script = "for p in $$ $PPID; do cut -d' ' -f19 /proc/$p/stat; done";
  const Ended ended = run(shell({"-n", "1"}, script));
  const bool may = ::geteuid() == 0;  // others by their limits
  EXPECT_THAT(ended.out, HasSubstr(fmt::format("0: {}\n0: {}", ours, may ? "-10" : "")))
      << ended.err;
}

TEST_F(Launch, ASignalBecomes128PlusItsNumber) {
  const Ended ended = run(shell({"-n", "2"}, "[ $RANK = 1 ] && kill -9 $$; exec sleep 100"));
  EXPECT_EQ(ended.exit_code, 137);
  EXPECT_THAT(ended.err, HasSubstr("rank 1"));
  EXPECT_THAT(ended.err, HasSubstr("SIGKILL"));
}

TEST_F(Launch, RestartReplacesAProgramThatNeverAttaches) {
  // Rank 0 ends only when the other seat is in its second life: until then somebody needs it.
  const std::string flag = (temp_.path() / "second-life").string();
  const Ended ended =
      run(shell({"-n", "2", "--restart"},
                "[ $RANK = 0 ] && { until [ -e " + flag +
                    " ]; do sleep 0.01; done; exit 0; }\n"
                    "[ $REGROUP_LIFE = 0 ] && exit 3; echo life $REGROUP_LIFE; touch " +
                    flag));
  EXPECT_EQ(ended.exit_code, 0) << ended.err;
  EXPECT_THAT(ended.out, HasSubstr("1: life 1\n"));
}

TEST_F(Launch, StandardInputGoesToRankZeroOnly) {
  JobOptions options;
  options.input = "one line\n";
  const Ended ended = run(shell({"-n", "2"}, "cat; echo end"), options);
  EXPECT_EQ(ended.exit_code, 0);
  EXPECT_EQ(count(ended.out, "one line"), 1U);
  EXPECT_THAT(ended.out, HasSubstr("0: one line\n"));
}

TEST_F(Launch, TheTwoStreamsStayApartOnConsoleAndInTheLogs) {
  const Ended ended = run(shell({"-n", "2"}, "echo to-out; echo to-err >&2; printf unfinished"));
  EXPECT_EQ(ended.exit_code, 0);
  EXPECT_THAT(ended.out, HasSubstr("1: to-out\n"));
  EXPECT_THAT(ended.out, HasSubstr("1: unfinished\n"));
  EXPECT_THAT(ended.out, Not(HasSubstr("to-err")));
  EXPECT_THAT(ended.err, HasSubstr("1: to-err\n"));
  EXPECT_EQ(read_file(logs() / "rank-1" / "inc-2.out"), "to-out\nunfinished");
  EXPECT_EQ(read_file(logs() / "rank-1" / "latest.err"), "to-err\n");
}

TEST_F(Launch, LongOutputOfManyRanksArrivesInWholeLines) {
  const Ended ended =
      run(shell({"-n", "4", "-q"},
                "i=0; while [ $i -lt 2000 ]; do echo line-$i-of-$RANK-end; i=$((i+1)); done"));
  EXPECT_EQ(ended.exit_code, 0);
  EXPECT_EQ(count(ended.out, "\n"), 8000U);
  std::istringstream lines(ended.out);
  for (std::string text; std::getline(lines, text);) {
    ASSERT_EQ(text.substr(1, 7), ": line-") << text;
    ASSERT_EQ(text.substr(text.size() - 6), "-" + text.substr(0, 1) + "-end") << text;
  }
}

TEST_F(Launch, ABrokenOutputPipeEndsNothing) {
  Job job(shell({"-n", "1"}, "read x; for i in 1 2 3; do echo $i; done; exec touch " +
                                 temp_.path().string() + "/reached"),
          {.input = "go\n"});
  job.close_output();
  EXPECT_EQ(job.wait(), 0) << job.err();
  EXPECT_TRUE(std::filesystem::exists(temp_.path() / "reached"));
}

TEST_F(Launch, TorchsVariablesAreThereAndOuterLaunchersAreNot) {
  JobOptions options;
  options.environment = {"OMPI_COMM_WORLD_RANK=5", "PMI_RANK=5"};
  const Ended ended = run(shell({"-n", "2"}, "env"), options);
  for (const char* text :
       {"0: WORLD_SIZE=2\n", "1: RANK=1\n", "1: LOCAL_RANK=1\n", "0: MASTER_ADDR=127.0.0.1\n",
        "1: REGROUP_RANK=1\n", "0: REGROUP_SPARE=0\n"}) {
    EXPECT_THAT(ended.out, HasSubstr(text));
  }
  EXPECT_THAT(ended.out, Not(HasSubstr("OMPI_COMM_WORLD_RANK")));
  EXPECT_THAT(ended.out, Not(HasSubstr("PMI_RANK")));
}

TEST_F(Launch, JsonPutsOneEventALineOnStandardOutput) {
  const Ended ended = run(line({"-n", "1", "--json"}, {"/bin/echo", "hello"}));
  EXPECT_EQ(ended.exit_code, 0);
  EXPECT_THAT(ended.out, HasSubstr("job_started"));
  EXPECT_THAT(ended.out, HasSubstr("job_ended"));
  EXPECT_THAT(ended.out, Not(HasSubstr("0: hello")));
  EXPECT_EQ(read_file(logs() / "rank-0" / "inc-1.out"), "hello\n");
  EXPECT_TRUE(std::filesystem::exists(logs() / "report.json"));
}

TEST_F(Launch, WithoutALogDirectoryRunsHoldsIt) {
  JobOptions options;
  options.directory = temp_.path().string();
  Job job({"run", "-np", "1", "/bin/true"}, options);
  EXPECT_EQ(job.wait(), 0) << job.err();
  EXPECT_TRUE(std::filesystem::exists(temp_.path() / "runs" / job.id() / "events.jsonl"));
}

// ---- bad input
// ------------------------------------------------------------------------------------

struct Bad {
  Words words;
  int exit_code;
  const char* code;
};
class BadInput : public testing::TestWithParam<Bad> {};

TEST_P(BadInput, IsRefusedWithACodeAndAText) {
  const TempDir temp;
  Words words = GetParam().words;
  JobOptions options;
  options.directory = temp.path().string();
  const Ended ended = run(words, options);
  EXPECT_EQ(ended.exit_code, GetParam().exit_code) << ended.err;
  EXPECT_THAT(ended.err, HasSubstr(GetParam().code));
  EXPECT_THAT(ended.out, IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(
    All, BadInput,
    testing::Values(Bad{{"run", "-n", "2", "--", "./no-such-program"}, 66, "E-PROG-1"},
                    Bad{{"run", "-n", "2", "--", "/etc/passwd"}, 66, "E-PROG-1"},
                    Bad{{"run", "-n", "2", "--", "/etc"}, 66, "E-PROG-1"},
                    Bad{{"run", "-n", "0", "--", "true"}, 64, "E-USE-2"},
                    Bad{{"run", "-n", "1000000", "--", "true"}, 64, "E-USE-2"},
                    Bad{{"run", "-n", "two", "--", "true"}, 64, "E-USE-1"},
                    Bad{{"run", "--", "true"}, 64, "E-USE-1"},
                    Bad{{"run", "-n", "2", "--bogus", "--", "true"}, 64, "E-USE-1"},
                    Bad{{"run", "-n", "2", "--min", "3", "--", "true"}, 64, "E-USE-3"},
                    Bad{{"run", "-n", "2"}, 64, "E-USE-7"},
                    Bad{{"run", "-n", "2", "--timeout", "soon", "--", "true"}, 64, "E-USE-8"},
                    Bad{{"run", "-n", "2", "--on-loss", "panic", "--", "true"}, 64, "panic"},
                    Bad{{"run", "-n", "2", "--log-dir", "/proc/none", "--", "true"}, 77, "E-LOG-1"},
                    Bad{{"no-such-command"}, 64, "E-USE-1"}));

TEST_F(Launch, ADescriptorLimitThatIsTooLowIsNamedBeforeAnythingStarts) {
  JobOptions options;
  options.descriptors_hard = 100;
  const Ended ended = run(line({"-n", "32"}, {"/bin/true"}), options);
  EXPECT_EQ(ended.exit_code, 69);
  EXPECT_THAT(ended.err, HasSubstr("E-LIMIT-1"));
}

TEST_F(Launch, HelpIsNoError) {
  EXPECT_EQ(run({"--help"}).exit_code, 0);
  const Ended ended = run({"run", "--help"});
  EXPECT_EQ(ended.exit_code, 0);
  EXPECT_THAT(ended.out, HasSubstr("--spares"));
}

// ---- signals and time
// -----------------------------------------------------------------------------

TEST_F(Launch, TheFirstInterruptEndsInOrder) {
  Job job(shell({"-n", "2"},
                "trap 'echo asked; exit 0' TERM; echo ready; while :; do sleep 0.01; done"));
  ASSERT_TRUE(job.wait_for("0: ready") && job.wait_for("1: ready"));
  job.signal(SIGINT);
  EXPECT_EQ(job.wait(), 130);
  EXPECT_EQ(count(job.out(), "asked"), 2U);
  EXPECT_THAT(job.left_behind(), IsEmpty());
}

TEST_F(Launch, TheSecondInterruptKillsAtOnce) {
  Job job(shell({"-n", "1", "--grace", "1h"},
                "trap '' TERM; echo ready; while :; do sleep 0.01; done"));
  ASSERT_TRUE(job.wait_for("0: ready"));
  job.signal(SIGTERM);
  ASSERT_TRUE(job.wait_for("grace"));
  job.signal(SIGTERM);
  EXPECT_EQ(job.wait(), 143);
  EXPECT_THAT(job.left_behind(), IsEmpty());
}

TEST_F(Launch, WhoIgnoresTheRequestIsKilledWhenTheGraceIsOver) {
  Job job(shell({"-n", "1", "--grace", "100ms"},
                "trap '' TERM; echo ready; while :; do sleep 0.01; done"));
  ASSERT_TRUE(job.wait_for("0: ready"));
  job.signal(SIGTERM);
  EXPECT_EQ(job.wait(), 143);
}

TEST_F(Launch, TheTimeoutEndsTheJobWith124) {
  const Ended ended = run(line({"-n", "2", "--timeout", "300ms"}, {"/bin/sleep", "1000"}));
  EXPECT_EQ(ended.exit_code, 124);
  EXPECT_THAT(ended.err, HasSubstr("E-TIME-1"));
}

// ---- nothing left behind
// --------------------------------------------------------------------------

/// Two ranks, each with a child and a grandchild in a session of its own.
constexpr const char* kFamily =
    "sleep 1000 & setsid sleep 1001 & (setsid sh -c 'sleep 1002 & wait' &); echo ready; sleep 1003";

TEST_F(Launch, KillingTheLauncherLeavesNoProcess) {
  Job job(shell({"-n", "2"}, kFamily));
  ASSERT_TRUE(job.wait_for("0: ready") && job.wait_for("1: ready"));
  ASSERT_THAT(launcher::processes_with("REGROUP_JOB_ID=" + job.id()), Not(IsEmpty()));
  job.signal(SIGKILL);
  EXPECT_EQ(job.wait(), 137);
  EXPECT_THAT(job.left_behind(), IsEmpty()) << "the guardian included";
}

TEST_F(Launch, AnEndedJobLeavesNoProcess) {
  Job job(shell({"-n", "2"}, "setsid sleep 1000 & echo ready"));
  EXPECT_EQ(job.wait(), 0);
  EXPECT_THAT(job.left_behind(), IsEmpty());
}

TEST_F(Launch, AKilledRankTakesItsDescendantsAlong) {
  Job job(shell({"-n", "2"}, "[ $RANK = 0 ] && { read x; kill -9 $$; }; setsid sleep 1000 & wait"),
          {.input = "go\n"});
  EXPECT_EQ(job.wait(), 137);
  EXPECT_THAT(job.left_behind(), IsEmpty());
}

TEST_F(Launch, KillingTheGuardianOnlyBringsAnother) {
  Job job(shell({"-n", "1"}, kFamily));
  ASSERT_TRUE(job.wait_for("0: ready"));
  for (const pid_t pid : launcher::children_of(job.pid())) {
    if (read_file("/proc/" + std::to_string(pid) + "/cmdline").find("guardian") !=
        std::string::npos) {
      ::kill(pid, SIGKILL);
    }
  }
  job.signal(SIGUSR1);  // the shell ends by it: the loop has gone round after the guardian's end
  EXPECT_EQ(job.wait(), 138);
  EXPECT_THAT(job.left_behind(), IsEmpty());
}

}  // namespace
}  // namespace regroup::test
