/// An interactive shell on a terminal of its own, typed into as a person would.
#pragma once

#include <sys/types.h>

#include <string>

#include "base/fd.hpp"

namespace regroup::test {

/// Thread safety: one thread. Every wait has a deadline. Its end hangs the terminal up.
class Terminal {
 public:
  Terminal();
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;
  ~Terminal();

  /// As if typed: "\x03" is ctrl-C, "\x1a" ctrl-Z.
  void type(const std::string& text);
  /// Blocks until this text was printed after what an earlier call found. False when patience runs
  /// out or the shell ends without it.
  bool wait_for(const std::string& text);
  [[nodiscard]] const std::string& screen() const { return screen_; }

 private:
  pid_t shell_ = -1;
  base::Fd fd_;
  std::string screen_;
  std::size_t found_ = 0;
};

}  // namespace regroup::test
