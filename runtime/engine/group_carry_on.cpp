// Operations under --on-loss carry_on: a call that a loss ends goes on in the next epoch by itself,
// with the ranks that are left (docs/adr/0027-carry-on-at-the-call-that-was-lost.md).
#include <fmt/format.h>

#include <algorithm>

#include "engine/group.hpp"
#include "engine/job.hpp"
#include "engine/result_check.hpp"

namespace regroup::engine {
namespace {

using collective::Outcome;
using collective::OutcomeKind;

bool contains(const std::vector<Rank>& seats, Rank seat) {
  return std::ranges::find(seats, seat) != seats.end();
}

}  // namespace

void GroupImpl::number_as(const std::vector<Rank>& seats) {
  const std::lock_guard lock(numbers_mutex_);
  if (numbers().seats == seats) return;
  const auto mine = std::ranges::find(seats, job_.seat().rank) - seats.begin();
  all_numbers_.push_back({seats, static_cast<int>(mine)});
  numbers_.store(&all_numbers_.back(), std::memory_order_release);
}

Status GroupImpl::perform_carrying_on(const Request& request, bool background,
                                      Contributors* result) {
  const auto until = request.deadline();
  const auto& counted = public_seats();  // lives as long as this group
  if (request.kind != Request::Kind::Collective) job_.note_message();
  for (;;) {
    Epoch lost;
    {
      const auto share = job_.share_epoch(Epoch{}, until);
      if (!share) return job_.give_up_step(share.error());
      if (auto status = job_.given_up(); !status) return status;
      if (auto status = may_carry_on(request, counted); !status) return job_.give_up_step(status);
      const auto outcome = run_uniformly(wired(request, counted), background, until);
      if (outcome.ok()) [[likely]] {
        note_result(result);
        return {};
      }
      if (outcome.kind == OutcomeKind::Mismatch || !job_.steps_to_go())
        return to_status(request, outcome);
      if (auto status = may_repeat(request, outcome); !status) return job_.give_up_step(status);
      lost = epoch_;
    }
    // What cannot go on is known before the members meet, so that none of them goes on.
    const auto check = [&] { return may_carry_on(request, counted); };
    if (auto status = job_.follow(lost, until, check); !status) return job_.give_up_step(status);
  }
}

// Nobody returns from a call before everybody has it, so that all members make it again, or none:
// who only gives would else have gone on while a receiver lost the rest.
Outcome GroupImpl::run_uniformly(const Request& request, bool background, spi::Deadline until) {
  if (request.kind != Request::Kind::Collective || spi::is_symmetric(request.spec.kind))
    return run(request, background, until);
  const InputCopy input(request, size(), me_);
  auto outcome = run(request, background, until);
  if (!outcome.ok()) return outcome;
  auto confirmed = confirm(background, until);
  if (confirmed.ok()) return outcome;
  input.restore();
  return confirmed;
}

/// The same request in this communicator, which may have fewer ranks than the program counts.
Request GroupImpl::wired(const Request& request, const std::vector<Rank>& counted) const {
  Request here = request;
  if (counted == group_->seats) return here;
  const auto at = [&](int number) {
    const Rank seat = counted[static_cast<std::size_t>(number)];
    return static_cast<int>(std::ranges::find(group_->seats, seat) - group_->seats.begin());
  };
  if (request.kind != Request::Kind::Collective) {
    here.other = at(request.other);
  } else if (!spi::is_symmetric(request.spec.kind)) {
    here.spec.root = at(request.spec.root);
  }
  return here;
}

/// Whether the ranks that are left have all that the operation needs; the same on all of them.
Status GroupImpl::may_carry_on(const Request& request, const std::vector<Rank>& counted) const {
  if (counted == group_->seats) return {};
  const bool message = request.kind != Request::Kind::Collective;
  // Who is lost may be the one whose message is waited for.
  const bool of_all = message ? request.kind == Request::Kind::Find
                              : spi::gathers(request.spec.kind) || spi::scatters(request.spec.kind);
  const bool rooted = !message && !spi::is_symmetric(request.spec.kind);
  Rank needed(-1);
  if (of_all) {
    needed = *std::ranges::find_if(counted,
                                   [this](Rank seat) { return !contains(group_->seats, seat); });
  } else if (message || rooted) {
    const int other = message ? request.other : request.spec.root;
    needed = counted[static_cast<std::size_t>(other)];
    if (contains(group_->seats, needed)) return {};
  } else {
    return {};
  }
  return {Code::RankLost,
          fmt::format("rank {} was lost in this step, and {} of group \"{}\" cannot be carried on "
                      "without it; the step is begun again by next(), with the ranks that are left",
                      needed.value(), metrics::name(request.operation), name_),
          {.rank = needed, .epoch = epoch_, .group = name_}};
}

/// Whether a call that did not end well can be made again in the next epoch.
Status GroupImpl::may_repeat(const Request& request, const Outcome& outcome) const {
  if (outcome.kind != OutcomeKind::Lost) return to_status(request, outcome);
  const char* why = nullptr;
  if (request.kind != Request::Kind::Collective) {
    why = "what was under way between two ranks is lost with the epoch";
  } else if (!request.options.keep_input && InputCopy(request, size(), me_).covers()) {
    why = "its input was given up (keep_input=false)";
  }
  if (why == nullptr) return {};
  const Status lost = to_status(request, outcome);
  return {lost.code(),
          fmt::format("{}; {} cannot be carried on: {}; the step is begun again by next()",
                      lost.text(), metrics::name(request.operation), why),
          lost.where()};
}

Status GroupImpl::commit_carrying_on(std::uint64_t step, bool background) {
  for (;;) {
    Epoch lost;
    {
      const auto share = job_.share_epoch(Epoch{}, spi::kNoDeadline);
      if (!share) return job_.give_up_step(share.error());
      if (auto status = job_.given_up(); !status) return status;
      auto status = commit_now(step, background);
      if (status) {
        job_.note_committed(step);
        return status;
      }
      if (status.code() != Code::RankLost && status.code() != Code::Revoked) return status;
      lost = epoch_;
    }
    if (auto status = job_.follow(lost, spi::kNoDeadline, {}); !status)
      return job_.give_up_step(status);
  }
}

}  // namespace regroup::engine
