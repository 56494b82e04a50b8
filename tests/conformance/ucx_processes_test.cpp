// Ranks as processes that exchange messages over UCX and are really killed; each has an arena of
// its own, as if it were alone on its host.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include "base/fd.hpp"
#include "tests/conformance/diary.hpp"
#include "tests/conformance/message_worlds.hpp"

namespace regroup::conformance {
namespace {

constexpr int kRanks = 3;
constexpr std::size_t kAddressMax = 2048;

/// What a rank process tells the test, in memory that outlives it.
struct Page : Diary {
  std::atomic<std::uint32_t> address_bytes;  ///< 0: not there yet
  std::byte address[kAddressMax];
};

/// Small ones, and such as move in several chunks.
constexpr std::size_t kCounts[] = {1, 900, 100'000};

/// The parent says on this pipe who is dead.
void close_the_lost(int pipe, MessageHub& hub, const std::vector<int>& channels) {
  for (int lost = 0; ::read(pipe, &lost, sizeof lost) == sizeof lost;) {
    const auto held = hub.lock();
    hub.close(channels[static_cast<std::size_t>(lost)]);
  }
}

MessageMembers reach(MessageHub& hub, Page* pages, int rank) {
  MessageMembers members;
  for (int other = 0; other < kRanks; ++other) {
    members.incarnations.push_back(static_cast<std::uint64_t>(other) + 1);
    members.channels.push_back(-1);
    if (other == rank) continue;
    Page& theirs = pages[other];
    while (theirs.address_bytes == 0) spi::yield_cpu();
    const auto held = hub.lock();
    members.channels.back() = hub.port().connect({theirs.address, theirs.address_bytes}).value();
  }
  return members;
}

void run_rank(int arena_fd, int pipe, int rank, Page* pages) {
  ::setenv("UCX_TLS", "tcp", 0);  // NOLINT(concurrency-mt-unsafe)
  Page& mine = pages[rank];
  const shm::Arena arena = shm::open_arena(arena_fd, Epoch(1), 0).value();
  auto port = ucx::open_port().value();
  const auto address = port->address();
  if (address.size() > kAddressMax) ::_exit(1);
  std::memcpy(mine.address, address.data(), address.size());
  mine.address_bytes = static_cast<std::uint32_t>(address.size());
  MessageHub hub(std::move(port));
  const MessageMembers members = reach(hub, pages, rank);
  std::thread news([&] { close_the_lost(pipe, hub, members.channels); });
  {
    MessageRunner runner(arena.slots, rank, hub, members, {.cores = cores()});
    reduce_until_lost(runner, rank, kRanks, kCounts, mine, /*ways_break=*/true);
  }
  news.join();  // the parent closes the pipe once all have ended
}

struct Process {
  pid_t pid = -1;
  base::Fd news;  ///< to it
};

/// One job in which `victim` is killed once it has done `after` operations.
class Job {
 public:
  explicit Job(Page* pages) : pages_(pages) {
    for (int rank = 0; rank < kRanks; ++rank) {
      pages[rank].clear();
      pages[rank].address_bytes = 0;
      arenas_.push_back(
          shm::make_arena(Epoch(1), 0, kRanks, {.slot_bytes = 4096, .ring_bytes = 64}).value());
    }
    for (int rank = 0; rank < kRanks; ++rank) start(rank);
  }

  /// `victim` is killed once it has done `after` operations and `delay` has passed since it could
  /// be reached.
  void kill(int victim, std::uint64_t after, std::chrono::microseconds delay = {}) {
    may_abort_ = after == 0 && is_before_1_14();
    while (pages_[victim].address_bytes == 0) spi::yield_cpu();
    const TimePoint due = Clock::now() + delay;
    while (Clock::now() < due) spi::yield_cpu();
    read_until(pages_[victim],
               [&] { return pages_[victim].done >= after || pages_[victim].wrong != 0; });
    ASSERT_EQ(::kill(process(victim).pid, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(::waitpid(process(victim).pid, &status, 0), process(victim).pid);
    EXPECT_EQ(WTERMSIG(status), SIGKILL);
    std::uint64_t cut = 0;
    for (const shm::Arena& arena : arenas_) {
      spi::wedge_all(arena.slots);
      cut = std::max(cut, spi::read_report(arena.slots).completed);
    }
    for (int rank = 0; rank < kRanks; ++rank) {
      if (rank == victim) continue;
      const auto told = ::write(process(rank).news.get(), &victim, sizeof victim);
      const bool gone = told < 0 && errno == EPIPE && may_abort_;
      ASSERT_TRUE(gone || told == static_cast<ssize_t>(sizeof victim));
      const int survivor[] = {rank};
      spi::decide_all(arenas_[static_cast<std::size_t>(rank)].slots, survivor, cut, 0);
    }
    end(victim, cut);
  }
  /// Survivors that UCX ended.
  [[nodiscard]] int aborted() const { return aborted_; }

 private:
  Process& process(int rank) { return processes_[static_cast<std::size_t>(rank)]; }
  void start(int rank) {
    int ends[2];
    ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // a test that is aborted leaves nothing behind
      ::close(ends[1]);
      for (Process& other : processes_) other.news.reset();
      run_rank(arenas_[static_cast<std::size_t>(rank)].fd.get(), ends[0], rank, pages_);
      ::_exit(0);
    }
    ::close(ends[0]);
    processes_.push_back({child, base::Fd(ends[1])});
  }
  /// Nobody ends before the news do.
  bool has_ended(int rank) {
    siginfo_t info{};
    const auto pid = static_cast<id_t>(process(rank).pid);
    return ::waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid != 0;
  }
  void end(int victim, std::uint64_t cut) {
    // A rank stays until all have ended their operation, as it does in a job.
    for (int rank = 0; rank < kRanks; ++rank) {
      read_until(pages_[rank],
                 [&] { return rank == victim || pages_[rank].lost != 0 || has_ended(rank); });
    }
    for (int rank = 0; rank < kRanks; ++rank) {
      if (rank == victim) continue;
      process(rank).news.reset();
      int status = 0;
      ASSERT_EQ(::waitpid(process(rank).pid, &status, 0), process(rank).pid);
      if (may_abort_ && WIFSIGNALED(status) &&
          (WTERMSIG(status) == SIGABRT || WTERMSIG(status) == SIGSEGV)) {
        ++aborted_;
        continue;
      }
      EXPECT_EQ(status, 0) << "rank " << rank;
      EXPECT_EQ(pages_[rank].wrong, 0U) << "rank " << rank << " " << pages_[rank].why;
      EXPECT_EQ(pages_[rank].done, cut) << "rank " << rank;
      EXPECT_EQ(pages_[rank].lost, cut + 1) << "rank " << rank;
    }
    EXPECT_LE(pages_[victim].done, cut) << "the dead rank was told more than its survivors";
  }

  static bool is_before_1_14() {
    int major = 0;
    int minor = 0;
    if (std::sscanf(ucx::version().c_str(), "%d.%d", &major, &minor) != 2) return false;
    return major == 1 && minor < 14;
  }

  Page* pages_;
  bool may_abort_ = false;
  int aborted_ = 0;
  std::vector<shm::Arena> arenas_;
  std::vector<Process> processes_;
};

/// Pages that the rank processes share with the test.
class Pages {
 public:
  Pages()
      : memory_(
            ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) {}
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  ~Pages() { ::munmap(memory_, kBytes); }
  [[nodiscard]] Page* get() const { return static_cast<Page*>(memory_); }

 private:
  static constexpr std::size_t kBytes = sizeof(Page) * kRanks;
  void* memory_;
};

TEST(UcxProcesses, SurvivorsOfAKilledRankAgree) {
  const Watchdog watchdog;
  const Pages pages;
  std::mt19937_64 random(99);
  for (int number = 0; number < 6; number += kOneIn) {
    Job job(pages.get());
    job.kill(static_cast<int>(random() % kRanks), 1 + random() % 40);
    ASSERT_FALSE(HasFailure()) << "job " << number << " over UCX " << ucx::version();
  }
}

// While it is being connected. UCX before 1.14 may end a survivor then (an assertion, its
// keepalive); the others agree all the same. REGROUP_UCX_KILLS jobs are for measuring how often it
// does.
TEST(UcxProcesses, SurvivorsOfARankKilledInItsFirstOperationAgree) {
  ::signal(SIGPIPE, SIG_IGN);  // news for a survivor that UCX has ended
  const char* const wanted = std::getenv("REGROUP_UCX_KILLS");
  const int jobs = wanted == nullptr ? 6 : std::atoi(wanted);
  const Watchdog watchdog(std::chrono::seconds(60 + jobs));
  const Pages pages;
  std::mt19937_64 random(7);
  int jobs_aborted = 0;
  for (int number = 0; number < jobs; number += kOneIn) {
    Job job(pages.get());
    job.kill(static_cast<int>(random() % kRanks), 0, std::chrono::microseconds(random() % 4000));
    ASSERT_FALSE(HasFailure()) << "job " << number << " over UCX " << ucx::version();
    if (job.aborted() > 0) ++jobs_aborted;
  }
  if (wanted != nullptr) {
    std::printf("UCX %s ended a survivor in %d of %d jobs\n", ucx::version().c_str(), jobs_aborted,
                jobs);
  }
}

}  // namespace
}  // namespace regroup::conformance
