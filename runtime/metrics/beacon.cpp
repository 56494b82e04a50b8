#include "metrics/beacon.hpp"

#include <fmt/format.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstring>
#include <utility>

#ifndef __GLIBC__
#error "the death beacon waits on the futex word of glibc's pthread_mutex_t"
#endif

namespace regroup::metrics {
namespace {

constexpr auto kTidMask = static_cast<std::uint32_t>(FUTEX_TID_MASK);
constexpr auto kOwnerDied = static_cast<std::uint32_t>(FUTEX_OWNER_DIED);
constexpr auto kWaiters = static_cast<std::uint32_t>(FUTEX_WAITERS);

constexpr std::chrono::hours kWaitMax{24 * 365};

// glibc's mutex begins with its futex word: owner's thread id, owner-died bit, waiters bit
// (kernel's robust futex ABI).
std::atomic_ref<int> lock_word(BeaconPage& page) {
  return std::atomic_ref<int>(page.beacon.mutex.__data.__lock);
}
std::uint32_t read_lock(BeaconPage& page) {
  return static_cast<std::uint32_t>(lock_word(page).load(std::memory_order_acquire));
}

BeaconState read_state(const BeaconPage& page) {
  switch (page.beacon.state.load(std::memory_order_acquire)) {
    case 1: return BeaconState::Held;
    case 2: return BeaconState::Released;
  }
  return BeaconState::NeverHeld;
}

timespec absolute(nanoseconds from_now) {
  const std::uint64_t at =
      monotonic_ns() + static_cast<std::uint64_t>(std::max(from_now, nanoseconds(0)).count());
  return {static_cast<time_t>(at / 1'000'000'000U), static_cast<long>(at % 1'000'000'000U)};
}

futex_waitv waiter(const void* word, std::uint32_t value) {
  futex_waitv entry{};
  entry.val = value;
  entry.uaddr = reinterpret_cast<std::uintptr_t>(word);
  entry.flags = FUTEX_32;
  return entry;
}

}  // namespace

Result<BeaconHolder> BeaconHolder::hold(BeaconPage& page) {
  if (read_state(page) != BeaconState::NeverHeld) {
    return Status(Code::FailedPrecondition,
                  "this beacon page was held before: each process needs a page of its own");
  }
  if (const int error = pthread_mutex_trylock(&page.beacon.mutex); error != 0) {
    return Status(Code::FailedPrecondition,
                  fmt::format("the death beacon is held by another thread or process: {}",
                              std::strerror(error)));  // NOLINT(concurrency-mt-unsafe)
  }
  page.beacon.pid.store(::getpid(), std::memory_order_relaxed);
  page.beacon.thread.store(static_cast<std::int32_t>(::syscall(SYS_gettid)),
                           std::memory_order_relaxed);
  page.beacon.state.store(static_cast<std::uint32_t>(BeaconState::Held), std::memory_order_release);
  ::syscall(SYS_futex, &page.beacon.state, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
  return BeaconHolder(&page);
}

BeaconHolder::BeaconHolder(BeaconHolder&& other) noexcept
    : page_(std::exchange(other.page_, nullptr)) {}

BeaconHolder::~BeaconHolder() {
  if (page_ == nullptr) return;
  // A forked child has a copy of this object, but not the thread: what it does must not release the
  // parent's beacon.
  const auto thread = static_cast<std::int32_t>(::syscall(SYS_gettid));
  if (page_->beacon.thread.load(std::memory_order_relaxed) != thread) return;
  page_->beacon.state.store(static_cast<std::uint32_t>(BeaconState::Released),
                            std::memory_order_release);
  pthread_mutex_unlock(&page_->beacon.mutex);
}

BeaconWatch::BeaconWatch() : BeaconWatch(true) {}

void BeaconWatch::add(Id id, std::shared_ptr<const PageMapping> page) {
  {
    const std::lock_guard lock(mutex_);
    pages_.push_back({id, std::move(page)});
  }
  kicks_.fetch_add(1, std::memory_order_release);
  ::syscall(SYS_futex, &kicks_, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void BeaconWatch::remove(Id id) {
  const std::lock_guard lock(mutex_);
  std::erase_if(pages_, [id](const Watched& watched) { return watched.id == id; });
}

void BeaconWatch::wake() {
  wakes_.fetch_add(1, std::memory_order_release);
  kicks_.fetch_add(1, std::memory_order_release);
  ::syscall(SYS_futex, &kicks_, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

std::vector<BeaconWatch::Report> BeaconWatch::collect() {
  std::vector<Report> reports;
  const std::lock_guard lock(mutex_);
  std::erase_if(pages_, [&](const Watched& watched) {
    BeaconPage& page = watched.page->page();
    if ((read_lock(page) & kOwnerDied) != 0) {
      reports.push_back({watched.id, BeaconEvent::Died});
      return true;
    }
    if (read_state(page) == BeaconState::Released) {
      reports.push_back({watched.id, BeaconEvent::Released});
      return true;
    }
    return false;
  });
  return reports;
}

void BeaconWatch::block(nanoseconds timeout, std::uint32_t kicks_seen) {
  std::array<futex_waitv, kWaitedAtOnceMax + 1> entries;
  std::vector<std::shared_ptr<const PageMapping>>
      pinned;  // remove() must not unmap what the kernel looks at
  entries[0] = waiter(&kicks_, kicks_seen);
  bool all_waited = use_waitv_;
  {
    const std::lock_guard lock(mutex_);
    for (const Watched& watched : pages_) {
      BeaconPage& page = watched.page->page();
      int seen = lock_word(page).load(std::memory_order_acquire);
      if ((static_cast<std::uint32_t>(seen) & kOwnerDied) != 0) return;
      if (pinned.size() == kWaitedAtOnceMax) {
        all_waited = false;
        break;
      }
      if ((static_cast<std::uint32_t>(seen) & kTidMask) == 0) {
        // Nobody's yet: hold() wakes this word. Anything else without an owner was just released,
        // or is damaged.
        if (read_state(page) != BeaconState::NeverHeld) {
          all_waited = false;
          continue;
        }
        pinned.push_back(watched.page);
        entries[pinned.size()] =
            waiter(&page.beacon.state, static_cast<std::uint32_t>(BeaconState::NeverHeld));
        continue;
      }
      // The kernel wakes a waiter at the owner's death only if this bit asks for it.
      const int wanted = static_cast<int>(static_cast<std::uint32_t>(seen) | kWaiters);
      if (!lock_word(page).compare_exchange_strong(seen, wanted, std::memory_order_acq_rel)) return;
      pinned.push_back(watched.page);
      entries[pinned.size()] =
          waiter(&page.beacon.mutex.__data.__lock, static_cast<std::uint32_t>(wanted));
    }
  }
  const timespec until =
      absolute(all_waited ? timeout : std::min<nanoseconds>(timeout, kPollInterval));
  if (use_waitv_) {
    const long rc =
        ::syscall(SYS_futex_waitv, entries.data(), pinned.size() + 1, 0, &until, CLOCK_MONOTONIC);
    if (rc >= 0 || errno == EAGAIN || errno == EINTR || errno == ETIMEDOUT) return;
    use_waitv_ = false;  // kernel before 5.16, or a filter that does not know the call
    return;
  }
  ::syscall(SYS_futex, &kicks_, FUTEX_WAIT_BITSET, kicks_seen, &until, nullptr,
            FUTEX_BITSET_MATCH_ANY);
}

std::vector<BeaconWatch::Report> BeaconWatch::wait(nanoseconds timeout) {
  // "For ever" as the largest number must not overflow the clock.
  const TimePoint until = Clock::now() + std::min<nanoseconds>(timeout, kWaitMax);
  for (;;) {
    const std::uint32_t kicks = kicks_.load(std::memory_order_acquire);
    const std::uint32_t wakes = wakes_.load(std::memory_order_acquire);
    std::vector<Report> reports = collect();
    const nanoseconds left = until - Clock::now();
    const bool woken = std::exchange(wakes_seen_, wakes) != wakes;
    if (!reports.empty() || woken || left <= nanoseconds(0)) return reports;
    block(left, kicks);
  }
}

}  // namespace regroup::metrics
