/// What the conformance tests share: arenas of each transport, ranks as threads, an agent, a
/// watchdog, an oracle.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
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

/// One arena as each of its ranks sees it. Thread safety: immutable.
class World {
 public:
  virtual ~World() = default;
  [[nodiscard]] virtual const spi::SharedSlots& slots(int rank) const = 0;
};

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
};
template <class W>
std::unique_ptr<World> make_world(std::uint32_t members, spi::ArenaOptions options) {
  return std::make_unique<W>(members, options);
}
/// A line per transport.
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

/// The bits of a small number. Of narrow floats some other ones, none of them NaN.
inline std::uint64_t element_bits(DType dtype, std::mt19937_64& random) {
  const auto value = static_cast<std::int64_t>(random() % 17);
  const std::uint64_t noise = random();
  const auto f64 = static_cast<double>(value - 8) * 0.37;
  switch (dtype) {
    case DType::F64: return std::bit_cast<std::uint64_t>(f64);
    case DType::F32: return std::bit_cast<std::uint32_t>(static_cast<float>(f64));
    case DType::BF16: return std::bit_cast<std::uint32_t>(static_cast<float>(f64)) >> 16;
    // Sign and small exponent with random fraction: a normal number between 0.5 and 2.
    case DType::F16: return (noise & 0x83ff) | (noise >> 32 & 1 ? 0x3800 : 0x3c00);
    case DType::F8E4M3: return noise & 0xb7;
    case DType::F8E5M2: return noise & 0xbb;
    case DType::I8:
    case DType::I16:
    case DType::I32:
    case DType::I64: return static_cast<std::uint64_t>(value - 8);
    case DType::U8:
    case DType::U32:
    case DType::U64: return static_cast<std::uint64_t>(value);
    case DType::Bool: return noise & 1;
  }
  return 0;
}

/// Small numbers of every element type, so that no sum of a few overflows.
inline std::vector<std::byte> input_of(int rank, std::uint64_t salt, DType dtype,
                                       std::size_t count) {
  const std::size_t unit = size_of(dtype);
  std::vector<std::byte> bytes(count * unit);
  std::mt19937_64 random(salt * 1000003 + static_cast<std::uint64_t>(rank));
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint64_t bits = element_bits(dtype, random);  // the low bytes come first
    std::memcpy(bytes.data() + i * unit, &bits, unit);
  }
  return bytes;
}

/// Everybody's input to one operation, and what each rank must get.
struct Case {
  OpSpec spec;  ///< buffers unset
  int members = 1;
  std::uint64_t salt = 0;

  [[nodiscard]] spi::OpDescriptor descriptor() const {
    return {spec.kind, spec.dtype, spec.op, spec.root, spec.count, collective::detail_of(spec)};
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
                       {members, spec.factor});
    return out;
  }
};

}  // namespace regroup::conformance
