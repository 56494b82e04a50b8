/// One thread's readiness loop over epoll.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <unordered_map>

#include <regroup/status.hpp>
#include <regroup/types.hpp>

#include "base/fd.hpp"

namespace regroup::launcher {

/// Thread safety: one thread. Callbacks may watch and forget descriptors, their own included.
class EventLoop {
 public:
  using Ready = std::function<void(std::uint32_t events)>;

  /// Errors: ResourceExhausted.
  static Result<EventLoop> create();

  /// Calls `ready` whenever the descriptor is readable (or closed by its other side); also when it
  /// is writable if `writable` says so. Watching it again changes what is awaited. Memory: the
  /// descriptor stays open until forget().
  void watch(int fd, Ready ready, bool writable = false);
  void forget(int fd);
  /// Readable while turn() has something to do: a loop may be watched by another one.
  [[nodiscard]] int fd() const { return epoll_.get(); }
  /// Waits until something is ready or `until` has passed, and calls back.
  void turn(TimePoint until);

 private:
  explicit EventLoop(base::Fd fd) : epoll_(std::move(fd)) {}
  struct Watched {
    std::uint64_t generation = 0;  ///< a number's new owner must not get the old one's event
    Ready ready;
  };
  base::Fd epoll_;
  std::uint64_t generations_ = 0;
  std::unordered_map<int, Watched> watched_;
};

}  // namespace regroup::launcher
