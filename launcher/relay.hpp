/// An agent's lines to the launcher on another host, through the pipe that the starter gave it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <regroup/types.hpp>

#include "base/fd.hpp"
#include "launcher/event_loop.hpp"
#include "launcher/host_orders.hpp"

namespace regroup::launcher {

/// Nothing waits for the pipe: the way to the launcher may be cut for minutes. What does not fit is
/// dropped and counted; the rank's own files have all of it.
/// Thread safety: one thread. Never blocks, but in finish().
class Relay {
 public:
  static constexpr std::size_t kOutputBytesMax = std::size_t{1}
                                                 << 20;           ///< lines of ranks wait so far
  static constexpr std::size_t kBytesMax = std::size_t{4} << 20;  ///< all lines

  /// Memory: `loop` outlives this object. Makes the pipe non-blocking.
  Relay(EventLoop& loop, base::Fd out);
  Relay(const Relay&) = delete;
  Relay& operator=(const Relay&) = delete;
  ~Relay();

  /// Each line of `text` becomes one of this kind.
  void say(LineKind kind, std::string_view text);
  /// Writes what waits, at most until then. Blocks.
  void finish(TimePoint until);
  [[nodiscard]] std::uint64_t dropped() const { return dropped_; }

 private:
  void flush();
  void watch();

  EventLoop& loop_;
  base::Fd out_;  ///< closed once nobody reads
  std::string waiting_;
  std::uint64_t dropped_ = 0;
  std::uint64_t dropped_told_ = 0;
  bool watched_ = false;
};

}  // namespace regroup::launcher
