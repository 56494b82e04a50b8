#include "launcher/event_loop.hpp"

#include <fmt/format.h>
#include <sys/epoll.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/check.hpp"

namespace regroup::launcher {
namespace {

/// Descriptor and the low half of its generation travel with the kernel's event.
std::uint64_t pack(int fd, std::uint64_t generation) {
  return (generation << 32) | static_cast<std::uint32_t>(fd);
}

}  // namespace

Result<EventLoop> EventLoop::create() {
  base::Fd fd(::epoll_create1(EPOLL_CLOEXEC));
  if (!fd) return Status(Code::ResourceExhausted, fmt::format("epoll: {}", std::strerror(errno)));
  return EventLoop(std::move(fd));
}

void EventLoop::watch(int fd, Ready ready, bool writable) {
  const bool known = watched_.contains(fd);
  Watched& entry = watched_[fd];
  entry.generation = ++generations_;
  entry.ready = std::move(ready);
  epoll_event event{};
  event.events = EPOLLIN | (writable ? std::uint32_t{EPOLLOUT} : 0U);
  event.data.u64 = pack(fd, entry.generation);
  const int done = ::epoll_ctl(epoll_.get(), known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event);
  // Regular files and /dev/null cannot be watched; callers never pass them.
  REGROUP_ASSERT(done == 0);
}

void EventLoop::forget(int fd) {
  if (watched_.erase(fd) != 0) ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
}

void EventLoop::turn(TimePoint until) {
  const auto left = until - Clock::now();
  const std::int64_t wait = std::clamp<std::int64_t>(
      std::chrono::ceil<std::chrono::milliseconds>(left).count(), 0, 60'000);
  epoll_event events[64];
  const int count = ::epoll_wait(epoll_.get(), events, 64, static_cast<int>(wait));
  for (int i = 0; i < count; ++i) {
    const int fd = static_cast<int>(events[i].data.u64 & 0xffffffffU);
    const auto found = watched_.find(fd);
    if (found == watched_.end()) continue;
    if (pack(fd, found->second.generation) != events[i].data.u64) continue;
    const Ready ready = found->second.ready;  // a copy: the callback may forget itself
    ready(events[i].events);
  }
}

}  // namespace regroup::launcher
