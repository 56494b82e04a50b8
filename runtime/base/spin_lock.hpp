/// A mutex for a few stores.
#pragma once

#include <sched.h>

#include <atomic>

namespace regroup::base {

/// Costs one locked instruction where std::mutex costs two and two calls. For sections of some
/// nanoseconds that never block: who finds it held yields the processor until it is free.
/// Thread safety: any thread. Not recursive.
class SpinLock {
 public:
  void lock() noexcept {
    while (held_.exchange(true, std::memory_order_acquire)) [[unlikely]]
      (void)::sched_yield();
  }
  void unlock() noexcept { held_.store(false, std::memory_order_release); }

 private:
  std::atomic<bool> held_{false};
};

}  // namespace regroup::base
