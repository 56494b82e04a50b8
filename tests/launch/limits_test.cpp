/// What the machine does not give: memory for the arenas, at the start and after a loss; features
/// of the kernel. Each time the cause is named, the job ends, and nothing is left.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <cerrno>
#include <csignal>

#include "launcher/descendants.hpp"
#include "tests/support/job.hpp"
#include "tests/support/seccomp.hpp"

namespace regroup::test {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using Words = std::vector<std::string>;

constexpr rlim_t kStateFits = 5 << 19;  // logs, the coordinator's state; no arena of four ranks
constexpr rlim_t kLogsFit = 1 << 20;    // logs; no state, no arena of two

class Limits : public testing::Test {
 protected:
  [[nodiscard]] Words line(const Words& flags, const Words& actions) const {
    Words words = {"run", "--log-dir", logs().string()};
    words.insert(words.end(), flags.begin(), flags.end());
    words.insert(words.end(), {"--", FAKE_RANK});
    words.insert(words.end(), actions.begin(), actions.end());
    return words;
  }
  [[nodiscard]] std::filesystem::path logs() const { return temp_.path() / "logs"; }
  [[nodiscard]] std::string events() const { return read_file(logs() / "events.jsonl"); }
  static JobOptions without(RefusedCall call) {
    JobOptions options;
    options.before_exec = [call] { refuse_calls({call}); };
    return options;
  }
  static void kill_rank(const Job& job, const char* rank) {
    for (const pid_t pid : launcher::children_of(job.pid())) {
      if (launcher::has_variable(pid, std::string("REGROUP_RANK=") + rank)) ::kill(pid, SIGKILL);
    }
  }
  TempDir temp_;
};

// ---- memory
// ----------------------------------------------------------------------------------------

TEST_F(Limits, NoMemoryForTheFirstEpochEndsTheJobAndSaysWhy) {
  if (!can_refuse_calls()) GTEST_SKIP() << "no seccomp filters here";
  for (const int error : {ENOSPC, ENOMEM}) {
    Job job(line({"-n", "4", "--spares", "1"}, {"linger"}),
            without({SYS_fallocate, error, kStateFits}));
    EXPECT_EQ(job.wait(), 69) << job.err();
    EXPECT_THAT(job.err(), HasSubstr("E-MEM-1 no shared memory for epoch 1"));
    EXPECT_THAT(job.err(), HasSubstr("memory limit of this container"));
    EXPECT_THAT(job.left_behind(), IsEmpty());
  }
}

TEST_F(Limits, AFileSizeLimitIsNamedLikeAnyLackOfMemory) {
  JobOptions options;
  options.before_exec = [] {
    const rlimit limit{kStateFits, kStateFits};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  };
  Job job(line({"-n", "4"}, {"linger"}), std::move(options));
  EXPECT_EQ(job.wait(), 69) << job.err();
  EXPECT_THAT(job.err(), HasSubstr("E-MEM-1 no shared memory for epoch 1"));
  EXPECT_THAT(job.err(), HasSubstr("ulimit -f"));
  EXPECT_THAT(job.left_behind(), IsEmpty());
}

TEST_F(Limits, NoMemoryAfterALossEndsTheJobWithThatCause) {
  Job job(line({"-n", "2", "--spares", "1"}, {"linger"}));
  ASSERT_TRUE(job.wait_for("0: view epoch=1") && job.wait_for("1: view epoch=1"));
  const rlimit limit{kLogsFit, kLogsFit};
  ASSERT_EQ(::prlimit(job.pid(), RLIMIT_FSIZE, &limit, nullptr), 0);
  // What was made ahead while there was memory may carry one recovery.
  kill_rank(job, "1");
  if (job.wait_for("view epoch=2") || job.err().find("E-MEM-1") != std::string::npos) {
    kill_rank(job, "0");
  }
  EXPECT_EQ(job.wait(), 69) << job.out() << job.err();
  EXPECT_THAT(job.err(), HasSubstr("E-MEM-1 no shared memory for epoch"));
  EXPECT_THAT(job.err(), HasSubstr("job ended with exit code 69 (launcher): no shared memory"));
  EXPECT_THAT(job.left_behind(), IsEmpty());
  EXPECT_THAT(events(), HasSubstr("E-MEM-1"));
}

TEST_F(Limits, NoMemoryForANamedGroupIsTheAnswerToWhoAsked) {
  Job job(line({"-n", "2"}, {"linger", "ask"}));
  ASSERT_TRUE(job.wait_for("0: view epoch=1") && job.wait_for("1: view epoch=1"));
  const rlimit limit{kLogsFit, kLogsFit};
  ASSERT_EQ(::prlimit(job.pid(), RLIMIT_FSIZE, &limit, nullptr), 0);
  job.signal(SIGUSR1);  // now they ask
  EXPECT_TRUE(job.wait_for("0: refused: reservation")) << job.out() << job.err();
  EXPECT_TRUE(job.wait_for("1: refused: reservation")) << job.out() << job.err();
  job.signal(SIGTERM);
  EXPECT_EQ(job.wait(), 143);
}

TEST_F(Limits, ACoordinatorThatCannotWriteItsStateSaysWhyAndTheJobEnds) {
  JobOptions options;
  options.before_exec = [] {
    const rlimit limit{kLogsFit, kLogsFit};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  };
  Job job(line({"-n", "2"}, {"linger"}), std::move(options));
  EXPECT_EQ(job.wait(), 69) << job.err();
  EXPECT_THAT(job.err(), HasSubstr("E-STATE-1"));
  EXPECT_THAT(job.err(), HasSubstr("E-COORD-1 the coordinator does not run: exited with code 69"));
  EXPECT_THAT(job.err(), testing::Not(HasSubstr("SIGKILL")));
  EXPECT_THAT(job.err(), testing::Not(HasSubstr("pid 0")));
  EXPECT_THAT(job.left_behind(), IsEmpty());
}

// ---- features of the kernel
// ------------------------------------------------------------------------

struct Missing {
  const char* name;
  RefusedCall call;
  const char* text;
};
class MissingFeature : public Limits, public testing::WithParamInterface<Missing> {};

TEST_P(MissingFeature, IsNamedBeforeAnythingStarts) {
  if (!can_refuse_calls()) GTEST_SKIP() << "no seccomp filters here";
  const Ended ended = run(line({"-n", "2"}, {}), without(GetParam().call));
  EXPECT_EQ(ended.exit_code, 69) << ended.err;
  EXPECT_THAT(ended.err, HasSubstr("E-SYS-1"));
  EXPECT_THAT(ended.err, HasSubstr(GetParam().text));
  EXPECT_THAT(ended.err, HasSubstr("seccomp"));
  EXPECT_THAT(ended.out, IsEmpty());
  EXPECT_FALSE(std::filesystem::exists(logs()));
}

INSTANTIATE_TEST_SUITE_P(
    Each, MissingFeature,
    testing::Values(Missing{"PidfdOpen", {SYS_pidfd_open, ENOSYS}, "pidfd_open"},
                    Missing{"PidfdSignal", {SYS_pidfd_send_signal, EPERM}, "pidfd_send_signal"},
                    Missing{"Memfd", {SYS_memfd_create, ENOSYS}, "memfd_create"},
                    Missing{"RobustList", {SYS_set_robust_list, ENOSYS}, "robust futexes"}),
    [](const auto& missing) { return missing.param.name; });

TEST_F(Limits, WithoutFutexWaitvALossIsNoticedAllTheSame) {
  if (!can_refuse_calls()) GTEST_SKIP() << "no seccomp filters here";
  Job job(line({"-n", "2", "--spares", "1"}, {"until=2", "kill=1"}),
          without({SYS_futex_waitv, ENOSYS}));
  EXPECT_EQ(job.wait(), 0) << job.out() << job.err();
  EXPECT_THAT(job.err(), HasSubstr("becomes rank 1; 1 kept"));
}

}  // namespace
}  // namespace regroup::test
