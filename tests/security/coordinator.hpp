/// A `regroup coordinator` on a port of its own, its rightful agent, and strangers.
#pragma once

#include <sys/types.h>

#include <optional>
#include <span>
#include <string>
#include <vector>

#include <regroup/types.hpp>

#include "control/channel.hpp"
#include "launcher/coordinator_host.hpp"
#include "launcher/coordinator_wire.hpp"
#include "tests/support/job.hpp"

namespace regroup::test {

inline constexpr std::chrono::seconds kPatience{20};

/// One connection of a stranger, in blocking calls. Thread safety: one thread.
class Stranger {
 public:
  /// Connects, or fails the test.
  explicit Stranger(std::uint16_t port);
  void say(std::span<const std::byte> bytes) const;
  void say(std::string_view text) const;
  /// Reads until the other end closes; false when it did not within kPatience.
  [[nodiscard]] bool was_cut_off() const;
  /// What can be read within `patience`; empty: nothing, or closed.
  [[nodiscard]] control::Bytes hear(std::chrono::milliseconds patience) const;
  void leave() { fd_.reset(); }
  [[nodiscard]] int fd() const { return fd_.get(); }

 private:
  base::Fd fd_;
};

/// Speaks TLS over a Stranger's connection and keeps all that it sent.
class Speaker {
 public:
  Speaker(std::uint16_t port, const secure::JobSecret& secret, const std::string& job);
  /// Handshakes. False when the other end does not go along.
  bool handshake();
  /// The bytes of one record that holds `plain`.
  [[nodiscard]] control::Bytes record(std::span<const std::byte> plain);
  Stranger line;
  control::Bytes sent;

 private:
  secure::TlsContext context_;
  secure::TlsSession session_;
};

/// Starts the coordinator of a job of one rank. The destructor ends it and fails the test when it
/// did not live until then.
class Coordinator {
 public:
  Coordinator();
  Coordinator(const Coordinator&) = delete;
  Coordinator& operator=(const Coordinator&) = delete;
  ~Coordinator();

  [[nodiscard]] std::uint16_t port() const { return tcp_.port.address.port(); }
  [[nodiscard]] const secure::JobSecret& secret() const { return tcp_.secret; }
  [[nodiscard]] pid_t pid() const { return pid_; }

  /// Connects as the agent of the job and says hello. False when it is not answered in time.
  bool agent_comes();
  /// The agent, over its connection of before, says hello again and is answered.
  bool agent_is_served();
  /// Blocks until so many were refused for this cause. False after kPatience.
  bool refused(secure::Refusal cause, std::uint64_t times);
  [[nodiscard]] std::uint64_t count(secure::Refusal cause) const;
  /// All that it must not forget, as it stands on disk.
  [[nodiscard]] std::string durable() const;
  [[nodiscard]] std::size_t descriptors() const;
  [[nodiscard]] std::size_t resident_bytes() const;

 private:
  bool answered();

  TempDir dir_;
  launcher::TcpControl tcp_;
  secure::RefusalCounters counters_;
  std::optional<control::Channel> lifeline_;
  std::optional<secure::SecureChannel> agent_;
  pid_t pid_ = -1;
};

}  // namespace regroup::test
