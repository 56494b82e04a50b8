#include "launcher/rendezvous.hpp"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <optional>
#include <string_view>

#include "launcher/control_address.hpp"
#include "launcher/descendants.hpp"

namespace regroup::launcher {
namespace {

constexpr std::string_view kScheme = "unix:";
constexpr int kBacklog = 1024;  // as many shims as one host can hold, several times over

Status failed(std::string_view what) {
  return {Code::ResourceExhausted, fmt::format("{}: {}", what, std::strerror(errno))};
}

Result<ControlAddress> address_of(const std::string& place) {
  ControlAddress out;
  out.address.sun_family = AF_UNIX;
  if (place.empty() || place.size() + 1 > sizeof out.address.sun_path) {
    return Status(Code::InvalidArgument,
                  fmt::format("'{}' is no name of a meeting place: 1 to {} bytes", place,
                              sizeof out.address.sun_path - 1));
  }
  std::memcpy(out.address.sun_path + 1, place.data(), place.size());
  out.bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + place.size());
  return out;
}

Result<base::Fd> make_socket() {
  base::Fd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return failed("socket");
  return fd;
}

}  // namespace

pid_t launcher_of(const std::string& source) {
  if (source.empty()) return ::getpid();
  pid_t at = ::getppid();
  while (at > 1 && has_variable(at, source)) at = parent_of(at);
  return at;
}

Result<std::string> meeting_place(pid_t launcher) {
  const std::optional<std::uint64_t> started = start_time_of(launcher);
  if (!started) {
    return Status(Code::FailedPrecondition,
                  fmt::format("the launcher of this process (pid {}) is gone", launcher));
  }
  return fmt::format("regroup-exec/{}/{}-{}", ::getuid(), launcher, *started);
}

std::string rdzv_of(const std::string& place) { return std::string(kScheme) + place; }

Result<std::string> place_of(const std::string& rdzv) {
  if (!rdzv.starts_with(kScheme)) {
    return Status(Code::InvalidArgument,
                  fmt::format("REGROUP_RDZV={} cannot be used: on one host it begins with {}", rdzv,
                              kScheme));
  }
  return rdzv.substr(kScheme.size());
}

Result<base::Fd> listen_at(const std::string& place) {
  const Result<ControlAddress> address = address_of(place);
  if (!address) return address.error();
  Result<base::Fd> fd = make_socket();
  if (!fd) return fd;
  if (::bind(fd->get(), address->get(), address->bytes) != 0) {
    if (errno == EADDRINUSE) return base::Fd();
    return failed("bind");
  }
  if (::listen(fd->get(), kBacklog) != 0) return failed("listen");
  return fd;
}

Result<base::Fd> connect_to(const std::string& place) {
  const Result<ControlAddress> address = address_of(place);
  if (!address) return address.error();
  Result<base::Fd> fd = make_socket();
  if (!fd) return fd;
  if (::connect(fd->get(), address->get(), address->bytes) != 0) {
    if (errno == ECONNREFUSED || errno == EAGAIN || errno == EINTR) return base::Fd();
    return failed("connect");
  }
  // Anybody on this host can take a name: who listens there decides, before anything is said.
  const std::optional<std::uint32_t> uid = uid_behind(fd->get());
  if (uid != ::getuid()) {
    return Status(Code::Unauthenticated,
                  fmt::format("the meeting place @{} belongs to user {}: nothing was said to it",
                              place, uid.value_or(0)));
  }
  return fd;
}

}  // namespace regroup::launcher
