// Plans over messages without messages: all ranks are simulated in one loop, in random order.
#include "collective/schedule_messages.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <optional>
#include <random>
#include <vector>

#include "collective/kernels.hpp"
#include "spi/message_port.hpp"

namespace regroup::collective {
namespace {

std::size_t index(int member) { return static_cast<std::size_t>(member); }

struct Place {
  std::byte* at = nullptr;
  std::size_t bytes = 0;
  bool arrived = false;
};
/// (source, part) -> where it goes, or what has come too early.
using Key = std::pair<int, std::uint32_t>;

/// Elements that rank `from` gives to rank `to`: all alike, or (with counts) some of them none.
std::size_t share(const spi::OpDescriptor& d, int from, int to) {
  if (!spi::has_counts(d.kind)) return d.count;
  int who = spi::scatters(d.kind) ? to : from;
  if (d.kind == OpKind::AllToAllV) who = 5 * from + 7 * to;
  return d.count * (index(who) % 3);
}

struct SimRank {
  std::vector<std::size_t> shares;
  std::vector<std::size_t> received;
  MessagePlan plan;
  std::size_t next = 0;
  std::vector<std::byte> in;
  std::vector<std::byte> out;
  std::vector<std::byte> scratch;
  std::map<Key, Place> wanted;
  std::map<Key, std::vector<std::byte>> early;
  std::map<Key, int> sent;  ///< (destination, part)
  [[nodiscard]] bool over() const { return next == plan.steps.size(); }
  [[nodiscard]] std::vector<std::byte> counts() const {
    std::vector<std::uint64_t> row(shares.begin(), shares.end());
    row.insert(row.end(), received.begin(), received.end());
    std::vector<std::byte> bytes(row.size() * sizeof row[0]);
    std::memcpy(bytes.data(), row.data(), bytes.size());
    return bytes;
  }
};

/// A part whose receiver is to ask for it.
struct Moving {
  int to = 0;
  Key key;
  const std::byte* from = nullptr;
  std::size_t bytes = 0;
};

class World {
 public:
  World(const spi::OpDescriptor& d, MessageShape shape, bool in_place, std::uint64_t seed)
      : d_(d), shape_(shape), in_place_(in_place), random_(seed) {
    for (int rank = 0; rank < shape.members; ++rank) ranks_.push_back(make(rank));
    for (const SimRank& rank : ranks_) inputs_.push_back(rank.in);
  }

  void run() {
    for (;;) {
      std::vector<int> movable;
      bool all_over = moving_.empty();
      for (int rank = 0; rank < shape_.members; ++rank) {
        all_over = all_over && ranks_[index(rank)].over();
        if (can_move(rank)) movable.push_back(rank);
      }
      if (all_over) return;
      if (movable.empty() || random_() % 4 == 0) {
        if (move_one()) continue;
      }
      ASSERT_FALSE(movable.empty()) << "nobody can move any more";
      ASSERT_NO_FATAL_FAILURE(perform(movable[random_() % movable.size()]));
    }
  }

  void check() const {
    for (int rank = 0; rank < shape_.members; ++rank) {
      const SimRank& r = ranks_[index(rank)];
      for (const auto& [key, times] : r.sent) EXPECT_EQ(times, 1);
      EXPECT_TRUE(r.early.empty()) << "rank " << rank << " got parts that it never asked for";
      for (const auto& [key, place] : r.wanted) EXPECT_TRUE(place.arrived);
      if (!spi::receives(d_.kind, d_.root, rank) || d_.kind == OpKind::Barrier) continue;
      EXPECT_EQ(result(r), expected(rank)) << spi::describe(d_) << ", rank " << rank;
    }
  }

