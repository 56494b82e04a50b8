#include "state/planner.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <random>
#include <set>

namespace regroup::state {
namespace {

using testing::HasSubstr;

Layout layout_of(std::vector<std::uint64_t> sizes) {
  std::vector<Tensor> tensors;
  for (const std::uint64_t bytes : sizes)
    tensors.push_back({"t" + std::to_string(tensors.size()), bytes});
  return Layout::make(std::move(tensors)).value();
}

std::vector<Rank> seats(std::initializer_list<int> values) {
  std::vector<Rank> ranks;
  for (const int value : values) ranks.emplace_back(value);
  return ranks;
}

const std::vector<std::vector<std::uint64_t>> kSizes = {{},
                                                        {0},
                                                        {1},
                                                        {0, 1, 0},
                                                        {7919},
                                                        {65'536},
                                                        {65'537},
                                                        {1, 65'535, 1, 0, 130'000, 0},
                                                        {10'000'019},
                                                        {3, 300'000'007, 5},
                                                        {std::uint64_t{1} << 40, 1, 999'983}};

TEST(Layout, ChunksCoverEveryByteOfEveryTensorOnce) {
  for (const auto& sizes : kSizes) {
    const Layout layout = layout_of(sizes);
    std::vector<std::uint64_t> covered(sizes.size(), 0);
    std::uint64_t total = 0;
    for (std::uint64_t i = 0; i < layout.chunks(); ++i) {
      std::uint64_t bytes = 0;
      for (const Piece& piece : layout.pieces(Chunk(i))) {
        ASSERT_GT(piece.bytes, 0U);
        ASSERT_EQ(piece.offset, covered[piece.tensor]);  // in order, no gap, no overlap
        covered[piece.tensor] += piece.bytes;
        bytes += piece.bytes;
        const auto [first, last] = layout.chunks_of(piece.tensor);
        ASSERT_TRUE(first.value() <= i && i < last.value());
      }
      ASSERT_EQ(bytes, layout.range(Chunk(i)).bytes);
      ASSERT_EQ(layout.range(Chunk(i)).offset, total);
      total += bytes;
    }
    EXPECT_EQ(covered, sizes);
    EXPECT_EQ(total, layout.total_bytes());
  }
}

TEST(Layout, RefusesWhatCannotBe) {
  EXPECT_EQ(Layout::make({{"a", 1}, {"a", 1}}).error().code(), Code::InvalidArgument);
  EXPECT_EQ(Layout::make({{"a", ~std::uint64_t{0}}, {"b", 2}}).error().code(),
            Code::ResourceExhausted);
}

TEST(Layout, SignatureTellsLayoutsApart) {
  const Digest plain = Layout::make({{"ab", 8}, {"c", 8}}).value().signature();
  EXPECT_EQ(plain, Layout::make({{"ab", 8}, {"c", 8}}).value().signature());
  EXPECT_NE(plain, Layout::make({{"a", 8}, {"bc", 8}}).value().signature());
  EXPECT_NE(plain, Layout::make({{"c", 8}, {"ab", 8}}).value().signature());
  EXPECT_NE(plain, Layout::make({{"ab", 8}, {"c", 9}}).value().signature());
}

void expect_exact_and_balanced(const Layout& layout, const HealPlan& plan, std::size_t donors,
                               const std::vector<Newcomer>& newcomers) {
  std::map<Rank, std::uint64_t> chunks_of_donor;
  std::map<Rank, std::set<Chunk>> given;
  for (const Transfer& transfer : plan.transfers) {
    ++chunks_of_donor[transfer.donor];
    ASSERT_FALSE(transfer.receivers.empty());
    for (const Rank receiver : transfer.receivers)
      ASSERT_TRUE(given[receiver].insert(transfer.chunk).second);
  }
  for (const Newcomer& newcomer : newcomers) {
    for (std::uint64_t i = 0; i < layout.chunks(); ++i) {
      ASSERT_NE(given[newcomer.seat].contains(Chunk(i)), newcomer.have.has(Chunk(i)));
    }
  }
  const std::uint64_t fair = plan.transfers.size() / donors;
  for (const auto& [donor, chunks] : chunks_of_donor) {
    ASSERT_GE(chunks, fair);
    ASSERT_LE(chunks, fair + 1);
  }
  ASSERT_TRUE(fair == 0 || chunks_of_donor.size() == donors);
}

TEST(PlanHeal, EachMissingChunkComesOnceFromBalancedDonors) {
  std::mt19937_64 random(42);
  for (const auto& sizes : kSizes) {
    const Layout layout = layout_of(sizes);
    if (layout.chunks() > 3000) continue;
    for (int run = 0; run < 20; ++run) {
      std::vector<Rank> donors;
      for (int i = 0; i < 1 + run % 9; ++i) donors.emplace_back(2 * i);
      std::vector<Newcomer> newcomers;
      for (int i = 0; i < 1 + run % 3; ++i) {
        Newcomer newcomer{Rank(2 * i + 1), ChunkSet(layout.chunks())};
        for (std::uint64_t chunk = 0; chunk < layout.chunks(); ++chunk) {
          if (random() % 10 < static_cast<std::uint64_t>(run % 10))
            newcomer.have.insert(Chunk(chunk));
        }
        newcomers.push_back(std::move(newcomer));
      }
      const HealPlan plan = plan_heal(layout, donors, newcomers).value();
      expect_exact_and_balanced(layout, plan, donors.size(), newcomers);
      std::shuffle(donors.begin(), donors.end(), random);
      std::shuffle(newcomers.begin(), newcomers.end(), random);
      EXPECT_EQ(plan_heal(layout, donors, newcomers).value().transfers, plan.transfers)
          << "order must not matter";
    }
  }
}

TEST(PlanHeal, HugeStateIsPlannedToo) {
  const Layout layout = layout_of({std::uint64_t{1} << 40, 1, 999'983});
  const std::vector<Newcomer> newcomers{{Rank(1), ChunkSet(layout.chunks())}};
  const HealPlan plan = plan_heal(layout, seats({0, 2, 3}), newcomers).value();
  EXPECT_EQ(plan.transfers.size(), layout.chunks());
  EXPECT_EQ(
      plan.of_donor(Rank(0)).size() + plan.of_donor(Rank(2)).size() + plan.of_donor(Rank(3)).size(),
      layout.chunks());
  EXPECT_EQ(plan.of_newcomer(Rank(1)).size(), layout.chunks());
  EXPECT_TRUE(plan.of_newcomer(Rank(0)).empty());
}

TEST(PlanHeal, RefusalsSayWhy) {
  const Layout layout = layout_of({100});
  const Newcomer newcomer{Rank(1), ChunkSet(layout.chunks())};
  const Status nobody = plan_heal(layout, {}, {newcomer}).error();
  EXPECT_EQ(nobody.code(), Code::FailedPrecondition);
  EXPECT_THAT(std::string(nobody.text()), HasSubstr("nobody holds the state that rank 1 lacks"));
  EXPECT_EQ(plan_heal(layout, seats({1}), {newcomer}).error().code(), Code::InvalidArgument);
  EXPECT_EQ(plan_heal(layout, seats({0, 0}), {newcomer}).error().code(), Code::InvalidArgument);
  EXPECT_EQ(plan_heal(layout, seats({0}), {newcomer, newcomer}).error().code(),
            Code::InvalidArgument);
  EXPECT_EQ(plan_heal(layout, seats({0}), {{Rank(1), ChunkSet(7)}}).error().code(),
            Code::InvalidArgument);
  // Nothing to move needs nobody who holds it.
  EXPECT_TRUE(plan_heal(layout_of({}), {}, {{Rank(1), ChunkSet(0)}}).value().transfers.empty());
}

/// Donors send their part chunk by chunk; one may die with a chunk half sent, then everybody plans
/// anew.
class Exchange {
 public:
  Exchange(const Layout& layout, int donors, std::uint64_t seed)
      : layout_(layout), progress_(layout), random_(seed) {
    for (int i = 1; i <= donors; ++i) donors_.emplace_back(i);
  }
  void run_with_deaths() {
    while (!progress_.complete()) {
      const HealPlan plan = plan_heal(layout_, donors_, {{Rank(0), progress_.have()}}).value();
      // The others go on while the death becomes known: how far is chance.
      const bool somebody_dies = donors_.size() > 1;
      const std::size_t dies = random_() % donors_.size();
      for (std::size_t i = 0; i < donors_.size(); ++i) {
        const std::vector<Transfer> part = plan.of_donor(donors_[i]);
        const std::size_t sent = somebody_dies ? random_() % (part.size() + 1) : part.size();
        for (std::size_t k = 0; k < sent; ++k) {
          bytes_sent_ += layout_.range(part[k].chunk).bytes;
          ASSERT_TRUE(progress_.mark(part[k].chunk, donors_[i]).value());
        }
        if (somebody_dies && sent < part.size())
          bytes_sent_ += layout_.range(part[sent].chunk).bytes;  // in vain
      }
      if (somebody_dies) {
        donors_.erase(donors_.begin() + static_cast<std::ptrdiff_t>(dies));
        ++deaths_;
      }
    }
  }
  void expect_bounds() const {
    std::uint64_t counted = 0;
    for (const auto& [donor, bytes] : progress_.bytes_from()) counted += bytes;
    EXPECT_EQ(counted, layout_.total_bytes());
    EXPECT_EQ(progress_.duplicate_bytes(), 0U);
    // Each plan given up wastes at most the chunk that each donor had under way.
    EXPECT_LE(bytes_sent_, layout_.total_bytes() + in_vain_max());
  }
  [[nodiscard]] std::uint64_t in_vain_max() const {
    return 4 * (deaths_ + 1) * layout_.chunk_bytes();
  }
  [[nodiscard]] std::uint64_t resent() const { return bytes_sent_ - layout_.total_bytes(); }

 private:
  const Layout& layout_;
  HealProgress progress_;
  std::mt19937_64 random_;
  std::vector<Rank> donors_;
  std::uint64_t bytes_sent_ = 0;
  std::uint64_t deaths_ = 0;
};

TEST(Heal, AnySequenceOfDeathsEndsCompleteWithoutCopies) {
  for (const auto& sizes : kSizes) {
    const Layout layout = layout_of(sizes);
    if (layout.chunks() > 3000) continue;
    for (std::uint64_t seed = 0; seed < 50; ++seed) {
      Exchange exchange(layout, 1 + static_cast<int>(seed % 4), seed);
      exchange.run_with_deaths();
      exchange.expect_bounds();
    }
  }
}

TEST(Heal, OneDeathResendsLessThanATenth) {
  const Layout layout = layout_of({3, 300'000'007, 5});
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    Exchange exchange(layout, 2, seed);
    exchange.run_with_deaths();
    EXPECT_LE(exchange.resent() * 10, layout.total_bytes()) << "seed " << seed;
  }
}

TEST(HealProgress, CountsCopiesAndRefusesStrangers) {
  const Layout layout = layout_of({200'000});
  HealProgress progress(layout);
  EXPECT_EQ(progress.missing_ranges(), (std::vector<Range>{{0, 200'000}}));
  EXPECT_TRUE(progress.mark(Chunk(1), Rank(4)).value());
  EXPECT_FALSE(progress.mark(Chunk(1), Rank(5)).value());
  EXPECT_EQ(progress.duplicate_bytes(), kChunkBytesMin);
  EXPECT_EQ(progress.bytes_from(), (std::map<Rank, std::uint64_t>{{Rank(4), kChunkBytesMin}}));
  EXPECT_EQ(progress.missing_ranges(),
            (std::vector<Range>{{0, kChunkBytesMin},
                                {2 * kChunkBytesMin, 200'000 - 2 * kChunkBytesMin}}));
  EXPECT_EQ(progress.mark(Chunk(4), Rank(4)).error().code(), Code::InvalidArgument);
  EXPECT_EQ(HealProgress(layout, progress.have()).missing_bytes(), progress.missing_bytes());
}

TEST(HealProgress, OfAnEmptyStateIsComplete) {
  EXPECT_TRUE(HealProgress(layout_of({})).complete());
  EXPECT_TRUE(HealProgress(layout_of({0, 0})).complete());
}

class VerifyTest : public testing::Test {
 protected:
  VerifyTest() {
    for (std::size_t i = 0; i < 3; ++i) {
      std::vector<std::byte>& tensor = memory_[i];
      for (std::size_t k = 0; k < tensor.size(); ++k) tensor[k] = static_cast<std::byte>(k * 7 + i);
      expected_.push_back(digest(tensor));
      tensors_.emplace_back(tensor);
    }
  }
  void receive_all() {
    for (std::uint64_t i = 0; i < layout_.chunks(); ++i)
      (void)progress_.mark(Chunk(i), Rank(1)).value();
  }
  std::array<std::vector<std::byte>, 3> memory_{
      std::vector<std::byte>(100'000), std::vector<std::byte>(0), std::vector<std::byte>(150'000)};
  Layout layout_ = layout_of({100'000, 0, 150'000});
  HealProgress progress_{layout_};
  std::vector<Digest> expected_;
  std::vector<std::span<const std::byte>> tensors_;
};

TEST_F(VerifyTest, NeedsEverything) {
  EXPECT_EQ(progress_.verify(expected_, tensors_).code(), Code::FailedPrecondition);
  receive_all();
  EXPECT_TRUE(progress_.verify(expected_, tensors_));
  tensors_[0] = tensors_[0].first(10);
  EXPECT_EQ(progress_.verify(expected_, tensors_).code(), Code::InvalidArgument);
  tensors_.pop_back();
  EXPECT_EQ(progress_.verify(expected_, tensors_).code(), Code::InvalidArgument);
}

TEST_F(VerifyTest, OneWrongBitIsFoundNamedAndFetchedAgain) {
  receive_all();
  memory_[2][77'777] ^= std::byte{1};
  const Status status = progress_.verify(expected_, tensors_);
  EXPECT_EQ(status.code(), Code::Internal);
  EXPECT_THAT(std::string(status.text()), HasSubstr("\"t2\""));
  EXPECT_THAT(std::string(status.text()), testing::Not(HasSubstr("\"t0\"")));
  const auto [first, last] = layout_.chunks_of(2);
  EXPECT_EQ(layout_.chunks() - progress_.have().size(), last.value() - first.value());
  memory_[2][77'777] ^= std::byte{1};
  const HealPlan plan = plan_heal(layout_, seats({1}), {{Rank(0), progress_.have()}}).value();
  for (const Transfer& transfer : plan.transfers)
    EXPECT_TRUE(progress_.mark(transfer.chunk, Rank(1)).value());
  EXPECT_TRUE(progress_.verify(expected_, tensors_));
}

TEST(ChunkSet, TravelsAsWords) {
  ChunkSet set(70);
  set.insert(Chunk(0));
  set.insert(Chunk(69));
  EXPECT_EQ(ChunkSet::from_words(70, set.words()).value(), set);
  EXPECT_EQ(set.size(), 2U);
  EXPECT_EQ(ChunkSet::from_words(69, set.words()).error().code(), Code::InvalidArgument);
  EXPECT_EQ(ChunkSet::from_words(200, set.words()).error().code(), Code::InvalidArgument);
}

TEST(DigestDonor, IsDealtInTurn) {
  const std::vector<Rank> donors = seats({1, 4});
  EXPECT_EQ(digest_donor(0, donors), Rank(1));
  EXPECT_EQ(digest_donor(3, donors), Rank(4));
}

TEST(Digest, MatchesThePublishedAlgorithm) {
  // What xxhsum -H2 prints for an empty file.
  EXPECT_EQ(to_string(digest({})), "99aa06d3014798d86001c324468d497f");
}

TEST(Digest, PiecesEqualTheWhole) {
  std::mt19937_64 random(5);
  std::vector<std::byte> bytes(100'003);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  Digester digester;
  std::span<const std::byte> left(bytes);
  while (!left.empty()) {
    const std::size_t take = std::min<std::size_t>(left.size(), random() % 5000);
    digester.update(left.first(take));
    left = left.subspan(take);
  }
  EXPECT_EQ(digester.digest(), digest(bytes));
  bytes[50'000] ^= std::byte{0x80};
  EXPECT_NE(digester.digest(), digest(bytes));
}

}  // namespace
}  // namespace regroup::state
