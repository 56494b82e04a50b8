/// Loss and replacement through the real launcher and coordinator, with a rank that speaks the
/// protocol by hand: what each rank is told, in which order, and how the job ends.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <ctime>
#include <thread>

#include "launcher/descendants.hpp"
#include "tests/support/job.hpp"

namespace regroup::test {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using Words = std::vector<std::string>;

class Recovery : public testing::Test {
 protected:
  [[nodiscard]] Words line(const Words& flags, const Words& actions) const {
    Words words = {"run", "--log-dir", logs().string()};
    words.insert(words.end(), flags.begin(), flags.end());
    words.insert(words.end(), {"--", FAKE_RANK});
    words.insert(words.end(), actions.begin(), actions.end());
    return words;
  }
  /// Each process runs this piece of shell; `prologue` ends in "exec " if it becomes a rank.
  [[nodiscard]] Words script(const Words& flags, const std::string& prologue,
                             const std::string& action = "linger") const {
    Words words = {"run", "--log-dir", logs().string()};
    words.insert(words.end(), flags.begin(), flags.end());
    words.insert(words.end(), {"--", "/bin/sh", "-c", prologue + FAKE_RANK + " " + action});
    return words;
  }
  [[nodiscard]] std::filesystem::path logs() const { return temp_.path() / "logs"; }
  [[nodiscard]] std::string events() const { return read_file(logs() / "events.jsonl"); }
  TempDir temp_;
};

pid_t coordinator_of(const Job& job) {
  for (const pid_t pid : launcher::children_of(job.pid())) {
    if (read_file("/proc/" + std::to_string(pid) + "/cmdline").find("coordinator") !=
        std::string::npos) {
      return pid;
    }
  }
  return -1;
}

void bind_to_first_core(pid_t pid) {
  cpu_set_t first;
  CPU_ZERO(&first);
  CPU_SET(0, &first);
  ::sched_setaffinity(pid, sizeof first, &first);
}

/// The first core is busy at the highest priority for a second and a half of its time.
pid_t start_hog() {
  const pid_t child = ::fork();
  if (child != 0) return child;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  bind_to_first_core(0);
  ::setpriority(PRIO_PROCESS, 0, -20);
  timespec used{};
  while (used.tv_sec * 1000 + used.tv_nsec / 1'000'000 < 1500)
    ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  ::_exit(0);
}

TEST_F(Recovery, ARankThatGetsNoProcessorIsNotSilent) {
  if (::geteuid() != 0 || std::thread::hardware_concurrency() < 2)
    GTEST_SKIP() << "needs priorities (root) and a core for everybody else";
  Job job(line({"-n", "2", "--detect-budget", "500ms"}, {"linger"}));
  ASSERT_TRUE(job.wait_for("0: view epoch=1") && job.wait_for("1: view epoch=1"));
  for (const pid_t pid : launcher::children_of(job.pid())) {
    if (!launcher::has_variable(pid, "REGROUP_RANK=1")) continue;
    const sched_param none{};
    ASSERT_EQ(::sched_setscheduler(pid, SCHED_IDLE, &none), 0);
    bind_to_first_core(pid);
  }
  const pid_t hogs[] = {start_hog(), start_hog()};
  for (const pid_t hog : hogs) ASSERT_EQ(::waitpid(hog, nullptr, 0), hog);
  job.signal(SIGTERM);
  EXPECT_EQ(job.wait(), 143);
  EXPECT_THAT(job.err(), Not(HasSubstr("no heartbeat")));
  EXPECT_THAT(events(), Not(HasSubstr("\"lost\"")));
}

TEST_F(Recovery, AllRanksGetOneViewAndItsArena) {
  const Ended ended = run(line({"-n", "3"}, {}));
  EXPECT_EQ(ended.exit_code, 0) << ended.err;
  for (const char* rank : {"0", "1", "2"}) {
    EXPECT_THAT(ended.out,
                HasSubstr(std::string(rank) + ": view epoch=1 seats=1,2,3 groups=1 resume=1"));
  }
}

TEST_F(Recovery, ANamedGroupGetsOneArenaAndLivesOnInTheNextEpoch) {
  const Ended ended = run(line({"-n", "2", "--spares", "1"}, {"group=dp", "until=2", "kill=1"}));
  EXPECT_EQ(ended.exit_code, 0) << ended.out << ended.err;
  EXPECT_THAT(ended.out, HasSubstr("1: group dp id=1 epoch=1"));
  EXPECT_THAT(ended.out, HasSubstr("0: view epoch=2 seats=1,3 groups=2"));
  EXPECT_THAT(ended.out, HasSubstr("1: group dp id=1 epoch=2"));
}

TEST_F(Recovery, ASpareTakesTheSeatOfAKilledRankWithItsMemory) {
  const Ended ended =
      run(line({"-n", "3", "--spares", "1"}, {"until=2", "kill=1", "keep=precious"}));
  EXPECT_EQ(ended.exit_code, 0) << ended.out << ended.err;
  EXPECT_THAT(ended.out, HasSubstr("0: loss epoch=1"));
  EXPECT_THAT(ended.out, HasSubstr("1: assigned seat=1 life=1"));
  EXPECT_THAT(ended.out, HasSubstr("1: kept mirror=precious"));
  EXPECT_THAT(ended.out, HasSubstr("2: view epoch=2 seats=1,4,3"));
  EXPECT_THAT(ended.err, HasSubstr("rank 1"));
  EXPECT_THAT(ended.err, HasSubstr("SIGKILL"));
  EXPECT_THAT(ended.err, HasSubstr("becomes rank 1; 2 kept"));
  EXPECT_THAT(ended.err, HasSubstr("epoch 2 ready"));
  EXPECT_THAT(ended.err, HasSubstr("3/3 ranks finished, 1 replaced"));
  EXPECT_TRUE(std::filesystem::exists(logs() / "rank-1" / "inc-4.out"));
}

TEST_F(Recovery, WithoutASpareTheSeatIsStartedCold) {
  const Ended ended = run(line({"-n", "2"}, {"until=2", "kill=0", "keep=precious"}));
  EXPECT_EQ(ended.exit_code, 0) << ended.out << ended.err;
  EXPECT_THAT(ended.out, HasSubstr("0: welcome seat=0 life=1"));
  EXPECT_THAT(ended.out, HasSubstr("0: kept mirror=precious"));
  EXPECT_THAT(ended.err, HasSubstr("started anew"));
}

TEST_F(Recovery, ARankThatDiesBeforeItAttachedIsStartedAgain) {
  const Ended ended = run(line({"-n", "2", "--restart"}, {"early=1"}));
  EXPECT_EQ(ended.exit_code, 0) << ended.out << ended.err;
  EXPECT_THAT(ended.out, HasSubstr("1: welcome seat=1 life=1"));
  EXPECT_THAT(ended.out, HasSubstr("0: view epoch=1 seats=1,3"));
}

TEST_F(Recovery, ShrinkLeavesTheSeatVacant) {
  const Ended ended = run(line({"-n", "3", "--on-loss", "shrink"}, {"until=2", "kill=1"}));
  EXPECT_EQ(ended.exit_code, 0) << ended.out << ended.err;
  EXPECT_THAT(ended.out, HasSubstr("0: view epoch=2 seats=1,0,3"));
}

TEST_F(Recovery, AbortEndsWithTheFirstCausesCode) {
  const Ended exits = run(line({"-n", "2", "--on-loss", "abort"}, {"until=2", "exit=1:5"}));
  EXPECT_EQ(exits.exit_code, 5) << exits.err;
  const Ended killed = run(line({"-n", "2", "--on-loss", "abort"}, {"until=2", "kill=1"}));
  EXPECT_EQ(killed.exit_code, 137) << killed.err;
}

TEST_F(Recovery, AStoppedRankIsOutAfterTheBudgetAndReplaced) {
  const Ended ended =
      run(line({"-n", "2", "--spares", "1", "--detect-budget", "1500ms"}, {"until=2", "stop=1"}));
  EXPECT_EQ(ended.exit_code, 0) << ended.out << ended.err;
  EXPECT_THAT(ended.out, HasSubstr("1: assigned seat=1"));
}

TEST_F(Recovery, ACoordinatorThatIsKilledDisturbsNobodyAndRecoversTheNextLoss) {
  Job job(line({"-n", "2", "--spares", "1"}, {"until=2", "linger"}));
  ASSERT_TRUE(job.wait_for("0: view epoch=1") && job.wait_for("1: view epoch=1"));
  const pid_t first = coordinator_of(job);
  ASSERT_GT(first, 0);
  ::kill(first, SIGKILL);
  ASSERT_TRUE(job.wait_for("the coordinator (pid"));
  for (const pid_t pid : launcher::children_of(job.pid())) {
    if (launcher::has_variable(pid, "REGROUP_RANK=1")) ::kill(pid, SIGKILL);
  }
  ASSERT_TRUE(job.wait_for("0: view epoch=2 seats=1,3")) << job.out() << job.err();
  EXPECT_THAT(job.out(), Not(HasSubstr("epoch=3")));
  job.signal(SIGTERM);
  EXPECT_EQ(job.wait(), 143);
  EXPECT_THAT(job.left_behind(), IsEmpty());
  EXPECT_THAT(events(), HasSubstr("coordinator_restarted"));
}

class RecoveryOver : public Recovery, public ::testing::WithParamInterface<const char*> {};
INSTANTIATE_TEST_SUITE_P(Control, RecoveryOver, ::testing::Values("pair", "tcp"),
                         [](const auto& control) { return std::string(control.param); });

TEST_P(RecoveryOver, ACoordinatorThatIsStoppedIsReplacedAndTheLossRepaired) {
  Job job(line({"-n", "2", "--spares", "1", "--detect-budget", "500ms", "--control", GetParam()},
               {"until=2", "linger"}));
  ASSERT_TRUE(job.wait_for("0: view epoch=1") && job.wait_for("1: view epoch=1"));
  const pid_t first = coordinator_of(job);
  ASSERT_EQ(::kill(first, SIGSTOP), 0);
  for (const pid_t pid : launcher::children_of(job.pid())) {
    if (launcher::has_variable(pid, "REGROUP_RANK=1")) ::kill(pid, SIGKILL);
  }
  ASSERT_TRUE(job.wait_for("0: view epoch=2 seats=1,3")) << job.out() << job.err();
  EXPECT_THAT(job.out(), Not(HasSubstr("epoch=3")));
  EXPECT_NE(coordinator_of(job), first);
  job.signal(SIGTERM);
  EXPECT_EQ(job.wait(), 143);
  EXPECT_THAT(job.err(), HasSubstr("E-COORD-2"));
  EXPECT_THAT(job.left_behind(), IsEmpty());
  EXPECT_THAT(events(), HasSubstr("coordinator_restarted"));
}

TEST_F(Recovery, ACoordinatorThatIsStoppedWhileNothingHappensIsReplaced) {
  Job job(line({"-n", "2", "--detect-budget", "500ms"}, {"linger"}));
  ASSERT_TRUE(job.wait_for("0: view epoch=1") && job.wait_for("1: view epoch=1"));
  const pid_t first = coordinator_of(job);
  ::kill(first, SIGSTOP);
  ASSERT_TRUE(job.wait_for("E-COORD-2")) << job.err();
  ASSERT_TRUE(job.wait_for("starting it again")) << job.err();
  job.signal(SIGTERM);
  EXPECT_EQ(job.wait(), 143);
  EXPECT_THAT(job.left_behind(), IsEmpty()) << "the stopped one included: " << first;
  EXPECT_THAT(events(), Not(HasSubstr("\"lost\"")));
}

TEST_F(Recovery, TwoRanksKilledAtOnceAreBothReplaced) {
  Job job(line({"-n", "3", "--spares", "2"}, {"linger"}));
  ASSERT_TRUE(job.wait_for("0: view epoch=1") && job.wait_for("1: view epoch=1") &&
              job.wait_for("2: view epoch=1"));
  for (const pid_t pid : launcher::children_of(job.pid())) {
    if (launcher::has_variable(pid, "REGROUP_RANK=1") ||
        launcher::has_variable(pid, "REGROUP_RANK=2")) {
      ::kill(pid, SIGKILL);
    }
  }
  ASSERT_TRUE(job.wait_for("1: assigned seat=1")) << job.out() << job.err();
  ASSERT_TRUE(job.wait_for("2: assigned seat=2")) << job.out() << job.err();
  job.signal(SIGTERM);
  EXPECT_EQ(job.wait(), 143);
  EXPECT_THAT(job.left_behind(), IsEmpty());
}

TEST_F(Recovery, ALostSpareIsRefilled) {
  Job job(line({"-n", "2", "--spares", "1"}, {"linger"}));
  ASSERT_TRUE(job.wait_for("0: view epoch=1") && job.wait_for("1: view epoch=1"));
  for (const pid_t pid : launcher::children_of(job.pid())) {
    if (launcher::has_variable(pid, "REGROUP_SPARE=1")) ::kill(pid, SIGKILL);
  }
  ASSERT_TRUE(job.wait_for("spare 3"));
  for (const pid_t pid : launcher::children_of(job.pid())) {
    if (launcher::has_variable(pid, "REGROUP_RANK=1")) ::kill(pid, SIGKILL);
  }
  ASSERT_TRUE(job.wait_for("0: view epoch=2")) << job.out() << job.err();
  ASSERT_TRUE(job.wait_for("1: view epoch=2")) << job.out() << job.err();
  job.signal(SIGTERM);
  EXPECT_EQ(job.wait(), 143);
}

TEST_F(Recovery, WhoHoldsUpAnOperationIsNamed) {
  Job job(line({"-n", "3"}, {"stall=1", "linger"}));
  ASSERT_TRUE(job.wait_for("E-STALL-1")) << job.out() << job.err();
  EXPECT_THAT(job.err(), HasSubstr("all_reduce #7 on group world: 2 of 3 ranks entered"));
  EXPECT_THAT(job.err(), HasSubstr("not: rank 1 (pid"));
  job.signal(SIGTERM);
  EXPECT_EQ(job.wait(), 143);
}

/// What is told when somebody has been awaited for ten seconds: these tests wait, side by side.
class TenSeconds : public Recovery {};

TEST_F(TenSeconds, WhoHasNotAttachedIsNamed) {
  // Rank 1 starts its program only when asked to.
  Job job(script({"-n", "2"}, "[ $RANK = 1 ] && exec sleep 1000; exec "));
  ASSERT_TRUE(job.wait_for("E-WAIT-1")) << job.out() << job.err();
  EXPECT_THAT(job.err(), HasSubstr("for ranks to attach: rank 1 (pid"));
  job.signal(SIGTERM);
  EXPECT_EQ(job.wait(), 143);
}

TEST_F(TenSeconds, ARankThatIsStoppedBeforeItAttachedIsSaidToBe) {
  Job job(script({"-n", "2"}, "[ $RANK = 1 ] && kill -STOP $$; exec "));
  ASSERT_TRUE(job.wait_for("E-WAIT-1")) << job.out() << job.err();
  EXPECT_TRUE(job.wait_for("has not attached, is stopped)")) << job.err();
  job.signal(SIGTERM);
  EXPECT_EQ(job.wait(), 143);
}

TEST_F(TenSeconds, ASpareThatDoesNotComeIsNamedWhileTheSeatWaitsForIt) {
  Job job(script({"-n", "2", "--spares", "1"}, "[ $REGROUP_SPARE = 1 ] && exec sleep 1000; exec ",
                 "kill=1"));
  ASSERT_TRUE(job.wait_for("E-WAIT-1")) << job.out() << job.err();
  EXPECT_TRUE(job.wait_for("for the epoch after 1: spare 3 (pid")) << job.err();
  job.signal(SIGTERM);
  EXPECT_EQ(job.wait(), 143);
}

TEST_F(TenSeconds, WhoDoesNotEndIsNamedWhileTheGraceRuns) {
  Job job({"run", "-n", "1", "--grace", "1h", "--log-dir", logs().string(), "--", "/bin/sh", "-c",
           "trap '' TERM; echo ready; while :; do sleep 0.05; done"});
  ASSERT_TRUE(job.wait_for("0: ready")) << job.err();
  job.signal(SIGTERM);
  EXPECT_TRUE(job.wait_for("E-WAIT-1 the job ends since")) << job.err();
  EXPECT_TRUE(job.wait_for("still there: rank 0 (pid")) << job.err();
  job.signal(SIGTERM);
  EXPECT_EQ(job.wait(), 143);
}

TEST_F(Recovery, KillingTheLauncherLeavesNoRankSpareOrCoordinator) {
  Job job(line({"-n", "2", "--spares", "1"}, {"linger"}));
  ASSERT_TRUE(job.wait_for("0: view epoch=1") && job.wait_for("1: view epoch=1"));
  job.signal(SIGKILL);
  EXPECT_EQ(job.wait(), 137);
  EXPECT_THAT(job.left_behind(), IsEmpty());
}

}  // namespace
}  // namespace regroup::test