 private:
  SimRank make(int rank) {
    SimRank r;
    for (int q = 0; q < shape_.members; ++q) {
      r.shares.push_back(spi::scatters(d_.kind) ? share(d_, rank, q) : share(d_, q, rank));
      r.received.push_back(share(d_, q, rank));
    }
    shape_.me = rank;
    shape_.counts = {r.shares.data(), d_.kind == OpKind::AllToAllV ? r.received.data() : nullptr,
                     shape_.members};
    make_message_plan(d_, shape_, r.plan);
    const OpExtent extent = extent_of(d_, shape_.counts, shape_.members, rank);
    r.in.resize(extent.in_bytes);
    // Their sums depend on the order.
    std::uniform_real_distribution<float> values(-1e6F, 1e6F);
    for (std::size_t at = 0; at + 4 <= r.in.size(); at += 4) {
      const float value = values(random_);
      std::memcpy(r.in.data() + at, &value, 4);
    }
    r.out.resize(extent.out_bytes);
    r.scratch.resize(r.plan.scratch_bytes);
    return r;
  }
  [[nodiscard]] bool shares() const { return in_place_ && d_.kind == OpKind::AllReduce; }
  [[nodiscard]] const std::vector<std::byte>& result(const SimRank& r) const {
    return shares() ? r.in : r.out;
  }
  std::byte* at(SimRank& r, Region region, std::size_t offset) {
    if (region == Region::Scratch) return r.scratch.data() + offset;
    if (region == Region::Input || shares()) return r.in.data() + offset;
    return r.out.data() + offset;
  }
  [[nodiscard]] bool can_move(int rank) const {
    const SimRank& r = ranks_[index(rank)];
    if (r.over()) return false;
    const MessageStep& step = r.plan.steps[r.next];
    if (step.kind == MessageStepKind::AwaitSent) {
      return std::ranges::none_of(moving_, [&](const Moving& part) {
        return part.to == step.member && part.key == Key{rank, step.part};
      });
    }
    if (step.kind != MessageStepKind::Await) return true;
    const auto found = r.wanted.find({step.member, step.part});
    return found == r.wanted.end() || found->second.arrived;
  }

