/// TLS 1.3 with the job's secret as external pre-shared key, without a socket: bytes in, bytes out.
///
/// OpenSSL does all cryptography. There are no certificates, tickets, early data, renegotiation or
/// other versions; the key exchange is X25519 on top of the secret, so that a recording stays
/// closed even if the secret becomes known later.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include <regroup/status.hpp>

#include "control/codec.hpp"
#include "membership/types.hpp"
#include "secure/job_secret.hpp"
#include "secure/refusals.hpp"

namespace regroup::secure {

/// Version of the frames and of the handshake's identity. Another one is refused by name.
inline constexpr std::uint32_t kSecureVersion = 1;

enum class Role : std::uint8_t { Agent, Coordinator };

/// What an agent says before it is authenticated: version, job and its own id. The handshake binds
/// it to the secret. "regroup/1/7f3a.../agent/0"
struct Identity {
  static constexpr std::size_t kBytesMax = 128;
  std::uint32_t version = kSecureVersion;
  std::string job;
  membership::AgentId agent;
  [[nodiscard]] std::string text() const;
  /// None: not such a text. Total: takes any bytes.
  [[nodiscard]] static std::optional<Identity> parse(std::string_view text);
};

/// What all sessions of one process have in common. Thread safety: immutable once made.
class TlsContext {
 public:
  /// Memory: copies the secret. `job`: both ends must name the same. Errors: Internal (OpenSSL
  /// lacks something).
  static Result<TlsContext> make(Role role, const JobSecret& secret, std::string job);

  struct Impl;
  [[nodiscard]] const std::shared_ptr<Impl>& impl() const { return impl_; }

 private:
  explicit TlsContext(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<Impl> impl_;
};

/// One end of one connection. After an error it is of no further use, and refusal() says why.
/// Thread safety: one thread.
class TlsSession {
 public:
  /// `agent` is what an agent names itself; a coordinator's end ignores it. Errors: Internal.
  static Result<TlsSession> make(const TlsContext& context, membership::AgentId agent);
  TlsSession(const TlsSession&) = delete;
  TlsSession& operator=(const TlsSession&) = delete;
  TlsSession(TlsSession&&) noexcept;
  TlsSession& operator=(TlsSession&&) noexcept;
  ~TlsSession();

  /// Goes on with the handshake as far as the bytes given allow. Errors: Unauthenticated.
  Status advance();
  /// Both ends proved that they hold the secret.
  [[nodiscard]] bool established() const;
  /// A hello with a valid proof of the secret has arrived (a recorded one would do so far).
  [[nodiscard]] bool offered() const;
  /// Whom the other end proved to be; a coordinator's end, once established.
  [[nodiscard]] membership::AgentId agent() const;

  /// Bytes that came over the wire.
  Status feed(std::span<const std::byte> bytes);
  /// Appends what is to be sent over the wire.
  void take_output(control::Bytes& out);
  /// Errors: Internal.
  Status write(std::span<const std::byte> plain);
  /// Reads authentic bytes; 0: none yet. Errors: Cancelled (the other end closed in order),
  /// Unauthenticated (a record that is not authentic).
  Result<std::size_t> read(std::span<std::byte> plain);
  /// Says that nothing follows; take_output() has the record.
  void close();

  [[nodiscard]] Refusal refusal() const;

  struct Impl;

 private:
  explicit TlsSession(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace regroup::secure
