/// L1, L2, L4..L9: what must have happened at the end, once a quorum was healed and left alone.
#include <fmt/format.h>

#include "tests/sim/checkers.hpp"

namespace regroup::sim {
namespace {

using Wrong = std::optional<std::string>;

class AtEnd : public Checker {
 public:
  Wrong on(const Record&) override { return std::nullopt; }
};

/// L1: no call blocks for ever.
class NoHang final : public AtEnd {
 public:
  [[nodiscard]] const char* property() const override { return "L1 no hang"; }
  Wrong at_end(const Ending& e) override {
    if (e.blocked.empty()) return std::nullopt;
    return e.blocked;
  }
};

/// L2: the dead are out of the view.
class Completeness final : public AtEnd {
 public:
  [[nodiscard]] const char* property() const override { return "L2 completeness"; }
  Wrong at_end(const Ending& e) override {
    if (e.dead_in_view.empty() || e.job_ended) return std::nullopt;
    return e.dead_in_view;
  }
};

/// L4, L7 and L9: the healed part goes on, completes further operations, and ends in order.
class CoreConverges final : public AtEnd {
 public:
  [[nodiscard]] const char* property() const override {
    return "L4 core converges (L7 join, L9 clean end)";
  }
  Wrong at_end(const Ending& e) override {
    if (!e.job_ended) return "the job neither ended nor said why, with a healed quorum";
    if (!e.orderly && e.faults == 0) return "nothing was broken, and the job failed: " + e.end;
    if (e.orderly && e.further_expected && e.further_operations < 10) {
      return fmt::format("only {} further operations", e.further_operations);
    }
    return std::nullopt;
  }
};

/// L5: views are bounded by what happened.
class NoLivelock final : public AtEnd {
 public:
  [[nodiscard]] const char* property() const override { return "L5 no livelock"; }
  Wrong at_end(const Ending& e) override {
    if (e.views <= 2 * (e.faults + e.joins) + 2) return std::nullopt;
    return fmt::format("{} views after {} faults and {} joins", e.views, e.faults, e.joins);
  }
};

/// L6: a fault during recovery costs one more round at most; so does a coordinator that starts
/// over.
class Cascade final : public AtEnd {
 public:
  [[nodiscard]] const char* property() const override { return "L6 cascade"; }
  Wrong at_end(const Ending& e) override {
    if (e.rounds <= e.faults + e.fills + 2 * e.coordinators) return std::nullopt;
    return fmt::format("{} rounds after {} faults and {} lives of the coordinator", e.rounds,
                       e.faults, e.coordinators);
  }
};

/// L8: a removed process that can be reached does not go on running.
class ZombieLearns final : public AtEnd {
 public:
  [[nodiscard]] const char* property() const override { return "L8 zombie learns"; }
  Wrong at_end(const Ending& e) override {
    if (e.zombie.empty()) return std::nullopt;
    return e.zombie;
  }
};

}  // namespace

std::vector<std::unique_ptr<Checker>> make_liveness_checkers(const Swarm&) {
  std::vector<std::unique_ptr<Checker>> all;
  all.push_back(std::make_unique<NoHang>());
  all.push_back(std::make_unique<Completeness>());
  all.push_back(std::make_unique<CoreConverges>());
  all.push_back(std::make_unique<NoLivelock>());
  all.push_back(std::make_unique<Cascade>());
  all.push_back(std::make_unique<ZombieLearns>());
  return all;
}

}  // namespace regroup::sim
