/// S1, S2, S3, S11, S13, S14, S16, S18: views, fencing, state, authority, blame.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "membership/failure_detector.hpp"
#include "membership/policy.hpp"
#include "tests/sim/checkers.hpp"

namespace regroup::sim {
namespace {

using Wrong = std::optional<std::string>;

/// A durable view counts, also when its coordinator died before it told anybody of it.
bool is_chosen(const Record& r) { return r.what == What::Choose || r.what == What::Persist; }
bool shows_view(const Record& r) { return is_chosen(r) || r.what == What::MakeView; }

/// S1: no view has an incarnation twice; none that was removed ever comes back; the lives of a seat
/// grow.
class OneIncarnation final : public Checker {
 public:
  [[nodiscard]] const char* property() const override { return "S1 one incarnation"; }
  Wrong on(const Record& r) override {
    if (!shows_view(r) || r.epoch <= newest_) return std::nullopt;
    newest_ = r.epoch;
    std::map<Incarnation, std::size_t> now;
    for (std::size_t seat = 0; seat < r.view->seats.size(); ++seat) {
      const Incarnation who = r.view->seats[seat];
      if (who.value() == 0) continue;
      if (!now.emplace(who, seat).second) {
        return fmt::format("epoch {} has incarnation {} in two seats", r.epoch.value(),
                           who.value());
      }
      if (gone_.count(who) != 0) {
        return fmt::format("epoch {} readmits removed incarnation {}", r.epoch.value(),
                           who.value());
      }
      if (const auto before = members_.find(who);
          before != members_.end() && before->second != seat) {
        return fmt::format("incarnation {} moved from seat {} to {}", who.value(), before->second,
                           seat);
      }
    }
    for (const auto& [who, seat] : members_) {
      if (now.count(who) == 0) gone_.insert(who);
    }
    members_ = std::move(now);
    return std::nullopt;
  }

 private:
  Epoch newest_;
  std::map<Incarnation, std::size_t> members_;
  std::set<Incarnation> gone_;
};

/// S2: one digest per epoch everywhere; each view names its parent; nobody goes back.
class OneHistory final : public Checker {
 public:
  [[nodiscard]] const char* property() const override { return "S2 one history"; }
  Wrong on(const Record& r) override {
    if (r.what == What::Enter) {
      Epoch& last = entered_[r.incarnation];
      if (r.epoch <= last) {
        return fmt::format("incarnation {} enters epoch {} after {}", r.incarnation.value(),
                           r.epoch.value(), last.value());
      }
      last = r.epoch;
    }
    if (r.what == What::MakeView) {
      Epoch& last = made_[r.host];
      if (r.epoch <= last) {
        return fmt::format("agent {} makes epoch {} after {}", r.host - 1, r.epoch.value(),
                           last.value());
      }
      last = r.epoch;
    }
    if (!r.view || r.epoch.value() == 0) return std::nullopt;
    const auto [known, is_new] = digests_.emplace(r.epoch, digest(*r.view));
    if (!is_new) {
      if (known->second == digest(*r.view)) return std::nullopt;
      return fmt::format("epoch {} has two histories", r.epoch.value());
    }
    const auto parent = digests_.find(Epoch{r.epoch.value() - 1});
    if (parent != digests_.end() && parent->second != r.view->parent) {
      return fmt::format("epoch {} does not descend from epoch {}", r.epoch.value(),
                         r.epoch.value() - 1);
    }
    return std::nullopt;
  }

