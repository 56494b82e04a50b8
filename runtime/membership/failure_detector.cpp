#include "membership/failure_detector.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace regroup::membership {

using std::chrono::milliseconds;

Timeouts timeouts_for(nanoseconds detect_budget) {
  Timeouts t;
  t.beat_every = std::clamp<nanoseconds>(detect_budget / 30, milliseconds(5), milliseconds(50));
  t.check_every = t.beat_every;
  // A pause may begin right before a beat and its end be seen one check late: both are added to
  // what is tolerated.
  const nanoseconds floor = kPauseTolerated + t.beat_every + t.check_every;
  t.suspect_after = std::max<nanoseconds>(detect_budget * 2 / 5, floor);
  t.confirm_after = std::max<nanoseconds>(detect_budget / 5, milliseconds(50));
  t.agent_lost = std::max<nanoseconds>(detect_budget * 3 / 5, t.suspect_after + t.confirm_after);
  t.resend_every = std::max<nanoseconds>(detect_budget / 3, milliseconds(100));
  t.finish_grace = std::max<nanoseconds>(detect_budget * 2 / 3, milliseconds(300));
  return t;
}

void FailureDetector::watch(Incarnation who, TimePoint now) {
  watched_.try_emplace(who, Watched{.moved = now});
  if (!started_) {
    started_ = true;
    next_check_ = now + timeouts_.check_every;
  }
}

void FailureDetector::forget(Incarnation who) { watched_.erase(who); }

void FailureDetector::beat(Incarnation who, std::uint64_t counter, TimePoint now) {
  const auto it = watched_.find(who);
  if (it == watched_.end() || it->second.counter == counter) return;
  it->second.counter = counter;
  it->second.moved = now;
}

std::vector<FailureDetector::Finding> FailureDetector::check(TimePoint now) {
  std::vector<Finding> findings;
  lateness_ = std::max<nanoseconds>(nanoseconds{0}, now - next_check_ - timeouts_.check_every);
  next_check_ = now + timeouts_.check_every;
  if (lateness_ > nanoseconds{0}) {
    // We are the late one: the machine was paused or starved, and so may everybody we watch have
    // been. Silence that we did not observe is not counted. What remains is judged all the same, so
    // that lasting overload delays eviction (each check counts only its planned interval) and does
    // not prevent it.
    for (auto& [who, watched] : watched_) {
      watched.moved = std::min(now, watched.moved + lateness_);
      if (watched.suspected) watched.suspected = std::min(now, *watched.suspected + lateness_);
    }
  }
  for (auto& [who, watched] : watched_) {
    const nanoseconds silent = now - watched.moved;
    if (watched.confirmed) continue;
    if (watched.suspected && watched.moved > *watched.suspected) {
      watched.suspected.reset();
      findings.push_back({who, Verdict::Cleared, "its heartbeat moves again"});
    } else if (!watched.suspected && silent >= timeouts_.suspect_after) {
      watched.suspected = now;
      findings.push_back({who, Verdict::Suspected,
                          fmt::format("no heartbeat for {} ms", silent / milliseconds(1))});
    } else if (watched.suspected && now - *watched.suspected >= timeouts_.confirm_after) {
      watched.confirmed = true;
      findings.push_back(
          {who, Verdict::Confirmed,
           fmt::format(
               "no heartbeat for {} ms, confirmed by a second look {} ms after the first suspicion",
               silent / milliseconds(1), (now - *watched.suspected) / milliseconds(1))});
    }
  }
  return findings;
}

}  // namespace regroup::membership
