// Ranks as processes that are really killed, with an agent that acts on what the kernel tells it.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

#include "tests/conformance/diary.hpp"

namespace regroup::conformance {
namespace {

constexpr int kRanks = 4;
constexpr std::chrono::seconds kJobMax{20};

unsigned long long as_long(std::uint64_t number) { return number; }

void run_rank(int fd, int rank, Diary& diary) {
  const shm::Arena arena = shm::open_arena(fd, Epoch(1), 0).value();
  SlotRunner runner(arena.slots, rank, {.cores = cores()});
  reduce_until_lost(runner, rank, kRanks, {1, 900, 20000}, diary);
}

/// What the kernel says of a process that does not end: its state and where it waits.
std::string state_of(pid_t pid) {
  std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  std::getline(stat, line);
  const std::size_t name_end = line.rfind(')');
  if (name_end == std::string::npos) return "gone";
  std::ifstream wchan("/proc/" + std::to_string(pid) + "/wchan");
  std::string where;
  std::getline(wchan, where);
  return line.substr(name_end + 2, 1) + " " + where;
}

void explain_job(const spi::SharedSlots& slots, const Diary* diaries,
                 const std::vector<pid_t>& children) {
  for (int rank = 0; rank < kRanks; ++rank) {
    const spi::MemberBlock& block = slots.member(rank);
    const spi::WordState word = spi::read(block.group_word);
    const Diary& diary = diaries[rank];
    std::fprintf(stderr,
                 "  rank %d: process %s; done %llu, lost %llu, wrong %llu %s; word %llu%s%s; turns "
                 "%llu and %llu, read up to %llu; waits for %d\n",
                 rank, state_of(children[static_cast<std::size_t>(rank)]).c_str(),
                 as_long(diary.done), as_long(diary.lost), as_long(diary.wrong), diary.why,
                 as_long(word.number), word.wedged ? " wedged" : "", word.decided ? " decided" : "",
                 as_long(block.lines[0].turn), as_long(block.lines[1].turn),
                 as_long(block.read_up_to), block.bell.waiting_for.load());
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
  const Watchdog watchdog(kJobMax, [&] { explain_job(arena.slots, diaries, children); });
  const pid_t doomed = children[static_cast<std::size_t>(victim)];
  read_until(diaries[victim],
             [&] { return diaries[victim].done >= after || diaries[victim].wrong != 0; });
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
  const shm::Memory memory = shm::make_memory("diaries", sizeof(Diary) * kRanks).value();
  // The children's copy of the mapping is gone (it is not inherited): they get one of their own
  // here.
  void* shared = ::mmap(nullptr, sizeof(Diary) * kRanks, PROT_READ | PROT_WRITE, MAP_SHARED,
                        memory.fd.get(), 0);
  ASSERT_NE(shared, MAP_FAILED);
  auto* diaries = static_cast<Diary*>(shared);
  std::mt19937_64 random(99);
  for (int job = 0; job < 25; job += kOneIn) {
    for (int rank = 0; rank < kRanks; ++rank) {
      diaries[rank].clear();
    }
    run_job(diaries, static_cast<int>(random() % kRanks), random() % 60);
    ASSERT_FALSE(HasFailure()) << "job " << job;
  }
  ::munmap(shared, sizeof(Diary) * kRanks);
}

}  // namespace
}  // namespace regroup::conformance
