// Point to point: matching by source and tag in order, streaming, limits, wedges.
#include <gtest/gtest.h>

#include <numeric>

#include "tests/conformance/message_worlds.hpp"

namespace regroup::conformance {
namespace {

class Messages : public testing::TestWithParam<Transport> {};
class SharedMessages : public testing::TestWithParam<Transport> {};

std::vector<std::int32_t> numbers(std::size_t count, int first) {
  std::vector<std::int32_t> values(count);
  std::iota(values.begin(), values.end(), first);
  return values;
}

Outcome send(GroupRunner& runner, const std::vector<std::int32_t>& values, int to,
             std::uint32_t tag) {
  return runner.send(values.data(), values.size(), DType::I32, to, tag, kNoDeadline);
}
Outcome recv(GroupRunner& runner, std::vector<std::int32_t>& values, int from, std::uint32_t tag) {
  return runner.recv(values.data(), values.size(), DType::I32, from, tag, kNoDeadline);
}

TEST_P(Messages, MatchBySourceAndTagInOrder) {
  const Watchdog watchdog;
  const auto world = GetParam().make(3, {});
  on_all_ranks(3, [&](int rank) {
    const auto runner = world->runner(rank, {.cores = cores()});
    if (rank != 0) {
      EXPECT_EQ(send(*runner, numbers(3, 10 * rank), 0, 7).kind, OutcomeKind::HandedOver);
      EXPECT_EQ(send(*runner, numbers(3, 10 * rank + 100), 0, 8).kind, OutcomeKind::HandedOver);
      EXPECT_EQ(send(*runner, numbers(3, 10 * rank + 200), 0, 7).kind, OutcomeKind::HandedOver);
      return;
    }
    std::vector<std::int32_t> got(3);
    for (const int source : {2, 1}) {
      EXPECT_EQ(recv(*runner, got, source, 8).kind, OutcomeKind::Done);
      EXPECT_EQ(got, numbers(3, 10 * source + 100));
      EXPECT_EQ(recv(*runner, got, source, 7).kind, OutcomeKind::Done);
      EXPECT_EQ(got, numbers(3, 10 * source));
      EXPECT_EQ(recv(*runner, got, source, 7).kind, OutcomeKind::Done);
      EXPECT_EQ(got, numbers(3, 10 * source + 200));
    }
  });
}

TEST_P(Messages, LargerThanTheRingBothWaysAtOnce) {
  const Watchdog watchdog;
  const auto world = GetParam().make(2, {.ring_bytes = 1024});
  on_all_ranks(2, [&](int rank) {
    const auto runner = world->runner(rank, {.cores = cores()});
    for (const std::size_t count :
         {std::size_t{0}, std::size_t{1}, std::size_t{255}, std::size_t{100003}}) {
      // Both send first: each takes in what the other sends while it waits for room.
      EXPECT_EQ(send(*runner, numbers(count, rank), 1 - rank, 1).kind, OutcomeKind::HandedOver);
      std::vector<std::int32_t> got(count);
      EXPECT_EQ(recv(*runner, got, 1 - rank, 1).kind, OutcomeKind::Done);
      EXPECT_EQ(got, numbers(count, 1 - rank));
    }
  });
}

TEST_P(Messages, AnotherCountOrTypeIsNamedAndTheNextMessageIsFine) {
  const Watchdog watchdog;
  const auto world = GetParam().make(2, {});
  const auto sender = world->runner(0, {});
  const auto receiver = world->runner(1, {});
  EXPECT_EQ(send(*sender, numbers(4, 0), 1, 3).kind, OutcomeKind::HandedOver);
  EXPECT_EQ(send(*sender, numbers(2, 5), 1, 3).kind, OutcomeKind::HandedOver);
  std::vector<std::int32_t> got(2);
  const Outcome wrong = recv(*receiver, got, 0, 3);
  EXPECT_EQ(wrong.kind, OutcomeKind::Mismatch);
  EXPECT_EQ(wrong.text, "tag 3: rank 0 sent 4 i32, rank 1 receives 2 i32");
  EXPECT_EQ(recv(*receiver, got, 0, 3).kind, OutcomeKind::Done);
  EXPECT_EQ(got, numbers(2, 5));
}

TEST_P(Messages, ADeadlineConsumesNothing) {
  const Watchdog watchdog;
  const auto world = GetParam().make(2, {.ring_bytes = 512});
  const auto values = numbers(1000, 3);
  std::vector<std::int32_t> got(1000);
  const auto receiver = world->runner(1, {});
  const auto soon = [] { return Clock::now() + std::chrono::milliseconds(10); };
  std::thread sender_thread([&] {
    const auto sender = world->runner(0, {});
    EXPECT_EQ(send(*sender, values, 1, 3).kind, OutcomeKind::HandedOver);
  });
  // Part of the message may arrive in any of these; none is lost.
  EXPECT_EQ(receiver->recv(got.data(), 1, DType::I32, 0, 4, soon()).kind, OutcomeKind::Expired);
  EXPECT_EQ(recv(*receiver, got, 0, 3).kind, OutcomeKind::Done);
  EXPECT_EQ(got, values);
  sender_thread.join();
}

TEST_P(Messages, AWedgeEndsWaitsButNotWhatHasArrived) {
  const Watchdog watchdog;
  const auto world = GetParam().make(2, {.ring_bytes = 512});
  const auto sender = world->runner(0, {});
  const auto receiver = world->runner(1, {});
  EXPECT_EQ(send(*sender, numbers(2, 5), 1, 3).kind, OutcomeKind::HandedOver);
  EXPECT_EQ(send(*sender, numbers(1, 9), 1, 9).kind, OutcomeKind::HandedOver);
  std::vector<std::int32_t> behind_it(1);
  EXPECT_EQ(recv(*receiver, behind_it, 0, 9).kind, OutcomeKind::Done);
  std::thread waiting([&] {
    EXPECT_EQ(send(*sender, numbers(10'000, 5), 1, 4).kind, OutcomeKind::Lost)
        << "nobody takes it in";
  });
  for (const Host& host : world->hosts()) {
    spi::wedge_all(host.slots);
    spi::wake_all(host.slots);
  }
  waiting.join();
  std::vector<std::int32_t> got(2);
  EXPECT_EQ(recv(*receiver, got, 0, 3).kind, OutcomeKind::Done);
  EXPECT_EQ(got, numbers(2, 5));
  std::vector<std::int32_t> rest(10'000);
  EXPECT_EQ(recv(*receiver, rest, 0, 4).kind, OutcomeKind::Lost);
}

/// Who sends a message with that tag; it is received into `values`.
int recv_any(GroupRunner& runner, std::vector<std::int32_t>& values, std::uint32_t tag) {
  int source = -1;
  EXPECT_EQ(runner.find_sender(tag, source, kNoDeadline).kind, OutcomeKind::Done);
  EXPECT_EQ(recv(runner, values, source, tag).kind, OutcomeKind::Done);
  return source;
}

TEST_P(Messages, FromWhoeverSendsBehindOtherTagsAndLargerThanTheRing) {
  const Watchdog watchdog;
  const auto world = GetParam().make(4, {.ring_bytes = 1024});
  constexpr std::size_t kCount = 50'021;
  on_all_ranks(4, [&](int rank) {
    const auto runner = world->runner(rank, {.cores = cores()});
    if (rank != 0) {
      EXPECT_EQ(send(*runner, numbers(3, rank), 0, 8).kind, OutcomeKind::HandedOver);
      EXPECT_EQ(send(*runner, numbers(kCount, rank), 0, 7).kind, OutcomeKind::HandedOver);
      EXPECT_EQ(send(*runner, numbers(kCount, 10 * rank), 0, 7).kind, OutcomeKind::HandedOver);
      return;
    }
    std::vector<int> heard(4);
    std::vector<std::int32_t> got(kCount);
    for (int i = 0; i < 6; ++i) {
      const int source = recv_any(*runner, got, 7);
      const bool second = heard[static_cast<std::size_t>(source)]++ != 0;
      EXPECT_EQ(got, numbers(kCount, second ? 10 * source : source)) << "from rank " << source;
    }
    EXPECT_EQ(heard, (std::vector<int>{0, 2, 2, 2}));
    std::vector<std::int32_t> before(3);
    for (const int source : {3, 1, 2}) {
      EXPECT_EQ(recv(*runner, before, source, 8).kind, OutcomeKind::Done);
      EXPECT_EQ(before, numbers(3, source));
    }
  });
}

TEST_P(Messages, WhoSendsMuchDoesNotKeepOthersWaiting) {
  const Watchdog watchdog;
  const auto world = GetParam().make(3, {});
  const auto receiver = world->runner(0, {});
  for (const int source : {1, 2}) {
    const auto sender = world->runner(source, {});
    for (int i = 0; i < 5; ++i)
      EXPECT_EQ(send(*sender, numbers(1, i), 0, 7).kind, OutcomeKind::HandedOver);
    EXPECT_EQ(send(*sender, numbers(1, 0), 0, 9).kind, OutcomeKind::HandedOver);
  }
  std::vector<std::int32_t> got(1);
  // All that was sent before has come.
  for (const int source : {1, 2})
    EXPECT_EQ(recv(*receiver, got, source, 9).kind, OutcomeKind::Done);
  int last = recv_any(*receiver, got, 7);
  for (int i = 1; i < 10; ++i) {
    const int next = recv_any(*receiver, got, 7);
    EXPECT_EQ(next, 3 - last);
    EXPECT_EQ(got[0], i / 2);
    last = next;
  }
}

TEST_P(Messages, NobodySendsUntilTheDeadlineOrTheEnd) {
  const Watchdog watchdog;
  const auto world = GetParam().make(3, {});
  const auto receiver = world->runner(0, {});
  const auto sender = world->runner(2, {});
  EXPECT_EQ(send(*sender, numbers(2, 5), 0, 3).kind, OutcomeKind::HandedOver);
  int source = -1;
  const Outcome late =
      receiver->find_sender(4, source, Clock::now() + std::chrono::milliseconds(10));
  EXPECT_EQ(late.kind, OutcomeKind::Expired);
  EXPECT_NE(late.text.find("from any rank with tag 4"), std::string::npos) << late.text;
  std::vector<std::int32_t> got(2);
  EXPECT_EQ(recv_any(*receiver, got, 3), 2);
  EXPECT_EQ(got, numbers(2, 5));
  std::thread waiting(
      [&] { EXPECT_EQ(receiver->find_sender(4, source, kNoDeadline).kind, OutcomeKind::Lost); });
  for (const Host& host : world->hosts()) {
    spi::wedge_all(host.slots);
    spi::wake_all(host.slots);
  }
  waiting.join();
}

TEST_P(SharedMessages, GarbageInARingIsNamed) {
  const Watchdog watchdog;
  const auto world = GetParam().make(2, {});
  const auto receiver = world->runner(1, {});
  world->slots(0).ring(0, 1).written = std::uint64_t{1} << 40;
  std::vector<std::int32_t> got(2);
  const Outcome outcome = recv(*receiver, got, 0, 3);
  EXPECT_EQ(outcome.kind, OutcomeKind::Damaged);
  EXPECT_NE(outcome.text.find("rank 0 claims to have written"), std::string::npos) << outcome.text;
  int source = -1;
  EXPECT_EQ(receiver->find_sender(3, source, kNoDeadline).kind, OutcomeKind::Damaged);
}

TEST_P(SharedMessages, ASenderBeyondWhatIsKeptIsNamedToWhoAsksAnybody) {
  const Watchdog watchdog;
  const auto world = GetParam().make(2, {});
  const auto receiver = world->runner(1, {});
  std::thread sending([&] {
    const auto sender = world->runner(0, {});
    // More than is kept for a receiver that asks for other tags: its sender waits with the rest.
    const std::vector<std::byte> large((std::size_t{64} << 20) + 1);
    EXPECT_EQ(sender->send(large.data(), large.size(), DType::U8, 1, 3, kNoDeadline).kind,
              OutcomeKind::HandedOver);
  });
  int source = -1;
  const Outcome outcome = receiver->find_sender(4, source, kNoDeadline);
  EXPECT_EQ(outcome.kind, OutcomeKind::Mismatch);
  EXPECT_NE(outcome.text.find("rank 0 sent more than this rank keeps"), std::string::npos)
      << outcome.text;
  // Whoever asks for it gets it, straight into its own memory.
  EXPECT_EQ(receiver->find_sender(3, source, kNoDeadline).kind, OutcomeKind::Done);
  std::vector<std::byte> all((std::size_t{64} << 20) + 1);
  EXPECT_EQ(receiver->recv(all.data(), all.size(), DType::U8, source, 3, kNoDeadline).kind,
            OutcomeKind::Done);
  sending.join();
}

INSTANTIATE_TEST_SUITE_P(All, Messages, testing::ValuesIn(kAllTransports), transport_name);
INSTANTIATE_TEST_SUITE_P(All, SharedMessages, testing::ValuesIn(kTransports), transport_name);

}  // namespace
}  // namespace regroup::conformance
