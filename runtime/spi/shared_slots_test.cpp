#include "spi/shared_slots.hpp"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <memory>
#include <thread>

#include "spi/arena_agent.hpp"
#include "spi/waiting.hpp"

namespace regroup::spi {
namespace {

/// Zeroed pages for one arena. Thread safety: none needed.
class Pages {
 public:
  explicit Pages(std::size_t bytes)
      : bytes_(bytes),
        base_(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {}
  ~Pages() { ::munmap(base_, bytes_); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  [[nodiscard]] void* base() const { return base_; }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_;
  void* base_;
};

TEST(Arena, StaysWithinSixteenMebibytesAtEightMembersAndWorksUpToTheLimit) {
  for (std::uint32_t members = 1; members <= kMembersMax; ++members) {
    const ArenaGeometry g = arena_geometry(members);
    EXPECT_GE(g.slot_bytes, 4096U);
    EXPECT_EQ(g.ring_bytes & (g.ring_bytes - 1), 0U);
    const std::size_t limit_mib = members <= 8 ? 16 : members <= 64 ? 20 : 40;
    EXPECT_LE(g.total_bytes, limit_mib << 20) << members;
  }
}

TEST(Arena, PartsLieWithinBoundsAndDoNotOverlap) {
  constexpr std::uint32_t kMembers = 5;
  const Pages pages(arena_bytes(kMembers));
  const SharedSlots slots =
      format_arena(pages.base(), pages.bytes(), Epoch(3), 1, kMembers).value();
  const auto* begin = static_cast<const std::byte*>(pages.base());
  const auto* last_block = reinterpret_cast<const std::byte*>(&slots.member(4) + 1);
  EXPECT_LE(last_block, slots.slot(0, 0));
  EXPECT_EQ(slots.slot(0, 0) + slots.slot_bytes(), slots.slot(0, 1));
  EXPECT_EQ(slots.slot(0, 1) + slots.slot_bytes(), slots.slot(1, 2));
  EXPECT_LE(slots.slot(4, 1) + slots.slot_bytes(), reinterpret_cast<std::byte*>(&slots.ring(0, 0)));
  EXPECT_LE(slots.ring_data(4, 4) + slots.ring_bytes(), begin + slots.total_bytes());
  EXPECT_EQ(slots.ring_data(1, 2) + slots.ring_bytes(),
            reinterpret_cast<std::byte*>(&slots.ring(1, 3)));
}

TEST(Arena, OpenNamesWhatIsWrong) {
  const Pages pages(arena_bytes(2));
  const auto open = [&](std::uint64_t epoch, std::size_t bytes) {
    return SharedSlots::open(pages.base(), bytes, Epoch(epoch), 1).error().to_string();
  };
  EXPECT_EQ(open(3, pages.bytes()), "InvalidArgument: arena: magic is 0x0");
  ASSERT_TRUE(format_arena(pages.base(), pages.bytes(), Epoch(3), 1, 2));
  EXPECT_EQ(open(3, pages.bytes()), "Ok");
  EXPECT_EQ(open(4, pages.bytes()),
            "InvalidArgument: arena: of epoch 3 group 1, expected epoch 4 group 1");
  EXPECT_NE(open(3, pages.bytes() - 4096).find("needs"), std::string::npos);
  auto& header = *static_cast<Header*>(pages.base());
  for (const std::uint32_t members : {0U, kMembersMax + 1, ~0U}) {
    header.members = members;
    EXPECT_NE(open(3, pages.bytes()), "Ok") << members;
  }
  header.members = 2;
  for (const std::uint64_t size : {std::uint64_t{0}, std::uint64_t{5000}, ~std::uint64_t{0}}) {
    header.slot_bytes = size;
    EXPECT_NE(open(3, pages.bytes()), "Ok") << size;
  }
}

TEST(ArenaAgent, ReportsTheHighestCompletedAndTheLowestPrepared) {
  const Pages pages(arena_bytes(3));
  const SharedSlots slots = format_arena(pages.base(), pages.bytes(), Epoch(3), 0, 3).value();
  for (int rank = 0; rank < 3; ++rank) {
    ASSERT_TRUE(try_advance(slots.group_word(rank), 10 + static_cast<std::uint64_t>(rank)));
    ASSERT_TRUE(try_advance(slots.step_word(rank), 5 - static_cast<std::uint64_t>(rank)));
  }
  wedge_all(slots);
  EXPECT_FALSE(try_advance(slots.group_word(1), 12));
  const int some[] = {0, 1};
  EXPECT_EQ(read_report(slots).completed, 12U);
  EXPECT_EQ(read_report(slots).prepared, 3U);
  EXPECT_EQ(read_report(slots, some).prepared, 4U);
  decide_all(slots, some, 12, 3);
  EXPECT_EQ(read_report(slots).completed, 12U) << "asked again, the same answer";
  EXPECT_EQ(read_report(slots).prepared, 3U);
  EXPECT_EQ(verdict(slots.group_word(0), 12), true);
  EXPECT_EQ(verdict(slots.step_word(1), 4), false);
  EXPECT_FALSE(verdict(slots.group_word(2), 1)) << "a lost member is told nothing";
}

TEST(ArenaAgent, SaysWhichWordsNobodyCanHaveWritten) {
  const Pages pages(arena_bytes(3));
  const SharedSlots slots = format_arena(pages.base(), pages.bytes(), Epoch(3), 0, 3).value();
  const auto prepared = [&](std::uint64_t a, std::uint64_t b, std::uint64_t c) {
    slots.step_word(0) = a;
    slots.step_word(1) = b;
    slots.step_word(2) = c;
    wedge_all(slots);
    return implausible(slots, 4).value_or("");
  };
  EXPECT_EQ(prepared(4, 4, 4), "");
  EXPECT_EQ(prepared(9, 8, 9), "");
  EXPECT_EQ(prepared(9, 7, 8), "rank 0 has prepared step 9, and another one only step 7");
  EXPECT_EQ(prepared(4, std::uint64_t{1} << 61, 4),
            "rank 1 has prepared step 2305843009213693952, and another one only step 4");
  EXPECT_EQ(prepared(5, 5, 3), "rank 2 has prepared step 3, and the epoch began after step 4");
  EXPECT_EQ(prepared(5, kDecidedBit | 5, 5),
            "a word of rank 1 is decided, and nothing has been decided");
  slots.group_word(2) = kDecidedBit;
  EXPECT_EQ(prepared(5, 5, 5), "a word of rank 2 is decided, and nothing has been decided");
}

TEST(Ledger, AnEntryThatWasOverwrittenIsGone) {
  const Pages pages(arena_bytes(2));
  const SharedSlots slots = format_arena(pages.base(), pages.bytes(), Epoch(3), 0, 2).value();
  LedgerEntry& entry = slots.ledger(1, 4);
  const OpDescriptor d{OpKind::Broadcast, DType::BF16, ReduceOp::Sum, 1, 77, 5};
  entry.meta = pack_meta(d);
  entry.count = d.count;
  entry.detail = d.detail;
  entry.sequence = 4;
  ASSERT_TRUE(read_ledger(slots, 1, 4));
  EXPECT_EQ(read_ledger(slots, 1, 4)->descriptor, d);
  EXPECT_FALSE(read_ledger(slots, 1, 4 + kLedgerEntries));
  EXPECT_FALSE(read_ledger(slots, 0, 4));
}

TEST(Ledger, AnyBitsAreADescriptor) {
  EXPECT_FALSE(
      describe(unpack_descriptor(~std::uint64_t{0}, ~std::uint64_t{0}, ~std::uint64_t{0})).empty());
}

TEST(Waiting, ASleeperIsWokenByTheStoreItWaitsForAndByAWedge) {
  const Pages pages(arena_bytes(2));
  const SharedSlots slots = format_arena(pages.base(), pages.bytes(), Epoch(3), 0, 2).value();
  const auto never = [] { return false; };
  WaitEnd first{};
  WaitEnd second{};
  std::thread sleeper([&] {
    Waiter waiter(slots, 0, 1, {});  // more members than cores: sleeps at once
    const auto published = [&] { return slots.line(1, 1).turn.load() == 1; };
    first = waiter.wait(1, &slots.group_word(0), kNoDeadline, published, never);
    second = waiter.wait(1, &slots.group_word(0), kNoDeadline, never, never);
  });
  const auto until_asleep = [&] {
    while (slots.header().sleepers.load() == 0) yield_cpu();
  };
  until_asleep();
  slots.line(1, 1).turn.store(1);
  ring_waiters(slots, 1);
  while (slots.header().sleepers.load() != 0) yield_cpu();
  until_asleep();
  wedge_all(slots);
  wake_all(slots);
  sleeper.join();
  EXPECT_EQ(first, WaitEnd::Ready);
  EXPECT_EQ(second, WaitEnd::Wedged);
  EXPECT_EQ(slots.header().sleepers.load(), 0U);
}

TEST(Waiting, PumpsWhileItWaitsAndEndsAtTheDeadline) {
  const Pages pages(arena_bytes(1));
  const SharedSlots slots = format_arena(pages.base(), pages.bytes(), Epoch(3), 0, 1).value();
  int pumped = 0;
  Waiter waiter(slots, 0, 4, {[](void* count) { ++*static_cast<int*>(count); }, &pumped});
  const auto never = [] { return false; };
  const TimePoint begin = Clock::now();
  EXPECT_EQ(waiter.wait(kAnyMember, nullptr, begin + std::chrono::milliseconds(40), never, never),
            WaitEnd::Expired);
  EXPECT_GE(Clock::now() - begin, std::chrono::milliseconds(40));
  EXPECT_GE(pumped, 2);
}

}  // namespace
}  // namespace regroup::spi
