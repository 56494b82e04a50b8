/// Waits for death beacons beside the shell's loop.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include <regroup/status.hpp>
#include <regroup/types.hpp>

#include "base/fd.hpp"
#include "metrics/beacon.hpp"

namespace regroup::launcher {

/// One thread for all pages of this host: it sleeps in the kernel on all their futex words at once,
/// and hands each report to the loop through a descriptor. A thread for each rank would cost 64
/// stacks for nothing. Thread safety: everything but the inner thread's work belongs to the shell's
/// thread.
class BeaconThread {
 public:
  struct Report {
    Incarnation incarnation;
    TimePoint at;  ///< when the thread was woken
  };
  /// Errors: ResourceExhausted.
  static Result<std::unique_ptr<BeaconThread>> start();
  ~BeaconThread();
  BeaconThread(const BeaconThread&) = delete;
  BeaconThread& operator=(const BeaconThread&) = delete;

  void add(Incarnation incarnation, std::shared_ptr<const metrics::PageMapping> page);
  void remove(Incarnation incarnation);
  /// Readable while take() has something.
  [[nodiscard]] int fd() const { return event_.get(); }
  /// Who died since the last call. A beacon that was released in order is not reported.
  [[nodiscard]] std::vector<Report> take();

 private:
  explicit BeaconThread(base::Fd event);
  void loop(const std::stop_token& stop);

  base::Fd event_;
  metrics::BeaconWatch watch_;
  std::mutex mutex_;
  std::vector<Report> reports_;
  std::jthread thread_;
};

}  // namespace regroup::launcher
