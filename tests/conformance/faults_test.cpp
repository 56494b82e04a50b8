// Ranks that die in any phase of any operation: the survivors report the same outcomes, with right
// values and intact inputs.
#include <gtest/gtest.h>

#include <atomic>
#include <optional>

#include "tests/conformance/message_worlds.hpp"

namespace regroup::conformance {
namespace {

/// Thrown by the fault hook: the rank's thread ends there, as a killed process does.
struct Killed {};

/// Where a rank dies: the nth phase that it passes.
struct Death {
  World* world = nullptr;
  int rank = 0;
  int phases_left = -1;
  static void on_phase(void* context, collective::Instant /*instant*/, std::uint64_t /*number*/,
                       std::int64_t /*chunk*/) {
    auto& self = *static_cast<Death*>(context);
    if (self.phases_left-- != 0) return;
    self.world->die(self.rank);
    throw Killed{};
  }
};

/// What one rank was told, operation by operation; index 0 is operation 1.
struct Told {
  std::vector<OutcomeKind> outcomes;
  std::vector<std::uint64_t> committed;
  std::optional<OutcomeKind> last_commit;
  bool dead = false;
};

struct Scenario {
  int members = 3;
  std::vector<Case> cases;
  int step_every = 4;  ///< a commit after so many operations
  std::optional<Algorithm> algorithm;
  std::vector<int> dies_after;  ///< per rank: phases until it dies, -1 never
};

Scenario make_scenario(std::uint64_t seed) {
  std::mt19937_64 random(seed);
  Scenario s;
  s.members = 2 + static_cast<int>(random() % 4);
  const auto p = static_cast<std::uint64_t>(s.members);
  const bool one_kind = random() % 3 == 0;
  constexpr std::uint64_t kKinds = spi::kSingleKindCount;
  const auto the_kind = static_cast<OpKind>(random() % kKinds);
  for (std::uint64_t i = 0; i < 24; ++i) {
    if (random() % 8 == 0) {
      s.cases.push_back(coalesced_case(s.members, seed * 100 + i));
      continue;
    }
    const std::size_t sizes[] = {1, 12, 40, 1000, 3000, 5000};
    s.cases.push_back({{.kind = one_kind ? the_kind : static_cast<OpKind>(random() % kKinds),
                        .dtype = random() % 2 == 0 ? DType::F32 : DType::I64,
                        .op = ReduceOp::Sum,
                        .root = static_cast<int>(random() % p),
                        .count = sizes[random() % std::size(sizes)]},
                       s.members,
                       seed * 100 + i});
  }
  // In a third of all the choice; else one of them wherever it can carry the operation.
  if (seed % 3 != 0)
    s.algorithm = static_cast<Algorithm>(seed / 3 % std::uint64_t{collective::kAlgorithmCount});
  s.dies_after.assign(p, -1);
  const int deaths = 1 + static_cast<int>(random() % 2);
  for (int i = 0; i < deaths && i + 1 < s.members; ++i) {
    s.dies_after[random() % p] = static_cast<int>(random() % 150);
  }
  return s;
}

/// Waits for the first death, then does what agents do. `all_ended`: nobody died, nothing to
/// do.
class Agents {
 public:
  Agents(World& world, bool lose_host) : world_(world), lose_host_(lose_host) {}
  void report(int rank, bool died) {
    const std::lock_guard lock(mutex_);
    if (died && !first_) first_ = rank;
    if (died) dead_.push_back(rank);
    ++ended_;
    changed_.notify_all();
  }
  void run(int members) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return first_ || ended_ == members; });
    if (!first_) return;
    lock.unlock();
    world_.tell_lost(*first_);
    end_epoch(world_, first_, lose_host_);
    // Whoever else dies, be it while the others finish.
    lock.lock();
    std::size_t told = 0;
    for (;;) {
      changed_.wait(lock, [&] { return told < dead_.size() || ended_ == members; });
      if (told == dead_.size()) return;
      const int rank = dead_[told++];
      lock.unlock();
      world_.tell_lost(rank);
      lock.lock();
    }
  }

 private:
  World& world_;
  bool lose_host_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<int> first_;
  std::vector<int> dead_;
  int ended_ = 0;
};

void run_operation(GroupRunner& runner, const Case& c, int rank, Told& told) {
  const PlacedCall call(c, rank);
  const Outcome outcome = runner.run(call.spec(), kNoDeadline);
  told.outcomes.push_back(outcome.kind);
  if (outcome.kind == OutcomeKind::Done) {
    EXPECT_TRUE(call.result_is_right(c, rank))
        << "wrong values of " << c.describe() << " on rank " << rank;
  } else if (outcome.kind == OutcomeKind::Lost) {
    EXPECT_TRUE(call.input_intact())
        << "input of " << c.describe() << " on rank " << rank << ", salt " << c.salt;
  } else {
    EXPECT_EQ(outcome.kind, OutcomeKind::HandedOver) << outcome.text;
  }
}

