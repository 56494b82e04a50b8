#include "metrics/beacon.hpp"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <optional>
#include <thread>

namespace regroup::metrics {
namespace {

using namespace std::chrono_literals;
using Reports = std::vector<BeaconWatch::Report>;
constexpr BeaconWatch::Report died(BeaconWatch::Id id) { return {id, BeaconEvent::Died}; }

std::shared_ptr<const PageMapping> new_page(std::uint64_t incarnation) {
  return std::make_shared<const PageMapping>(PageMapping::create(Incarnation(incarnation)).value());
}

/// A child that holds the beacon of `page` in its main thread, says so, then runs `body`.
class Child {
 public:
  Child(const PageMapping& page, std::size_t resident_bytes, const std::function<void()>& body) {
    int ends[2];
    EXPECT_EQ(::pipe(ends), 0);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::close(ends[0]);
      if (resident_bytes > 0) {
        void* memory = ::mmap(nullptr, resident_bytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        std::memset(memory, 1, resident_bytes);
      }
      const Result<BeaconHolder> holder = BeaconHolder::hold(page.page());
      const char answer = holder ? 'y' : 'n';
      if (::write(ends[1], &answer, 1) != 1) ::_exit(9);
      body();
      ::_exit(0);
    }
    ::close(ends[1]);
    char answer = 0;
    EXPECT_EQ(::read(ends[0], &answer, 1), 1);
    EXPECT_EQ(answer, 'y');
    ::close(ends[0]);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() {
    if (pid_ <= 0) return;
    kill();
    EXPECT_TRUE(reap());
  }
  void kill() const { ::kill(pid_, SIGKILL); }
  [[nodiscard]] bool is_gone() const {
    siginfo_t info{};
    return ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid == pid_;
  }
  bool reap() {
    const bool reaped = ::waitpid(pid_, nullptr, 0) == pid_;
    pid_ = -1;
    return reaped;
  }

 private:
  pid_t pid_ = -1;
};

void block_for_ever() {
  for (;;) ::pause();
}

class BeaconTest : public testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(WithAndWithoutWaitv, BeaconTest, testing::Bool(),
                         [](const auto& with) { return with.param ? "waitv" : "fallback"; });

TEST_P(BeaconTest, SigkillIsReportedOnceAndNamesThePage) {
  BeaconWatch watch(GetParam());
  const auto page = new_page(4);
  const auto other = new_page(5);
  watch.add(4, page);
  watch.add(5, other);
  const Child child(*page, 0, block_for_ever);
  const Child survivor(*other, 0, block_for_ever);
  EXPECT_EQ(watch.wait(0ns), Reports());
  child.kill();
  EXPECT_EQ(watch.wait(10s), Reports{died(4)});
  EXPECT_EQ(watch.wait(5ms), Reports());
}

TEST_P(BeaconTest, ExitAndExecOfTheHolderAreDeathToo) {
  BeaconWatch watch(GetParam());
  const auto exits = new_page(1);
  const auto execs = new_page(2);
  watch.add(1, exits);
  watch.add(2, execs);
  const Child first(*exits, 0, [] { ::_exit(3); });
  EXPECT_EQ(watch.wait(10s), Reports{died(1)});
  const Child second(*execs, 0, [] { ::execl("/bin/sleep", "sleep", "100", nullptr); });
  EXPECT_EQ(watch.wait(10s), Reports{died(2)});
  EXPECT_FALSE(second.is_gone());
}

TEST_P(BeaconTest, ThreadEndingWithoutReleaseIsDeathOfTheEngine) {
  BeaconWatch watch(GetParam());
  const auto page = new_page(1);
  watch.add(1, page);
  std::optional<BeaconHolder> holder;
  std::thread([&] { holder.emplace(BeaconHolder::hold(page->page()).value()); }).join();
  EXPECT_EQ(watch.wait(10s), Reports{died(1)});
}

TEST_P(BeaconTest, ReleaseInOrderIsNoDeath) {
  BeaconWatch watch(GetParam());
  const auto page = new_page(1);
  watch.add(1, page);
  std::atomic<bool> held{false};
  std::atomic<bool> go{false};
  std::thread engine([&] {
    const BeaconHolder holder = BeaconHolder::hold(page->page()).value();
    held = true;
    held.notify_one();
    go.wait(false);
  });
  held.wait(false);
  EXPECT_EQ(watch.wait(1ms), Reports());
  go = true;
  go.notify_one();
  EXPECT_EQ(watch.wait(10s), (Reports{{1, BeaconEvent::Released}}));
  engine.join();
}

TEST_P(BeaconTest, WakeAndAddReachAWaitInProgress) {
  BeaconWatch watch(GetParam());
  std::thread other([&] { watch.wake(); });
  EXPECT_EQ(watch.wait(60s), Reports());
  other.join();

  const auto page = new_page(3);
  const Child child(*page, 0, [] { ::_exit(0); });
  std::thread adder([&] { watch.add(3, page); });
  EXPECT_EQ(watch.wait(60s), Reports{died(3)});
  adder.join();
}

TEST_P(BeaconTest, WaitingForEverIsPossible) {
  BeaconWatch watch(GetParam());
  const auto page = new_page(3);
  watch.add(3, page);
  const Child child(*page, 0, [] { ::_exit(0); });
  EXPECT_EQ(watch.wait(nanoseconds::max()), Reports{died(3)});
}

TEST_P(BeaconTest, RemovedPageIsNotReported) {
  BeaconWatch watch(GetParam());
  const auto page = new_page(1);
  watch.add(1, page);
  watch.remove(1);
  const Child child(*page, 0, [] { ::_exit(0); });
  EXPECT_EQ(watch.wait(20ms), Reports());
}

// Beyond what one system call can wait for, every page is still watched. One in four is held by
// this thread (the thread sanitizer knows at most 64 locks of a thread), the others by nobody yet.
TEST_P(BeaconTest, ManyPages) {
  BeaconWatch watch(GetParam());
  constexpr std::uint64_t kPages = BeaconWatch::kWaitedAtOnceMax + 7;
  static_assert((kPages - 1) % 4 != 1, "the last page is the child's");
  std::vector<std::optional<BeaconHolder>> holders(kPages);
  std::vector<std::shared_ptr<const PageMapping>> pages;
  for (std::uint64_t i = 0; i < kPages; ++i) {
    pages.push_back(new_page(i));
    watch.add(i, pages.back());
    if (i % 4 == 1) holders[i].emplace(BeaconHolder::hold(pages[i]->page()).value());
  }
  const Child child(*pages.back(), 0, block_for_ever);
  EXPECT_EQ(watch.wait(1ms), Reports());
  child.kill();
  EXPECT_EQ(watch.wait(10s), Reports{died(kPages - 1)});
}

TEST(Beacon, IsHeldOncePerPage) {
  const auto page = new_page(1);
  std::thread([&] { const BeaconHolder first = BeaconHolder::hold(page->page()).value(); }).join();
  EXPECT_EQ(BeaconHolder::hold(page->page()).error().code(), Code::FailedPrecondition);

  const auto held = new_page(2);
  const BeaconHolder holder = BeaconHolder::hold(held->page()).value();
  std::thread([&] {
    EXPECT_EQ(BeaconHolder::hold(held->page()).error().code(), Code::FailedPrecondition);
  }).join();
}

// A forked child carries a copy of the holder; what it does with it must not look like a release.
TEST(Beacon, CopyInAForkedChildReleasesNothing) {
  BeaconWatch watch;
  const auto page = new_page(1);
  watch.add(1, page);
  std::optional<BeaconHolder> holder;
  holder.emplace(BeaconHolder::hold(page->page()).value());
  const pid_t child = ::fork();
  if (child == 0) {
    holder.reset();
    ::_exit(0);
  }
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_EQ(watch.wait(0ns), Reports());
  holder.reset();
  EXPECT_EQ(watch.wait(10s), (Reports{{1, BeaconEvent::Released}}));
}

// The point of the beacon: news of a large process's death comes before its memory is gone. The
// scheduler may let the child finish first once in a while, so one of several tries has to show it;
// each must be quick.
TEST(Beacon, DeathOfALargeProcessIsKnownBeforeItsMemoryIsGone) {
  bool known_before_gone = false;
  nanoseconds best = 1h;
  for (int i = 0; i < 5 && !known_before_gone; ++i) {
    BeaconWatch watch;
    const auto page = new_page(1);
    watch.add(1, page);
    Child child(*page, std::size_t{256} << 20, block_for_ever);
    std::thread killer([&] { child.kill(); });
    const TimePoint before = Clock::now();
    EXPECT_EQ(watch.wait(10s), Reports{died(1)});
    known_before_gone = !child.is_gone();
    best = std::min<nanoseconds>(best, Clock::now() - before);
    killer.join();
  }
  RecordProperty("microseconds", static_cast<int>(best.count() / 1000));
  EXPECT_TRUE(known_before_gone);
  EXPECT_LT(best, 100ms);
}

}  // namespace
}  // namespace regroup::metrics
