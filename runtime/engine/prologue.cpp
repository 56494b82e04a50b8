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
  std::atomic<std::uint32_t> taken_over;  ///< from other ranks' records
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
  bool shared;
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
  new (memory.data()) Header{kPrologueMagic, 0, 0, 0, 0};
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
                 .shared = call.shared,
                 .dropped = 0};
  if (kept_bytes > 0) std::memcpy(at + aligned(sizeof(Entry)), result.data(), kept_bytes);
  if (healed) healed_bytes_ += kept_bytes;
  entries_[key].push_back(used);
  head.used.store(used + aligned(sizeof(Entry)) + aligned(kept_bytes), std::memory_order_release);
}

std::vector<std::byte> PrologueRecord::entries_of(std::span<const std::uint64_t> groups) const {
  std::vector<std::byte> out;
  for (const std::uint64_t group : groups) {
    const auto found = entries_.find(group);
    if (found == entries_.end()) continue;
    for (const std::size_t offset : found->second) {
      const std::byte* const from = memory_.data() + sizeof(Header) + offset;
      const std::size_t bytes = aligned(sizeof(Entry)) + aligned(entry(offset).kept_bytes());
      out.insert(out.end(), from, from + bytes);
    }
  }
  return out;
}

Status PrologueRecord::take_over(std::span<const std::byte> entries) {
  auto& head = header();
  const std::size_t used = head.used.load(std::memory_order_relaxed);
  if (entries.size() > memory_.size() - sizeof(Header) - used) {
    head.overflowed.store(1, std::memory_order_release);
    return {};
  }
  if (!entries.empty())
    std::memcpy(memory_.data() + sizeof(Header) + used, entries.data(), entries.size());
  head.taken_over.store(1, std::memory_order_release);
  head.used.store(used + entries.size(), std::memory_order_release);
  entries_.clear();
  return index_entries();
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
  const bool taken_over = header().taken_over.load(std::memory_order_acquire) != 0;
  if (taken_over && !here.shared && !result.empty()) {
    return Status(
        Code::ResourceExhausted,
        fmt::format("a collective before the first step (group \"{}\", {} elements) gave "
                    "this seat what no other one has, and the record of that is gone with "
                    "the seat's last host; make it behind the first next()",
                    call.group, call.count));
  }
  // Who gives and gets nothing has the others' result in its record, or takes over such a record.
  const bool needs_nothing = result.empty() && (here.shared || taken_over);
  if (!here.matches(call) || (here.result_bytes != result.size() && !needs_nothing)) {
    return Status(Code::InvalidArgument,
                  fmt::format("this newcomer's call before its first step (kind {}, {} elements, "
                              "group \"{}\" of {} ranks) is not the one that its predecessor made "
                              "(kind {}, {} elements, {} ranks)",
                              call.kind, call.count, call.group, call.members, here.kind,
                              here.count, here.members));
  }
  if (result.empty()) return Answer::Given;
  if (here.left_out) {
    // NaN in every floating type: whoever uses it before heal brings it sees so.
    std::ranges::fill(result, std::byte{0xFF});
    return Answer::LeftOut;
  }
  const std::byte* const from = memory_.data() + sizeof(Header) + offset + aligned(sizeof(Entry));
  std::memcpy(result.data(), from, result.size());
  return Answer::Given;
}

}  // namespace regroup::engine
