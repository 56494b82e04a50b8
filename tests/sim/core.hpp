/// Virtual time, chance, the trace and the checkers: what every part of the simulated world shares.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "tests/sim/checkers.hpp"
#include "tests/sim/random.hpp"
#include "tests/sim/swarm.hpp"
#include "tests/sim/trace.hpp"

namespace regroup::sim {

/// One thread runs everything: events in order of virtual time, equal times in the order they were
/// asked for.
class Core {
 public:
  Core(std::uint64_t seed, bool keeps_text, bool carry_on)
      : random(seed), swarm(draw(random, carry_on)), trace(keeps_text), checks(swarm) {
    draw_additions(seed, swarm);
  }

  void after(Nanos delay, std::function<void()> act);
  /// Runs the next event; false when there is none before `until` (then time stands at `until`).
  bool turn(Nanos until);
  void record(Record record);
  /// Whether a fault of this rate happens now; never in liveness mode.
  bool fault(double rate) { return rate > 0 && !calm && random.chance(rate); }

  [[nodiscard]] Nanos now() const { return now_; }
  [[nodiscard]] TimePoint time() const { return TimePoint(std::chrono::nanoseconds(now_)); }
  /// Events, without the checks of heartbeats in which nothing happens.
  [[nodiscard]] std::uint64_t events() const { return events_; }
  void tick() { --events_; }

  /// Every message and every piece of evidence gets a number when it is sent. One that arrives
  /// after a later one has come by another channel: each channel by itself keeps its order.
  [[nodiscard]] std::uint64_t sent() { return ++sent_; }
  void delivered(std::uint64_t number) {
    if (number < newest_delivered_) ++reordered_;
    newest_delivered_ = std::max(newest_delivered_, number);
  }
  [[nodiscard]] std::uint64_t reordered() const { return reordered_; }

  Random random;
  Swarm swarm;
  Trace trace;
  Checks checks;
  bool calm = false;  ///< liveness mode: no new faults

 private:
  static Swarm draw(Random& random, bool carry_on) {
    Swarm drawn = draw_swarm(random);
    if (carry_on) sim::carry_on(drawn);
    return drawn;
  }
  struct Entry {
    Nanos at;
    std::uint64_t order;
    std::function<void()> act;
    bool operator<(const Entry& other) const {
      return at != other.at ? at > other.at : order > other.order;
    }
  };
  Nanos now_ = kSecond;  // not 0: a time point of 0 means "never" in places
  std::uint64_t order_ = 0;
  std::uint64_t events_ = 0;
  std::uint64_t sent_ = 0;
  std::uint64_t newest_delivered_ = 0;
  std::uint64_t reordered_ = 0;
  std::vector<Entry> queue_;
};

}  // namespace regroup::sim