 private:
  std::map<Epoch, std::uint64_t> digests_;
  std::map<Incarnation, Epoch> entered_;
  std::map<std::uint32_t, Epoch> made_;
};

/// S3: a next view needs half of the members that are not really dead; only members complete
/// anything.
class NoSplitBrain final : public Checker {
 public:
  [[nodiscard]] const char* property() const override { return "S3 no split brain"; }
  Wrong on(const Record& r) override {
    if (r.what == What::Released) released_.insert(r.incarnation);
    if (r.what == What::Crash || r.what == What::Finish || r.what == What::Kill) {
      dead_.insert(
          r.incarnation);  // a kill under way counts: whoever ordered it waits for nothing more
    }
    if (!is_chosen(r) || r.epoch <= newest_) return std::nullopt;
    newest_ = r.epoch;
    std::size_t not_dead = 0;
    std::size_t kept = 0;
    std::set<Incarnation> now;
    for (const Incarnation who : r.view->seats) {
      if (who.value() != 0) now.insert(who);
      if (released_.count(who) != 0) {
        return fmt::format("epoch {} has incarnation {}, which has left its seat", r.epoch.value(),
                           who.value());
      }
    }
    for (const Incarnation who : members_) {
      // Who goes on counts even if it died a moment ago: that is the next round's business.
      // Whoever leaves as planned was counted in the quorum, and its host stored the decision: only
      // then is a member released. It cannot go on elsewhere, since no later view takes it.
      if (now.count(who) != 0 || released_.count(who) != 0)
        ++kept;
      else if (dead_.count(who) != 0)
        continue;
      ++not_dead;
    }
    members_ = std::move(now);
    if (kept * 2 >= not_dead) return std::nullopt;
    return fmt::format("epoch {} keeps {} of {} members that are not dead", r.epoch.value(), kept,
                       not_dead);
  }

 private:
  Epoch newest_;
  std::set<Incarnation> members_;
  std::set<Incarnation> dead_;
  std::set<Incarnation> released_;
};

/// S11: whoever is not in an epoch's view neither writes, completes nor commits anything in it.
class Fencing final : public Checker {
 public:
  [[nodiscard]] const char* property() const override { return "S11 fencing"; }
  Wrong on(const Record& r) override {
    if (r.view) views_.emplace(r.epoch, r.view->seats);
    if (!acts(r.what)) return std::nullopt;
    const auto view = views_.find(r.epoch);
    const auto seat = static_cast<std::size_t>(r.rank.value());
    if (view != views_.end() && seat < view->second.size() && view->second[seat] == r.incarnation) {
      return std::nullopt;
    }
    return fmt::format("rank {} incarnation {}: {} in epoch {}, where it is no member",
                       r.rank.value(), r.incarnation.value(), name(r.what), r.epoch.value());
  }

 private:
  static bool acts(What what) {
    return what == What::Publish || what == What::HandedOver || what == What::Done ||
           what == What::Prepare || what == What::Committed || what == What::Enter;
  }
  std::map<Epoch, std::vector<Incarnation>> views_;
};

/// S13: a newcomer's state is what was committed; it contributes nothing before it holds it. Once
/// the coordinator has heard of a state, no view leaves out all who hold it: a job never begins
/// again in silence.
class StateTransfer final : public Checker {
 public:
  [[nodiscard]] const char* property() const override { return "S13 state transfer"; }
  Wrong on(const Record& r) override {
    if (r.what == What::Committed) committed_.emplace(r.number, r.digest);
    if (r.what == What::Enter && r.other != 0) holders_.insert(r.incarnation);
    if (r.what == What::HealedHeard) state_exists_ = true;
    if (is_chosen(r) && r.epoch > newest_) {
      newest_ = r.epoch;
      if (auto wrong = chosen(r)) return wrong;
    }
    if (r.what == What::HealBegin && r.other == 0 && r.number != 1) {
      return fmt::format("step {} begins in epoch {} and nobody holds the state", r.number,
                         r.epoch.value());
    }
    if (r.what == What::HealEnd || r.what == What::HealChunk) {
      const auto right = committed_.find(r.number);
      const std::uint64_t expected = right == committed_.end() ? 0 : right->second;
      if (r.digest != expected) {
        return fmt::format("incarnation {} got a state after step {} that nobody committed",
                           r.incarnation.value(), r.number);
      }
      if (r.what == What::HealEnd) holders_.insert(r.incarnation);
    }
    if (r.what == What::Publish && holders_.count(r.incarnation) == 0) {
      return fmt::format("incarnation {} contributes before it holds the state",
                         r.incarnation.value());
    }
    return std::nullopt;
  }

 private:
  Wrong chosen(const Record& r) {
    const auto& seats = r.view->seats;
    // The first members start from the program's own beginning.
    if (r.epoch == Epoch{1}) holders_.insert(seats.begin(), seats.end());
    holders_.erase(Incarnation{});
    const bool anybody = std::any_of(seats.begin(), seats.end(),
                                     [this](Incarnation who) { return holders_.count(who) != 0; });
    if (anybody || !state_exists_) return std::nullopt;
    return fmt::format("epoch {} begins again: none of its members holds the state",
                       r.epoch.value());
  }

