#include "engine/async_queue.hpp"

#include <utility>

namespace regroup::engine {
namespace {

thread_local bool of_a_queue = false;

}  // namespace

bool AsyncQueue::is_this_thread() { return of_a_queue; }

void AsyncQueue::submit(std::function<void()> task) {
  const std::lock_guard lock(mutex_);
  tasks_.push_back(std::move(task));
  if (!thread_.joinable()) {
    finishing_ = false;
    thread_ = std::thread([this] { run(); });
  }
  changed_.notify_one();
}

void AsyncQueue::run() {
  of_a_queue = true;
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return finishing_ || !tasks_.empty(); });
    if (tasks_.empty()) return;
    const auto task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    task();
    lock.lock();
  }
}

void AsyncQueue::finish() {
  std::thread ending;
  {
    const std::lock_guard lock(mutex_);
    finishing_ = true;
    ending = std::move(thread_);
    changed_.notify_one();
  }
  if (ending.joinable()) ending.join();
}

}  // namespace regroup::engine
