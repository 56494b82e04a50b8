// Plans without memory shared or threads: all ranks are simulated in one loop, in random
// interleavings.
#include "collective/schedule.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <random>
#include <set>
#include <vector>

namespace regroup::collective {
namespace {

/// What stands in for an element: for each contribution, how often it is in there.
using Element = std::map<std::pair<int, std::size_t>, int>;  // (rank, index in its input) -> times

constexpr std::size_t kSlotBytes = 1024;

struct Buffer {
  std::uint64_t turn = 0;
  std::map<std::size_t, Element> at;  // by element offset
};

/// One operation in a row of them, as the oracle sees it.
struct Operation {
  OpDescriptor descriptor;
  std::optional<Algorithm> forced;
  bool coalesced = false;  ///< one of several of one operation
  bool last = true;        ///< of these

  /// Elements that `from` gives to `to`. With counts: uneven, some 0; of all_to_all_v for each
  /// pair, else by the rank whose share it is.
  [[nodiscard]] std::size_t share(int from, int to) const {
    if (!spi::has_counts(descriptor.kind)) return descriptor.count;
    int who = spi::scatters(descriptor.kind) ? to : from;
    if (spi::scatters(descriptor.kind) && spi::gathers(descriptor.kind)) who = 5 * from + 7 * to;
    return descriptor.count * static_cast<std::size_t>((who + 2) % 3) / 2;
  }
  /// As the call of `me` has them.
  [[nodiscard]] std::vector<std::size_t> sent(int members, int me) const {
    std::vector<std::size_t> counts;
    for (int q = 0; q < members; ++q)
      counts.push_back(spi::scatters(descriptor.kind) ? share(me, q) : share(q, me));
    return counts;
  }
  [[nodiscard]] std::vector<std::size_t> received(int members, int me) const {
    std::vector<std::size_t> counts;
    for (int q = 0; q < members; ++q) counts.push_back(share(q, me));
    return counts;
  }
};

/// One simulated rank, running through all operations.
struct SimRank {
  std::size_t operation = 0;
  std::uint64_t sequence = 1;
  std::uint64_t first_turn = 1;
  std::vector<std::size_t> sent;
  std::vector<std::size_t> received;
  std::optional<Plan> plan;
  Step step;
  bool pending = false;
  std::uint64_t word = 0;
  std::uint64_t said_read = 0;
  std::uint64_t published[2] = {0, 0};
  Buffer buffers[2];
  struct Use {
    std::uint64_t turn = 0;
    std::uint64_t sequence = 0;
    int reader = -1;
  } uses[2];
  std::map<std::size_t, Element> out;
};

class World {
 public:
  World(int members, std::vector<Operation> operations, std::uint64_t seed)
      : members_(members), operations_(std::move(operations)), random_(seed) {
    ranks_.resize(static_cast<std::size_t>(members));
  }

  /// Runs all ranks to the end; false when nobody can move any more.
  bool run() {
    for (;;) {
      std::vector<int> order;
      for (int r = 0; r < members_; ++r) {
        if (ranks_[static_cast<std::size_t>(r)].operation < operations_.size()) order.push_back(r);
      }
      if (order.empty()) return true;
      std::ranges::shuffle(order, random_);
      const bool moved = std::ranges::any_of(order, [this](int r) { return advance(r); });
      if (!moved) return false;
    }
  }

 private:
  SimRank& at(int r) { return ranks_[static_cast<std::size_t>(r)]; }
  std::size_t element(int r) { return size_of(operations_[at(r).operation].descriptor.dtype); }

  bool advance(int r) {
    SimRank& me = at(r);
    const Operation& operation = operations_[me.operation];
    if (!me.plan) {
      me.sent = operation.sent(members_, r);
      me.received = operation.received(members_, r);
      me.plan = Plan(operation.descriptor, {.members = members_,
                                            .me = r,
                                            .slot_bytes = kSlotBytes,
                                            .forced = operation.forced,
                                            .counts = counts_of(r),
                                            .coalesced = operation.coalesced});
    }
    if (!me.pending) {
      if (!me.plan->next(me.step)) {
        finish(r);
        return true;
      }
      me.pending = true;
    }
    if (!perform(r)) return false;
    me.pending = false;
    return true;
  }

