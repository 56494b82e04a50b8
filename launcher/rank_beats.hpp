/// What an agent reads of a rank's proof of life.
#pragma once

#include <chrono>
#include <cstdint>

#include <regroup/types.hpp>

namespace regroup::launcher {

/// A counter that stands still means that its thread is stopped or stuck, unless the kernel says
/// that the thread wants to run: then it is the machine that is late, and the detector is shown a
/// counter that moves, for up to kStarvedMax. Thread safety: one thread. Never blocks.
class RankBeats {
 public:
  /// The kernel is asked once the counter has stood still for so long.
  static constexpr std::chrono::milliseconds kStillMin{250};
  static constexpr std::chrono::seconds kStarvedMax{10};

  /// `count` as just read; `wants_to_run()` is called only when it has stood still.
  template <class WantsToRunFn>
  [[nodiscard]] std::uint64_t read(std::uint64_t count, TimePoint now,
                                   WantsToRunFn&& wants_to_run) {
    if (count != count_) {
      count_ = count;
      moved_ = now;
    } else if (now - moved_ >= kStillMin && now - moved_ < kStarvedMax && wants_to_run()) {
      ++starved_;
    }
    return count_ + starved_;
  }

 private:
  std::uint64_t count_ = 0;
  std::uint64_t starved_ = 0;  ///< looks that found it still and wanting to run
  TimePoint moved_{};
};

}  // namespace regroup::launcher
