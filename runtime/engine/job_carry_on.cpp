// How a job goes on with its step under --on-loss carry_on, or agrees not to.
#include <fmt/format.h>

#include <algorithm>

#include "engine/group.hpp"
#include "engine/job.hpp"

namespace regroup::engine {

JobImpl::EpochShare JobImpl::hold_epoch() const { return EpochShare(epoch_mutex_); }

bool JobImpl::repeats_prologue() const {
  return carries_on_ && keeps_prologue() && prologue_.is_complete_for(seat().ranks);
}

std::vector<Rank> JobImpl::all_seats() const {
  std::vector<Rank> all;
  for (std::uint32_t rank = 0; rank < seat().ranks; ++rank)
    all.emplace_back(static_cast<std::int32_t>(rank));
  return all;
}

Status JobImpl::follow(Epoch lost, TimePoint until, const std::function<Status()>& check) {
  const std::unique_lock alone(epoch_mutex_);
  while (epoch() <= lost) {
    if (auto status = await_next_view(until); !status) {
      book(metrics::Category::Compute);
      return status;
    }
  }
  return check ? check() : Status();
}

Status JobImpl::give_up_step(Status why) {
  const std::lock_guard lock(failure_mutex_);
  if (given_up_) given_up_ = why;
  return why;
}

Status JobImpl::given_up() const {
  const std::lock_guard lock(failure_mutex_);
  return given_up_;
}

void JobImpl::note_message() {
  const std::lock_guard lock(failure_mutex_);
  messages_ = true;
}

void JobImpl::note_committed(std::uint64_t step) {
  applied_ = step;
  if (numbered_ != epoch()) renumber();
}

JobImpl::Stand JobImpl::stand(bool in_next) const {
  const std::lock_guard lock(failure_mutex_);
  if (!entered_once_ || !holds_state_ || !given_up_ || messages_) return Stand::Outside;
  return in_next ? Stand::BetweenSteps : Stand::InStep;
}

// Equal on all members. Either all go on where they are, or all of them come to next(), enter the
// epoch with an exchange there and begin the step again, or for the first time.
Status JobImpl::settle_stands(std::span<const Stand> all, bool in_next) {
  if (std::ranges::find(all, Stand::Outside) != all.end()) {
    if (in_next || !entered_once_) return {};
    const Status cause = lost(Epoch(epoch().value() - 1), "", 0);
    (void)give_up_step({cause.code(),
                        fmt::format("{}; the step is begun again by next(): not all ranks can "
                                    "carry it on",
                                    cause.text()),
                        cause.where()});
    return {};
  }
  if (std::ranges::find(all, Stand::InStep) == all.end()) return {};
  if (applied_ + 1 != resume_step()) {
    return {Code::Internal,
            fmt::format("rank {} has applied {} steps but epoch {} resumes at step {}",
                        seat().rank.value(), applied_, epoch().value(), resume_step())};
  }
  entered_ = epoch();
  return link_->entered({.epoch = epoch()});
}

void JobImpl::begin_anew() {
  if (!carries_on_) return;
  {
    const std::lock_guard lock(failure_mutex_);
    given_up_ = {};
    messages_ = false;
  }
  renumber();
}

void JobImpl::renumber() {
  const std::lock_guard lock(groups_mutex_);
  for (const auto& [name, group] : groups_) group->renumber();
  numbered_ = epoch();
}

}  // namespace regroup::engine
