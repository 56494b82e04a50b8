/// What the conformance tests share: arenas of each transport, ranks as threads, an agent, a
/// watchdog, an oracle.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "collective/kernels.hpp"
#include "collective/runner.hpp"
#include "spi/arena_agent.hpp"
#include "transports/loopback/loopback.hpp"
#include "transports/shm/arena.hpp"

namespace regroup::conformance {

using collective::Algorithm;
using collective::GroupRunner;
using collective::kNoDeadline;
using collective::OpSpec;
using collective::Outcome;
using collective::OutcomeKind;
using collective::RunnerOptions;
using collective::SlotRunner;
using spi::OpKind;

/// Ends the test program when a test hangs. Thread safety: made and destroyed by one thread.
class Watchdog {
 public:
  explicit Watchdog(std::chrono::seconds limit = std::chrono::seconds(60))
      : thread_([this, limit] {
          std::unique_lock lock(mutex_);
          if (!over_.wait_for(lock, limit, [this] { return done_; })) {
            std::fprintf(stderr, "watchdog: the test hangs\n");
            std::abort();
          }
        }) {}
  ~Watchdog() {
    {
      const std::lock_guard lock(mutex_);
      done_ = true;
    }
    over_.notify_all();
    thread_.join();
  }
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  std::mutex mutex_;
  std::condition_variable over_;
  bool done_ = false;
  std::thread thread_;
};

/// Ranks whose words lie in one arena, with an agent of their own.
struct Host {
  spi::SharedSlots slots;
  std::vector<int> ranks;
};

/// A group as each of its ranks sees it. Thread safety: any thread, once made.
class World {
 public:
  World() = default;
  World(const World&) = delete;
  World& operator=(const World&) = delete;
  virtual ~World() = default;
  /// Where the rank's words lie.
  [[nodiscard]] virtual const spi::SharedSlots& slots(int rank) const = 0;
  [[nodiscard]] virtual std::unique_ptr<GroupRunner> runner(int rank,
                                                            const RunnerOptions& options) {
    return std::make_unique<SlotRunner>(slots(rank), rank, options);
  }
  [[nodiscard]] virtual std::vector<Host> hosts() const {
    Host all{slots(0), {}};
    for (int rank = 0; rank < all.slots.members(); ++rank) all.ranks.push_back(rank);
    return {all};
  }
  /// The rank dies at this instant, on the thread that calls.
  virtual void die(int /*rank*/) {}
  /// The survivors are told that it is dead.
  virtual void tell_lost(int /*rank*/) {}
};

/// What the agents of all hosts do when an epoch ends: wedge, report, agree, decide. `lost_host`:
/// the words of the lost rank are gone with its host.
inline void end_epoch(const World& world, std::optional<int> lost, bool lost_host = false) {
  std::vector<Host> hosts = world.hosts();
  std::uint64_t cut = 0;
  std::uint64_t prepared = ~std::uint64_t{0};
  for (const Host& host : hosts) {
    if (lost_host && hosts.size() > 1 && host.ranks == std::vector<int>{*lost}) continue;
    spi::wedge_all(host.slots);
    spi::wake_all(host.slots);
    const spi::ArenaReport report = spi::read_report(host.slots, host.ranks);
    cut = std::max(cut, report.completed);
    prepared = std::min(prepared, report.prepared);
  }
  for (const Host& host : hosts) {
    std::vector<int> survivors;
    for (const int rank : host.ranks) {
      if (rank != lost) survivors.push_back(rank);
    }
    spi::decide_all(host.slots, survivors, cut, prepared);
    spi::wake_all(host.slots);
  }
}

class LoopbackWorld final : public World {
 public:
  LoopbackWorld(std::uint32_t members, spi::ArenaOptions options)
      : arena_(loopback::Arena::create(Epoch(7), 3, members, options).value()) {}
  [[nodiscard]] const spi::SharedSlots& slots(int /*rank*/) const override {
    return arena_.slots();
  }

 private:
  loopback::Arena arena_;
};

/// Each rank has a mapping of its own, at an address of its own.
class ShmWorld final : public World {
 public:
  ShmWorld(std::uint32_t members, spi::ArenaOptions options)
      : made_(shm::make_arena(Epoch(7), 3, members, options).value()) {
    for (std::uint32_t rank = 0; rank < members; ++rank) {
      mapped_.push_back(shm::open_arena(made_.fd.get(), Epoch(7), 3).value());
    }
  }
  [[nodiscard]] const spi::SharedSlots& slots(int rank) const override {
    return mapped_[static_cast<std::size_t>(rank)].slots;
  }

