#include "launcher/beacon_thread.hpp"

#include <fmt/format.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <utility>

namespace regroup::launcher {

Result<std::unique_ptr<BeaconThread>> BeaconThread::start() {
  base::Fd event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!event)
    return Status(Code::ResourceExhausted, fmt::format("eventfd: {}", std::strerror(errno)));
  return std::unique_ptr<BeaconThread>(new BeaconThread(std::move(event)));
}

BeaconThread::BeaconThread(base::Fd event) : event_(std::move(event)) {
  // Signals are the main thread's: the new thread inherits a mask with all of them blocked.
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::jthread([this](const std::stop_token& stop) { loop(stop); });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

BeaconThread::~BeaconThread() {
  thread_.request_stop();
  watch_.wake();
}

void BeaconThread::add(Incarnation incarnation, std::shared_ptr<const metrics::PageMapping> page) {
  watch_.add(incarnation.value(), std::move(page));
}

void BeaconThread::remove(Incarnation incarnation) { watch_.remove(incarnation.value()); }

std::vector<BeaconThread::Report> BeaconThread::take() {
  std::uint64_t count = 0;
  const ssize_t got = ::read(event_.get(), &count, sizeof count);
  (void)got;  // nothing there: the list below is empty too
  const std::lock_guard lock(mutex_);
  return std::exchange(reports_, {});
}

void BeaconThread::loop(const std::stop_token& stop) {
  while (!stop.stop_requested()) {
    const auto died = watch_.wait(std::chrono::seconds(1));
    const TimePoint now = Clock::now();
    bool any = false;
    {
      const std::lock_guard lock(mutex_);
      for (const auto& report : died) {
        if (report.event != metrics::BeaconEvent::Died) continue;
        reports_.push_back({Incarnation{report.id}, now});
        any = true;
      }
    }
    const std::uint64_t one = 1;
    // A full counter means the loop has been told already.
    if (any && ::write(event_.get(), &one, sizeof one) < 0) continue;
  }
}

}  // namespace regroup::launcher