  void perform(int rank) {
    SimRank& r = ranks_[index(rank)];
    const MessageStep& step = r.plan.steps[r.next++];
    const Key key{step.member, step.part};
    switch (step.kind) {
      case MessageStepKind::Receive: ASSERT_NO_FATAL_FAILURE(receive(r, step, key)); break;
      case MessageStepKind::Send: ASSERT_NO_FATAL_FAILURE(send(rank, step)); break;
      case MessageStepKind::Await:
        ASSERT_TRUE(r.wanted.contains(key)) << "M2: awaited without a place";
        break;
      case MessageStepKind::Fold: fold(rank, step); break;
      case MessageStepKind::Copy:
        std::memcpy(at(r, Region::Output, step.out_offset), r.in.data() + step.in_offset,
                    step.bytes);
        ASSERT_TRUE(r.wanted.empty() || d_.kind == OpKind::AllToAllV) << "M5";
        break;
      case MessageStepKind::AwaitSent:
        ASSERT_TRUE(r.sent.contains(key)) << "awaited before it was sent";
        break;
      case MessageStepKind::Compare:
        for (int q = 0; q < shape_.members; ++q) {
          if (q == rank) continue;
          const std::byte* const at = r.scratch.data() + step.offset + index(q) * step.stride;
          EXPECT_EQ(std::vector(at, at + step.bytes), ranks_[index(q)].counts());
        }
        break;
    }
  }
  void receive(SimRank& r, const MessageStep& step, Key key) {
    ASSERT_FALSE(r.wanted.contains(key)) << "M1: a part is named twice";
    Place place{at(r, step.region, step.offset), step.bytes, false};
    const auto& region = step.region == Region::Scratch ? r.scratch : result(r);
    ASSERT_LE(step.offset + step.bytes, region.size());
    const auto early = r.early.find(key);
    if (early != r.early.end()) {
      ASSERT_EQ(early->second.size(), place.bytes);
      if (place.bytes > 0) std::memcpy(place.at, early->second.data(), place.bytes);
      place.arrived = true;
      r.early.erase(early);
    }
    r.wanted[key] = place;
  }
  void send(int rank, const MessageStep& step) {
    SimRank& r = ranks_[index(rank)];
    ++r.sent[{step.member, step.part}];
    const std::vector<std::byte> counts = r.counts();
    const std::byte* from = step.region == Region::Counts ? counts.data() + step.offset
                                                          : at(r, step.region, step.offset);
    // Posted: copied at once; or its receiver asks for it, and the sender's memory is read later.
    const Moving part{step.member, {rank, step.part}, from, step.bytes};
    if (step.region != Region::Counts && random_() % 8 == 0) {
      moving_.push_back(part);
    } else {
      ASSERT_NO_FATAL_FAILURE(arrive(part));
    }
  }
  /// Some part that is asked for. False: there is none.
  bool move_one() {
    const std::size_t begin = moving_.empty() ? 0 : random_() % moving_.size();
    for (std::size_t i = 0; i < moving_.size(); ++i) {
      const auto at = moving_.begin() + static_cast<std::ptrdiff_t>((begin + i) % moving_.size());
      if (!ranks_[index(at->to)].wanted.contains(at->key)) continue;
      const Moving part = *at;
      moving_.erase(at);
      arrive(part);
      return true;
    }
    return false;
  }
  void arrive(const Moving& part) {
    SimRank& to = ranks_[index(part.to)];
    const auto wanted = to.wanted.find(part.key);
    if (wanted == to.wanted.end()) {
      to.early[part.key].assign(part.from, part.from + part.bytes);
      return;
    }
    ASSERT_FALSE(wanted->second.arrived);
    ASSERT_EQ(wanted->second.bytes, part.bytes) << "M1";
    if (part.bytes > 0) std::memcpy(wanted->second.at, part.from, part.bytes);
    wanted->second.arrived = true;
  }
  void fold(int rank, const MessageStep& step) {
    SimRank& r = ranks_[index(rank)];
    std::vector<const void*> sources;
    std::vector<std::byte*> read;
    if (step.prior != MessageStep::kNoPrior) {
      read.push_back(r.scratch.data() + step.prior);
      sources.push_back(read.back());
    }
    for (int i = 0; i < step.count; ++i) {
      const bool mine = step.first + i == rank;
      if (!mine) read.push_back(r.scratch.data() + step.offset + index(i) * step.stride);
      sources.push_back(mine ? r.in.data() + step.in_offset : read.back());
    }
    const auto op = d_.op == ReduceOp::Avg && step.goes_on ? ReduceOp::Sum : d_.op;
    reduce(d_.dtype, op, at(r, step.region, step.out_offset), sources.data(),
           static_cast<int>(sources.size()), step.bytes / size_of(d_.dtype), {shape_.members});
    // M3: whoever reads it again reads rubbish.
    for (std::byte* const place : read) std::memset(place, 0x7b, step.bytes);
  }

  [[nodiscard]] std::vector<std::byte> expected(int rank) const {
    if (d_.kind == OpKind::Broadcast) return inputs_[index(d_.root)];
    std::vector<std::byte> out;
    const std::size_t unit = size_of(d_.dtype);
    // Bytes in front of the share of `rank`, where an input has one for each.
    const auto offset = [&](int from) {
      std::size_t elements = 0;
      for (int q = 0; spi::scatters(d_.kind) && q < rank; ++q) elements += share(d_, from, q);
      return elements * unit;
    };
    const auto append = [&](int from) {
      const auto begin = inputs_[index(from)].begin() + static_cast<std::ptrdiff_t>(offset(from));
      out.insert(out.end(), begin,
                 begin + static_cast<std::ptrdiff_t>(share(d_, from, rank) * unit));
    };
    if (spi::gathers(d_.kind)) {
      for (int q = 0; q < shape_.members; ++q) append(q);
      return out;
    }
    if (!spi::reduces(d_.kind)) {
      append(d_.root);
      return out;
    }
    std::vector<const void*> sources;
    for (const auto& part : inputs_) sources.push_back(part.data() + offset(0));
    out.resize(share(d_, 0, rank) * unit);
    reduce(d_.dtype, d_.op, out.data(), sources.data(), shape_.members, out.size() / unit,
           {shape_.members});
    return out;
  }

