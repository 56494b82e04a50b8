#include "spi/waiting.hpp"

#include <linux/futex.h>
#include <linux/membarrier.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <ctime>

namespace regroup::spi {
namespace {

static_assert(sizeof(std::atomic<std::uint32_t>) == sizeof(std::uint32_t),
              "a futex is the plain word");

long futex(std::atomic<std::uint32_t>& word, int operation, std::uint32_t value,
           const timespec* timeout) {
  // Not the PRIVATE form: the word is shared between processes.
  return ::syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), operation, value, timeout,
                   nullptr, 0);
}

}  // namespace

void sleep_on(std::atomic<std::uint32_t>& rung, std::uint32_t seen,
              std::chrono::nanoseconds timeout) {
  timespec limit{};
  limit.tv_sec = static_cast<time_t>(timeout.count() / 1'000'000'000);
  limit.tv_nsec = static_cast<long>(timeout.count() % 1'000'000'000);
  // Every end is welcome: rung, changed before we slept, signal, timeout. The caller looks again.
  (void)futex(rung, FUTEX_WAIT, seen, &limit);
}

void ring_doorbell(const SharedSlots& slots, int rank) {
  auto& rung = slots.member(rank).bell.rung;
  rung.fetch_add(1, std::memory_order_seq_cst);
  (void)futex(rung, FUTEX_WAKE, 1, nullptr);
}

void ring_waiters_slow(const SharedSlots& slots, int me) {
  for (int rank = 0; rank < slots.members(); ++rank) {
    if (rank == me) continue;
    const std::int32_t target = slots.member(rank).bell.waiting_for.load(std::memory_order_seq_cst);
    if (target == me || target == kAnyMember) ring_doorbell(slots, rank);
  }
}

void yield_cpu() { (void)::sched_yield(); }

bool barriers_reach_here() {
  static const bool registered =
      ::syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0) == 0;
  return registered;
}

void barrier_everywhere() {
  (void)::syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0);
}

std::chrono::nanoseconds Waiter::sleep_time(Deadline until) const {
  const std::chrono::nanoseconds limit = pump_.call != nullptr
                                             ? std::chrono::nanoseconds(kPumpInterval)
                                             : std::chrono::nanoseconds(kSleepMax);
  if (until == kNoDeadline) return limit;
  return std::clamp(std::chrono::nanoseconds(until - Clock::now()), std::chrono::nanoseconds(0),
                    limit);
}

void Waiter::pump_now() {
  pump_.call(pump_.context);
  pumped_at_ = Clock::now();
}

}  // namespace regroup::spi
