// Plans over messages without messages: all ranks are simulated in one loop, in random order.
#include "collective/schedule_messages.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <random>
#include <vector>

#include "collective/kernels.hpp"
#include "collective/message_choice.hpp"
#include "collective/message_spread.hpp"
#include "collective/partial_sums.hpp"
#include "spi/message_port.hpp"

namespace regroup::collective {
namespace {

std::size_t index(int member) { return static_cast<std::size_t>(member); }

constexpr double kFactor = 0.3;

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
  bool output_named = false;
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
        ASSERT_FALSE(r.output_named && !step.from_scratch) << "M5";
        std::memcpy(
            at(r, step.region, step.out_offset),
            step.from_scratch ? r.scratch.data() + step.offset : r.in.data() + step.in_offset,
            step.bytes);
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
    r.output_named = r.output_named || step.region == Region::Output;
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
    const bool onto_sum = step.prior != MessageStep::kNone;
    if (onto_sum) {
      read.push_back(r.scratch.data() + step.prior);
      sources.push_back(read.back());
    }
    for (int i = 0; i < step.count; ++i) {
      const bool mine = step.first + i == rank;
      const std::size_t piece = step.places == MessageStep::kNone
                                    ? step.offset + index(i) * step.stride
                                    : r.plan.places.at(step.places + index(i));
      if (!mine) read.push_back(r.scratch.data() + piece);
      sources.push_back(mine ? r.in.data() + step.in_offset : read.back());
    }
    fold_part(d_.dtype, d_.op, at(r, step.region, step.out_offset), sources.data(),
              static_cast<int>(sources.size()), step.bytes / size_of(d_.dtype),
              {shape_.members, kFactor}, {.onto_sum = onto_sum, .goes_on = step.goes_on});
    // M3: whoever reads it again reads rubbish. What still leaves from there is no such reader.
    for (std::byte* const place : read) {
      if (std::ranges::none_of(moving_, [&](const Moving& part) {
            return part.from <= place && place < part.from + part.bytes;
          }))
        std::memset(place, 0x7b, step.bytes);
    }
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
           {shape_.members, kFactor});
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
                                  .dtype = seed % 3 == 0   ? DType::F16
                                           : seed % 3 == 1 ? DType::F8E5M2
                                                           : DType::F32,
                                  .op = seed % 2 == 0 ? ReduceOp::Avg : ReduceOp::PremulSum,
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

/// Everybody's kinds and types under one algorithm, in place and apart, in chunks of several sizes.
void run_all(Algorithm algorithm) {
  std::uint64_t seed = 1 + 1000 * static_cast<std::uint64_t>(algorithm);
  int carried = 0;
  for (int members = 1; members <= 17; ++members) {
    const auto p = index(members);
    for (int kind = 0; kind < spi::kSingleKindCount; ++kind) {
      for (const std::size_t count :
           {std::size_t{0}, std::size_t{1}, p - 1, p, p + 1, std::size_t{127}, std::size_t{1031}}) {
        const bool narrow = seed % 3 == 0;
        spi::OpDescriptor d{.kind = static_cast<OpKind>(kind),
                            .dtype = narrow ? DType::BF16 : DType::F32,
                            .op = seed % 5 == 0   ? ReduceOp::Avg
                                  : seed % 5 == 1 ? ReduceOp::PremulSum
                                                  : ReduceOp::Sum,
                            .root = static_cast<int>(seed % p),
                            .count = count};
        MessageShape shape{.members = members,
                           .chunk_bytes = (members > 8 ? std::size_t{256} : 64) << (seed % 4 * 2),
                           .window = 1 + seed % 3,
                           .forced = algorithm};
        // Sums to a root go in chunks that are asked for.
        if (d.kind == OpKind::Reduce) {
          shape.chunk_bytes = 9216;
          d.count *= 7;
        }
        const bool large = count > 1000 && d.kind != OpKind::Reduce;
        if (!can_carry(algorithm, d, shape) || (large && seed % 4 != 0)) {
          ++seed;
          continue;
        }
        ++carried;
        ASSERT_EQ(choose(d, shape), algorithm);
        World world(d, shape, seed % 2 == 0, seed);
        ++seed;
        ASSERT_NO_FATAL_FAILURE(world.run())
            << spi::describe(d) << ", " << members << " ranks, chunks of " << shape.chunk_bytes;
        world.check();
        ASSERT_FALSE(testing::Test::HasFailure())
            << spi::describe(d) << ", " << members << " ranks, chunks of " << shape.chunk_bytes
            << ", window " << shape.window;
      }
    }
  }
  EXPECT_GT(carried, 100);
}

TEST(MessageSchedule, DoublingGivesTheFoldInSeatOrder) { run_all(Algorithm::Doubling); }
TEST(MessageSchedule, HalvingGivesTheFoldInSeatOrder) { run_all(Algorithm::Halving); }
TEST(MessageSchedule, ARingGivesTheFoldInSeatOrder) { run_all(Algorithm::Ring); }
TEST(MessageSchedule, TwoTreesGiveTheFoldInSeatOrder) { run_all(Algorithm::Tree); }

// Many more chunks than ranks: results come back while sums are still on their way.
TEST(MessageSchedule, ManyChunksGoThroughAChainAndNobodyWaitsForEver) {
  for (const Algorithm algorithm : {Algorithm::Ring, Algorithm::Tree, Algorithm::Rails}) {
    for (const int members : {3, 10, 17}) {
      std::vector<int> hosts(index(members));
      for (std::size_t i = 0; i < hosts.size(); ++i) hosts[i] = static_cast<int>(i / 2);
      for (std::size_t window = 1; window <= 3; ++window) {
        const spi::OpDescriptor d{.kind = OpKind::AllReduce, .dtype = DType::BF16, .count = 5003};
        World world(d,
                    {.members = members,
                     .chunk_bytes = 64,
                     .window = window,
                     .hosts = hosts,
                     .forced = algorithm},
                    false, index(members) + window);
        ASSERT_NO_FATAL_FAILURE(world.run()) << name(algorithm) << ", " << members << " ranks";
        world.check();
      }
    }
  }
}

TEST(MessageSchedule, InTwoTreesNobodyPassesOnMoreThanItGets) {
  for (int members = 2; members <= 40; ++members) {
    for (const int root : {0, members / 2, members - 1}) {
      const Spread spread(Spread::Form::Trees, members, root);
      int levels = 1;
      while (1 << levels < members) ++levels;
      for (int member = 0; member < members; ++member) {
        int passes = 0;
        for (std::size_t piece = 0; piece < 2; ++piece) {
          for (const int to : spread.to(member, piece)) {
            if (to < 0) continue;
            ++passes;
            EXPECT_EQ(spread.from(to, piece), member);
          }
        }
        EXPECT_LE(passes, 2) << member << " of " << members;
        EXPECT_LE(spread.depth(member), levels + 1) << member << " of " << members;
        EXPECT_EQ(spread.from(member, 0) < 0, member == root);
      }
    }
  }
}

/// What one rank sends.
std::pair<std::size_t, int> sent_by(const spi::OpDescriptor& d, const MessageShape& shape) {
  MessagePlan plan;
  make_message_plan(d, shape, plan);
  std::pair<std::size_t, int> sent{0, 0};
  for (const MessageStep& step : plan.steps) {
    if (step.kind != MessageStepKind::Send) continue;
    sent.first += step.bytes;
    ++sent.second;
  }
  return sent;
}

TEST(MessageSchedule, EachAlgorithmSendsWhatItIsChosenFor) {
  constexpr int kMembers = 16;
  const spi::OpDescriptor small{.kind = OpKind::AllReduce, .dtype = DType::F32, .count = 16};
  const spi::OpDescriptor large{.kind = OpKind::AllReduce, .dtype = DType::F32, .count = 1 << 20};
  const spi::OpDescriptor root{.kind = OpKind::Broadcast, .dtype = DType::F32, .count = 1 << 20};
  const std::size_t bytes = std::size_t{4} << 20;
  for (int me = 0; me < kMembers; ++me) {
    MessageShape shape{.members = kMembers, .me = me, .forced = Algorithm::Doubling};
    EXPECT_EQ(sent_by(small, shape).second, 4) << "log2 of 16 messages";
    shape.forced = Algorithm::OneShot;
    EXPECT_EQ(sent_by(small, shape).second, 15);
    shape.forced = Algorithm::Halving;
    // 4 messages with half of it each, then what all folded.
    EXPECT_LE(sent_by(large, shape).first, 2 * bytes + bytes * 15 / 16);
    for (const Algorithm algorithm : {Algorithm::Ring, Algorithm::Tree}) {
      shape.forced = algorithm;
      EXPECT_LE(sent_by(large, shape).first, 2 * bytes) << name(algorithm);
      EXPECT_LE(sent_by(root, shape).first, bytes) << name(algorithm);
    }
  }
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