  Epoch newest_;
  bool state_exists_ = false;
  std::map<std::uint64_t, std::uint64_t> committed_;
  std::set<Incarnation> holders_;
};

/// S14: all members of a view go on at the same step, right after what they applied.
class SameRestart final : public Checker {
 public:
  [[nodiscard]] const char* property() const override { return "S14 same restart point"; }
  Wrong on(const Record& r) override {
    if (r.what != What::Enter) return std::nullopt;
    if (r.number != r.view->resume_step)
      return "a member enters at another step than the view says";
    if (r.other == 0 || r.other == r.number) return std::nullopt;
    return fmt::format("rank {} has applied step {}, epoch {} resumes at step {}", r.rank.value(),
                       r.other - 1, r.epoch.value(), r.number);
  }
};

/// S16: no incarnation is issued twice and no epoch chosen twice, whatever happens to the
/// coordinator.
class AuthorityRestart final : public Checker {
 public:
  [[nodiscard]] const char* property() const override { return "S16 authority restart"; }
  Wrong on(const Record& r) override {
    if (r.what == What::Spawn && !spawned_.insert(r.incarnation).second) {
      return fmt::format("incarnation {} is started twice", r.incarnation.value());
    }
    if (r.what == What::Order) {
      const std::uint64_t where = combine(r.host, static_cast<std::uint64_t>(r.rank.value()) + 1);
      const auto [known, is_new] = ordered_.emplace(r.incarnation, where);
      if (!is_new && known->second != where) {
        return fmt::format("incarnation {} is issued for two processes", r.incarnation.value());
      }
    }
    if (r.what == What::Choose) {
      const auto [known, is_new] = chosen_.emplace(r.epoch, digest(*r.view));
      if (!is_new && known->second != digest(*r.view)) {
        return fmt::format("epoch {} is chosen twice", r.epoch.value());
      }
    }
    return std::nullopt;
  }

 private:
  std::set<Incarnation> spawned_;
  std::map<Incarnation, std::uint64_t> ordered_;
  std::map<Epoch, std::uint64_t> chosen_;
};

/// S16 too: a job ends once, in one way, whatever happens to the coordinator. What was told of the
/// end to one host holds on all.
class OneEnd final : public Checker {
 public:
  [[nodiscard]] const char* property() const override { return "S16 authority restart (one end)"; }
  Wrong on(const Record& r) override {
    if (r.what == What::Choose && end_ && r.epoch > newest_) {
      return fmt::format("epoch {} is made after a host was told that the job ends",
                         r.epoch.value());
    }
    if (r.what == What::Choose) newest_ = std::max(newest_, r.epoch);
    if (r.what != What::EndJob) return std::nullopt;
    if (!end_) end_ = r.digest;
    if (*end_ == r.digest) return std::nullopt;
    return fmt::format("agent {} is told another end of the job than an agent before it",
                       r.host - 1);
  }

 private:
  Epoch newest_;
  std::optional<std::uint64_t> end_;
};

/// L9: who asks a job to end is heard as soon as the way from there to the coordinator is open.
class StopHeard final : public Checker {
 public:
  [[nodiscard]] const char* property() const override { return "L9 clean end (stop)"; }
  Wrong on(const Record& r) override {
    if (r.what == What::StopAsked) asked_.try_emplace(r.host, r.at);
    if (r.what == What::ChannelUp) open_.insert_or_assign(r.host, r.at);
    if (r.what == What::ChannelDown || r.what == What::HostLost) open_.erase(r.host);
    if (r.what == What::CoordinatorCrash) open_.clear();
    // Once the end is durable it is told as soon as all hosts are here or given up.
    if (r.what == What::EndJob || (r.what == What::Persist && r.other != 0)) heard_ = true;
    if (heard_) return std::nullopt;
    for (const auto& [host, asked] : asked_) {
      const auto open = open_.find(host);
      if (open == open_.end() || r.at - std::max(open->second, asked) < kHeardWithin) continue;
      return fmt::format("the wish of agent {} that the job ends was not heard", host - 1);
    }
    return std::nullopt;
  }

