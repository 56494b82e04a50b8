#include "launcher/host_address.hpp"

#include <fmt/format.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "base/fd.hpp"

namespace regroup::launcher {
namespace {

using secure::SocketAddress;

struct Named {
  std::string interface;
  SocketAddress address;
};

std::vector<Named> interfaces() {
  ifaddrs* all = nullptr;
  std::vector<Named> out;
  if (::getifaddrs(&all) != 0) return out;
  for (const ifaddrs* one = all; one != nullptr; one = one->ifa_next) {
    if (one->ifa_addr == nullptr) continue;
    const int family = one->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    const socklen_t bytes = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
    const Result<SocketAddress> address = SocketAddress::from(one->ifa_addr, bytes);
    if (address) out.push_back({one->ifa_name, *address});
  }
  ::freeifaddrs(all);
  return out;
}

bool is_link_local(const SocketAddress& address) {
  return address.family() == AF_INET6 &&
         IN6_IS_ADDR_LINKLOCAL(&reinterpret_cast<const sockaddr_in6*>(address.get())->sin6_addr);
}

Result<SocketAddress> address_at(const std::string& interface) {
  const std::vector<Named> all = interfaces();
  if (const Result<SocketAddress> address = SocketAddress::parse(interface, 0)) {
    const bool ours = std::any_of(all.begin(), all.end(), [&](const Named& one) {
      return one.address.host() == address->host();
    });
    if (ours) return address;
    return Status(Code::InvalidArgument,
                  fmt::format("E-HOST-8 --interface {}: no interface of this host has this address",
                              interface));
  }
  const Named* found = nullptr;
  for (const Named& one : all) {
    if (one.interface != interface) continue;
    // The first of version 4, else one that is good beyond the link.
    const bool better =
        found == nullptr || (is_link_local(found->address) && !is_link_local(one.address));
    if (one.address.family() == AF_INET) return one.address;
    if (better) found = &one;
  }
  if (found != nullptr) return found->address;
  return Status(
      Code::InvalidArgument,
      fmt::format("E-HOST-8 --interface {}: this host has no such interface, or it has no "
                  "address; write for instance eth0 or 10.0.0.4",
                  interface));
}

/// The address from which a packet to `other` would leave. Nothing is sent.
Result<SocketAddress> address_towards(const addrinfo& other) {
  const base::Fd fd(::socket(other.ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_storage own{};
  socklen_t bytes = sizeof own;
  if (!fd || ::connect(fd.get(), other.ai_addr, other.ai_addrlen) != 0 ||
      ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&own), &bytes) != 0) {
    return Status(Code::FailedPrecondition, std::strerror(errno));
  }
  return SocketAddress::from(reinterpret_cast<sockaddr*>(&own), bytes);
}

std::string_view first_label(std::string_view name) { return name.substr(0, name.find('.')); }

}  // namespace

bool is_this_host(const std::string& name, const std::string& own_name,
                  const std::vector<SocketAddress>& own) {
  if (name == "localhost" || name == own_name) return true;
  if (const Result<SocketAddress> address = SocketAddress::parse(name, 0)) {
    return address->is_loopback() ||
           std::any_of(own.begin(), own.end(),
                       [&](const SocketAddress& one) { return one.host() == address->host(); });
  }
  // One of them with its domain, the other one without.
  const bool one_is_short =
      name.find('.') == std::string::npos || own_name.find('.') == std::string::npos;
  return one_is_short && first_label(name) == first_label(own_name);
}

std::vector<SocketAddress> own_addresses() {
  std::vector<SocketAddress> out;
  for (const Named& one : interfaces()) out.push_back(one.address);
  return out;
}

std::string own_host_name() {
  char name[256] = {};
  return ::gethostname(name, sizeof name - 1) == 0 ? name : "localhost";
}

Result<SocketAddress> listen_address(const std::string& interface, const std::string& other) {
  if (!interface.empty()) return address_at(interface);
  const auto refuse = [&](const char* why) {
    return Status(Code::FailedPrecondition,
                  fmt::format("E-HOST-8 cannot tell which address of this host the others reach "
                              "(host {}: {}); name it: --interface eth0, or --interface 10.0.0.4",
                              other, why));
  };
  addrinfo hints{};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* all = nullptr;
  if (const int failed = ::getaddrinfo(other.c_str(), "9", &hints, &all); failed != 0)
    return refuse(::gai_strerror(failed));
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> kept(all, &::freeaddrinfo);
  std::string why = "no address";
  for (const addrinfo* one = all; one != nullptr; one = one->ai_next) {
    Result<SocketAddress> own = address_towards(*one);
    if (own) return own;
    why = own.error().text();
  }
  return refuse(why.c_str());
}

}  // namespace regroup::launcher
