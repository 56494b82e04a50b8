// Right values on every rank, for every kind of operation, type, size and number of ranks.
#include <gtest/gtest.h>

#include <span>

#include "tests/conformance/message_worlds.hpp"

namespace regroup::conformance {
namespace {

class Values : public testing::TestWithParam<Transport> {};
/// What only shared memory can do to a value.
class SharedValues : public testing::TestWithParam<Transport> {};

/// Runs one case on one rank, and compares.
void run_case(GroupRunner& runner, const Case& c, int rank, Place place) {
  const PlacedBuffers call(c, rank, place);
  const Outcome outcome = runner.run(call.spec(), kNoDeadline);
  const bool receives = spi::receives(c.spec.kind, c.spec.root, rank);
  ASSERT_EQ(outcome.kind, receives ? OutcomeKind::Done : OutcomeKind::HandedOver) << outcome.text;
  ASSERT_TRUE(call.result_is(c.expected(rank)))
      << c.describe() << " on rank " << rank << " of " << c.members << ", place "
      << static_cast<int>(place);
  if (call.apart()) {
    ASSERT_TRUE(call.input_intact()) << c.describe();
  }
}

/// One type of each width; what is only moved has nothing else to be told apart by.
bool is_usual(DType type) {
  return type == DType::F32 || type == DType::BF16 || type == DType::I64 || type == DType::U8;
}

std::vector<Case> all_cases(int members) {
  std::vector<Case> cases;
  const auto p = static_cast<std::size_t>(members);
  const std::vector<std::size_t> many{0, 1, p - 1, 6, 257, 3001};
  const std::vector<std::size_t> few{p, 257};
  for (int kind = 0; kind < spi::kSingleKindCount; ++kind) {
    const auto k = static_cast<OpKind>(kind);
    for (int type = 0; type < (k == OpKind::Barrier ? 1 : kDTypeCount); ++type) {
      const auto dtype = static_cast<DType>(type);
      if (!spi::reduces(k) && !is_usual(dtype)) continue;
      for (int op = 0; op < (spi::reduces(k) ? kReduceOpCount : 1); ++op) {
        const auto redop = static_cast<ReduceOp>(op);
        if (!is_defined(redop, dtype)) continue;
        for (const std::size_t count : is_usual(dtype) ? many : few) {
          const std::uint64_t salt = cases.size() + 1;
          cases.push_back({{.kind = k,
                            .dtype = dtype,
                            .op = redop,
                            .root = static_cast<int>(salt % p),
                            .factor = 0.3,
                            .count = count},
                           members,
                           salt});
        }
      }
    }
  }
  return cases;
}

TEST_P(Values, AllKindsTypesAndOperations) {
  const Watchdog watchdog;
  for (int members = 1; members <= (test::kSanitized ? 3 : 5); ++members) {
    const std::vector<Case> cases = all_cases(members);
    const auto world = GetParam().make(static_cast<std::uint32_t>(members), {.slot_bytes = 4096});
    on_all_ranks(members, [&](int rank) {
      const auto runner = world->runner(rank, {.cores = cores()});
      for (const Case& c : cases) {
        run_case(*runner, c, rank, kPlaces[c.salt % 3]);
        if (testing::Test::HasFatalFailure()) return;
      }
    });
    ASSERT_FALSE(HasFailure()) << members << " ranks";
  }
}

TEST_P(Values, CoalescedOperationsOfAllKinds) {
  const Watchdog watchdog;
  for (int members = 1; members <= 4; ++members) {
    std::vector<Case> cases;
    for (std::uint64_t salt = 1; salt <= 300; salt += GetParam().stride())
      cases.push_back(coalesced_case(members, salt));
    const auto world = GetParam().make(static_cast<std::uint32_t>(members), {.slot_bytes = 4096});
    on_all_ranks(members, [&](int rank) {
      const auto runner = world->runner(rank, {.cores = cores()});
      for (const Case& c : cases) {
        const PlacedCall call(c, rank);
        const Outcome outcome = runner->run(call.spec(), kNoDeadline);
        ASSERT_EQ(outcome.kind, OutcomeKind::Done) << outcome.text;
        ASSERT_TRUE(call.result_is_right(c, rank)) << "rank " << rank << " salt " << c.salt;
      }
    });
    ASSERT_FALSE(HasFailure()) << members << " ranks";
  }
}

TEST_P(Values, LargeAndForcedAlgorithmsGiveTheSameBits) {
  const Watchdog watchdog;
  constexpr int kMembers = 3;
  const RunnerOptions ways[] = {{},
                                {.own_from_input = true},
                                {.algorithm = Algorithm::OneShot},
                                {.algorithm = Algorithm::TwoShot},
                                {.algorithm = Algorithm::Rails},
                                {.algorithm = Algorithm::Doubling},
                                {.algorithm = Algorithm::Halving},
                                {.algorithm = Algorithm::Ring},
                                {.algorithm = Algorithm::Tree}};
  for (RunnerOptions options : ways) {
    if (!GetParam().has_slots && options.own_from_input) continue;  // messages never go back
    options.cores = cores();
    const auto world = GetParam().make(kMembers, {});
    on_all_ranks(kMembers, [&](int rank) {
      const auto runner = world->runner(rank, options);
      for (const std::size_t count :
           {std::size_t{1}, std::size_t{12}, std::size_t{65537}, std::size_t{700001 / kOneIn}}) {
        const Case c{
            {.kind = OpKind::AllReduce, .dtype = DType::F32, .count = count}, kMembers, count};
        run_case(*runner, c, rank, Place::Apart);
        run_case(*runner, c, rank, Place::Same);
      }
    });
  }
}

// Where an algorithm cannot carry the kind, the choice does.
TEST_P(Values, EveryAlgorithmForEveryKind) {
  const Watchdog watchdog;
  for (const int members : {2, 5, 7}) {
    if (test::kSanitized && members > 5) break;
    std::vector<Case> cases;
    std::mt19937_64 random(static_cast<std::uint64_t>(members));
    for (int kind = 0; kind < spi::kSingleKindCount; ++kind) {
      const bool shares =
          spi::scatters(static_cast<OpKind>(kind)) || spi::gathers(static_cast<OpKind>(kind));
      // Posted, asked for, and in several chunks.
      for (std::size_t count : {std::size_t{0}, std::size_t{3}, std::size_t{2503},
                                std::size_t{20'011}, std::size_t{50'021}}) {
        if (count > 3000 && (GetParam().has_slots || members == 7)) continue;
        if (shares) count /= static_cast<std::size_t>(members);
        const DType types[] = {DType::F32, DType::BF16, DType::F8E4M3, DType::I64};
        Case c{{.kind = static_cast<OpKind>(kind),
                .dtype = types[random() % std::size(types)],
                .op = ReduceOp::Sum,
                .root = static_cast<int>(random() % static_cast<std::uint64_t>(members)),
                .factor = 0.3,
                .count = count},
               members,
               random() % 1000};
        if (c.spec.dtype != DType::I64 && random() % 2 == 0)
          c.spec.op = random() % 2 == 0 ? ReduceOp::Avg : ReduceOp::PremulSum;
        cases.push_back(c);
      }
    }
    for (int i = 0; i < collective::kAlgorithmCount; ++i) {
      const auto algorithm = static_cast<Algorithm>(i);
      if (GetParam().has_slots && algorithm > Algorithm::TwoShot) break;
      const auto world = GetParam().make(static_cast<std::uint32_t>(members), {.slot_bytes = 4096});
      on_all_ranks(members, [&](int rank) {
        const auto runner = world->runner(rank, {.cores = cores(), .algorithm = algorithm});
        for (const Case& c : cases) {
          run_case(*runner, c, rank, kPlaces[(c.salt + static_cast<std::uint64_t>(i)) % 3]);
          if (testing::Test::HasFatalFailure()) return;
        }
      });
      ASSERT_FALSE(HasFailure()) << collective::name(algorithm) << ", " << members << " ranks";
    }
  }
}

// Then damage to it makes its owner's result differ from everybody else's.
TEST_P(SharedValues, WhatARankGaveDoesNotComeBackToItThroughSharedMemory) {
  const Watchdog watchdog;
  for (const std::size_t count : {std::size_t{1}, std::size_t{100'000}}) {
    const auto world = GetParam().make(2, {});
    std::vector<float> results(2);
    on_all_ranks(2, [&](int rank) {
      const spi::SharedSlots& slots = world->slots(rank);
      RunnerOptions options{.cores = cores(), .own_from_input = true};
      // Rank 0's contribution is spoiled before anybody reads it.
      std::pair<const spi::SharedSlots*, int> who{&slots, rank};
      options.fault = {.call =
                           [](void* context, collective::Instant instant, std::uint64_t turn,
                              std::int64_t chunk) {
                             const auto& [at, me] = *static_cast<decltype(who)*>(context);
                             if (instant != collective::Instant::AfterCopyIn || me != 0) return;
                             if (chunk != 0) return;
                             const float spoiled = 77;
                             std::memcpy(at->slot(0, turn), &spoiled, sizeof spoiled);
                           },
                       .context = &who};
      SlotRunner runner(slots, rank, options);
      std::vector<float> data(count, 1.0F);
      const OpSpec spec{.kind = OpKind::AllReduce,
                        .dtype = DType::F32,
                        .count = count,
                        .in = data.data(),
                        .out = data.data()};
      EXPECT_TRUE(runner.run(spec, kNoDeadline).ok());
      results[static_cast<std::size_t>(rank)] = data.front();
    });
    EXPECT_EQ(results, (std::vector<float>{2, 78})) << count;
  }
}

TEST_P(Values, ThousandsOfMixedOperationsBackToBack) {
  const Watchdog watchdog;
  constexpr int kMembers = 4;
  const std::uint64_t operations = (GetParam().has_slots ? 4000 : 1000) / kOneIn;
  std::vector<Case> cases;
  std::mt19937_64 random(4711);
  for (std::uint64_t i = 0; i < operations; ++i) {
    Case c{{.kind = static_cast<OpKind>(random() % spi::kSingleKindCount),
            .dtype = DType::F32,
            .op = ReduceOp::Sum,
            .root = static_cast<int>(random() % kMembers),
            .count = random() % 8 == 0 ? random() % 4000 : random() % 16},
           kMembers,
           i};
    cases.push_back(c);
  }
  const auto world = GetParam().make(kMembers, {.slot_bytes = 4096});
  on_all_ranks(kMembers, [&](int rank) {
    const auto runner = world->runner(rank, {.cores = cores()});
    for (const Case& c : cases) {
      run_case(*runner, c, rank, kPlaces[c.salt / 2 % 3]);
      if (testing::Test::HasFatalFailure()) return;
    }
  });
}

INSTANTIATE_TEST_SUITE_P(All, Values, testing::ValuesIn(kAllTransports), transport_name);
INSTANTIATE_TEST_SUITE_P(All, SharedValues, testing::ValuesIn(kTransports), transport_name);

}  // namespace
}  // namespace regroup::conformance
