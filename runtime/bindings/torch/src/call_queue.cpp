#include "call_queue.hpp"

#include <utility>

namespace regroup::torch_binding {

void CallQueue::enqueue(Call call) {
  calls_.push_back(std::move(call));
  if (!thread_.joinable()) {
    finishing_ = false;
    thread_ = std::thread([this] { main(); });
  }
  changed_.notify_all();
}

void CallQueue::submit(Call call) {
  const std::lock_guard lock(mutex_);
  enqueue(std::move(call));
}

bool CallQueue::run_or_submit(Call call) {
  {
    const std::lock_guard lock(mutex_);
    if (running_ || !calls_.empty()) {
      enqueue(std::move(call));
      return false;
    }
    running_ = true;
  }
  call();
  const std::lock_guard lock(mutex_);
  running_ = false;
  changed_.notify_all();
  return true;
}

void CallQueue::main() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return !running_ && (finishing_ || !calls_.empty()); });
    if (calls_.empty()) return;
    Call call = std::move(calls_.front());
    calls_.pop_front();
    running_ = true;
    lock.unlock();
    call();
    call = nullptr;  // what it holds may take the GIL to be let go
    lock.lock();
    running_ = false;
    changed_.notify_all();
  }
}

void CallQueue::wait_idle() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !running_ && calls_.empty(); });
}

bool CallQueue::wait_idle(TimePoint until) {
  std::unique_lock lock(mutex_);
  return changed_.wait_until(lock, until, [this] { return !running_ && calls_.empty(); });
}

bool CallQueue::idle() {
  const std::lock_guard lock(mutex_);
  return !running_ && calls_.empty();
}

void CallQueue::finish() {
  std::thread ending;
  {
    const std::lock_guard lock(mutex_);
    finishing_ = true;
    ending = std::move(thread_);
    changed_.notify_all();
  }
  if (ending.joinable()) ending.join();
}

}  // namespace regroup::torch_binding
