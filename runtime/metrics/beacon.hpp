/// The death beacon: how an agent learns within milliseconds that a process died, whatever its
/// size.
///
/// The engine thread holds a robust mutex in the beacon page. When that thread ends in any way
/// (kill, crash, exit, exec), the kernel marks the mutex's futex word and wakes whoever waits on it
/// before it tears the memory down.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "metrics/beacon_page.hpp"

namespace regroup::metrics {

/// Process side. Exists as long as the beacon is held.
/// Thread safety: hold(), the destructor and every move belong to the engine thread: the thread
/// that holds is the one whose end is noticed.
class BeaconHolder {
 public:
  /// Takes the beacon for the calling thread. Never blocks.
  /// Memory: the page stays mapped until this object is gone.
  /// Errors: FailedPrecondition when another thread or process holds, or once held, this page's
  /// beacon.
  static Result<BeaconHolder> hold(BeaconPage& page);

  BeaconHolder(const BeaconHolder&) = delete;
  BeaconHolder& operator=(const BeaconHolder&) = delete;
  BeaconHolder(BeaconHolder&& other) noexcept;
  BeaconHolder& operator=(BeaconHolder&&) = delete;
  /// Releases in order: the watch reports Released, not Died.
  ~BeaconHolder();

 private:
  explicit BeaconHolder(BeaconPage* page) : page_(page) {}
  BeaconPage* page_;
};

enum class BeaconEvent : std::uint8_t {
  Died,  ///< the engine thread ended while it held the beacon: proof of death of the process or of
         ///< its engine
  Released,  ///< given back in order
};

/// Agent side: watches many beacons from one thread.
/// Thread safety: add(), remove() and wake() from any thread; wait() from one thread at a time.
class BeaconWatch {
 public:
  using Id = std::uint64_t;  ///< the caller's number for a page: the incarnation
  struct Report {
    Id id = 0;
    BeaconEvent event = BeaconEvent::Died;
    bool operator==(const Report&) const = default;
  };
  /// Pages that one futex_waitv call can take; beyond it, all pages are looked at every
  /// kPollInterval instead.
  static constexpr std::size_t kWaitedAtOnceMax = 126;
  static constexpr std::chrono::milliseconds kPollInterval{1};

  BeaconWatch();
  /// For tests: without futex_waitv, as on kernels before 5.16.
  explicit BeaconWatch(bool use_waitv) : use_waitv_(use_waitv) {}

  /// Watches one more page; a wait in progress takes it up at once. A page that is not held yet is
  /// watched from the moment it is. Each page is reported at most once, then forgotten.
  void add(Id id, std::shared_ptr<const PageMapping> page);
  /// Forgets a page; it may be reported by a wait() that is in progress.
  void remove(Id id);
  /// Lets a wait in progress (or the next one) return.
  void wake();

  /// Blocks until beacons died or were released, wake() was called or `timeout` passed; the last
  /// two return what there is, mostly nothing.
  [[nodiscard]] std::vector<Report> wait(nanoseconds timeout);

 private:
  struct Watched {
    Id id;
    std::shared_ptr<const PageMapping> page;
  };
  std::vector<Report> collect();
  void block(nanoseconds timeout, std::uint32_t kicks_seen);

  std::mutex mutex_;
  std::vector<Watched> pages_;
  Word32 kicks_{0};  ///< grows with each change of the set and each wake()
  Word32 wakes_{0};
  std::uint32_t wakes_seen_ = 0;
  bool use_waitv_;
};

}  // namespace regroup::metrics
