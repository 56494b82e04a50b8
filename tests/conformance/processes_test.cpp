// Ranks as processes that are really killed, with an agent that acts on what the kernel tells it.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>

#include "tests/conformance/harness.hpp"

namespace regroup::conformance {
namespace {

/// What a rank process leaves behind for the test, in memory that outlives it.
struct Diary {
  std::atomic<std::uint64_t> done;  ///< operations that were done with right values
  std::atomic<std::uint64_t> lost;  ///< number of the operation that was lost, 0 none
  std::atomic<std::uint64_t> wrong;
};

constexpr int kRanks = 4;
constexpr std::uint64_t kForever = ~std::uint64_t{0};

Case case_of(std::uint64_t number) {
  const std::size_t counts[] = {1, 900, 20000};
  return {{.kind = OpKind::AllReduce, .dtype = DType::F32, .count = counts[number % 3]},
          kRanks,
          number % 7};
}

void run_rank(int fd, int rank, Diary& diary) {
  const shm::Arena arena = shm::open_arena(fd, Epoch(1), 0).value();
  SlotRunner runner(arena.slots, rank, {.cores = cores()});
  for (std::uint64_t number = 1; number < kForever; ++number) {
    const Case c = case_of(number);
    std::vector<std::byte> data = c.input(rank);
    const std::vector<std::byte> before = data;
    OpSpec spec = c.spec;
    spec.in = spec.out = data.data();
    const Outcome outcome = runner.run(spec, kNoDeadline);
    if (outcome.kind == OutcomeKind::Lost) {
      if (data != before) ++diary.wrong;
      diary.lost = number;
      return;
    }
    if (outcome.kind != OutcomeKind::Done || data != c.expected(rank)) ++diary.wrong;
    diary.done = number;
  }
}

/// One job of kRanks processes in which `victim` is killed once it has done `after` operations.
void run_job(Diary* diaries, int victim, std::uint64_t after) {
  const shm::Arena arena = shm::make_arena(Epoch(1), 0, kRanks, {.slot_bytes = 8192}).value();
  std::vector<pid_t> children;
  for (int rank = 0; rank < kRanks; ++rank) {
    const pid_t child = ::fork();
    if (child == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // a test that is aborted leaves nothing behind
      run_rank(arena.fd.get(), rank, diaries[rank]);
      ::_exit(0);
    }
    children.push_back(child);
  }
  const pid_t doomed = children[static_cast<std::size_t>(victim)];
  while (diaries[victim].done < after && diaries[victim].wrong == 0) spi::yield_cpu();
  ASSERT_EQ(::kill(doomed, SIGKILL), 0);
  int status = 0;
  ASSERT_EQ(::waitpid(doomed, &status, 0), doomed);
  EXPECT_EQ(WTERMSIG(status), SIGKILL);
  spi::wedge_all(arena.slots);
  spi::wake_all(arena.slots);
  std::vector<int> survivors;
  for (int rank = 0; rank < kRanks; ++rank) {
    if (rank != victim) survivors.push_back(rank);
  }
  const spi::ArenaReport report = spi::read_report(arena.slots);
  spi::decide_all(arena.slots, survivors, report.completed, 0);
  spi::wake_all(arena.slots);
  for (const int rank : survivors) {
    ASSERT_EQ(::waitpid(children[static_cast<std::size_t>(rank)], &status, 0),
              children[static_cast<std::size_t>(rank)]);
    EXPECT_EQ(status, 0) << "rank " << rank;
    EXPECT_EQ(diaries[rank].wrong, 0U) << "rank " << rank;
    EXPECT_EQ(diaries[rank].done, report.completed) << "rank " << rank;
    EXPECT_EQ(diaries[rank].lost, report.completed + 1) << "rank " << rank;
  }
  EXPECT_LE(diaries[victim].done, report.completed)
      << "the dead rank was told more than its survivors";
}

TEST(Processes, SurvivorsOfAKilledRankAgree) {
  const Watchdog watchdog;
  const shm::Memory memory = shm::make_memory("diaries", sizeof(Diary) * kRanks).value();
  // The children's copy of the mapping is gone (it is not inherited): they get one of their own
  // here.
  void* shared = ::mmap(nullptr, sizeof(Diary) * kRanks, PROT_READ | PROT_WRITE, MAP_SHARED,
                        memory.fd.get(), 0);
  ASSERT_NE(shared, MAP_FAILED);
  auto* diaries = static_cast<Diary*>(shared);
  std::mt19937_64 random(99);
  for (int job = 0; job < 25; ++job) {
    for (int rank = 0; rank < kRanks; ++rank) {
      diaries[rank].done = diaries[rank].lost = diaries[rank].wrong = 0;
    }
    run_job(diaries, static_cast<int>(random() % kRanks), random() % 60);
    ASSERT_FALSE(HasFailure()) << "job " << job;
  }
  ::munmap(shared, sizeof(Diary) * kRanks);
}

}  // namespace
}  // namespace regroup::conformance
