/// The messages between an agent and the coordinator, whichever way they travel: over a socket pair
/// on one host, or over TCP.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include <regroup/status.hpp>

#include "control/channel.hpp"
#include "secure/job_secret.hpp"
#include "secure/listener.hpp"
#include "secure/refusals.hpp"
#include "secure/secure_channel.hpp"
#include "secure/tls_session.hpp"

namespace regroup::launcher {

/// One end. After an error of progress() or next() it is of no further use. Between hosts it also
/// carries beats, which say nothing but that the other end is there.
/// Thread safety: one thread. Never blocks.
class CoordinatorWire {
 public:
  CoordinatorWire() = default;
  CoordinatorWire(const CoordinatorWire&) = delete;
  CoordinatorWire& operator=(const CoordinatorWire&) = delete;
  virtual ~CoordinatorWire() = default;

  [[nodiscard]] virtual int fd() const = 0;
  [[nodiscard]] virtual bool wants_write() const = 0;
  /// Messages may be sent: the other end has proved who it is.
  [[nodiscard]] virtual bool ready() const = 0;
  /// Goes on with what the socket allows now. Errors: Cancelled (the other end is gone) and those
  /// of its kind.
  virtual Status progress() = 0;
  /// Errors: ResourceExhausted (nothing was sent; try again after progress()), Cancelled, Internal.
  virtual Status send(std::span<const std::byte> message) = 0;
  /// The next message; none: not yet. Errors: as progress().
  virtual Result<std::optional<control::Bytes>> next() = 0;
  /// Says nothing but that this end is there. Errors: as send(); one that does not fit is left out.
  virtual Status send_beat() = 0;
  /// Grows with every message and every beat that arrived.
  [[nodiscard]] virtual std::uint64_t heard() const = 0;
  /// Tells the other end that nothing follows.
  virtual void close() = 0;
  /// Why an error was the other end's doing; none when it was not.
  [[nodiscard]] virtual std::optional<secure::Refusal> refusal() const = 0;
};

[[nodiscard]] std::unique_ptr<CoordinatorWire> make_wire(control::Channel channel);
[[nodiscard]] std::unique_ptr<CoordinatorWire> make_wire(secure::SecureChannel channel);

/// What an agent needs to reach the coordinator over TCP.
struct TcpControl {
  secure::JobSecret secret;
  secure::ListeningPort port;  ///< without a descriptor where the coordinator is on another host
  secure::TlsContext context;  ///< of this host's agent
  membership::AgentId agent{0};
  /// For the launcher, once for the job: coordinators inherit it, so the port stays the same when
  /// one of them dies. `on`: where to listen. Errors: ResourceExhausted, Internal.
  static Result<TcpControl> make(
      const std::string& job, const secure::SocketAddress& on = secure::SocketAddress::loopback());
  /// For another host's agent. Errors: Internal.
  static Result<TcpControl> join(secure::JobSecret secret, const std::string& job,
                                 const secure::SocketAddress& coordinator,
                                 membership::AgentId agent);
};

}  // namespace regroup::launcher