  Counts counts_of(int r) {
    if (!spi::has_counts(operations_[at(r).operation].descriptor.kind)) return {};
    const bool two = operations_[at(r).operation].descriptor.kind == OpKind::AllToAllV;
    return {at(r).sent.data(), two ? at(r).received.data() : nullptr, members_};
  }

  bool perform(int r) {
    SimRank& me = at(r);
    const std::uint64_t turn = me.first_turn + me.step.turn;
    const OpDescriptor& d = operations_[me.operation].descriptor;
    switch (me.step.kind) {
      case StepKind::Reclaim: return reclaim(r, turn);
      case StepKind::CopyIn: {
        Buffer& buffer = me.buffers[turn & 1];
        for (std::size_t i = 0; i < me.step.bytes / element(r); ++i) {
          buffer.at[me.step.slot_offset / element(r) + i] = {
              {{r, me.step.in_offset / element(r) + i}, 1}};
        }
        return true;
      }
      case StepKind::Publish:
        EXPECT_LT(me.published[turn & 1], turn);
        me.published[turn & 1] = turn;
        me.buffers[turn & 1].turn = turn;
        return true;
      case StepKind::AwaitAll:
        for (int q = 0; q < members_; ++q) {
          if (q != r && at(q).published[turn & 1] < turn) return false;
        }
        return true;
      case StepKind::AwaitOne: return at(me.step.member).published[turn & 1] >= turn;
      case StepKind::Reduce: fold(r, turn, d); return true;
      case StepKind::CopyOut:
        for (std::size_t i = 0; i < me.step.bytes / element(r); ++i) {
          me.out[me.step.out_offset / element(r) + i] =
              read(me.step.member, turn, me.step.slot_offset / element(r) + i);
        }
        return true;
      case StepKind::CopyOwn:
        for (std::size_t i = 0; i < me.step.bytes / element(r); ++i) {
          me.out[me.step.out_offset / element(r) + i] = {
              {{r, me.step.in_offset / element(r) + i}, 1}};
        }
        return true;
      case StepKind::CopyCounts: me.buffers[turn & 1].at[0] = {}; return true;
      case StepKind::ReadCounts: read_counts(r, turn); return true;
      case StepKind::SaidRead: me.said_read = turn; return true;
    }
    return false;
  }

  /// The rule of schedule.hpp; that it suffices is what read() checks.
  bool reclaim(int r, std::uint64_t turn) {
    SimRank& me = at(r);
    SimRank::Use& use = me.uses[turn & 1];
    for (int q = 0; q < members_ && use.turn != 0; ++q) {
      if (q == r || (use.reader >= 0 && use.reader != q)) continue;
      const std::uint64_t latest = std::max(at(q).published[0], at(q).published[1]);
      if (latest <= use.turn && at(q).said_read < use.turn && at(q).word < use.sequence)
        return false;
    }
    const OpDescriptor& d = operations_[me.operation].descriptor;
    use = {turn, me.sequence, spi::flow_of(d.kind) == spi::Flow::ToRoot ? d.root : -1};
    me.buffers[turn & 1] = {};  // torn from here on
    return true;
  }

  void read_counts(int r, std::uint64_t turn) {
    const Operation& operation = operations_[at(r).operation];
    std::size_t largest = 0;
    for (int from = 0; from < members_; ++from) {
      (void)read(from, turn, 0);
      for (int to = 0; to < members_; ++to) largest = std::max(largest, operation.share(from, to));
    }
    at(r).plan->learn(largest);
  }

