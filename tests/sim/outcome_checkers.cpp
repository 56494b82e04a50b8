/// S4..S9, S12: what becomes of operations and steps.
#include <fmt/format.h>

#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "tests/sim/checkers.hpp"

namespace regroup::sim {
namespace {

using Wrong = std::optional<std::string>;
using Key = std::tuple<Epoch, std::uint32_t, std::uint64_t>;  // epoch, group, sequence number

std::string text_of(const Key& key) {
  return fmt::format("epoch {} group {} operation {}", std::get<0>(key).value(), std::get<1>(key),
                     std::get<2>(key));
}

/// S4: whoever goes from e to e+1 has completed the same operations of e. Exact where every member
/// receives every result; rooted operations and a second group are covered by S5a, operation by
/// operation.
class VirtualSynchrony final : public Checker {
 public:
  explicit VirtualSynchrony(const Swarm& swarm)
      : applies_(swarm.groups == 1 && swarm.rooted == 0.0) {}
  [[nodiscard]] const char* property() const override { return "S4 virtual synchrony"; }
  Wrong on(const Record& r) override {
    if (!applies_) return std::nullopt;
    if (r.what == What::Done) {
      auto& mine = done_[r.incarnation];
      mine.digest = combine(mine.digest, combine(r.number, r.digest));
      ++mine.count;
    }
    if (r.what != What::Enter) return std::nullopt;
    auto& mine = done_[r.incarnation];
    const Done before = std::exchange(mine, Done{.epoch = r.epoch});
    if (before.epoch.value() == 0 || before.epoch.value() + 1 != r.epoch.value())
      return std::nullopt;
    const auto [first, is_new] = sets_.emplace(r.epoch, before);
    if (is_new || (first->second.count == before.count && first->second.digest == before.digest)) {
      return std::nullopt;
    }
    return fmt::format("rank {} enters epoch {} with {} operations done, another had {}",
                       r.rank.value(), r.epoch.value(), before.count, first->second.count);
  }

 private:
  struct Done {
    Epoch epoch;
    std::uint64_t count = 0;
    std::uint64_t digest = 0;
  };
  bool applies_;
  std::map<Incarnation, Done> done_;
  std::map<Epoch, Done> sets_;
};

/// S5a: all who enter the next view report the same outcome of each operation. As long as no host's
/// words were lost it holds for the dead too: what one of them finished, no survivor aborts.
class AgreedOutcome final : public Checker {
 public:
  [[nodiscard]] const char* property() const override { return "S5a agreed outcome"; }
  Wrong on(const Record& r) override {
    if (r.what == What::ChannelDown || r.what == What::HostLost) words_missing_ = true;
    if (r.what == What::Removed) removed_.insert(r.incarnation);
    if (r.what == What::Enter) return enters(r);
    if (r.what != What::Done && r.what != What::Lost) return std::nullopt;
    const Key key{r.epoch, r.group, r.number};
    Outcome& outcome = outcomes_[key];
    const bool is_done = r.what == What::Done;
    mine_[r.incarnation].push_back({key, is_done});
    if (removed_.count(r.incarnation) != 0) return std::nullopt;  // a zombie's word binds nobody
    (is_done ? outcome.anybody_done : outcome.anybody_lost) = true;
    if (!words_missing_ && outcome.anybody_done && outcome.anybody_lost) {
      return text_of(key) + ": done on one member, RankLost on another";
    }
    return std::nullopt;
  }

 private:
  struct Outcome {
    bool anybody_done = false, anybody_lost = false;
    bool survivor_done = false, survivor_lost = false;
  };
  Wrong enters(const Record& r) {
    auto mine = std::exchange(mine_[r.incarnation], {});
    for (const auto& [key, is_done] : mine) {
      Outcome& outcome = outcomes_[key];
      (is_done ? outcome.survivor_done : outcome.survivor_lost) = true;
      if (outcome.survivor_done && outcome.survivor_lost) {
        return text_of(key) + ": survivors report different outcomes";
      }
    }
    return std::nullopt;
  }
  bool words_missing_ = false;
  std::set<Incarnation> removed_;
  std::map<Key, Outcome> outcomes_;
  std::map<Incarnation, std::vector<std::pair<Key, bool>>> mine_;
};

/// S5b: a step that anybody saw committed, dead or alive, stays committed.
class UniformCommit final : public Checker {
 public:
  [[nodiscard]] const char* property() const override { return "S5b uniform commit"; }
  Wrong on(const Record& r) override {
    if (r.what == What::Choose) {
      const bool is_new = resume_.emplace(r.epoch, r.view->resume_step).second;
      if (!is_new || r.view->resume_step > stable_) return std::nullopt;
      return fmt::format("epoch {} resumes at step {}, step {} was committed", r.epoch.value(),
                         r.view->resume_step, stable_);
    }
    if (r.what == What::StepAborted && committed_.count({r.epoch, r.number}) != 0) {
      return fmt::format("step {} is aborted on rank {}, committed on another", r.number,
                         r.rank.value());
    }
    if (r.what == What::StepAborted) aborted_.insert({r.epoch, r.number});
    if (r.what != What::Committed) return std::nullopt;
    stable_ = std::max(stable_, r.number);
    committed_.insert({r.epoch, r.number});
    if (aborted_.count({r.epoch, r.number}) != 0) {
      return fmt::format("step {} is committed on rank {}, aborted on another", r.number,
                         r.rank.value());
    }
    for (auto later = resume_.upper_bound(r.epoch); later != resume_.end(); ++later) {
      if (later->second <= r.number) {
        return fmt::format("rank {} commits step {} of epoch {}, but epoch {} resumes at step {}",
                           r.rank.value(), r.number, r.epoch.value(), later->first.value(),
                           later->second);
      }
    }
    return std::nullopt;
  }

