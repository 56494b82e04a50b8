/// Runs the calls of one group in the order in which they were made.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace regroup::torch_binding {

/// One thread, started with the first call that is not run in place. Thread safety: any thread;
/// finish() not from its own.
class CallQueue {
 public:
  using Call = std::function<void()>;
  using TimePoint = std::chrono::steady_clock::time_point;

  CallQueue() = default;
  CallQueue(const CallQueue&) = delete;
  CallQueue& operator=(const CallQueue&) = delete;
  ~CallQueue() { finish(); }

  /// Behind those before it, on the queue's thread. Never blocks.
  void submit(Call call);
  /// On this thread, if nothing else is there; else as submit(). Returns whether it ran.
  bool run_or_submit(Call call);
  /// Until nothing is queued or running.
  void wait_idle();
  /// Returns whether it was so by then.
  bool wait_idle(TimePoint until);
  [[nodiscard]] bool idle();
  /// Runs what is queued and ends the thread.
  void finish();

 private:
  void enqueue(Call call);
  void main();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Call> calls_;
  bool running_ = false;
  bool finishing_ = false;
  std::thread thread_;
};

}  // namespace regroup::torch_binding
