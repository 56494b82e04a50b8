/// An address of the Internet protocols with a port, version 4 or 6.
#pragma once

#include <cstdint>
#include <string>

#include <netinet/in.h>
#include <sys/socket.h>

#include <regroup/status.hpp>

namespace regroup::secure {

/// Thread safety: immutable.
class SocketAddress {
 public:
  /// 127.0.0.1
  [[nodiscard]] static SocketAddress loopback(std::uint16_t port = 0);
  /// Numbers only: "10.0.0.4", "fd00::1", "fe80::1%eth0"; no name is looked up. Errors:
  /// InvalidArgument.
  static Result<SocketAddress> parse(const std::string& host, std::uint16_t port);
  /// Any of the system's addresses. Errors: InvalidArgument (of another family).
  static Result<SocketAddress> from(const sockaddr* address, socklen_t bytes);

  [[nodiscard]] const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage_); }
  [[nodiscard]] socklen_t bytes() const { return bytes_; }
  /// AF_INET or AF_INET6.
  [[nodiscard]] int family() const { return storage_.ss_family; }
  [[nodiscard]] std::uint16_t port() const;
  [[nodiscard]] SocketAddress with_port(std::uint16_t port) const;
  [[nodiscard]] bool is_loopback() const;
  /// "10.0.0.4", "fd00::1", "fe80::1%eth0"
  [[nodiscard]] std::string host() const;
  /// "10.0.0.4:4711", "[fd00::1]:4711"
  [[nodiscard]] std::string text() const;

 private:
  SocketAddress() = default;
  sockaddr_storage storage_{};
  socklen_t bytes_ = 0;
};

}  // namespace regroup::secure