  Element read(int q, std::uint64_t turn, std::size_t offset) {
    const Buffer& buffer = at(q).buffers[turn & 1];
    EXPECT_EQ(buffer.turn, turn) << "buffer of rank " << q
                                 << " was stored into before all had read it";
    EXPECT_TRUE(buffer.at.contains(offset));
    return buffer.at.contains(offset) ? buffer.at.at(offset) : Element{};
  }

  void fold(int r, std::uint64_t turn, const OpDescriptor& d) {
    SimRank& me = at(r);
    const std::size_t bytes = size_of(d.dtype);
    for (std::size_t i = 0; i < me.step.bytes / bytes; ++i) {
      Element sum;
      for (int q = 0; q < members_; ++q) {
        const Element part = q == r && me.step.mine_from_input
                                 ? Element{{{r, me.step.in_offset / bytes + i}, 1}}
                                 : read(q, turn, me.step.slot_offset / bytes + i);
        for (const auto& [key, times] : part) sum[key] += times;
      }
      if (me.step.into_slot) {
        me.buffers[(turn + 1) & 1].at[i] = sum;
      } else {
        me.out[me.step.out_offset / bytes + i] = sum;
      }
    }
  }

  void finish(int r) {
    SimRank& me = at(r);
    const OpDescriptor& d = operations_[me.operation].descriptor;
    check(r, d);
    me.first_turn += me.plan->turns();
    const bool last = operations_[me.operation++].last;
    if (last && spi::receives(d.kind, d.root, r)) me.word = me.sequence;
    if (last) ++me.sequence;
    me.plan.reset();
    me.out.clear();
  }

  /// Contributor `q` of an element of r's output, and where it stands in q's input. `q` counts the
  /// shares of the output where there are any.
  std::pair<int, std::size_t> source(int r, std::size_t i) {
    const Operation& operation = operations_[at(r).operation];
    const OpKind kind = operation.descriptor.kind;
    int from = operation.descriptor.root;
    if (spi::gathers(kind)) {
      from = 0;
      while (i >= operation.share(from, r)) i -= operation.share(from++, r);
    }
    if (spi::scatters(kind)) {
      for (int before = 0; before < r; ++before) i += operation.share(from, before);
    }
    return {from, i};
  }

  void check(int r, const OpDescriptor& d) {
    const std::map<std::size_t, Element>& out = at(r).out;
    const OpExtent extent = extent_of(d, counts_of(r), members_, r);
    ASSERT_EQ(out.size() * size_of(d.dtype), extent.out_bytes) << spi::describe(d);
    for (const auto& [i, element] : out) {
      Element expected;
      const auto [from, index] = source(r, i);
      if (spi::reduces(d.kind)) {
        for (int q = 0; q < members_; ++q) expected[{q, index}] = 1;
      } else {
        expected[{from, index}] = 1;
      }
      ASSERT_EQ(element, expected) << spi::describe(d) << " rank " << r << " element " << i;
    }
  }