  spi::OpDescriptor d_;
  MessageShape shape_;
  bool in_place_;
  std::mt19937_64 random_;
  std::vector<SimRank> ranks_;
  std::vector<Moving> moving_;
  std::vector<std::vector<std::byte>> inputs_;
};

TEST(MessageSchedule, EveryKindGivesTheFoldInSeatOrderForAnyNumberOfRanksAndSize) {
  std::uint64_t seed = 1;
  for (int members = 1; members <= 17; ++members) {
    const auto p = index(members);
    for (int kind = 0; kind < spi::kSingleKindCount; ++kind) {
      for (const std::size_t count :
           {std::size_t{0}, std::size_t{1}, p - 1, p + 1, std::size_t{100}, std::size_t{1031}}) {
        const spi::OpDescriptor d{.kind = static_cast<OpKind>(kind),
                                  .dtype = DType::F32,
                                  .root = static_cast<int>(count % p),
                                  .count = count};
        // Chunks of three sizes: one for all, several, and not a divisor.
        for (const std::size_t chunk : {std::size_t{65536}, std::size_t{192}, std::size_t{64}}) {
          if (chunk == 64 && members > 8) continue;  // a chunk a line: many steps, nothing new
          World world(d,
                      {.members = members,
                       .direct_bytes = 256,
                       .chunk_bytes = chunk,
                       .window = 1 + seed % 3},
                      seed % 2 == 0, seed);
          ++seed;
          ASSERT_NO_FATAL_FAILURE(world.run())
              << spi::describe(d) << ", " << members << " ranks, chunks of " << chunk;
          world.check();
          ASSERT_FALSE(testing::Test::HasFailure())
              << spi::describe(d) << ", " << members << " ranks, chunks of " << chunk;
        }
      }
    }
  }
}

/// Hosts of the members: `runs` of them, one behind the other, and the first one again at the end.
std::vector<int> some_hosts(int members, int runs, bool returns) {
  std::vector<int> hosts;
  for (int member = 0; member < members; ++member) hosts.push_back(member * runs / members * 3 % 7);
  if (returns) hosts.back() = hosts.front();
  return hosts;
}

TEST(MessageSchedule, RailsGiveTheFoldInSeatOrderWhereverTheMembersAre) {
  std::uint64_t seed = 1;
  for (int members = 2; members <= 17; ++members) {
    for (int runs = 2; runs <= std::min(members, 5); ++runs) {
      const auto hosts = some_hosts(members, runs, seed % 5 == 0);
      for (const std::size_t count : {std::size_t{1}, index(members) + 1, std::size_t{1031}}) {
        const spi::OpDescriptor d{.kind = OpKind::AllReduce,
                                  .dtype = DType::F32,
                                  .op = seed % 2 == 0 ? ReduceOp::Avg : ReduceOp::Sum,
                                  .count = count};
        for (const std::size_t chunk : {std::size_t{65536}, std::size_t{192}, std::size_t{64}}) {
          if (runs_of(hosts).size() < 2) continue;
          const MessageShape shape{.members = members,
                                   .chunk_bytes = chunk,
                                   .window = 1 + seed % 3,
                                   .hosts = hosts,
                                   .forced = Algorithm::Rails};
          ASSERT_EQ(choose(d, shape), Algorithm::Rails);
          World world(d, shape, seed % 2 == 0, seed);
          ++seed;
          ASSERT_NO_FATAL_FAILURE(world.run()) << members << " ranks in " << runs << " runs";
          world.check();
          ASSERT_FALSE(testing::Test::HasFailure())
              << spi::describe(d) << ", " << members << " ranks in " << runs << " runs, chunks of "
              << chunk << ", seed " << seed - 1;
        }
      }
    }
  }
}

/// Bytes that the ranks of each host send to other hosts.
std::map<int, std::size_t> crossing(const spi::OpDescriptor& d, MessageShape shape) {
  std::map<int, std::size_t> sent;
  for (shape.me = 0; shape.me < shape.members; ++shape.me) {
    MessagePlan plan;
    make_message_plan(d, shape, plan);
    const int here = shape.hosts[index(shape.me)];
    for (const MessageStep& step : plan.steps) {
      if (step.kind == MessageStepKind::Send && shape.hosts[index(step.member)] != here)
        sent[here] += step.bytes;
    }
  }
  return sent;
}

TEST(MessageSchedule, TheChoiceIsWhatSendsLessBetweenHosts) {
  const spi::OpDescriptor d{.kind = OpKind::AllReduce, .dtype = DType::F32, .count = 1 << 20};
  const std::size_t bytes = d.count * 4;
  const std::vector<int> two_by_two{0, 0, 1, 1}, mixed{0, 1, 0, 1}, alone{0, 1, 2, 3},
      four_by_two{0, 0, 1, 1, 2, 2, 3, 3};
  MessageShape shape{.members = 4, .hosts = two_by_two};
  EXPECT_EQ(choose(d, shape), Algorithm::Rails);
  for (const auto& [host, sent] : crossing(d, shape)) EXPECT_EQ(sent, bytes) << "the least";
  shape.hosts = mixed;
  EXPECT_EQ(choose(d, shape), Algorithm::TwoShot);
  shape.hosts = alone;
  EXPECT_EQ(choose(d, shape), Algorithm::TwoShot);
  shape.hosts = four_by_two;
  shape.members = 8;
  EXPECT_EQ(choose(d, shape), Algorithm::Rails);
  for (const auto& [host, sent] : crossing(d, shape)) EXPECT_LE(sent, 2 * bytes);
  // Where a message takes its time, fewer of them follow each other.
  shape.cost.latency_us = 1e6;
  EXPECT_EQ(choose(d, shape), Algorithm::TwoShot);
  shape.cost = {};
  shape.forced = Algorithm::TwoShot;
  EXPECT_EQ(choose(d, shape), Algorithm::TwoShot);
  shape.forced = Algorithm::Inline;  // cannot carry it
  EXPECT_EQ(choose(d, shape), Algorithm::Rails);
  // What is folded in a wider type cannot be passed on in its own.
  spi::OpDescriptor narrow = d;
  narrow.dtype = DType::BF16;
  EXPECT_EQ(choose(narrow, shape), Algorithm::TwoShot);
}

// A rank that finds a difference ends, and answers nobody who would ask for more of its counts.
TEST(MessageSchedule, CountsOfManyRanksAreNeverAskedFor) {
  constexpr int kMembers = 700;
  const std::vector<std::size_t> none(kMembers);
  MessagePlan plan;
  make_message_plan({.kind = OpKind::AllToAllV},
                    {.members = kMembers, .me = 1, .counts = {none.data(), none.data(), kMembers}},
                    plan);
  std::size_t sent_to_2 = 0;
  for (const MessageStep& step : plan.steps) {
    if (step.kind != MessageStepKind::Send) continue;
    EXPECT_LE(step.bytes, spi::kPostedBytesMax);
    if (step.member == 2) sent_to_2 += step.bytes;
  }
  EXPECT_EQ(sent_to_2, std::size_t{2} * 8 * kMembers);
}

TEST(MessageSchedule, LargeReductionsMoveTheVolumeOfARing) {
  constexpr int kMembers = 5;
  const spi::OpDescriptor d{.kind = OpKind::AllReduce, .dtype = DType::F32, .count = 1'000'000};
  for (int me = 0; me < kMembers; ++me) {
    MessagePlan plan;
    make_message_plan(d, {.members = kMembers, .me = me}, plan);
    std::size_t sent = 0;
    for (const MessageStep& step : plan.steps) {
      if (step.kind == MessageStepKind::Send) sent += step.bytes;
    }
    const std::size_t bytes = d.count * 4;
    EXPECT_NEAR(static_cast<double>(sent),
                2.0 * static_cast<double>(bytes) * (kMembers - 1) / kMembers, 4 * 64 * kMembers);
    EXPECT_LE(plan.scratch_bytes, std::size_t{2} * kMembers * (std::size_t{256} << 10));
  }
}

}  // namespace
}  // namespace regroup::collective