 private:
  shm::Arena made_;
  std::vector<shm::Arena> mapped_;
};

struct Transport {
  const char* name;
  std::unique_ptr<World> (*make)(std::uint32_t members, spi::ArenaOptions options);
  /// Cases take longer than over shared slots: one random case in so many is tried.
  std::uint64_t one_in = 1;
  bool has_slots = true;
};
template <class W>
std::unique_ptr<World> make_world(std::uint32_t members, spi::ArenaOptions options) {
  return std::make_unique<W>(members, options);
}
/// Those that share memory, a line for each.
inline const Transport kTransports[] = {
    {"loopback", make_world<LoopbackWorld>},
    {"shm", make_world<ShmWorld>},
};
inline std::string transport_name(const testing::TestParamInfo<Transport>& info) {
  return info.param.name;
}

inline int cores() { return static_cast<int>(std::max(1U, std::thread::hardware_concurrency())); }

/// Runs body(rank) on a thread each and waits for all.
inline void on_all_ranks(int members, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  threads.reserve(static_cast<std::size_t>(members));
  for (int rank = 0; rank < members; ++rank) threads.emplace_back(body, rank);
  for (std::thread& thread : threads) thread.join();
}

/// Bytes that are plain numbers in every element type: small, so that no sum of a few overflows.
inline std::vector<std::byte> input_of(int rank, std::uint64_t salt, DType dtype,
                                       std::size_t count) {
  std::vector<std::byte> bytes(count * size_of(dtype));
  std::mt19937_64 random(salt * 1000003 + static_cast<std::uint64_t>(rank));
  for (std::size_t i = 0; i < count; ++i) {
    const auto value = static_cast<std::int64_t>(random() % 17) - (dtype == DType::U8 ? 0 : 8);
    std::byte* at = bytes.data() + i * size_of(dtype);
    const auto fraction = static_cast<double>(value) * 0.37;
    const auto f32 = static_cast<float>(fraction);
    switch (dtype) {
      case DType::F64: std::memcpy(at, &fraction, 8); break;
      case DType::F32: std::memcpy(at, &f32, 4); break;
      case DType::BF16: {
        std::uint32_t raw = 0;
        std::memcpy(&raw, &f32, 4);
        const auto high = static_cast<std::uint16_t>(raw >> 16);
        std::memcpy(at, &high, 2);
        break;
      }
      case DType::F16: {
        // Sign and small exponent with random fraction: a normal number between 0.5 and 2.
        const auto half =
            static_cast<std::uint16_t>((random() & 0x83ff) | (random() % 2 ? 0x3800 : 0x3c00));
        std::memcpy(at, &half, 2);
        break;
      }
      case DType::I32: {
        const auto i32 = static_cast<std::int32_t>(value);
        std::memcpy(at, &i32, 4);
        break;
      }
      case DType::I64: std::memcpy(at, &value, 8); break;
      case DType::U8: {
        const auto u8 = static_cast<std::uint8_t>(value);
        std::memcpy(at, &u8, 1);
        break;
      }
    }
  }
  return bytes;
}

/// Everybody's input to one operation, and what each rank must get.
struct Case {
  OpSpec spec;  ///< buffers unset
  int members = 1;
  std::uint64_t salt = 0;

  [[nodiscard]] spi::OpDescriptor descriptor() const {
    return {spec.kind, spec.dtype, spec.op, spec.root, spec.count};
  }
  [[nodiscard]] collective::OpExtent extent(int rank) const {
    return collective::extent_of(descriptor(), members, rank);
  }
  [[nodiscard]] std::vector<std::byte> input(int rank) const {
    const bool scatter = spec.kind == OpKind::ReduceScatter;
    const std::size_t count = spec.count * (scatter ? static_cast<std::size_t>(members) : 1);
    return input_of(rank, salt, spec.dtype, spec.kind == OpKind::Barrier ? 0 : count);
  }
  [[nodiscard]] std::vector<std::byte> expected(int rank) const {
    if (extent(rank).out_bytes == 0) return {};
    std::vector<std::vector<std::byte>> inputs;
    for (int q = 0; q < members; ++q) inputs.push_back(input(q));
    if (spec.kind == OpKind::Broadcast) return inputs[static_cast<std::size_t>(spec.root)];
    std::vector<std::byte> out;
    if (spec.kind == OpKind::AllGather) {
      for (const auto& part : inputs) out.insert(out.end(), part.begin(), part.end());
      return out;
    }
    const std::size_t offset = spec.kind == OpKind::ReduceScatter
                                   ? static_cast<std::size_t>(rank) * extent(rank).out_bytes
                                   : 0;
    std::vector<const void*> sources;
    for (const auto& part : inputs) sources.push_back(part.data() + offset);
    out.resize(extent(rank).out_bytes);
    collective::reduce(spec.dtype, spec.op, out.data(), sources.data(), members, spec.count,
                       members);
    return out;
  }
};

inline bool is_integer(DType dtype) {
  return dtype == DType::I32 || dtype == DType::I64 || dtype == DType::U8;
}

}  // namespace regroup::conformance
