#include "engine/prologue.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <new>

#include "base/check.hpp"
#include "base/hash.hpp"

namespace regroup::engine {
namespace {

constexpr std::uint64_t kPrologueMagic = 0x336f72707267ULL;
constexpr std::size_t kAlign = 16;

constexpr std::size_t aligned(std::size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

}  // namespace

std::uint64_t group_key(std::string_view group, bool message) {
  const auto key = base::fnv1a(message ? "messages" : "collectives", base::fnv1a(group));
  return key == 0 ? 1 : key;
}

struct PrologueRecord::Header {
  std::uint64_t magic;
  std::atomic<std::uint64_t> used;  ///< bytes of complete entries
  std::atomic<std::uint32_t> closed;
  std::atomic<std::uint32_t> overflowed;
};

struct PrologueRecord::Entry {
  std::uint64_t group;
  std::uint64_t count;
  std::uint64_t detail;
  std::uint64_t result_bytes;
  std::uint32_t kind;
  std::int32_t root;
  std::uint32_t members;
  DType dtype;
  ReduceOp op;
  bool message;
  bool left_out;
  std::atomic<std::uint8_t> dropped;

  [[nodiscard]] bool matches(const PrologueCall& call) const {
    return count == call.count && kind == call.kind && root == call.root && dtype == call.dtype &&
           op == call.op && detail == call.detail && members == call.members &&
           message == call.message;
  }
  [[nodiscard]] std::size_t kept_bytes() const { return left_out ? 0 : result_bytes; }
};

PrologueRecord::Header& PrologueRecord::header() const {
  return *std::launder(reinterpret_cast<Header*>(memory_.data()));
}

PrologueRecord::Entry& PrologueRecord::entry(std::size_t offset) const {
  return *std::launder(reinterpret_cast<Entry*>(memory_.data() + sizeof(Header) + offset));
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
  if (auto status = record.index_entries(); !status) return status;
  return record;
}

Status PrologueRecord::index_entries() {
  const std::size_t room = memory_.size() - sizeof(Header);
  const std::size_t used = header().used.load(std::memory_order_acquire);
  if (used > room) return {Code::FailedPrecondition, "the record of the prologue is damaged"};
  for (std::size_t at = 0; at + aligned(sizeof(Entry)) <= used;) {
    const Entry& here = entry(at);
    const std::size_t left = used - at - aligned(sizeof(Entry));
    if (here.kept_bytes() > left)
      return {Code::FailedPrecondition, "the record of the prologue is damaged"};
    if (here.dropped.load(std::memory_order_relaxed) == 0) entries_[here.group].push_back(at);
    at += aligned(sizeof(Entry)) + aligned(here.kept_bytes());
  }
  return {};
}

void PrologueRecord::append(const PrologueCall& call, std::span<const std::byte> result,
                            bool healed) {
  auto& head = header();
  if (overflowed()) return;
  const bool left_out = healed && healed_bytes_ + result.size() > kHealedBytesMax;
  const std::size_t kept_bytes = left_out ? 0 : result.size();
  const std::size_t used = head.used.load(std::memory_order_relaxed);
  const std::size_t room = memory_.size() - sizeof(Header) - used;
  if (aligned(sizeof(Entry)) + aligned(kept_bytes) > room) {
    head.overflowed.store(1, std::memory_order_release);
    return;
  }
  std::byte* const at = memory_.data() + sizeof(Header) + used;
  const auto key = group_key(call.group, call.message);
  new (at) Entry{.group = key,
                 .count = call.count,
                 .detail = call.detail,
                 .result_bytes = result.size(),
                 .kind = call.kind,
                 .root = call.root,
                 .members = call.members,
                 .dtype = call.dtype,
                 .op = call.op,
                 .message = call.message,
                 .left_out = left_out,
                 .dropped = 0};
  if (kept_bytes > 0) std::memcpy(at + aligned(sizeof(Entry)), result.data(), kept_bytes);
  if (healed) healed_bytes_ += kept_bytes;
  entries_[key].push_back(used);
  head.used.store(used + aligned(sizeof(Entry)) + aligned(kept_bytes), std::memory_order_release);
}

void PrologueRecord::drop_last(std::uint64_t group) {
  auto& offsets = entries_[group];
  // Not there: it did not fit any more.
  if (offsets.empty() || overflowed()) return;
  entry(offsets.back()).dropped.store(1, std::memory_order_release);
  offsets.pop_back();
}

void PrologueRecord::close() { header().closed.store(1, std::memory_order_release); }

bool PrologueRecord::closed() const { return header().closed.load(std::memory_order_acquire) != 0; }

bool PrologueRecord::overflowed() const {
  return header().overflowed.load(std::memory_order_acquire) != 0;
}

std::vector<ProloguePosition> PrologueRecord::positions() const {
  std::vector<ProloguePosition> all;
  for (const auto& [group, offsets] : entries_) {
    if (offsets.empty() || entry(offsets.front()).message) continue;
    all.push_back({group, offsets.size(), entry(offsets.front()).members});
  }
  return all;
}

bool PrologueRecord::has_messages() const {
  for (const auto& [group, offsets] : entries_) {
    if (!offsets.empty() && entry(offsets.front()).message) return true;
  }
  return false;
}

std::uint64_t PrologueRecord::calls(std::uint64_t group) const {
  const auto found = entries_.find(group);
  return found == entries_.end() ? 0 : found->second.size();
}

Result<PrologueRecord::Answer> PrologueRecord::answer(const PrologueCall& call, std::uint64_t index,
                                                      std::span<std::byte> result) const {
  const auto offset = entries_.at(group_key(call.group, call.message)).at(index);
  const Entry& here = entry(offset);
  if (!here.matches(call) || here.result_bytes != result.size()) {
    return Status(Code::InvalidArgument,
                  fmt::format("this newcomer's call before its first step (kind {}, {} elements, "
                              "group \"{}\" of {} ranks) is not the one that its predecessor made "
                              "(kind {}, {} elements, {} ranks)",
                              call.kind, call.count, call.group, call.members, here.kind,
                              here.count, here.members));
  }
  if (here.left_out) {
    // NaN in every floating type: whoever uses it before heal brings it sees so.
    std::ranges::fill(result, std::byte{0xFF});
    return Answer::LeftOut;
  }
  const std::byte* const from = memory_.data() + sizeof(Header) + offset + aligned(sizeof(Entry));
  if (!result.empty()) std::memcpy(result.data(), from, result.size());
  return Answer::Given;
}

}  // namespace regroup::engine