 private:
  static constexpr Nanos kHeardWithin = 500 * kMillisecond;  // a message takes 32 ms at most
  bool heard_ = false;
  std::map<std::uint32_t, Nanos> asked_;
  std::map<std::uint32_t, Nanos> open_;
};

/// S18 and L3: whoever is removed had died, was silent longer than is tolerated, lost its host, or
/// was asked to go.
class TruthfulBlame final : public Checker {
 public:
  [[nodiscard]] const char* property() const override { return "S18 truthful blame (L3 accuracy)"; }
  Wrong on(const Record& r) override {
    if (r.what == What::Evidence) return evidence(r);
    if (r.what == What::Removed) return removed(r);
    if (r.what == What::Crash || r.what == What::Deaf || r.what == What::Kill) {
      gave_cause_.insert(r.incarnation);
    }
    if (r.what == What::Finish) finished_.insert(r.incarnation);
    if (r.what == What::Crash || r.what == What::Deaf || r.what == What::Finish ||
        r.what == What::EvictAsked) {
      guilty_.insert(r.incarnation);
    }
    if (r.what == What::Pause) {
      // Shorter than tolerated, with a margin for pauses that come close after each other.
      silent_[r.incarnation] += static_cast<Nanos>(r.other);
      if (silent_[r.incarnation] > membership::kPauseTolerated.count())
        guilty_.insert(r.incarnation);
    }
    if (r.what == What::Spawn) host_of_[r.incarnation] = r.host;
    if (r.what == What::ChannelDown || r.what == What::HostLost) cut_off_.insert(r.host);
    if (r.what == What::Choose) members_.insert(r.view->seats.begin(), r.view->seats.end());
    return std::nullopt;
  }

 private:
  [[nodiscard]] Wrong evidence(const Record& r) const {
    const bool reaped = r.other == static_cast<std::uint64_t>(membership::EvidenceKind::Reaped);
    if (gave_cause_.count(r.incarnation) != 0) return std::nullopt;
    if (reaped && finished_.count(r.incarnation) != 0) return std::nullopt;
    return fmt::format("agent {} calls incarnation {} lost, and it neither died nor fell mute",
                       r.host - 1, r.incarnation.value());
  }
  [[nodiscard]] Wrong removed(const Record& r) const {
    // Who never was a member may be superseded by a spare that was faster: that is no blame.
    if (members_.count(r.incarnation) == 0 || guilty_.count(r.incarnation) != 0)
      return std::nullopt;
    const auto host = host_of_.find(r.incarnation);
    if (host != host_of_.end() && cut_off_.count(host->second) != 0) return std::nullopt;
    return fmt::format("rank {} incarnation {} is removed and did nothing", r.rank.value(),
                       r.incarnation.value());
  }

  std::set<Incarnation> members_;
  std::set<Incarnation> guilty_;
  std::set<Incarnation> finished_;
  std::set<Incarnation> gave_cause_;  ///< for its supervisor to call it lost
  std::map<Incarnation, Nanos> silent_;
  std::map<Incarnation, std::uint32_t> host_of_;
  std::set<std::uint32_t> cut_off_;
};

/// A seat that is lost again and again in one step is not filled for ever, whatever happens to the
/// coordinator. Of several hosts one may be given up with all its processes, which is no seat's
/// fault, so this looks at jobs of one host.
class Poisoned final : public Checker {
 public:
  explicit Poisoned(const Swarm& swarm)
      : applies_(swarm.hosts == 1), lives_max_(swarm.job.replacements_max + 1) {
    // Requests are no steps: under `replace` the allowance alone is the bound.
    if (swarm.job.on_loss == OnLoss::Replace) return;
    lives_max_ = std::min<std::size_t>(lives_max_, membership::kPoisonedAt);
  }
  [[nodiscard]] const char* property() const override { return "L5 no livelock (poisoned step)"; }
  Wrong on(const Record& r) override {
    if (!applies_) return std::nullopt;
    if (r.what == What::Released) {
      for (auto& [seat, lives] : lives_) lives.erase(r.incarnation);  // no loss
    }
    if (r.what == What::ChangeAsked) wished_ = true;
    if (r.what != What::Choose) return std::nullopt;
    if (r.number != step_) lives_.clear();
    step_ = r.number;
    for (std::size_t seat = 0; seat < r.view->seats.size(); ++seat) {
      auto& lives = lives_[seat];
      const bool was_vacant = vacant_.count(seat) != 0;
      if (r.view->seats[seat].value() == 0) {
        vacant_.insert(seat);
        continue;
      }
      vacant_.erase(seat);
      // Lost too often, it stays vacant; who fills it then is a person who scales up.
      if (was_vacant && wished_) lives.clear();
      lives.insert(r.view->seats[seat]);
      if (lives.size() <= lives_max_) continue;
      return fmt::format("rank {} is in its {}. life in step {}, {} are allowed", seat,
                         lives.size(), step_, lives_max_);
    }
    return std::nullopt;
  }

