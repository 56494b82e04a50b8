/// How a rank waits for other members: pauses, then yields, then sleeps on its own doorbell.
///
/// No wake-up is lost for longer than kSleepMax: the sleeper announces itself, then looks again,
/// then sleeps; a publisher stores, then looks for sleepers. Between the two of each side lies a
/// full barrier, so one of them sees the other. Where every member has a core, publishing is
/// frequent and sleeping rare: there the sleeper executes the publishers' barriers too
/// (membarrier(2), MEMBARRIER_CMD_GLOBAL_EXPEDITED), and a publisher's is free.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "spi/shared_slots.hpp"

namespace regroup::spi {

inline constexpr std::chrono::milliseconds kSleepMax{50};
inline constexpr std::chrono::milliseconds kPumpInterval{5};
inline constexpr int kPausesMax = 2000;
inline constexpr int kPausesMin = 32;
inline constexpr int kYieldsFew = 20;    // more members than cores
inline constexpr int kYieldsMany = 100;  // a yield on a core of one's own costs what a pause does

/// Called while a rank waits, at least every kPumpInterval. May be empty.
struct PumpHook {
  void (*call)(void* context) = nullptr;
  void* context = nullptr;
};

enum class WaitEnd : std::uint8_t { Ready, Wedged, Expired, Interrupted };

/// Sleeps until `bell.rung` differs from `seen`, or for `timeout`. May wake without cause.
void sleep_on(std::atomic<std::uint32_t>& rung, std::uint32_t seen,
              std::chrono::nanoseconds timeout);
/// Changes the doorbell of `rank` and wakes it.
void ring_doorbell(const SharedSlots& slots, int rank);
/// Rings every member that waits for `me` or for anybody. Cheap when nobody sleeps.
void ring_waiters_slow(const SharedSlots& slots, int me);
inline void ring_waiters(const SharedSlots& slots, int me) {
  if (slots.header().sleepers.load(std::memory_order_seq_cst) != 0) ring_waiters_slow(slots, me);
}

inline void cpu_pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}
void yield_cpu();

/// Whether barrier_everywhere() reaches this process. Asked once, by the first caller.
[[nodiscard]] bool barriers_reach_here();
/// A full barrier on all threads of all processes that barriers_reach_here() said true to.
void barrier_everywhere();

/// One member's way of waiting. Thread safety: one thread at a time.
class Waiter {
 public:
  Waiter(SharedSlots slots, int me, int cores, PumpHook pump)
      : slots_(slots),
        me_(me),
        spins_(slots.members() <= cores),
        barrier_at_sleepers_(spins_ && barriers_reach_here()),
        pauses_(spins_ ? kPausesMax : 0),
        pump_(pump) {}

  /// Stores `value`, and wakes who sleeps until then. All that this member wrote before is visible
  /// to whoever reads it.
  void publish(std::atomic<std::uint64_t>& word, std::uint64_t value) const {
    if (barrier_at_sleepers_) {
      word.store(value, std::memory_order_release);
      std::atomic_signal_fence(std::memory_order_seq_cst);
    } else {
      word.store(value, std::memory_order_seq_cst);
    }
    ring_waiters(slots_, me_);
  }

  /// Returns when ready() holds (Ready), `guard` is wedged (Wedged; null: never), `until` has
  /// passed (Expired), or stop() holds (Interrupted; asked only once the wait has become long).
  /// `member`: whose store is awaited, or kAnyMember. ready() must read with at least acquire
  /// order.
  template <class ReadyFn, class StopFn>
  WaitEnd wait(int member, const Word* guard, Deadline until, ReadyFn&& ready, StopFn&& stop) {
    if (ready()) return WaitEnd::Ready;
    for (int i = 0; i < pauses_; ++i) {
      cpu_pause();
      if (ready()) {
        expect_longer();
        return WaitEnd::Ready;
      }
      if (is_wedged(guard)) return WaitEnd::Wedged;
    }
    expect_shorter();
    return wait_long(member, guard, until, ready, stop);
  }

 private:
  // Two members may share a core although there are enough: a pause then only delays the other one,
  // and the first yield lets it run. So pausing that does not help is given up, step by step, and
  // taken up again when it helps, or when a yield does not.
  static constexpr int kYieldsTelling = 3;
  void expect_longer() {
    if (spins_) pauses_ = std::min(kPausesMax, pauses_ + pauses_ / 4 + 1);
  }
  void expect_shorter() {
    if (spins_) pauses_ = std::max(kPausesMin, pauses_ / 2);
  }

  static bool is_wedged(const Word* guard) {
    return kFaultTolerance && guard != nullptr && read(*guard).wedged;
  }

  template <class ReadyFn, class StopFn>
  [[gnu::noinline]] WaitEnd wait_long(int member, const Word* guard, Deadline until, ReadyFn& ready,
                                      StopFn& stop) {
    for (int i = 0; i < (spins_ ? kYieldsMany : kYieldsFew); ++i) {
      yield_cpu();
      if (ready()) {
        if (i >= kYieldsTelling) expect_longer();
        return WaitEnd::Ready;
      }
      if (is_wedged(guard)) return WaitEnd::Wedged;
      pump_if_due();
    }
    for (;;) {
      if (stop()) return WaitEnd::Interrupted;
      if (Clock::now() >= until) return ready() ? WaitEnd::Ready : WaitEnd::Expired;
      if (!sleep_unless(member, guard, until, ready)) {
        return ready() ? WaitEnd::Ready : WaitEnd::Wedged;
      }
      if (pump_.call != nullptr) pump_now();
    }
  }

  /// False when there is nothing left to wait for.
  template <class ReadyFn>
  bool sleep_unless(int member, const Word* guard, Deadline until, ReadyFn& ready) {
    auto& bell = slots_.member(me_).bell;
    const std::uint32_t seen = bell.rung.load(std::memory_order_acquire);
    bell.waiting_for.store(member, std::memory_order_relaxed);
    slots_.header().sleepers.fetch_add(1, std::memory_order_seq_cst);
    // Announced before the last look.
    if (barrier_at_sleepers_) {
      barrier_everywhere();
    } else {
      std::atomic_thread_fence(std::memory_order_seq_cst);
    }
    const bool over = ready() || is_wedged(guard);
    if (!over) sleep_on(bell.rung, seen, sleep_time(until));
    slots_.header().sleepers.fetch_sub(1, std::memory_order_relaxed);
    bell.waiting_for.store(kNobody, std::memory_order_relaxed);
    return !over && !ready() && !is_wedged(guard);
  }

  [[nodiscard]] std::chrono::nanoseconds sleep_time(Deadline until) const;
  void pump_if_due() {
    if (pump_.call != nullptr && Clock::now() - pumped_at_ >= kPumpInterval) pump_now();
  }
  void pump_now();

  SharedSlots slots_;
  int me_;
  bool spins_;                ///< enough cores for all members: equal on all of them
  bool barrier_at_sleepers_;  ///< else each publisher has its own
  int pauses_;
  PumpHook pump_;
  TimePoint pumped_at_{};
};

}  // namespace regroup::spi
