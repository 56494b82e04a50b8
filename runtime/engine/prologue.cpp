#include "engine/prologue.hpp"

#include <fmt/format.h>

#include <cstring>
#include <functional>
#include <new>

#include "base/check.hpp"
#include "base/hash.hpp"

namespace regroup::engine {
namespace {

constexpr std::uint64_t kPrologueMagic = 0x6f72707267ULL;
constexpr std::size_t kAlign = 16;

constexpr std::size_t aligned(std::size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

}  // namespace

struct PrologueRecord::Header {
  std::uint64_t magic;
  std::atomic<std::uint64_t> used;  ///< bytes of complete entries
  std::atomic<std::uint32_t> closed;
  std::atomic<std::uint32_t> overflowed;
};

struct PrologueRecord::Entry {
  std::uint64_t group;
  std::uint64_t count;
  std::uint64_t result_bytes;
  std::uint32_t kind;
  std::int32_t root;
  DType dtype;
  ReduceOp op;
  bool healed;

  [[nodiscard]] bool matches(const PrologueCall& call) const {
    return group == base::fnv1a(call.group) && count == call.count && kind == call.kind &&
           root == call.root && dtype == call.dtype && op == call.op;
  }
};

PrologueRecord::Header& PrologueRecord::header() const {
  return *std::launder(reinterpret_cast<Header*>(memory_.data()));
}

PrologueRecord PrologueRecord::format(std::span<std::byte> memory) {
  REGROUP_ASSERT(memory.size() >= sizeof(Header));
  new (memory.data()) Header{kPrologueMagic, 0, 0, 0};
  return PrologueRecord(memory);
}

Result<PrologueRecord> PrologueRecord::open(std::span<std::byte> memory) {
  PrologueRecord record(memory);
  if (memory.size() < sizeof(Header) || record.header().magic != kPrologueMagic) {
    return Status(Code::FailedPrecondition,
                  "the predecessor left no readable record of its prologue");
  }
  return record;
}

void PrologueRecord::append(const PrologueCall& call, std::span<const std::byte> result,
                            bool healed) {
  auto& head = header();
  if (head.overflowed.load(std::memory_order_relaxed) != 0) return;
  const std::size_t kept_bytes = healed ? 0 : result.size();
  const std::size_t used = head.used.load(std::memory_order_relaxed);
  const std::size_t room = memory_.size() - sizeof(Header) - used;
  if (aligned(sizeof(Entry)) + aligned(kept_bytes) > room) {
    head.overflowed.store(1, std::memory_order_release);
    return;
  }
  std::byte* const at = memory_.data() + sizeof(Header) + used;
  new (at) Entry{base::fnv1a(call.group),
                 call.count,
                 result.size(),
                 call.kind,
                 call.root,
                 call.dtype,
                 call.op,
                 healed};
  if (kept_bytes > 0) std::memcpy(at + aligned(sizeof(Entry)), result.data(), kept_bytes);
  head.used.store(used + aligned(sizeof(Entry)) + aligned(kept_bytes), std::memory_order_release);
}

void PrologueRecord::close() { header().closed.store(1, std::memory_order_release); }

Result<bool> PrologueRecord::answer(const PrologueCall& call, std::span<std::byte> result) {
  const auto& head = header();
  const std::size_t used = std::min<std::size_t>(head.used.load(std::memory_order_acquire),
                                                 memory_.size() - sizeof(Header));
  if (read_offset_ + aligned(sizeof(Entry)) > used) {
    if (head.overflowed.load(std::memory_order_acquire) != 0) {
      return Status(
          Code::ResourceExhausted,
          fmt::format(
              "the collectives before the first step gave more than {} MiB of results, too many to "
              "keep for a newcomer; move them behind the first next(), or register what they fill",
              kBytesMax >> 20));
    }
    if (head.closed.load(std::memory_order_acquire) == 0) return false;
    return Status(Code::InvalidArgument,
                  "this newcomer makes more collectives before its first step than its predecessor "
                  "did; the prologue "
                  "must not depend on who runs it");
  }
  const std::byte* const at = memory_.data() + sizeof(Header) + read_offset_;
  Entry entry{};
  std::memcpy(&entry, at, sizeof entry);
  const std::size_t kept_bytes = entry.healed ? 0 : entry.result_bytes;
  if (!entry.matches(call) || entry.result_bytes != result.size() ||
      read_offset_ + aligned(sizeof(Entry)) + aligned(kept_bytes) > used) {
    return Status(Code::InvalidArgument,
                  fmt::format("this newcomer's collective before its first step (kind {}, {} "
                              "elements, group \"{}\") is "
                              "not the one that its predecessor made (kind {}, {} elements)",
                              call.kind, call.count, call.group, entry.kind, entry.count));
  }
  if (kept_bytes > 0) std::memcpy(result.data(), at + aligned(sizeof(Entry)), kept_bytes);
  read_offset_ += aligned(sizeof(Entry)) + aligned(kept_bytes);
  return true;
}

}  // namespace regroup::engine
