#include "secure/socket_address.hpp"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netdb.h>

#include <cstring>

namespace regroup::secure {

SocketAddress SocketAddress::loopback(std::uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  SocketAddress out;
  std::memcpy(&out.storage_, &address, sizeof address);
  out.bytes_ = sizeof address;
  return out;
}

Result<SocketAddress> SocketAddress::parse(const std::string& host, std::uint16_t port) {
  // Of version 4 only the full form: "10.1" would be 10.0.0.1 to the system.
  sockaddr_in four{};
  four.sin_family = AF_INET;
  four.sin_port = htons(port);
  if (::inet_pton(AF_INET, host.c_str(), &four.sin_addr) == 1 &&
      host.find('\0') == std::string::npos) {
    return from(reinterpret_cast<const sockaddr*>(&four), sizeof four);
  }
  addrinfo hints{};
  hints.ai_family = AF_INET6;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  // A text with a NUL inside would be read as a shorter one.
  const bool whole = host.find('\0') == std::string::npos && !host.empty();
  if (!whole || ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) {
    return Status(Code::InvalidArgument, fmt::format("'{}' is no IP address", host));
  }
  Result<SocketAddress> out = from(found->ai_addr, found->ai_addrlen);
  ::freeaddrinfo(found);
  return out;
}

Result<SocketAddress> SocketAddress::from(const sockaddr* address, socklen_t bytes) {
  const bool known = (address->sa_family == AF_INET && bytes >= sizeof(sockaddr_in)) ||
                     (address->sa_family == AF_INET6 && bytes >= sizeof(sockaddr_in6));
  if (!known) return Status(Code::InvalidArgument, "neither an IPv4 nor an IPv6 address");
  SocketAddress out;
  out.bytes_ = address->sa_family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
  std::memcpy(&out.storage_, address, out.bytes_);
  return out;
}

std::uint16_t SocketAddress::port() const {
  // Both kinds have the port at the same place.
  return ntohs(reinterpret_cast<const sockaddr_in*>(&storage_)->sin_port);
}

SocketAddress SocketAddress::with_port(std::uint16_t port) const {
  SocketAddress out = *this;
  reinterpret_cast<sockaddr_in*>(&out.storage_)->sin_port = htons(port);
  return out;
}

bool SocketAddress::is_loopback() const {
  if (family() == AF_INET6) {
    const auto* const six = reinterpret_cast<const sockaddr_in6*>(&storage_);
    return IN6_IS_ADDR_LOOPBACK(&six->sin6_addr);
  }
  const auto* const four = reinterpret_cast<const sockaddr_in*>(&storage_);
  return ntohl(four->sin_addr.s_addr) >> 24 == 127;
}

std::string SocketAddress::host() const {
  char text[NI_MAXHOST] = {};
  if (::getnameinfo(get(), bytes_, text, sizeof text, nullptr, 0, NI_NUMERICHOST) != 0) return "?";
  return text;
}

std::string SocketAddress::text() const {
  if (family() == AF_INET6) return fmt::format("[{}]:{}", host(), port());
  return fmt::format("{}:{}", host(), port());
}

}  // namespace regroup::secure
