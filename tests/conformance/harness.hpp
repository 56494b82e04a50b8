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
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "collective/kernels.hpp"
#include "collective/runner.hpp"
#include "spi/arena_agent.hpp"
#include "tests/support/sanitized.hpp"
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

/// Ends the test program when a test hangs, after `explain` has said who waits for whom (on a
/// thread of the watchdog's). Thread safety: made and destroyed by one thread.
class Watchdog {
 public:
  explicit Watchdog(std::chrono::seconds limit = std::chrono::seconds(60),
                    std::function<void()> explain = {})
      : thread_([this, limit, explain = std::move(explain)] {
          std::unique_lock lock(mutex_);
          if (!over_.wait_for(lock, limit, [this] { return done_; })) {
            std::fprintf(stderr, "watchdog: the test hangs\n");
            if (explain) explain();
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
  const std::vector<Host> hosts = world.hosts();
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

/// Of the random cases one in so many is tried.
inline constexpr int kOneIn = test::kSanitized ? 4 : 1;

struct Transport {
  const char* name;
  std::unique_ptr<World> (*make)(std::uint32_t members, spi::ArenaOptions options);
  /// Cases take longer than over shared slots: one random case in so many is tried.
  std::uint64_t one_in = 1;
  bool has_slots = true;

  /// From one random case that is tried to the next.
  [[nodiscard]] std::uint64_t stride() const { return one_in * kOneIn; }
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
  OpSpec spec;  ///< buffers and counts unset; with counts `count` is what they are made of
  int members = 1;
  std::uint64_t salt = 0;
  std::vector<Case> parts{};  ///< of a coalesced one

  /// Elements that rank `from` gives to rank `to`. With counts: 0, `count` or twice as many; of
  /// all_to_all_v for each pair, else by the rank whose share it is.
  [[nodiscard]] std::size_t share(int from, int to) const {
    if (!spi::has_counts(spec.kind)) return spec.count;
    int who = spi::scatters(spec.kind) ? to : from;
    if (spec.kind == OpKind::AllToAllV) who = 5 * from + 7 * to;
    return spec.count * ((static_cast<std::size_t>(who) + salt) % 3);
  }
  /// As the call of `rank` has them.
  [[nodiscard]] std::vector<std::size_t> shares(int rank) const {
    std::vector<std::size_t> counts;
    for (int q = 0; q < members; ++q)
      counts.push_back(spi::scatters(spec.kind) ? share(rank, q) : share(q, rank));
    return counts;
  }
  [[nodiscard]] std::vector<std::size_t> received(int rank) const {
    std::vector<std::size_t> counts;
    for (int q = 0; q < members; ++q) counts.push_back(share(q, rank));
    return counts;
  }
  /// The call of `rank`, over counts that the caller keeps.
  [[nodiscard]] OpSpec call(const std::vector<std::size_t>& shares,
                            const std::vector<std::size_t>& received) const {
    OpSpec call = spec;
    if (!spi::has_counts(spec.kind)) return call;
    call.counts = {.shares = shares.data(),
                   .recv = spec.kind == OpKind::AllToAllV ? received.data() : nullptr,
                   .ranks = members};
    return call;
  }
  [[nodiscard]] std::string describe() const {
    std::string text;
    for (const Case& part : parts) text += part.describe() + "; ";
    if (!parts.empty()) return "coalesced: " + text;
    const auto counts = shares(0);
    return spi::describe(collective::describe_call(call(counts, counts)));
  }
  [[nodiscard]] collective::OpExtent extent(int rank) const {
    const auto out = shares(rank);
    const auto in = received(rank);
    const OpSpec spec_of_rank = call(out, in);
    return collective::extent_of(collective::describe_call(spec_of_rank), spec_of_rank.counts,
                                 members, rank);
  }
  /// Bytes in front of the share of `to` in the input of `from`.
  [[nodiscard]] std::size_t offset(int from, int to) const {
    std::size_t elements = 0;
    for (int q = 0; spi::scatters(spec.kind) && q < to; ++q) elements += share(from, q);
    return elements * size_of(spec.dtype);
  }
  [[nodiscard]] std::vector<std::byte> input(int rank) const {
    const std::size_t bytes =
        spec.kind == OpKind::Broadcast ? spec.count * size_of(spec.dtype) : extent(rank).in_bytes;
    return input_of(rank, salt, spec.dtype, bytes / size_of(spec.dtype));
  }
  [[nodiscard]] std::vector<std::byte> expected(int rank) const {
    const std::size_t bytes = extent(rank).out_bytes;
    if (bytes == 0) return {};
    std::vector<std::byte> out;
    const auto append = [&](int from) {
      const auto in = input(from);
      const std::byte* const begin = in.data() + offset(from, rank);
      out.insert(out.end(), begin, begin + share(from, rank) * size_of(spec.dtype));
    };
    if (spi::gathers(spec.kind)) {
      for (int q = 0; q < members; ++q) append(q);
    } else if (!spi::reduces(spec.kind)) {
      append(spec.root);
    } else {
      std::vector<std::vector<std::byte>> inputs;
      std::vector<const void*> sources;
      for (int q = 0; q < members; ++q) inputs.push_back(input(q));
      for (const auto& in : inputs) sources.push_back(in.data() + offset(0, rank));
      out.resize(bytes);
      collective::reduce(spec.dtype, spec.op, out.data(), sources.data(), members,
                         bytes / size_of(spec.dtype), {members, spec.factor});
    }
    return out;
  }
};

/// Where the buffers of a call lie.
enum class Place : std::uint8_t {
  Apart,
  Same,  ///< equal
  Own,   ///< the share of the rank in the buffer of all shares
};
inline constexpr Place kPlaces[] = {Place::Apart, Place::Same, Place::Own};

/// One to five operations of any kinds and places.
inline Case coalesced_case(int members, std::uint64_t salt) {
  std::mt19937_64 random(salt);
  Case whole{{.kind = OpKind::Coalesced}, members, salt};
  const std::size_t sizes[] = {0, 1, 12, 300, 2000};
  for (std::uint64_t left = 1 + random() % 5; left > 0; --left) {
    whole.parts.push_back(
        {{.kind = static_cast<OpKind>(random() % spi::kSingleKindCount),
          .dtype = random() % 2 == 0 ? DType::F32 : DType::I64,
          .op = ReduceOp::Sum,
          .root = static_cast<int>(random() % static_cast<std::uint64_t>(members)),
          .count = sizes[random() % std::size(sizes)]},
         members,
         salt * 10 + left});
  }
  return whole;
}

/// The call of one rank with its buffers, of a single operation. What cannot be had in that place
/// lies apart. Thread safety: none.
class PlacedBuffers {
 public:
  PlacedBuffers(const Case& c, int rank, Place place)
      : shares_(c.shares(rank)),
        received_(c.received(rank)),
        spec_(c.call(shares_, received_)),
        before_(c.input(rank)),
        out_bytes_(c.extent(rank).out_bytes) {
    const OpKind kind = c.spec.kind;
    const bool overlap = c.extent(rank).in_bytes != 0 && out_bytes_ != 0;
    const bool one_side = spi::scatters(kind) != spi::gathers(kind);
    if (place == Place::Same && (spi::has_counts(kind) || !overlap)) place = Place::Apart;
    if (place == Place::Own && !(one_side && overlap)) place = Place::Apart;
    std::size_t in_offset = 0;
    std::size_t out_offset = 0;
    std::size_t bytes = std::max(before_.size(), out_bytes_);
    if (place == Place::Apart) {
      out_offset = before_.size() + kGap;
      bytes = out_offset + out_bytes_;
    } else if (place == Place::Own) {
      const std::size_t offset =
          collective::share_offset(collective::describe_call(spec_), spec_.counts.shares, rank);
      (spi::scatters(kind) ? out_offset : in_offset) = offset;
    }
    memory_.assign(bytes + kGap, std::byte{0xee});
    in_ = memory_.data() + in_offset;
    out_ = memory_.data() + out_offset;
    if (!before_.empty()) std::memcpy(in_, before_.data(), before_.size());
    apart_ = place == Place::Apart;
    spec_.in = in_;
    spec_.out = out_;
  }
  PlacedBuffers(const PlacedBuffers&) = delete;
  PlacedBuffers& operator=(const PlacedBuffers&) = delete;
  ~PlacedBuffers() = default;

  [[nodiscard]] const OpSpec& spec() const { return spec_; }
  [[nodiscard]] bool apart() const { return apart_; }
  [[nodiscard]] bool input_intact() const {
    return before_.empty() || std::memcmp(in_, before_.data(), before_.size()) == 0;
  }
  [[nodiscard]] bool result_is(const std::vector<std::byte>& expected) const {
    return expected.size() == out_bytes_ &&
           (expected.empty() || std::memcmp(out_, expected.data(), expected.size()) == 0);
  }

 private:
  static constexpr std::size_t kGap = 64;
  std::vector<std::size_t> shares_;
  std::vector<std::size_t> received_;
  OpSpec spec_;
  std::vector<std::byte> before_;
  std::size_t out_bytes_;
  std::vector<std::byte> memory_;
  std::byte* in_ = nullptr;
  std::byte* out_ = nullptr;
  bool apart_ = true;
};

/// The call of one rank, coalesced or not, each operation in a place of its own.
/// Thread safety: none.
class PlacedCall {
 public:
  PlacedCall(const Case& c, int rank) {
    const std::vector<Case> alone{c};
    for (const Case& part : c.parts.empty() ? alone : c.parts) {
      calls_.push_back(std::make_unique<PlacedBuffers>(part, rank, kPlaces[part.salt % 3]));
      specs_.push_back(calls_.back()->spec());
    }
    spec_ = c.parts.empty() ? specs_.front() : c.spec;
    if (c.parts.empty()) return;
    spec_.parts = specs_.data();
    spec_.count = specs_.size();
  }
  [[nodiscard]] const OpSpec& spec() const { return spec_; }
  [[nodiscard]] bool input_intact() const {
    return std::ranges::all_of(calls_, [](const auto& call) { return call->input_intact(); });
  }
  [[nodiscard]] bool result_is_right(const Case& c, int rank) const {
    if (c.parts.empty()) return calls_.front()->result_is(c.expected(rank));
    bool right = true;
    for (std::size_t i = 0; i < calls_.size(); ++i)
      right = right && calls_[i]->result_is(c.parts[i].expected(rank));
    return right;
  }

 private:
  std::vector<std::unique_ptr<PlacedBuffers>> calls_;
  std::vector<OpSpec> specs_;
  OpSpec spec_;
};

}  // namespace regroup::conformance
