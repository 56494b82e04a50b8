/// Messages between ranks that are threads, with everything that a network may do to them: delay,
/// overtaking, transfers that never end, and members that die between two of their messages.
#pragma once

#include <cstdint>
#include <memory>

#include "spi/message_port.hpp"

namespace regroup::loopback {

struct NetOptions {
  std::uint64_t seed = 1;
  /// A message or transfer takes up to so many calls of its receiver's progress(). 0: none waits.
  unsigned delay_max = 4;
  /// Posted messages of one sender may overtake each other.
  bool overtaking = true;
};

/// All ports of one test. Thread safety: any thread. The ports share its state and may outlive it.
class MessageNet {
 public:
  MessageNet(int ports, NetOptions options);
  MessageNet(const MessageNet&) = delete;
  MessageNet& operator=(const MessageNet&) = delete;
  ~MessageNet();

  /// The port of `rank`, once.
  [[nodiscard]] std::unique_ptr<spi::MessagePort> port(int rank);
  /// What connect() takes.
  [[nodiscard]] static std::vector<std::byte> address(int rank);
  /// From here on the rank sends and reads nothing more, and nobody touches its memory. Of what it
  /// sent before, each message arrives or is lost; transfers from and to it end as not whole, or
  /// never, until their channel is closed.
  void kill(int rank);

 private:
  class State;
  class Port;
  std::shared_ptr<State> state_;
};

}  // namespace regroup::loopback
