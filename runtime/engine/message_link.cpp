#include "engine/message_link.hpp"

#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string>
#include <utility>

namespace regroup::engine {
namespace {

constexpr const char* kModule = "libregroup-ucx.so";

/// The folder of the library that this code is in, with a slash; empty if it is not known.
std::string own_folder() {
  Dl_info info{};
  if (::dladdr(reinterpret_cast<const void*>(&own_folder), &info) == 0) return {};
  const std::string path = info.dli_fname;
  const auto slash = path.rfind('/');
  return slash == std::string::npos ? std::string() : path.substr(0, slash + 1);
}

}  // namespace

Result<std::unique_ptr<MessageLink>> MessageLink::open() {
  // Never unloaded: UCX has threads and handlers at exit.
  void* module = ::dlopen((own_folder() + kModule).c_str(), RTLD_NOW | RTLD_LOCAL);
  if (module == nullptr) module = ::dlopen(kModule, RTLD_NOW | RTLD_LOCAL);
  if (module == nullptr) {
    return Status(Code::Unsupported,
                  fmt::format("E-NET-1 this job has ranks on several hosts, and what moves data "
                              "between hosts cannot be loaded here: {}. Install UCX (Debian: "
                              "libucx0) and a Regroup that was built with it",
                              ::dlerror()));  // NOLINT(concurrency-mt-unsafe)
  }
  auto* const open_port =
      reinterpret_cast<spi::OpenMessagePort*>(::dlsym(module, "regroup_open_message_port"));
  std::array<char, 512> why{};
  std::unique_ptr<spi::MessagePort> port;
  if (open_port != nullptr) port.reset(open_port(spi::kMessagePortAbi, why.data(), why.size()));
  if (port == nullptr) {
    return Status(Code::Unsupported,
                  fmt::format("E-NET-1 this job has ranks on several hosts, and {} moves no data "
                              "between hosts here: {}",
                              kModule, why.data()));
  }
  return std::make_unique<MessageLink>(std::move(port));
}

MessageLink::MessageLink(std::unique_ptr<spi::MessagePort> port)
    : address_(port->address()), hub_(std::move(port)) {}

void MessageLink::begin_epoch(Epoch epoch) {
  const auto held = hub_.lock();
  hub_.begin_epoch(epoch);
}

Result<int> MessageLink::channel_to(Incarnation incarnation,
                                    const membership::MemberAddress& address) {
  const auto found = channels_.find(incarnation);
  if (found != channels_.end() && hub_.is_open(found->second)) return found->second;
  auto channel = hub_.port().connect(address);
  if (channel) channels_[incarnation] = *channel;
  return channel;
}

Result<collective::MessageMembers> MessageLink::reach(const OpenGroup& group, const OpenView& view,
                                                      int me) {
  collective::MessageMembers members;
  const auto held = hub_.lock();
  for (std::size_t i = 0; i < group.seats.size(); ++i) {
    const auto seat = static_cast<std::size_t>(group.seats[i].value());
    members.incarnations.push_back(view.view.seats[seat].value());
    members.channels.push_back(-1);
    members.hosts.push_back(static_cast<int>(view.places[seat].host.value()));
    if (static_cast<int>(i) == me) continue;
    const membership::MemberAddress& address = view.places[seat].address;
    if (address.empty()) {
      return Status(Code::Unsupported,
                    fmt::format("E-NET-1 rank {} runs on another host and cannot be reached: it "
                                "has nothing that moves data between hosts",
                                seat));
    }
    auto channel = channel_to(view.view.seats[seat], address);
    if (!channel) return channel.error();
    members.channels.back() = *channel;
  }
  return members;
}

void MessageLink::close(const std::vector<Member>& lost) {
  const auto held = hub_.lock();
  for (const Member& member : lost) {
    const auto found = channels_.find(member.incarnation);
    if (found == channels_.end()) continue;
    hub_.close(found->second);
    channels_.erase(found);
  }
}

bool on_one_host(const std::vector<Rank>& seats, const OpenView& view) {
  const auto host = [&](Rank seat) {
    const auto index = static_cast<std::size_t>(seat.value());
    return index < view.places.size() ? view.places[index].host : membership::AgentId();
  };
  return std::ranges::all_of(seats, [&](Rank seat) { return host(seat) == host(seats.front()); });
}

}  // namespace regroup::engine