 private:
  bool applies_;
  bool wished_ = false;
  std::size_t lives_max_;
  std::uint64_t step_ = 0;
  std::map<std::size_t, std::set<Incarnation>> lives_;
  std::set<std::size_t> vacant_;
};

/// A planned end: all members stop at the end of the same step, so nothing is begun twice; and as
/// long as nothing else happens to a job, no operation is lost.
class PlannedEnd final : public Checker {
 public:
  explicit PlannedEnd(const Swarm& swarm) : without_steps_(swarm.job.on_loss == OnLoss::Replace) {}
  [[nodiscard]] const char* property() const override { return "S23 planned end"; }
  Wrong on(const Record& r) override {
    if (excuses(r)) excused_ = true;
    if (r.what == What::Park) {
      const auto [known, is_new] = last_.emplace(r.epoch, r.number);
      if (!is_new && known->second != r.number) {
        return fmt::format("rank {} stops after step {} of epoch {}, another one after step {}",
                           r.rank.value(), r.number, r.epoch.value(), known->second);
      }
      if (begun_[r.epoch] > r.number) {
        return fmt::format("rank {} stops after step {} of epoch {}, another one has begun step {}",
                           r.rank.value(), r.number, r.epoch.value(), begun_[r.epoch]);
      }
    }
    if (r.what == What::Publish || r.what == What::HandedOver) return begins(r, r.other);
    if (r.what == What::Prepare) return begins(r, r.number);
    if (r.what == What::Lost && !excused_) {
      return fmt::format("rank {} loses operation {} of epoch {}, and nothing happened to the job",
                         r.rank.value(), r.number, r.epoch.value());
    }
    return std::nullopt;
  }

 private:
  Wrong begins(const Record& r, std::uint64_t step) {
    std::uint64_t& highest = begun_[r.epoch];
    highest = std::max(highest, step);
    const auto last = last_.find(r.epoch);
    if (last == last_.end() || step <= last->second) return std::nullopt;
    return fmt::format("rank {} begins step {} of epoch {}, whose members stop after step {}",
                       r.rank.value(), step, r.epoch.value(), last->second);
  }
  bool excuses(const Record& r) {
    switch (r.what) {
      case What::Crash:
      case What::Deaf:
      case What::HostLost:
      case What::ChannelDown:
      case What::EvictAsked:
      case What::SelfWedge:
      case What::Kill:
      case What::Removed:
      case What::EndJob: return true;
      case What::ChangeAsked: return r.other != 0 || without_steps_;
      case What::Pause:
        silent_[r.incarnation] += static_cast<Nanos>(r.other);
        return silent_[r.incarnation] > membership::kPauseTolerated.count();
      default: return false;
    }
  }

  bool without_steps_;
  bool excused_ = false;
  std::map<Epoch, std::uint64_t> last_;
  std::map<Epoch, std::uint64_t> begun_;
  std::map<Incarnation, Nanos> silent_;
};

}  // namespace

std::vector<std::unique_ptr<Checker>> make_safety_checkers(const Swarm& swarm) {
  std::vector<std::unique_ptr<Checker>> all;
  all.push_back(std::make_unique<OneIncarnation>());
  all.push_back(std::make_unique<OneHistory>());
  all.push_back(std::make_unique<NoSplitBrain>());
  all.push_back(std::make_unique<Fencing>());
  all.push_back(std::make_unique<StateTransfer>());
  all.push_back(std::make_unique<SameRestart>());
  all.push_back(std::make_unique<AuthorityRestart>());
  all.push_back(std::make_unique<OneEnd>());
  all.push_back(std::make_unique<StopHeard>());
  all.push_back(std::make_unique<TruthfulBlame>());
  all.push_back(std::make_unique<Poisoned>(swarm));
  all.push_back(std::make_unique<PlannedEnd>(swarm));
  return all;
}

}  // namespace regroup::sim