void run_program(GroupRunner& runner, const Scenario& s, int rank, Told& told) {
  std::uint64_t step = 0;
  for (std::size_t i = 0; i < s.cases.size(); ++i) {
    run_operation(runner, s.cases[i], rank, told);
    if (told.outcomes.back() == OutcomeKind::Lost) return;
    if ((i + 1) % static_cast<std::size_t>(s.step_every) != 0) continue;
    const Outcome commit = runner.commit(++step, kNoDeadline);
    told.last_commit = commit.kind;
    if (commit.kind != OutcomeKind::Done) return;
    told.committed.push_back(step);
  }
}

/// Every operation: done for some receiver, then lost for none; the same for steps.
void check_uniform(const Scenario& s, const std::vector<Told>& told) {
  for (std::size_t i = 0; i < s.cases.size(); ++i) {
    std::optional<int> done;
    std::optional<int> lost;
    for (int rank = 0; rank < s.members; ++rank) {
      const Told& t = told[static_cast<std::size_t>(rank)];
      if (i >= t.outcomes.size()) continue;
      const OpSpec& spec = s.cases[i].spec;
      if (!spi::receives(spec.kind, spec.root, rank)) continue;
      if (t.outcomes[i] == OutcomeKind::Done) done = rank;
      if (t.outcomes[i] == OutcomeKind::Lost) lost = rank;
    }
    EXPECT_FALSE(done && lost) << "operation " << i + 1 << " is done on rank " << *done
                               << " and lost on rank " << *lost;
  }
  std::size_t committed_max = 0;
  for (const Told& t : told) committed_max = std::max(committed_max, t.committed.size());
  for (int rank = 0; rank < s.members; ++rank) {
    const Told& t = told[static_cast<std::size_t>(rank)];
    if (t.dead || t.last_commit == OutcomeKind::Done || !t.last_commit) continue;
    EXPECT_EQ(t.committed.size(), committed_max)
        << "step committed elsewhere, not on rank " << rank;
  }
}

void run_scenario(const Transport& transport, std::uint64_t seed) {
  const Scenario s = make_scenario(seed);
  const auto world = transport.make(static_cast<std::uint32_t>(s.members), {.slot_bytes = 4096});
  std::vector<Told> told(static_cast<std::size_t>(s.members));
  std::vector<Death> deaths(static_cast<std::size_t>(s.members));
  const bool lose_host = seed % 3 == 0 && world->hosts().size() > 1;
  Agents agents(*world, lose_host);
  std::thread agent_thread([&] { agents.run(s.members); });
  on_all_ranks(s.members, [&](int rank) {
    const auto r = static_cast<std::size_t>(rank);
    deaths[r] = {world.get(), rank, s.dies_after[r]};
    const auto runner = world->runner(
        rank,
        {.cores = cores(), .fault = {&Death::on_phase, &deaths[r]}, .algorithm = s.algorithm});
    try {
      run_program(*runner, s, rank, told[r]);
    } catch (const Killed&) {
      told[r].dead = true;
    }
    agents.report(rank, told[r].dead);
  });
  agent_thread.join();
  if (lose_host) {
    // What only the lost host's words said is lost with them.
    for (Told& t : told) {
      if (t.dead) t = {.dead = true};
    }
  }
  check_uniform(s, told);
}

class Faults : public testing::TestWithParam<Transport> {};
class SharedFaults : public testing::TestWithParam<Transport> {};

TEST_P(Faults, OutcomesAreUniformWhereverRanksDie) {
  const Watchdog watchdog(std::chrono::seconds(100));
  for (std::uint64_t seed = 1; seed <= 400; seed += GetParam().stride()) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    run_scenario(GetParam(), seed);
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
}

