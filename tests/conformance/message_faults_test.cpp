// What only messages can do: come from another epoch or another life, come early, or not get
// through.
#include <gtest/gtest.h>

#include "tests/conformance/message_worlds.hpp"

namespace regroup::conformance {
namespace {

/// A port that sends headers as nobody's runner would.
class Forger {
 public:
  Forger() : hub_(net_.port(0)), port_(net_.port(1)) {
    port_->deliver_to(sink_);
    channel_ = port_->connect(loopback::MessageNet::address(0)).value();
  }
  MessageHub& hub() { return hub_; }
  void post(const spi::MessageHeader& header) { port_->post(channel_, header, nullptr, 0); }
  [[nodiscard]] int connect() {
    const auto held = hub_.lock();
    return hub_.port().connect(loopback::MessageNet::address(1)).value();
  }

 private:
  class Sink final : public spi::MessageSink {
    void on_message(const spi::MessageHeader&, const std::byte*, std::size_t) override {}
    std::byte* place_for(const spi::MessageHeader&, std::size_t) override { return nullptr; }
    void on_placed(const spi::MessageHeader&, const std::byte*, bool) override {}
    void on_sent(std::uint64_t, bool) override {}
    void on_broken(int, const std::string&) override {}
  };
  loopback::MessageNet net_{2, {.delay_max = 0}};
  MessageHub hub_;
  Sink sink_;
  std::unique_ptr<spi::MessagePort> port_;
  int channel_ = -1;
};

OpSpec barrier() { return {.kind = OpKind::Barrier}; }

TEST(MessageFaults, OfAnotherEpochOrAnotherLifeNothingCounts) {
  const Watchdog watchdog;
  Forger forger;
  const auto arena = loopback::Arena::create(Epoch(5), 0, 2, {.slot_bytes = 4096}).value();
  {
    const auto held = forger.hub().lock();
    forger.hub().begin_epoch(Epoch(5));
  }
  MessageRunner runner(arena.slots(), 0, forger.hub(), {{-1, forger.connect()}, {70, 71}}, {});
  const auto soon = [] { return Clock::now() + std::chrono::milliseconds(30); };
  // All that a barrier needs, from the life before, in the epoch before, and of another group.
  const spi::MessageHeader good{.epoch = 5, .incarnation = 71, .sequence = 1, .source = 1};
  spi::MessageHeader other_life = good;
  other_life.incarnation = 70;
  spi::MessageHeader other_epoch = good;
  other_epoch.epoch = 4;
  spi::MessageHeader nobody = good;
  nobody.source = 9;
  for (spi::MessageHeader header : {other_life, other_epoch, nobody}) {
    for (const auto kind : {spi::MessageKind::Data, spi::MessageKind::Holds}) {
      header.kind = kind;
      forger.post(header);
    }
  }
  EXPECT_EQ(runner.run(barrier(), soon()).kind, OutcomeKind::Expired);
  const auto held = forger.hub().lock();
  EXPECT_EQ(forger.hub().counters().stale, 6U);
}

TEST(MessageFaults, WhatComesBeforeTheGroupIsHeldForIt) {
  const Watchdog watchdog;
  LoopbackMessageWorld world(2, {});
  const auto early = world.runner(0, {});
  const std::int32_t sent = 4711;
  EXPECT_EQ(early->send(&sent, 1, DType::I32, 1, 3, kNoDeadline).kind, OutcomeKind::HandedOver);
  std::thread caller([&] { EXPECT_TRUE(early->run(barrier(), kNoDeadline).ok()); });
  // Until the other one's hub has something, for which no group is there yet.
  const auto has_some = [&] {
    const auto held = world.hub(1).lock();
    return world.hub(1).held() > 0;
  };
  while (!has_some()) std::this_thread::yield();
  const auto late = world.runner(1, {});
  std::int32_t got = 0;
  EXPECT_EQ(late->recv(&got, 1, DType::I32, 0, 3, kNoDeadline).kind, OutcomeKind::Done);
  EXPECT_EQ(got, sent);
  EXPECT_TRUE(late->run(barrier(), kNoDeadline).ok());
  caller.join();
}

TEST(MessageFaults, AMemberThatLivesAndIsNotReachedEndsTheEpoch) {
  const Watchdog watchdog;
  LoopbackMessageWorld world(2, {});
  const auto runner = world.runner(0, {});
  world.tell_lost(1);  // closes the channel; nobody decides anything
  const Outcome outcome = runner->run(barrier(), kNoDeadline);
  EXPECT_EQ(outcome.kind, OutcomeKind::Damaged);
  EXPECT_NE(outcome.text.find("does not reach rank 1"), std::string::npos) << outcome.text;
  EXPECT_TRUE(spi::read(world.slots(0).group_word(0)).wedged);
  end_epoch(world, std::nullopt);
  EXPECT_EQ(runner->settle(kNoDeadline).kind, OutcomeKind::Lost);
}

// A stopped member takes in nothing: large parts are not sent before it asks for them, small ones
// not without limit.
TEST(MessageFaults, ASenderWaitsForAReceiverThatIsFarBehind) {
  const Watchdog watchdog;
  LoopbackMessageWorld world(2, {});
  const auto root = world.runner(0, {});
  const auto leaf = world.runner(1, {});
  std::vector<float> data(4, 2.0F);
  const auto send_some = [&](int count) {
    Outcome last;
    for (int i = 0; i < count && last.ok(); ++i) {
      last =
          root->run({.kind = OpKind::Broadcast, .dtype = DType::F32, .count = 4, .in = data.data()},
                    Clock::now() + std::chrono::milliseconds(50));
    }
    return last;
  };
  EXPECT_EQ(send_some(1000).kind, OutcomeKind::Expired);
  EXPECT_LT(root->sequence(), 100U);
}

}  // namespace
}  // namespace regroup::conformance
