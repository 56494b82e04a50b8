/// The coordinator's one port: admits agents that prove the job's secret, and nobody else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include <regroup/status.hpp>
#include <regroup/types.hpp>

#include "base/fd.hpp"
#include "secure/refusals.hpp"
#include "secure/secure_channel.hpp"
#include "secure/socket_address.hpp"
#include "secure/tls_session.hpp"

namespace regroup::secure {

/// A listening socket on one address, on a port that is free.
struct ListeningPort {
  base::Fd fd;  ///< close-on-exec, non-blocking
  SocketAddress address = SocketAddress::loopback();
  /// `on`: its port counts for nothing. Errors: ResourceExhausted.
  static Result<ListeningPort> make(const SocketAddress& on = SocketAddress::loopback());
};

/// Holds those who connected and have not proved anything yet, in a table of fixed size. Each of
/// them costs a descriptor and kHelloBytesMax; OpenSSL sees only a whole hello of plausible size.
/// When the table is full, who has waited longest without a valid hello gives way.
/// Thread safety: one thread. Never blocks.
class Listener {
 public:
  static constexpr std::size_t kUnprovenMax = 64;
  static constexpr std::size_t kHelloBytesMax = 1024;
  /// Taken in one turn: those that are here already are heard in between.
  static constexpr std::size_t kAcceptsMax = 16;

  struct Options {
    std::uint32_t agents = 1;  ///< ids 0..agents-1 exist
  };

  /// Memory: `counters` outlives this object. Errors: ResourceExhausted.
  static Result<Listener> make(base::Fd listening, TlsContext context,
                               const RefusalCounters& counters, Options options);
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;
  Listener(Listener&&) noexcept;
  Listener& operator=(Listener&&) noexcept;
  ~Listener();

  /// Readable when turn() has something to do.
  [[nodiscard]] int fd() const;
  /// When turn() wants to be called all the same; none: nobody is unproven.
  [[nodiscard]] std::optional<TimePoint> due() const;
  /// Goes on with all that are here. Returns the channels of agents that have proved the secret:
  /// established, and perhaps with messages already.
  std::vector<SecureChannel> turn();

 private:
  struct Impl;
  explicit Listener(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Whether these first bytes can still become a hello: one TLS handshake record with exactly one
/// ClientHello in it, not longer than Listener::kHelloBytesMax. Pure and total.
enum class HelloState : std::uint8_t { Incomplete, Whole, NotTls, Oversized };
[[nodiscard]] HelloState look_at_hello(std::span<const std::byte> bytes);

}  // namespace regroup::secure
