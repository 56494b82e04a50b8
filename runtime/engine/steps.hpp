/// The loop of transactions behind regroup::Steps.
#pragma once

#include <cstdint>
#include <memory>

#include <regroup/status.hpp>

#include "engine/job.hpp"

namespace regroup::engine {

/// Thread safety: the thread that made it.
class StepsImpl {
 public:
  /// Steps are numbered through the whole job; this loop's begin after those applied so far. A
  /// newcomer starts at 0 and finds in its first next() how far the job is.
  StepsImpl(std::shared_ptr<JobImpl> job, std::uint64_t total)
      : job_(std::move(job)), first_(job_->steps_given()), total_(total) {
    job_->give_steps(total);
  }

  bool next() {
    status_ = job_->left_open();
    if (status_) status_ = job_->enter(job_->applied() < first_ + total_);
    if (!status_) return false;
    const std::uint64_t step = job_->applied() + 1;
    if (step > first_ + total_) return false;
    status_ = job_->begin_step(step, job_->current_step() == step);
    return status_.ok();
  }
  [[nodiscard]] std::uint64_t index() const { return job_->current_step() - 1 - first_; }
  [[nodiscard]] int attempt() const { return job_->attempt(); }
  Status commit() { return job_->commit(job_->current_step()); }
  [[nodiscard]] Status status() const { return status_; }

 private:
  std::shared_ptr<JobImpl> job_;
  std::uint64_t first_;  ///< steps of earlier loops
  std::uint64_t total_;
  Status status_;
};

}  // namespace regroup::engine
