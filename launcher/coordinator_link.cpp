#include "launcher/coordinator_link.hpp"

#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/wait.h>

#include <algorithm>
#include <cerrno>
#include <csignal>

namespace regroup::launcher {
namespace {

constexpr std::chrono::milliseconds kEndTime{500};

}  // namespace

CoordinatorLink::~CoordinatorLink() {
  close();
  if (!process_) return;
  signal_process(*process_, SIGKILL);
  while (::waitpid(process_->pid, nullptr, 0) < 0 && errno == EINTR) {
  }
}

void CoordinatorLink::start(TimePoint now) {
  due_.reset();
  started_at_ = now;
  Result<std::pair<control::Channel, control::Channel>> channels = control::Channel::pair();
  if (!channels) return fail(now, 0, std::string(channels.error().text()));
  const base::Fd theirs = channels->second.release();
  options_.fd = theirs.get();
  SpawnRequest request;
  request.path = "/proc/self/exe";
  request.arguments = coordinator_arguments(options_);
  request.arguments.insert(request.arguments.begin(), "regroup");
  request.environment = {"REGROUP_JOB_ID=" + job_, "PATH=/usr/bin:/bin"};
  request.kept = {theirs.get()};
  if (options_.beat >= 0) request.kept.push_back(options_.beat);
  Result<Spawned> spawned = spawn(request);
  if (!spawned) return fail(now, 0, std::string(spawned.error().text()));
  process_.emplace(std::move(*spawned));
  channel_.emplace(std::move(channels->first));
  watch();
  callbacks_.up();
}

void CoordinatorLink::turn(TimePoint now) {
  if (kill_due_ && *kill_due_ <= now) kill();
  if (!due_ || *due_ > now || stopping_) return;
  restarts_ += 1;
  start(now);
}

void CoordinatorLink::watch() {
  if (channel_)
    loop_.watch(
        channel_->fd(), [this](std::uint32_t events) { pump(events); }, channel_->wants_write());
}

void CoordinatorLink::pump(std::uint32_t events) {
  if ((events & EPOLLOUT) != 0 && channel_) {
    if (!channel_->flush()) return close();
    watch();
  }
  while (channel_) {
    auto received = channel_->try_recv_as<membership::CoordinatorMessage>();
    if (!received && received.error().code() == Code::Cancelled) {
      close();
      kill_due_ = Clock::now() + kEndTime;
      return;
    }
    // Not to be understood: what is left of it ends, and the next one asks for everything again.
    if (!received) return kill();
    if (!received->has_value()) return;
    callbacks_.message(std::move((*received)->message));
  }
}

void CoordinatorLink::send(const membership::AgentMessage& message) {
  if (!channel_) return;
  // A queue that is full means that it has stopped reading. The next one learns all by AgentHello.
  if (!channel_->send(message)) return kill();
  watch();
}

void CoordinatorLink::kill() {
  close();
  kill_due_.reset();
  if (process_) signal_process(*process_, SIGKILL);
}

void CoordinatorLink::close() {
  if (channel_) loop_.forget(channel_->fd());
  channel_.reset();
}

bool CoordinatorLink::reaped(pid_t pid, const ExitStatus& status, TimePoint now) {
  if (!process_ || process_->pid != pid) return false;
  process_.reset();
  kill_due_.reset();
  close();
  fail(now, pid, status.text());
  return true;
}

void CoordinatorLink::fail(TimePoint now, pid_t pid, const std::string& why) {
  if (stopping_) return;
  callbacks_.down(pid, why);
  quick_ends_ = now - started_at_ < kQuickEnd ? quick_ends_ + 1 : 0;
  if (quick_ends_ >= kQuickEndsMax) {
    stopping_ = true;
    callbacks_.given_up(why);
    return;
  }
  // The first restart is immediate: a recovery may be waiting for it.
  const int doublings = std::max(0, quick_ends_ - 2);
  due_ = quick_ends_ <= 1 ? now : now + std::chrono::milliseconds(20) * (1 << doublings);
}

void CoordinatorLink::stop() {
  stopping_ = true;
  due_.reset();
  close();
}

}  // namespace regroup::launcher
