#include "tests/sim/core.hpp"

#include <algorithm>
#include <utility>

namespace regroup::sim {

void Core::after(Nanos delay, std::function<void()> act) {
  queue_.push_back({now_ + std::max<Nanos>(delay, 0), order_++, std::move(act)});
  std::push_heap(queue_.begin(), queue_.end());
}

bool Core::turn(Nanos until) {
  if (queue_.empty() || queue_.front().at > until) {
    now_ = std::max(now_, until);
    return false;
  }
  std::pop_heap(queue_.begin(), queue_.end());
  const Entry entry = std::move(queue_.back());
  queue_.pop_back();
  now_ = entry.at;
  ++events_;
  entry.act();
  return true;
}

void Core::record(Record r) {
  r.at = now_;
  trace.add(r);
  checks.on(r);
}

}  // namespace regroup::sim
