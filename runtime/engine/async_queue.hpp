/// Runs the asynchronous operations of one group, in call order, beside the program.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace regroup::engine {

/// One thread, started with the first task: the operations of different groups wait independently
/// of each other, so that ranks may start them in different orders. Thread safety: submit() from
/// any thread; finish() from one other than its own.
class AsyncQueue {
 public:
  AsyncQueue() = default;
  AsyncQueue(const AsyncQueue&) = delete;
  AsyncQueue& operator=(const AsyncQueue&) = delete;
  ~AsyncQueue() { finish(); }

  void submit(std::function<void()> task);
  /// Runs what is queued and ends the thread. Blocks.
  void finish();

  /// True on the threads of queues.
  [[nodiscard]] static bool is_this_thread();

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  bool finishing_ = false;
  std::thread thread_;
};

}  // namespace regroup::engine
