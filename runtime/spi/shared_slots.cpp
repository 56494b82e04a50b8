#include "spi/shared_slots.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

namespace regroup::spi {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kSlotsTotalMax = std::size_t{12} << 20;
constexpr std::size_t kRingsTotalMax = std::size_t{2} << 20;
constexpr std::size_t kRingBytesMin = 512;
constexpr std::size_t kRingBytesMax = std::size_t{64} << 10;
constexpr std::size_t kPartBytesMax = std::size_t{1} << 30;  // one slot or ring: far from overflow

constexpr std::size_t round_up(std::size_t value, std::size_t unit) {
  return (value + unit - 1) / unit * unit;
}

std::size_t default_slot_bytes(std::size_t members) {
  // Measured best for 2, 4 and 8 ranks on two cores; an arena stays below 16 MiB.
  const std::size_t wish = std::size_t{256} << 10;
  return std::min(wish, kSlotsTotalMax / (2 * members) / kPage * kPage);
}

std::size_t default_ring_bytes(std::size_t members) {
  return std::clamp(std::bit_floor(kRingsTotalMax / (members * members)), kRingBytesMin,
                    kRingBytesMax);
}

Status refuse(std::string text) { return {Code::InvalidArgument, "arena: " + std::move(text)}; }

}  // namespace

ArenaGeometry arena_geometry(std::uint32_t members, ArenaOptions options) {
  ArenaGeometry g;
  g.members = members;
  const std::size_t p = members;
  const std::size_t slot = options.slot_bytes != 0 ? options.slot_bytes : default_slot_bytes(p);
  const std::size_t ring = options.ring_bytes != 0 ? options.ring_bytes : default_ring_bytes(p);
  // A reduce_scatter cuts a slot into one piece per member: 64 bytes each at least.
  g.slot_bytes = round_up(std::clamp(slot, std::max(kPage, 64 * p), kPartBytesMax), kPage);
  g.ring_bytes = std::bit_ceil(std::clamp(ring, kRingBytesMin, kPartBytesMax));
  g.slots_offset = round_up(sizeof(Header) + p * sizeof(MemberBlock), kPage);
  g.rings_offset = g.slots_offset + 2 * p * g.slot_bytes;
  g.total_bytes = round_up(g.rings_offset + p * p * (sizeof(RingHeader) + g.ring_bytes), kPage);
  return g;
}

std::size_t arena_bytes(std::uint32_t members, ArenaOptions options) {
  return arena_geometry(members, options).total_bytes;
}

Result<SharedSlots> format_arena(void* base, std::size_t bytes, Epoch epoch, std::uint32_t group,
                                 std::uint32_t members, ArenaOptions options) {
  if (members == 0 || members > kMembersMax) {
    return refuse(fmt::format("{} members; 1..{} are possible", members, kMembersMax));
  }
  const ArenaGeometry g = arena_geometry(members, options);
  if (bytes < g.total_bytes) return refuse(fmt::format("{} bytes, needs {}", bytes, g.total_bytes));
  if (reinterpret_cast<std::uintptr_t>(base) % kPage != 0) return refuse("base is not aligned");
  auto& header = *static_cast<Header*>(base);
  header.abi = kArenaAbi;
  header.members = members;
  header.epoch = epoch.value();
  header.group = group;
  header.slot_bytes = g.slot_bytes;
  header.ring_bytes = g.ring_bytes;
  header.magic = kArenaMagic;
  const SharedSlots slots(static_cast<std::byte*>(base), g, epoch, group);
  for (int rank = 0; rank < slots.members(); ++rank) {
    slots.member(rank).bell.waiting_for.store(kNobody, std::memory_order_relaxed);
  }
  return slots;
}