  int members_;
  std::vector<Operation> operations_;
  std::mt19937_64 random_;
  std::vector<SimRank> ranks_;
};

std::vector<std::size_t> awkward_counts(int members) {
  const auto p = static_cast<std::size_t>(members);
  return {0, 1, p - 1, p, 13, 1021, 2 * kSlotBytes / 4 + 3};
}

class Plans : public testing::TestWithParam<int> {};

TEST_P(Plans, EveryContributionIsInEachElementOnce) {
  const int members = GetParam();
  for (int kind = 0; kind < spi::kSingleKindCount; ++kind) {
    for (const std::size_t count : awkward_counts(members)) {
      for (const auto forced : {std::optional<Algorithm>(), std::optional(Algorithm::OneShot),
                                std::optional(Algorithm::TwoShot)}) {
        const bool can = static_cast<OpKind>(kind) == OpKind::AllReduce;
        if (forced == Algorithm::TwoShot && !can) continue;
        const OpDescriptor d{static_cast<OpKind>(kind), DType::F32, ReduceOp::Sum, members / 2,
                             count};
        World world(members, {{d, forced}}, 17 + count);
        ASSERT_TRUE(world.run()) << spi::describe(d) << ": all ranks wait";
        ASSERT_FALSE(HasFailure());
      }
    }
  }
}

TEST_P(Plans, OperationsOfAllKindsFollowEachOther) {
  const int members = GetParam();
  const auto p = static_cast<std::uint64_t>(members);
  for (std::uint64_t seed = 1; seed <= 25; ++seed) {
    SCOPED_TRACE(testing::Message() << "replay: members " << members << " seed " << seed);
    std::mt19937_64 random(seed);
    std::vector<Operation> operations;
    for (int i = 0; i < 12; ++i) {
      OpDescriptor d;
      d.kind = static_cast<OpKind>(random() % spi::kSingleKindCount);
      d.dtype = random() % 2 == 0 ? DType::F64 : DType::I32;
      d.root = static_cast<int>(random() % p);
      const std::size_t counts[] = {0, 1, 5, 150, 530};
      d.count = counts[random() % std::size(counts)];
      operations.push_back({d, {}});
    }
    World world(members, operations, seed);
    ASSERT_TRUE(world.run()) << "all ranks wait";
    ASSERT_FALSE(HasFailure());
  }
}

// With roots in a row nobody completes in between: readers have to say that they have read.
TEST_P(Plans, CoalescedOperationsFollowEachOther) {
  const int members = GetParam();
  const auto p = static_cast<std::uint64_t>(members);
  const OpDescriptor barrier{};
  for (std::uint64_t seed = 1; seed <= 25; ++seed) {
    SCOPED_TRACE(testing::Message() << "replay: members " << members << " seed " << seed);
    std::mt19937_64 random(seed);
    std::vector<Operation> operations;
    for (int i = 0; i < 5; ++i) {
      operations.push_back({barrier, {}, true, false});
      for (std::uint64_t left = 1 + random() % 5; left > 0; --left) {
        const std::size_t counts[] = {0, 1, 150, 530};
        operations.push_back(
            {{static_cast<OpKind>(random() % spi::kSingleKindCount), DType::I32, ReduceOp::Sum,
              static_cast<int>(random() % p), counts[random() % std::size(counts)]},
             {},
             true,
             false});
      }
      operations.push_back({barrier, {}, true, true});
    }
    World world(members, operations, seed);
    ASSERT_TRUE(world.run()) << "all ranks wait";
    ASSERT_FALSE(HasFailure());
  }
}

INSTANTIATE_TEST_SUITE_P(Worlds, Plans, testing::Range(1, 10));

TEST(Plan, TurnsAreAFunctionOfTheArgumentsAlone) {
  for (int kind = 0; kind < spi::kSingleKindCount; ++kind) {
    const std::vector<std::size_t> counts{0, 400, 1, 0, 77};
    for (const std::size_t count : {0U, 1U, 12U, 5000U, 100000U}) {
      std::set<std::uint64_t> turns;
      for (int me = 0; me < 5; ++me) {
        const Plan plan({static_cast<OpKind>(kind), DType::BF16, ReduceOp::Max, 3, count},
                        {.members = 5,
                         .me = me,
                         .slot_bytes = kSlotBytes,
                         .counts = {counts.data(), counts.data(), 5}});
        turns.insert(plan.turns());
      }
      EXPECT_EQ(turns.size(), 1U);
    }
  }
}

TEST(Plan, SmallPayloadsTravelInTheLine) {
  const PlanShape shape{.members = 4, .me = 0, .slot_bytes = kSlotBytes};
  EXPECT_TRUE(Plan({OpKind::AllReduce, DType::F32, ReduceOp::Sum, 0, 28}, shape).inline_payload());
  EXPECT_FALSE(Plan({OpKind::AllReduce, DType::F32, ReduceOp::Sum, 0, 29}, shape).inline_payload());
  EXPECT_FALSE(
      Plan({OpKind::ReduceScatter, DType::F32, ReduceOp::Sum, 0, 28}, shape).inline_payload());
}

}  // namespace
}  // namespace regroup::collective
