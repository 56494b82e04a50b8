// Ranks that call different things, and members that write where they must not.
#include <gtest/gtest.h>

#include <atomic>

#include "tests/conformance/message_worlds.hpp"

namespace regroup::conformance {
namespace {

class Misuse : public testing::TestWithParam<Transport> {};
/// Members that write where they must not.
class SharedMisuse : public testing::TestWithParam<Transport> {};

constexpr std::size_t kShares[8] = {3, 0, 5, 1, 3, 0, 5, 1};

/// A spec with buffers large enough for anything these tests call, and counts where there are none.
struct Call {
  OpSpec spec;
  std::vector<float> in = std::vector<float>(4096, 1.0F);
  std::vector<float> out = std::vector<float>(4096);
  Call(OpSpec s, int ranks) : spec(s) {
    spec.dtype = DType::F32;
    spec.in = in.data();
    spec.out = out.data();
    if (spi::has_counts(spec.kind) && spec.counts.shares == nullptr)
      spec.counts = {kShares, kShares, ranks};
  }
};

/// Each rank calls its own spec; returns the outcomes.
using Runners = std::vector<std::unique_ptr<GroupRunner>>;
std::vector<Outcome> call_all(Runners& runners, const std::vector<OpSpec>& specs) {
  std::vector<Outcome> outcomes(runners.size());
  on_all_ranks(static_cast<int>(runners.size()), [&](int rank) {
    const auto r = static_cast<std::size_t>(rank);
    Call call(specs[r], static_cast<int>(runners.size()));
    outcomes[r] = runners[r]->run(call.spec, Clock::now() + std::chrono::seconds(20));
  });
  return outcomes;
}

/// The same for specs whose parts have no buffers yet.
std::vector<Outcome> call_parts(Runners& runners, const std::vector<OpSpec>& specs) {
  std::vector<Outcome> outcomes(runners.size());
  on_all_ranks(static_cast<int>(runners.size()), [&](int rank) {
    const auto r = static_cast<std::size_t>(rank);
    Call call(specs[r], static_cast<int>(runners.size()));
    std::vector<OpSpec> parts(specs[r].parts,
                              specs[r].parts + (specs[r].parts == nullptr ? 0 : specs[r].count));
    for (OpSpec& part : parts) {
      part.in = call.in.data();
      part.out = call.out.data();
    }
    if (!parts.empty()) call.spec.parts = parts.data();
    outcomes[r] = runners[r]->run(call.spec, Clock::now() + std::chrono::seconds(20));
  });
  return outcomes;
}

Runners make_runners(World& world, int members) {
  Runners runners;
  for (int rank = 0; rank < members; ++rank) {
    runners.push_back(world.runner(rank, {.cores = cores()}));
  }
  return runners;
}

void expect_mismatch(const std::vector<Outcome>& outcomes, const std::string& one,
                     const std::string& other) {
  for (const Outcome& outcome : outcomes) {
    EXPECT_EQ(outcome.kind, OutcomeKind::Mismatch) << name(outcome.kind) << " " << outcome.text;
    EXPECT_EQ(outcome.text, outcomes.front().text);
    EXPECT_NE(outcome.text.find(one), std::string::npos) << outcome.text;
    EXPECT_NE(outcome.text.find(other), std::string::npos) << outcome.text;
  }
}

TEST_P(Misuse, SymmetricOperationsThatDifferFailOnAllRanksAndTheGroupGoesOn) {
  const Watchdog watchdog;
  const auto world = GetParam().make(3, {.slot_bytes = 4096});
  auto runners = make_runners(*world, 3);
  const OpSpec good{.kind = OpKind::AllReduce, .count = 5};
  const OpSpec large{.kind = OpKind::AllReduce, .count = 4000};
  const OpSpec gather{.kind = OpKind::AllGather, .count = 5};
  const OpSpec max{.kind = OpKind::AllReduce, .op = ReduceOp::Max, .count = 5};
  const OpSpec half{
      .kind = OpKind::AllReduce, .op = ReduceOp::PremulSum, .factor = 0.5, .count = 5};
  OpSpec third = half;
  third.factor = 0.25;
  for (int round = 0; round < 20; ++round) {
    expect_mismatch(call_all(runners, {half, half, third}),
                    "rank 0 called all_reduce of 5 f32, premul_sum by 0.5",
                    "rank 2 called all_reduce of 5 f32, premul_sum by 0.25");
    expect_mismatch(call_all(runners, {good, large, good}),
                    "rank 0 called all_reduce of 5 f32, sum",
                    "rank 1 called all_reduce of 4000 f32, sum");
    expect_mismatch(call_all(runners, {good, good, gather}),
                    "rank 0 called all_reduce of 5 f32, sum", "rank 2 called all_gather of 5 f32");
    expect_mismatch(call_all(runners, {max, good, good}), "all_reduce of 5 f32, max",
                    "rank 1 called all_reduce of 5 f32, sum");
    for (const Outcome& outcome : call_all(runners, {large, large, large})) {
      EXPECT_EQ(outcome.kind, OutcomeKind::Done) << outcome.text;
    }
  }
}

TEST_P(Misuse, CountsThatDifferFailOnAllRanksAndTheGroupGoesOn) {
  const Watchdog watchdog;
  const auto world = GetParam().make(3, {.slot_bytes = 4096});
  auto runners = make_runners(*world, 3);
  const std::size_t counts[] = {4, 0, 9};
  const std::size_t others[] = {4, 1, 8};
  const OpSpec gather{.kind = OpKind::AllGatherV, .counts = {counts, nullptr, 3}};
  const OpSpec gather_other{.kind = OpKind::AllGatherV, .counts = {others, nullptr, 3}};
  const OpSpec scatter{.kind = OpKind::ReduceScatterV, .counts = {counts, nullptr, 3}};
  // Rank r sends 1 element to each and receives what `recv` says.
  const std::size_t one[] = {1, 1, 1};
  const std::size_t wrong[] = {1, 1, 2};
  const OpSpec exchange{.kind = OpKind::AllToAllV, .counts = {one, one, 3}};
  const OpSpec expects{.kind = OpKind::AllToAllV, .counts = {one, wrong, 3}};
  const OpSpec large{.kind = OpKind::AllToAll, .count = 900};
  for (int round = 0; round < 10; ++round) {
    expect_mismatch(call_all(runners, {gather, gather_other, gather}),
                    "rank 0 called all_gather_v of 13 f32, counts with hash",
                    "rank 1 called all_gather_v of 13 f32, counts with hash");
    expect_mismatch(call_all(runners, {scatter, scatter, exchange}),
                    "rank 0 called reduce_scatter_v of 13 f32, sum, counts with hash",
                    "rank 2 called all_to_all_v of f32");
    expect_mismatch(call_all(runners, {exchange, expects, exchange}),
                    "rank 2 sends 1 f32 to rank 1", "which receives 2 from it");
    for (const Outcome& outcome : call_all(runners, {large, large, large}))
      EXPECT_EQ(outcome.kind, OutcomeKind::Done) << outcome.text;
  }
}

TEST_P(Misuse, CoalescedOperationsThatDifferFailOnAllRanksAndTheGroupGoesOn) {
  const Watchdog watchdog;
  const auto world = GetParam().make(3, {.slot_bytes = 4096});
  auto runners = make_runners(*world, 3);
  // A root in front: nothing may be written before all are known to call the same.
  const OpSpec parts[] = {{.kind = OpKind::Broadcast, .dtype = DType::F32, .root = 1, .count = 7},
                          {.kind = OpKind::AllReduce, .dtype = DType::F32, .count = 7}};
  OpSpec others[] = {parts[0], parts[1]};
  others[1].op = ReduceOp::Max;
  const auto call = [&](const OpSpec* of, std::size_t count) {
    return OpSpec{.kind = OpKind::Coalesced, .count = count, .parts = of};
  };
  const OpSpec single{.kind = OpKind::AllReduce, .count = 7};
  for (int round = 0; round < 10; ++round) {
    expect_mismatch(call_parts(runners, {call(parts, 2), call(others, 2), call(parts, 2)}),
                    "rank 0 called 2 coalesced operations with hash",
                    "rank 1 called 2 coalesced operations with hash");
    expect_mismatch(call_parts(runners, {call(parts, 2), call(parts, 2), single}),
                    "rank 0 called 2 coalesced operations with hash",
                    "rank 2 called all_reduce of 7 f32, sum");
    for (const Outcome& outcome :
         call_parts(runners, {call(parts, 2), call(parts, 2), call(parts, 2)}))
      EXPECT_EQ(outcome.kind, OutcomeKind::Done) << outcome.text;
  }
}

void expect_poison(const Transport& transport, const std::vector<OpSpec>& specs,
                   const std::string& one, const std::string& other) {
  const auto members = static_cast<int>(specs.size());
  const auto world = transport.make(static_cast<std::uint32_t>(members), {.slot_bytes = 4096});
  auto runners = make_runners(*world, members);
  (void)call_all(runners, specs);
  // A rank that was done or handed over before the other side called is told by its next operation.
  const std::vector<OpSpec> next(specs.size(), OpSpec{.kind = OpKind::Barrier});
  expect_mismatch(call_all(runners, next), one, other);
  expect_mismatch(call_all(runners, next), one, other);
}

TEST_P(Misuse, AnyOtherDifferenceEndsTheGroupWithOneTextForAll) {
  const Watchdog watchdog;
  const OpSpec reduce{.kind = OpKind::AllReduce, .count = 5};
  const OpSpec from0{.kind = OpKind::Broadcast, .root = 0, .count = 5};
  const OpSpec from1{.kind = OpKind::Broadcast, .root = 1, .count = 5};
  const OpSpec from0_large{.kind = OpKind::Broadcast, .root = 0, .count = 4000};
  const OpSpec to0{.kind = OpKind::Reduce, .root = 0, .count = 5};
  const OpSpec to1{.kind = OpKind::Reduce, .root = 1, .count = 5};
  const OpSpec barrier{.kind = OpKind::Barrier};
  const Transport& t = GetParam();
  expect_poison(t, {reduce, from0}, "all_reduce of 5 f32, sum", "broadcast of 5 f32, root 0");
  expect_poison(t, {reduce, from1}, "all_reduce of 5 f32, sum", "broadcast of 5 f32, root 1");
  expect_poison(t, {from0, from1}, "broadcast of 5 f32, root 0", "broadcast of 5 f32, root 1");
  expect_poison(t, {from1, from0}, "broadcast of 5 f32, root 0", "broadcast of 5 f32, root 1");
  expect_poison(t, {from0_large, from0}, "broadcast of 4000 f32, root 0",
                "broadcast of 5 f32, root 0");
  expect_poison(t, {to0, to1}, "reduce of 5 f32, sum, root 0", "reduce of 5 f32, sum, root 1");
  expect_poison(t, {to1, to0}, "reduce of 5 f32, sum, root 0", "reduce of 5 f32, sum, root 1");
  expect_poison(t, {to0, barrier, to0}, "reduce of 5 f32, sum, root 0", "rank 1 called barrier");
  expect_poison(t, {from0, from0, from1}, "broadcast of 5 f32, root 0",
                "rank 2 called broadcast of 5 f32, root 1");
  const OpSpec gather0{.kind = OpKind::Gather, .root = 0, .count = 5};
  const OpSpec gather1{.kind = OpKind::Gather, .root = 1, .count = 5};
  const OpSpec scatter0{.kind = OpKind::Scatter, .root = 0, .count = 5};
  const OpSpec exchange{.kind = OpKind::AllToAllV};
  expect_poison(t, {gather0, gather1}, "gather of 5 f32, root 0", "gather of 5 f32, root 1");
  expect_poison(t, {scatter0, from0, scatter0}, "scatter of 5 f32, root 0",
                "broadcast of 5 f32, root 0");
  expect_poison(t, {exchange, scatter0, exchange}, "rank 0 called all_to_all_v of f32",
                "rank 1 called scatter of 5 f32, root 0");
  expect_poison(t, {barrier, from0, from0}, "rank 0 called barrier", "broadcast of 5 f32, root 0");
}

// Whatever a wrong member writes, an operation ends, and the process lives.
TEST_P(SharedMisuse, AScribblerNeitherCrashesNorHangsAnybody) {
  const Watchdog watchdog;
  constexpr int kMembers = 3;
  for (std::uint64_t seed = 1; seed <= 30; ++seed) {
    const auto world = GetParam().make(kMembers, {.slot_bytes = 4096});
    std::atomic<bool> over{false};
    std::thread scribbler([&, seed] {
      std::mt19937_64 random(seed);
      const spi::SharedSlots& slots = world->slots(0);
      auto* words = reinterpret_cast<std::atomic<std::uint64_t>*>(&slots.header());
      const std::size_t header_end = sizeof(spi::Header) / 8;
      const std::size_t blocks_end = header_end + kMembers * sizeof(spi::MemberBlock) / 8;
      const std::size_t ring_begin =
          static_cast<std::size_t>(reinterpret_cast<std::byte*>(&slots.ring(0, 0)) -
                                   reinterpret_cast<std::byte*>(words)) /
          8;
      while (!over) {
        const bool in_rings = random() % 8 == 0;
        const std::size_t at = in_rings ? ring_begin + random() % 64 : random() % blocks_end;
        const std::uint64_t values[] = {random(), random() % 64, 0, ~std::uint64_t{0}};
        words[at].store(values[random() % 4]);
        if (random() % 16 == 0) std::this_thread::yield();
      }
    });
    on_all_ranks(kMembers, [&](int rank) {
      SlotRunner runner(world->slots(rank), rank, {.cores = cores()});
      for (int i = 0; i < 20; ++i) {
        Call call({.kind = static_cast<OpKind>(i % spi::kSingleKindCount),
                   .root = i % kMembers,
                   .count = 900},
                  kMembers);
        const Outcome outcome = runner.run(call.spec, Clock::now() + std::chrono::milliseconds(10));
        const auto soon = Clock::now() + std::chrono::milliseconds(10);
        if (outcome.kind == OutcomeKind::Expired || outcome.kind == OutcomeKind::Damaged) {
          EXPECT_FALSE(outcome.text.empty());
          (void)runner.settle(soon);
        }
        (void)runner.send(call.in.data(), 64, DType::F32, (rank + 1) % kMembers, 5, soon);
        (void)runner.recv(call.out.data(), 64, DType::F32, (rank + 2) % kMembers, 5, soon);
      }
    });
    over = true;
    scribbler.join();
  }
}

/// A rank that waits in an operation for one that never comes, after `scribble` wrote over what it
/// had written: how the wait ends, and what its words say then.
struct Scribbled {
  Outcome outcome;
  spi::WordState group;
  spi::WordState step;
};
Scribbled wait_after(const Transport& transport,
                     const std::function<void(const spi::SharedSlots&)>& scribble) {
  const auto world = transport.make(2, {});
  SlotRunner waiting(world->slots(0), 0, {});
  SlotRunner other(world->slots(1), 1, {});
  Call mine({.kind = OpKind::AllReduce, .count = 3}, 2);
  Call theirs({.kind = OpKind::AllReduce, .count = 3}, 2);
  on_all_ranks(2, [&](int rank) {
    EXPECT_TRUE(
        (rank == 0 ? waiting : other).run((rank == 0 ? mine : theirs).spec, kNoDeadline).ok());
    EXPECT_TRUE((rank == 0 ? waiting : other).commit(1, kNoDeadline).ok());
  });
  scribble(world->slots(1));
  Outcome outcome = waiting.run(mine.spec, kNoDeadline);
  return {std::move(outcome), spi::read(world->slots(0).group_word(0)),
          spi::read(world->slots(0).step_word(0))};
}

// Without this the others would wait for ever for what the rank has said once.
TEST_P(SharedMisuse, ARankThatWaitsNoticesThatItsOwnWordsWereWrittenOver) {
  const Watchdog watchdog;
  const std::pair<const char*, std::function<void(const spi::SharedSlots&)>> scribbles[] = {
      {"the step word", [](const auto& slots) { slots.step_word(0) = 0; }},
      {"the group word", [](const auto& slots) { slots.group_word(0) = 77; }},
      {"a word of this rank is decided",
       [](const auto& slots) { slots.group_word(0) = spi::kDecidedBit; }},
      {"a published turn", [](const auto& slots) { slots.line(0, 1).turn = 0; }},
      {"the turn read last", [](const auto& slots) { slots.member(0).read_up_to = 5; }},
      {"a position in the rings", [](const auto& slots) { slots.ring(0, 1).written = 64; }},
  };
  for (const auto& [what, scribble] : scribbles) {
    const Scribbled end = wait_after(GetParam(), scribble);
    EXPECT_EQ(end.outcome.kind, OutcomeKind::Damaged) << what;
    EXPECT_NE(end.outcome.text.find(what), std::string::npos) << end.outcome.text;
    EXPECT_TRUE(end.group.wedged && end.step.wedged) << what;
    EXPECT_EQ(end.group.number, 1U) << "the cut is made of the truth; " << what;
    EXPECT_EQ(end.step.number, 1U) << what;
  }
}

TEST_P(SharedMisuse, ACommitNoticesThatItsWordWasWrittenOver) {
  const Watchdog watchdog;
  const auto world = GetParam().make(2, {});
  SlotRunner runner(world->slots(0), 0, {});
  std::thread scribbler([&] {
    while (spi::read(world->slots(1).step_word(0)).number != 1) std::this_thread::yield();
    world->slots(1).step_word(0) = 0;
  });
  const Outcome outcome = runner.commit(1, kNoDeadline);
  scribbler.join();
  EXPECT_EQ(outcome.kind, OutcomeKind::Damaged) << outcome.text;
  EXPECT_EQ(spi::read(world->slots(0).step_word(0)).number, 1U);
  EXPECT_TRUE(spi::read(world->slots(0).step_word(0)).wedged);
}

// The agent stored the decision, somebody wrote over it, and everybody else is in the next epoch.
TEST_P(SharedMisuse, ADecisionThatWasWrittenOverIsNotAwaitedForEver) {
  const Watchdog watchdog;
  const auto world = GetParam().make(2, {});
  std::atomic<int> told{0};
  RunnerOptions options;
  options.epoch = {.is_over = [](void* n) { return static_cast<std::atomic<int>*>(n)->load() > 0; },
                   .undecided = [](void* n) { ++*static_cast<std::atomic<int>*>(n); },
                   .context = &told};
  SlotRunner runner(world->slots(0), 0, options);
  Call call({.kind = OpKind::AllReduce, .count = 3}, 2);
  spi::wedge(world->slots(0).group_word(0));
  EXPECT_EQ(runner.run(call.spec, kNoDeadline).kind, OutcomeKind::Damaged);
  EXPECT_EQ(told, 1) << "the agent may not know that the word is wedged";
  spi::wedge(world->slots(0).step_word(0));
  EXPECT_EQ(runner.commit(1, kNoDeadline).kind, OutcomeKind::Damaged);
}

TEST_P(SharedMisuse, ATurnThatNobodyPublishedIsNamed) {
  const Watchdog watchdog;
  const auto world = GetParam().make(2, {});
  const spi::SharedSlots& slots = world->slots(1);
  slots.line(1, 1).turn = 99;
  SlotRunner runner(slots, 0, {});
  Call call({.kind = OpKind::AllReduce, .count = 3}, 2);
  const Outcome outcome = runner.run(call.spec, kNoDeadline);
  EXPECT_EQ(outcome.kind, OutcomeKind::Damaged);
  EXPECT_NE(outcome.text.find("rank 1 of the group stands at turn 99"), std::string::npos)
      << outcome.text;
  EXPECT_TRUE(spi::read(slots.group_word(0)).wedged);
}

/// Two ranks that both only send learn of it by the next operation, if that comes behind.
const Transport kOrderedTransports[] = {
    {"loopback", make_world<LoopbackWorld>},
    {"shm", make_world<ShmWorld>},
    {"messages", make_world<OrderedMessageWorld>, 1, false},
#ifdef REGROUP_TEST_UCX
    {"ucx", make_world<UcxMessageWorld>, 1, false},
#endif
};
INSTANTIATE_TEST_SUITE_P(All, Misuse, testing::ValuesIn(kOrderedTransports), transport_name);
INSTANTIATE_TEST_SUITE_P(All, SharedMisuse, testing::ValuesIn(kTransports), transport_name);

}  // namespace
}  // namespace regroup::conformance
