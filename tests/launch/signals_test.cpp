/// Signals to a job: which ones its ranks get, and how the whole of it is stopped and goes on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <chrono>
#include <csignal>

#include "launcher/descendants.hpp"
#include "tests/support/job.hpp"
#include "tests/support/terminal.hpp"

namespace regroup::test {
namespace {

using testing::HasSubstr;
using testing::Not;
using Words = std::vector<std::string>;

/// Only where time itself is what a test is about: silence that must not count.
void let_pass(std::chrono::milliseconds time) {
  const base::Fd timer(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC));
  itimerspec when{};
  when.it_value.tv_sec = time / std::chrono::seconds(1);
  when.it_value.tv_nsec = (time % std::chrono::seconds(1)) / std::chrono::nanoseconds(1);
  ASSERT_EQ(::timerfd_settime(timer.get(), 0, &when, nullptr), 0);
  std::uint64_t expired = 0;
  ASSERT_EQ(::read(timer.get(), &expired, sizeof expired), static_cast<ssize_t>(sizeof expired));
}

class Signals : public testing::Test {
 protected:
  [[nodiscard]] Words line(const Words& flags, const Words& actions) const {
    Words words = {"run", "--log-dir", logs().string()};
    words.insert(words.end(), flags.begin(), flags.end());
    words.insert(words.end(), {"--", FAKE_RANK, "linger"});
    words.insert(words.end(), actions.begin(), actions.end());
    return words;
  }
  [[nodiscard]] std::filesystem::path logs() const { return temp_.path() / "logs"; }
  [[nodiscard]] std::string events() const { return read_file(logs() / "events.jsonl"); }
  static bool runs(Job& job) {
    return job.wait_for("0: view epoch=1") && job.wait_for("1: view epoch=1");
  }
  /// Ranks, spares and the coordinator; the guardian stays awake to guard.
  static std::string states(const Job& job) {
    std::string all;
    for (const pid_t pid : launcher::children_of(job.pid())) {
      const std::string command = read_file("/proc/" + std::to_string(pid) + "/cmdline");
      if (command.find("guardian") == std::string::npos) all += state_of(pid);
    }
    return all;
  }
  TempDir temp_;
};

TEST_F(Signals, EachIsForwardedToEveryRank) {
  Job job(line({"-n", "2"}, {"signals"}));
  ASSERT_TRUE(runs(job)) << job.err();
  for (const auto& [number, name] : {std::pair{SIGUSR1, "USR1"},
                                     {SIGUSR2, "USR2"},
                                     {SIGHUP, "HUP"},
                                     {SIGQUIT, "QUIT"},
                                     {SIGWINCH, "WINCH"},
                                     {SIGCONT, "CONT"}}) {
    job.signal(number);
    EXPECT_TRUE(job.wait_for(std::string("0: signal=") + name)) << name;
    EXPECT_TRUE(job.wait_for(std::string("1: signal=") + name)) << name;
  }
  job.signal(SIGTERM);
  EXPECT_EQ(job.wait(), 143);
  for (const char* name : {"USR1", "USR2", "HUP", "QUIT", "WINCH", "CONT"})
    EXPECT_EQ(count(job.out(), std::string("signal=") + name + "\n"), 2U) << name;
}

TEST_F(Signals, AHangUpIsNothingToAJobThatWasStartedWithoutOne) {
  JobOptions options;
  options.before_exec = [] { ::signal(SIGHUP, SIG_IGN); };
  Job job(line({"-n", "2"}, {"signals"}), std::move(options));
  ASSERT_TRUE(runs(job)) << job.err();
  job.signal(SIGHUP);
  job.signal(SIGUSR1);
  EXPECT_TRUE(job.wait_for("0: signal=USR1") && job.wait_for("1: signal=USR1"));
  EXPECT_THAT(job.out(), Not(HasSubstr("signal=HUP")));
  job.signal(SIGTERM);
  EXPECT_EQ(job.wait(), 143);
}

TEST_F(Signals, AStoppedJobStandsStillAndGoesOnWithoutALoss) {
  Job job(line({"-n", "2", "--spares", "1", "--detect-budget", "500ms"}, {"signals"}));
  // The spare too: who starts later hears of the first round only that it is over.
  ASSERT_TRUE(runs(job) && job.wait_for("s3: welcome")) << job.err();
  for (int round = 0; round < 2; ++round) {
    job.signal(SIGTSTP);
    ASSERT_TRUE(job.wait_stopped()) << job.err();
    EXPECT_EQ(states(job), "TTTT");
    let_pass(std::chrono::milliseconds(1200));
    job.signal(SIGCONT);
    EXPECT_TRUE(job.wait_for("0: signal=CONT") && job.wait_for("1: signal=CONT")) << job.out();
    // Twice the budget: what would be taken for silence would be out by then.
    let_pass(std::chrono::milliseconds(1000));
  }
  EXPECT_EQ(states(job).find('T'), std::string::npos);
  job.signal(SIGUSR1);
  EXPECT_TRUE(job.wait_for("0: signal=USR1") && job.wait_for("1: signal=USR1"));
  job.signal(SIGTERM);
  EXPECT_EQ(job.wait(), 143);
  EXPECT_THAT(events(), HasSubstr("\"stopped\""));
  EXPECT_THAT(events(), Not(HasSubstr("\"lost\""))) << events();
  EXPECT_THAT(events(), Not(HasSubstr("suspected"))) << events();
  EXPECT_THAT(events(), Not(HasSubstr("coordinator_lost"))) << events();
  EXPECT_EQ(count(job.out(), "signal=CONT\n"), 6U) << job.out();
}

TEST_F(Signals, ALossInAStoppedJobIsRepairedWhenItGoesOn) {
  Job job(line({"-n", "2", "--spares", "1"}, {}));
  ASSERT_TRUE(runs(job)) << job.err();
  job.signal(SIGTSTP);
  ASSERT_TRUE(job.wait_stopped()) << job.err();
  for (const pid_t pid : launcher::children_of(job.pid())) {
    if (launcher::has_variable(pid, "REGROUP_RANK=1")) ::kill(pid, SIGKILL);
  }
  job.signal(SIGCONT);
  EXPECT_TRUE(job.wait_for("0: view epoch=2 seats=1,3")) << job.out() << job.err();
  job.signal(SIGTERM);
  EXPECT_EQ(job.wait(), 143);
}

TEST_F(Signals, WhoIgnoresTheRequestIsStoppedAllTheSame) {
  Job job(line({"-n", "2"}, {"deaf", "signals"}));
  ASSERT_TRUE(runs(job)) << job.err();
  job.signal(SIGTSTP);
  ASSERT_TRUE(job.wait_stopped()) << job.err();
  EXPECT_EQ(states(job), "TTT");
  job.signal(SIGCONT);
  EXPECT_TRUE(job.wait_for("0: signal=CONT") && job.wait_for("1: signal=CONT"));
  job.signal(SIGTERM);
  EXPECT_EQ(job.wait(), 143);
}

TEST_F(Signals, AStoppedJobThatIsKilledLeavesNothing) {
  Job job(line({"-n", "2"}, {}));
  ASSERT_TRUE(runs(job)) << job.err();
  job.signal(SIGTSTP);
  ASSERT_TRUE(job.wait_stopped()) << job.err();
  job.signal(SIGKILL);
  EXPECT_EQ(job.wait(), 137);
  EXPECT_THAT(job.left_behind(), testing::IsEmpty());
}

TEST_F(Signals, CtrlZAndFgOfAShellStopAndContinueAJob) {
  Terminal terminal;
  ASSERT_TRUE(terminal.wait_for("ready> "));
  std::string command = REGROUP_BINARY;
  for (const std::string& word : line({"-n", "2"}, {"signals"})) command += " " + word;
  terminal.type(command + "\n");
  ASSERT_TRUE(terminal.wait_for("view epoch=1") && terminal.wait_for("view epoch=1"))
      << terminal.screen();
  terminal.type("\x1a");
  ASSERT_TRUE(terminal.wait_for("ready> ")) << terminal.screen();
  terminal.type("jobs\n");
  EXPECT_TRUE(terminal.wait_for("Stopped")) << terminal.screen();
  terminal.type("fg\n");
  EXPECT_TRUE(terminal.wait_for("signal=CONT") && terminal.wait_for("signal=CONT"))
      << terminal.screen();
  terminal.type("\x03");
  ASSERT_TRUE(terminal.wait_for("ready> ")) << terminal.screen();
  terminal.type("echo code=$?\n");
  EXPECT_TRUE(terminal.wait_for("code=130")) << terminal.screen();
}

TEST_F(Signals, ATerminalIsStandardInputOfRankZero) {
  Terminal terminal;
  ASSERT_TRUE(terminal.wait_for("ready> "));
  terminal.type(std::string(REGROUP_BINARY) + " run -n 2 --log-dir " + logs().string() +
                " -- /bin/sh -c 'echo here; read x; echo got-$x-'\n");
  ASSERT_TRUE(terminal.wait_for("0: here")) << terminal.screen();
  terminal.type("line\n");
  EXPECT_TRUE(terminal.wait_for("0: got-line-")) << terminal.screen();
  EXPECT_TRUE(terminal.wait_for("ready> ")) << terminal.screen();
}

TEST_F(Signals, EndOfInputOnATerminalReachesRankZero) {
  Terminal terminal;
  ASSERT_TRUE(terminal.wait_for("ready> "));
  terminal.type(std::string(REGROUP_BINARY) + " run -n 1 --log-dir " + logs().string() +
                " -- /bin/sh -c 'echo here; cat; echo end'\n");
  ASSERT_TRUE(terminal.wait_for("0: here")) << terminal.screen();
  terminal.type("line\n\x04");
  EXPECT_TRUE(terminal.wait_for("0: line") && terminal.wait_for("0: end")) << terminal.screen();
}

}  // namespace
}  // namespace regroup::test