Result<SharedSlots> SharedSlots::open(void* base, std::size_t bytes, Epoch epoch,
                                      std::uint32_t group) {
  if (reinterpret_cast<std::uintptr_t>(base) % kPage != 0) return refuse("base is not aligned");
  if (bytes < sizeof(Header)) return refuse(fmt::format("{} bytes hold no header", bytes));
  Header seen{};
  // One copy of what other processes could change between two looks.
  std::memcpy(static_cast<void*>(&seen), base, offsetof(Header, sleepers));
  if (seen.magic != kArenaMagic) return refuse(fmt::format("magic is {:#x}", seen.magic));
  if (seen.abi != kArenaAbi) {
    return refuse(
        fmt::format("layout version {}, this library has {}: rank and agent come from "
                    "different builds",
                    seen.abi, kArenaAbi));
  }
  if (seen.epoch != epoch.value() || seen.group != group) {
    return refuse(fmt::format("of epoch {} group {}, expected epoch {} group {}", seen.epoch,
                              seen.group, epoch.value(), group));
  }
  if (seen.members == 0 || seen.members > kMembersMax || seen.slot_bytes > kPartBytesMax ||
      seen.ring_bytes > kPartBytesMax) {
    return refuse(fmt::format("{} members, slots of {} and rings of {} bytes", seen.members,
                              seen.slot_bytes, seen.ring_bytes));
  }
  const ArenaGeometry g =
      arena_geometry(seen.members, {.slot_bytes = seen.slot_bytes, .ring_bytes = seen.ring_bytes});
  if (g.slot_bytes != seen.slot_bytes || g.ring_bytes != seen.ring_bytes) {
    return refuse(fmt::format("slots of {} and rings of {} bytes do not fit {} members",
                              seen.slot_bytes, seen.ring_bytes, seen.members));
  }
  if (bytes < g.total_bytes) return refuse(fmt::format("{} bytes, needs {}", bytes, g.total_bytes));
  return SharedSlots(static_cast<std::byte*>(base), g, epoch, group);
}

std::optional<LedgerReading> read_ledger(const SharedSlots& slots, int rank,
                                         std::uint64_t sequence) {
  const LedgerEntry& entry = slots.ledger(rank, sequence);
  if (entry.sequence.load(std::memory_order_acquire) != sequence) return std::nullopt;
  // Acquire keeps the second look at `sequence` behind these four.
  const std::uint64_t meta = entry.meta.load(std::memory_order_acquire);
  const std::uint64_t count = entry.count.load(std::memory_order_acquire);
  const std::uint64_t detail = entry.detail.load(std::memory_order_acquire);
  const std::uint64_t arrival = entry.arrival_ns.load(std::memory_order_acquire);
  if (entry.sequence.load(std::memory_order_acquire) != sequence) return std::nullopt;
  return LedgerReading{unpack_descriptor(meta, count, detail), arrival};
}

std::optional<std::string> read_poison(const SharedSlots& slots) {
  const std::uint32_t claimed = slots.header().poisoned_by.load(std::memory_order_acquire);
  if (claimed == 0) return std::nullopt;
  if (claimed > static_cast<std::uint32_t>(slots.members())) {
    return "the group's shared memory is damaged: its mismatch record names no member";
  }
  const PoisonRecord& record = slots.member(static_cast<int>(claimed) - 1).poison;
  const std::uint64_t sequence = record.sequence.load(std::memory_order_relaxed);
  std::string side[2];
  for (int i = 0; i < 2; ++i) {
    const OpDescriptor d = unpack_descriptor(record.meta[i].load(std::memory_order_relaxed),
                                             record.count[i].load(std::memory_order_relaxed),
                                             record.detail[i].load(std::memory_order_relaxed));
    const std::uint64_t rank = record.rank[i].load(std::memory_order_relaxed);
    side[i] =
        sequence == 0 ? fmt::format("{}", rank) : fmt::format("{} called {}", rank, describe(d));
  }
  if (sequence == 0) {
    return fmt::format("ranks {} and {} called different operations more than {} operations ago",
                       side[0], side[1], kLedgerEntries);
  }
  return fmt::format("operation {} of the group differs: rank {}, rank {}", sequence, side[0],
                     side[1]);
}

}  // namespace regroup::spi
