#include "launcher/rank_beats.hpp"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>

#include "launcher/descendants.hpp"

namespace regroup::launcher {
namespace {

using std::chrono::milliseconds;

const auto kWantsTo = [] { return true; };
const auto kDoesNot = [] { return false; };

TEST(RankBeats, AStillCounterOfAThreadThatWantsToRunMovesOnForALimitedTime) {
  RankBeats beats;
  TimePoint now{milliseconds(1000)};
  std::uint64_t seen = beats.read(7, now, kDoesNot);
  const TimePoint end = now + RankBeats::kStarvedMax;
  for (now += RankBeats::kStillMin; now < end; now += milliseconds(50)) {
    const std::uint64_t next = beats.read(7, now, kWantsTo);
    EXPECT_GT(next, seen);
    seen = next;
  }
  EXPECT_EQ(beats.read(7, now, kWantsTo), seen) << "not for ever";
  EXPECT_GT(beats.read(8, now, kDoesNot), seen) << "what it beats counts again";
}

TEST(RankBeats, AStillCounterOfAThreadThatDoesNotIsSilence) {
  RankBeats beats;
  const TimePoint now{milliseconds(1000)};
  const std::uint64_t seen = beats.read(7, now, kDoesNot);
  EXPECT_EQ(beats.read(7, now + milliseconds(10), kWantsTo), seen) << "too early to ask";
  EXPECT_EQ(beats.read(7, now + milliseconds(900), kDoesNot), seen);
}

/// A child that runs, or sleeps.
pid_t start_child(bool running) {
  const pid_t child = ::fork();
  if (child != 0) return child;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (!running) ::pause();
  for (std::atomic<unsigned> turns{0};;) ++turns;
}

void end_child(pid_t child) {
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
}

TEST(RankBeats, TheKernelSaysWhichThreadWantsToRun) {
  const pid_t running = start_child(true);
  EXPECT_TRUE(wants_to_run(running));
  ::kill(running, SIGSTOP);
  int status = 0;
  ASSERT_EQ(::waitpid(running, &status, WUNTRACED), running);
  EXPECT_FALSE(wants_to_run(running)) << "stopped";
  end_child(running);
  EXPECT_FALSE(wants_to_run(running)) << "gone";

  const pid_t sleeping = start_child(false);
  while (wants_to_run(sleeping)) {  // until it sleeps
  }
  end_child(sleeping);
}

}  // namespace
}  // namespace regroup::launcher
