/// Worlds whose ranks exchange messages; each rank is alone on its host.
#pragma once

#include "collective/message_runner.hpp"
#include "tests/conformance/harness.hpp"
#include "transports/loopback/message_net.hpp"
#ifdef REGROUP_TEST_UCX
#include "transports/ucx/ucx_port.hpp"
#endif

namespace regroup::conformance {

using collective::MessageHub;
using collective::MessageMembers;
using collective::MessageRunner;

/// Thread safety: any thread, once connect() was called.
class MessageWorld : public World {
 public:
  /// `options.slot_bytes` bounds the chunks, as it does over shared slots.
  MessageWorld(std::uint32_t members, spi::ArenaOptions options) {
    if (options.slot_bytes != 0) tuning_ = {.direct_bytes = 1024, .chunk_bytes = 16384};
    for (std::uint32_t rank = 0; rank < members; ++rank) {
      arenas_.push_back(
          loopback::Arena::create(Epoch(7), 3, members, {.slot_bytes = 4096, .ring_bytes = 64})
              .value());
      incarnations_.push_back(100 + rank);
      hosts_.push_back(static_cast<int>(rank / 2));  // as the choice between plans sees them
    }
  }
  [[nodiscard]] const spi::SharedSlots& slots(int rank) const override {
    return arenas_[static_cast<std::size_t>(rank)].slots();
  }
  [[nodiscard]] std::unique_ptr<GroupRunner> runner(int rank,
                                                    const RunnerOptions& options) override {
    const auto r = static_cast<std::size_t>(rank);
    return std::make_unique<MessageRunner>(slots(rank), rank, *hubs_[r],
                                           MessageMembers{channels_[r], incarnations_, hosts_},
                                           options, tuning_);
  }
  [[nodiscard]] std::vector<Host> hosts() const override {
    std::vector<Host> all;
    for (std::size_t rank = 0; rank < arenas_.size(); ++rank) {
      all.push_back({arenas_[rank].slots(), {static_cast<int>(rank)}});
    }
    return all;
  }
  void tell_lost(int rank) override {
    for (std::size_t other = 0; other < hubs_.size(); ++other) {
      if (static_cast<int>(other) == rank) continue;
      const auto held = hubs_[other]->lock();
      hubs_[other]->close(channels_[other][static_cast<std::size_t>(rank)]);
    }
  }
  [[nodiscard]] MessageHub& hub(int rank) { return *hubs_[static_cast<std::size_t>(rank)]; }

 protected:
  /// Once, with a port for each rank.
  void connect(std::vector<std::unique_ptr<spi::MessagePort>> ports) {
    std::vector<std::vector<std::byte>> addresses;
    for (const auto& port : ports) addresses.push_back(port->address());
    for (auto& port : ports) hubs_.push_back(std::make_unique<MessageHub>(std::move(port)));
    for (std::size_t rank = 0; rank < hubs_.size(); ++rank) {
      const auto held = hubs_[rank]->lock();
      channels_.emplace_back(hubs_.size(), -1);
      for (std::size_t other = 0; other < hubs_.size(); ++other) {
        if (other != rank) {
          channels_[rank][other] = hubs_[rank]->port().connect(addresses[other]).value();
        }
      }
    }
  }

  /// Everybody has transferred something to everybody, for which both ends have to know each other.
  void meet() {
    std::vector<Transfers> transfers(hubs_.size());
    for (std::size_t rank = 0; rank < hubs_.size(); ++rank) {
      const auto held = hubs_[rank]->lock();
      for (const int channel : channels_[rank]) {
        if (channel < 0) continue;
        ++transfers[rank].left;
        hubs_[rank]->send(channel, spi::MessageHeader{}, kTransferred, sizeof kTransferred,
                          transfers[rank], 0);
      }
    }
    const spi::Deadline until = Clock::now() + std::chrono::seconds(20);
    for (std::size_t rank = 0; rank < hubs_.size(); ++rank) {
      auto held = hubs_[rank]->lock();
      const auto all_ended = [&] { return transfers[rank].left == 0; };
      EXPECT_EQ(hubs_[rank]->wait(held, nullptr, until, all_ended, [] { return false; }),
                spi::WaitEnd::Ready);
      EXPECT_TRUE(transfers[rank].all_whole);
    }
  }

