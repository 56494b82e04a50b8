/// Memory for the next epoch's arenas, made while nothing is lost.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "transports/shm/arena.hpp"

namespace regroup::launcher {

/// Clearing an arena's pages is the longest part of making a view. This does it ahead, on a thread
/// of low priority, so that a recovery only has to write headers.
/// Thread safety: any thread. Nothing here blocks but the destructor, for at most one arena.
class ArenaReserve {
 public:
  /// Further sizes are not kept in reserve: their arenas are made when they are needed.
  static constexpr std::size_t kBytesMax = std::size_t{256} << 20;

  ArenaReserve();
  ArenaReserve(const ArenaReserve&) = delete;
  ArenaReserve& operator=(const ArenaReserve&) = delete;
  ~ArenaReserve();

  /// From now on one piece of each of these sizes is wanted; others are given back.
  void want(const std::vector<std::size_t>& sizes);
  /// A cleared, sealed piece of exactly this size; none: make one.
  [[nodiscard]] std::optional<shm::Memory> take(std::size_t bytes);

 private:
  void loop(const std::stop_token& stop);

  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::vector<std::size_t> wanted_;  ///< still to be made
  std::vector<shm::Memory> ready_;
  std::vector<shm::Memory> discarded_;  ///< given back on the thread, where it costs nobody time
  std::jthread thread_;
};

}  // namespace regroup::launcher
