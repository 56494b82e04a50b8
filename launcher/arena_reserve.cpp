#include "launcher/arena_reserve.hpp"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <utility>

namespace regroup::launcher {

ArenaReserve::ArenaReserve() {
  // Signals are the main thread's: the new thread inherits a mask with all of them blocked.
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::jthread([this](const std::stop_token& stop) { loop(stop); });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

ArenaReserve::~ArenaReserve() = default;

void ArenaReserve::want(const std::vector<std::size_t>& sizes) {
  const std::lock_guard lock(mutex_);
  std::vector<shm::Memory> kept;
  std::size_t total = 0;
  wanted_.clear();
  for (const std::size_t bytes : sizes) {
    total += bytes;
    if (total > kBytesMax) break;
    const auto has_size = [bytes](const shm::Memory& m) { return m.mapping.bytes() == bytes; };
    const auto found = std::find_if(ready_.begin(), ready_.end(), has_size);
    if (found == ready_.end()) {
      wanted_.push_back(bytes);
      continue;
    }
    kept.push_back(std::move(*found));
    ready_.erase(found);
  }
  for (shm::Memory& memory : ready_) discarded_.push_back(std::move(memory));
  ready_ = std::move(kept);
  changed_.notify_one();
}

std::optional<shm::Memory> ArenaReserve::take(std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  const auto found = std::find_if(ready_.begin(), ready_.end(), [bytes](const shm::Memory& memory) {
    return memory.mapping.bytes() == bytes;
  });
  if (found == ready_.end()) return std::nullopt;
  shm::Memory memory = std::move(*found);
  ready_.erase(found);
  return memory;
}

void ArenaReserve::loop(const std::stop_token& stop) {
  constexpr int kLowPriority = 15;
  ::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), kLowPriority);
  std::unique_lock lock(mutex_);
  while (changed_.wait(lock, stop, [this] { return !wanted_.empty() || !discarded_.empty(); })) {
    const std::vector<shm::Memory> given_back = std::exchange(discarded_, {});
    std::optional<std::size_t> bytes;
    if (!wanted_.empty()) {
      bytes = wanted_.back();
      wanted_.pop_back();
    }
    lock.unlock();
    std::optional<shm::Memory> made;
    if (bytes) {
      // Without memory for a reserve there is none: the arena is then made, or refused, in its
      // time.
      Result<shm::Memory> memory = shm::make_memory("regroup-arena", *bytes);
      if (memory) made.emplace(std::move(*memory));
    }
    lock.lock();
    if (made) ready_.push_back(std::move(*made));
  }
}

}  // namespace regroup::launcher