  /// With the lock of its hub held.
  void close_all(int rank) {
    const auto r = static_cast<std::size_t>(rank);
    for (const int channel : channels_[r]) {
      if (channel >= 0) hubs_[r]->close(channel);
    }
  }

 private:
  /// What a rank sends to others that want none of it.
  struct Transfers final : collective::MessageReceiver {
    void on_message(const spi::MessageHeader&, const std::byte*, std::size_t) override {}
    std::byte* place_for(const spi::MessageHeader&, std::size_t) override { return nullptr; }
    void on_placed(const spi::MessageHeader&, bool) override {}
    void on_sent(std::uint64_t /*purpose*/, bool whole) override {
      --left;
      all_whole = all_whole && whole;
    }
    int left = 0;
    bool all_whole = true;
  };
  static constexpr std::byte kTransferred[64] = {};

  std::vector<loopback::Arena> arenas_;
  std::vector<std::uint64_t> incarnations_;
  std::vector<int> hosts_;
  collective::MessageTuning tuning_;
  std::vector<std::vector<int>> channels_;  ///< of each rank, to each
  std::vector<std::unique_ptr<MessageHub>> hubs_;
};

class LoopbackMessageWorld : public MessageWorld {
 public:
  LoopbackMessageWorld(std::uint32_t members, spi::ArenaOptions options, bool overtaking = true)
      : MessageWorld(members, options),
        net_(static_cast<int>(members), {.seed = next_seed()++, .overtaking = overtaking}) {
    std::vector<std::unique_ptr<spi::MessagePort>> ports;
    for (std::uint32_t rank = 0; rank < members; ++rank) {
      ports.push_back(net_.port(static_cast<int>(rank)));
    }
    connect(std::move(ports));
  }
  void die(int rank) override { net_.kill(rank); }

 private:
  static std::uint64_t& next_seed() {
    static std::uint64_t seed = 1;
    return seed;
  }
  loopback::MessageNet net_;
};

/// Messages from one rank to another arrive in order.
class OrderedMessageWorld final : public LoopbackMessageWorld {
 public:
  OrderedMessageWorld(std::uint32_t members, spi::ArenaOptions options)
      : LoopbackMessageWorld(members, options, false) {}
};

#ifdef REGROUP_TEST_UCX
/// Over TCP on this host, whatever else it has.
class UcxMessageWorld final : public MessageWorld {
 public:
  UcxMessageWorld(std::uint32_t members, spi::ArenaOptions options)
      : MessageWorld(members, options) {
    ::setenv("UCX_TLS", "tcp", 0);  // NOLINT(concurrency-mt-unsafe)
    std::vector<std::unique_ptr<spi::MessagePort>> ports;
    for (std::uint32_t rank = 0; rank < members; ++rank) {
      ports.push_back(ucx::open_port().value());
    }
    connect(std::move(ports));
    // UCX 1.13 ends a process that hears twice, with different names for it, from a partner with
    // which it is still being connected: a partner that closes and lives on does that, and ranks
    // are threads here. So they are connected before any of them dies.
    meet();
  }
  /// On a thread of the rank that holds its hub's lock. What arrives later meets nobody.
  void die(int rank) override {
    close_all(rank);
    hub(rank).detach(slots(rank).epoch(), slots(rank).group());
  }
};
#endif

/// All transports, a line for each.
inline const Transport kAllTransports[] = {
    {"loopback", make_world<LoopbackWorld>},
    {"shm", make_world<ShmWorld>},
    {"messages", make_world<LoopbackMessageWorld>, 2, false},
#ifdef REGROUP_TEST_UCX
    {"ucx", make_world<UcxMessageWorld>, 10, false},
#endif
};

}  // namespace regroup::conformance