 private:
  std::uint64_t stable_ = 0;
  std::map<Epoch, std::uint64_t> resume_;
  std::set<std::pair<Epoch, std::uint64_t>> committed_, aborted_;
};

/// S6: a result is the reduction of exactly the members' contributions.
class ExactReduction final : public Checker {
 public:
  [[nodiscard]] const char* property() const override { return "S6 exact reduction"; }
  Wrong on(const Record& r) override {
    if (r.what != What::Reduce || (r.other & (kWrongValue | kNotAll)) == 0) return std::nullopt;
    return fmt::format("rank {} reduces {}", r.rank.value(),
                       (r.other & kNotAll) != 0 ? "not all members" : "a value that nobody put in");
  }
};

/// S7: equal results on all ranks and in each rerun with the same members; equal states after each
/// step.
class SameBits final : public Checker {
 public:
  [[nodiscard]] const char* property() const override { return "S7 same bits"; }
  Wrong on(const Record& r) override {
    if (r.what == What::Done) {
      const auto [first, is_new] = results_.emplace(std::pair{r.other, r.seats}, r.digest);
      if (is_new || first->second == r.digest) return std::nullopt;
      return fmt::format("rank {} has another result of step {} operation {}", r.rank.value(),
                         r.other / 1024, r.other % 1024);
    }
    if (r.what != What::Committed) return std::nullopt;
    const auto [first, is_new] = states_.emplace(r.number, r.digest);
    if (is_new || first->second == r.digest) return std::nullopt;
    return fmt::format("rank {} has another state after step {}", r.rank.value(), r.number);
  }

 private:
  std::map<std::pair<std::uint64_t, std::uint64_t>, std::uint64_t> results_;
  std::map<std::uint64_t, std::uint64_t> states_;
};

/// S8: no byte of another epoch, incarnation or operation reaches a result.
class EpochPurity final : public Checker {
 public:
  [[nodiscard]] const char* property() const override { return "S8 epoch purity"; }
  Wrong on(const Record& r) override {
    if (r.what != What::Reduce || (r.other & kForeign) == 0) return std::nullopt;
    return fmt::format("rank {} reads a contribution that is not of epoch {} group {} operation {}",
                       r.rank.value(), r.epoch.value(), r.group, r.number);
  }
};

/// S9: an aborted operation leaves the caller's in-place buffer as it was.
class InputIntact final : public Checker {
 public:
  [[nodiscard]] const char* property() const override { return "S9 input intact"; }
  Wrong on(const Record& r) override {
    if (r.what != What::Lost || r.digest == r.other) return std::nullopt;
    return fmt::format("rank {}: the buffer changed though the operation was aborted",
                       r.rank.value());
  }
};

/// S12: no contribution counts twice, no step is applied twice or left out.
class AtMostOnce final : public Checker {
 public:
  [[nodiscard]] const char* property() const override { return "S12 at most once"; }
  Wrong on(const Record& r) override {
    if (r.what == What::Reduce && (r.other & kTwice) != 0) {
      return fmt::format("rank {} counts a contribution twice", r.rank.value());
    }
    if (r.what == What::HealEnd) applied_[r.incarnation] = r.number;
    if (r.what != What::Committed) return std::nullopt;
    std::uint64_t& applied = applied_[r.incarnation];
    if (r.number == applied + 1) return ++applied, std::nullopt;
    return fmt::format("rank {} applies step {} after step {}", r.rank.value(), r.number, applied);
  }

 private:
  std::map<Incarnation, std::uint64_t> applied_;
};

/// S13: every member of an epoch has the same plan for each round of a heal.
class SamePlan final : public Checker {
 public:
  [[nodiscard]] const char* property() const override { return "S13 same heal plan"; }
  Wrong on(const Record& r) override {
    if (r.what != What::HealPlan) return std::nullopt;
    const auto [first, is_new] = plans_.emplace(std::pair{r.epoch, r.number}, r.digest);
    if (is_new || first->second == r.digest) return std::nullopt;
    return fmt::format("rank {} has another plan than others in epoch {}", r.rank.value(),
                       r.epoch.value());
  }

 private:
  std::map<std::pair<Epoch, std::uint64_t>, std::uint64_t> plans_;
};

}  // namespace

std::vector<std::unique_ptr<Checker>> make_outcome_checkers(const Swarm& swarm) {
  std::vector<std::unique_ptr<Checker>> all;
  all.push_back(std::make_unique<VirtualSynchrony>(swarm));
  all.push_back(std::make_unique<AgreedOutcome>());
  all.push_back(std::make_unique<UniformCommit>());
  // Purity and at-most-once before S6: they name the cause where it names what follows.
  all.push_back(std::make_unique<EpochPurity>());
  all.push_back(std::make_unique<AtMostOnce>());
  all.push_back(std::make_unique<ExactReduction>());
  all.push_back(std::make_unique<SameBits>());
  all.push_back(std::make_unique<InputIntact>());
  all.push_back(std::make_unique<SamePlan>());
  return all;
}

}  // namespace regroup::sim