// No rank dies: an agent on a wrong suspicion wedges at any moment and decides.
TEST_P(Faults, OutcomesAreUniformWheneverTheAgentWedges) {
  const Watchdog watchdog(std::chrono::seconds(100));
  for (std::uint64_t seed = 1; seed <= 200; seed += GetParam().stride()) {
    Scenario s = make_scenario(seed);
    const auto world = GetParam().make(static_cast<std::uint32_t>(s.members), {.slot_bytes = 4096});
    std::vector<Told> told(static_cast<std::size_t>(s.members));
    std::mt19937_64 random(seed);
    const std::uint64_t when = random() % s.cases.size();
    const int watched = static_cast<int>(random() % static_cast<std::uint64_t>(s.members));
    std::atomic<int> ended{0};
    std::thread agent([&] {
      const spi::SharedSlots& slots = world->slots(watched);
      while (spi::read(slots.group_word(watched)).number < when && ended == 0)
        std::this_thread::yield();
      end_epoch(*world, std::nullopt);
    });
    on_all_ranks(s.members, [&](int rank) {
      const auto runner = world->runner(rank, {.cores = cores(), .algorithm = s.algorithm});
      run_program(*runner, s, rank, told[static_cast<std::size_t>(rank)]);
      ++ended;
    });
    agent.join();
    check_uniform(s, told);
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
}

// Over messages nothing is retained: the cut holds only what every receiver holds.
TEST_P(SharedFaults, ACallInAnEpochLeftBehindIsAnsweredByItsWord) {
  const Watchdog watchdog;
  const auto world = GetParam().make(2, {});
  std::vector<float> a(4, 1.0F);
  std::vector<float> b(4, 2.0F);
  const OpSpec spec{.kind = OpKind::Broadcast, .dtype = DType::F32, .root = 0, .count = 4};
  SlotRunner root(world->slots(0), 0, {});
  SlotRunner leaf(world->slots(1), 1, {});
  OpSpec from = spec;
  from.in = a.data();
  EXPECT_EQ(root.run(from, kNoDeadline).kind, OutcomeKind::HandedOver);
  spi::wedge_all(world->slots(0));
  // A third rank that is gone completed it, say: the cut is 1.
  const int survivors[] = {0, 1};
  spi::decide_all(world->slots(0), survivors, 1, 0);
  OpSpec to = spec;
  to.out = b.data();
  EXPECT_EQ(leaf.run(to, kNoDeadline).kind, OutcomeKind::Done);
  EXPECT_EQ(b, a);
  EXPECT_EQ(leaf.run(to, kNoDeadline).kind, OutcomeKind::Lost);
  EXPECT_EQ(root.run(from, kNoDeadline).kind, OutcomeKind::Lost);
}

TEST_P(Faults, ADeadlineEndsTheCallAndSettleGivesTheOutcome) {
  const Watchdog watchdog;
  const auto world = GetParam().make(2, {});
  std::vector<float> data{1.0F, 2.0F};
  const auto runner = world->runner(0, {});
  OpSpec spec{.kind = OpKind::AllReduce, .dtype = DType::F32, .count = 2};
  spec.in = spec.out = data.data();
  const Outcome expired = runner->run(spec, Clock::now() + std::chrono::milliseconds(20));
  EXPECT_EQ(expired.kind, OutcomeKind::Expired);
  EXPECT_NE(expired.text.find("all_reduce of 2 f32, sum"), std::string::npos) << expired.text;
  EXPECT_TRUE(spi::read(world->slots(0).group_word(0)).wedged) << "nothing may complete later";
  EXPECT_EQ(runner->settle(Clock::now() + std::chrono::milliseconds(20)).kind,
            OutcomeKind::Expired);
  spi::wedge_all(world->slots(0));
  const int survivors[] = {0, 1};
  spi::decide_all(world->slots(0), survivors, 0, 0);
  EXPECT_EQ(runner->settle(kNoDeadline).kind, OutcomeKind::Lost);
  EXPECT_EQ(data, (std::vector<float>{1.0F, 2.0F}));
}

TEST_P(Faults, ACommitThatExpiredAsksForTheVerdict) {
  const Watchdog watchdog;
  const auto world = GetParam().make(2, {});
  const auto runner = world->runner(0, {});
  EXPECT_EQ(runner->commit(1, Clock::now() + std::chrono::milliseconds(10)).kind,
            OutcomeKind::Expired);
  EXPECT_EQ(spi::read_report(world->slots(1)).prepared, 0U);
  const int survivor[] = {0};
  spi::wedge_all(world->slots(0));
  EXPECT_EQ(spi::read_report(world->slots(0), survivor).prepared, 1U);
  spi::decide_all(world->slots(0), survivor, 0, 1);
  EXPECT_EQ(runner->commit(1, kNoDeadline).kind, OutcomeKind::Done);
  EXPECT_EQ(runner->commit(2, kNoDeadline).kind, OutcomeKind::Lost);
}

INSTANTIATE_TEST_SUITE_P(All, Faults, testing::ValuesIn(kAllTransports), transport_name);
INSTANTIATE_TEST_SUITE_P(All, SharedFaults, testing::ValuesIn(kTransports), transport_name);

}  // namespace
}  // namespace regroup::conformance
