#include "collective/schedule.hpp"

#include <algorithm>

#include "base/check.hpp"

namespace regroup::collective {
namespace {

constexpr std::size_t kCacheLine = 64;
// Above it, all_reduce's second synchronisation costs less than everybody reading everything. Two
// members never gain: each reads and writes 5 bytes for one of the input in one shot, 5.5 in two.
constexpr std::size_t kOneShotBytesFew = std::size_t{64} << 10;   // 3 members
constexpr std::size_t kOneShotBytesSome = std::size_t{32} << 10;  // up to 8
constexpr std::size_t kOneShotBytesMany = std::size_t{8} << 10;   // everybody reads p times as much

constexpr std::size_t round_up(std::size_t value, std::size_t unit) {
  return (value + unit - 1) / unit * unit;
}

/// Slice of `member` in a chunk of `bytes`: whole cache lines, so that no two ranks store into one.
struct Slice {
  std::size_t begin = 0;
  std::size_t bytes = 0;
};
Slice slice_of(std::size_t bytes, int members, int member) {
  const auto p = static_cast<std::size_t>(members);
  const std::size_t width = round_up((bytes + p - 1) / p, kCacheLine);
  const std::size_t begin = std::min(bytes, static_cast<std::size_t>(member) * width);
  return {begin, std::min(bytes, begin + width) - begin};
}

Algorithm choose(const OpDescriptor& d, const PlanShape& shape, std::size_t bytes) {
  if (d.kind == OpKind::AllToAllV) return Algorithm::OneShot;  // its counts need the room
  const std::size_t published =
      spi::scatters(d.kind) ? bytes * static_cast<std::size_t>(shape.members) : bytes;
  const bool fits_line = published <= spi::kInlineBytes;
  const bool may_two_shot = d.kind == OpKind::AllReduce && bytes > 0;
  const bool gains = may_two_shot && shape.members > 2;
  if (shape.forced == Algorithm::OneShot) return Algorithm::OneShot;
  if (shape.forced == Algorithm::TwoShot && may_two_shot) return Algorithm::TwoShot;
  if (fits_line) return Algorithm::Inline;
  const std::size_t limit = shape.members <= 3   ? kOneShotBytesFew
                            : shape.members <= 8 ? kOneShotBytesSome
                                                 : kOneShotBytesMany;
  if (gains && bytes > std::min(limit, shape.slot_bytes)) return Algorithm::TwoShot;
  return Algorithm::OneShot;
}

}  // namespace

std::size_t share_of(const OpDescriptor& d, const std::size_t* counts, int member) {
  const std::size_t count =
      spi::has_counts(d.kind) ? counts[member] : static_cast<std::size_t>(d.count);
  return count * size_of(d.dtype);
}

namespace {

/// What is cut into chunks: of all_to_all_v not known yet.
std::size_t largest_share(const OpDescriptor& d, const Counts& counts) {
  if (d.kind == OpKind::Barrier || d.kind == OpKind::AllToAllV) return 0;
  if (!spi::has_counts(d.kind)) return share_of(d, nullptr, 0);
  return *std::max_element(counts.shares, counts.shares + counts.ranks) * size_of(d.dtype);
}

}  // namespace

const char* name(Algorithm algorithm) {
  switch (algorithm) {
    case Algorithm::Inline: return "inline";
    case Algorithm::OneShot: return "oneshot";
    case Algorithm::TwoShot: return "twoshot";
    case Algorithm::Rails: return "rails";
    case Algorithm::Doubling: return "doubling";
    case Algorithm::Halving: return "halving";
    case Algorithm::Ring: return "ring";
    case Algorithm::Tree: return "tree";
  }
  return "?";
}

std::size_t share_offset(const OpDescriptor& d, const std::size_t* counts, int member) {
  if (!spi::has_counts(d.kind)) return static_cast<std::size_t>(member) * share_of(d, nullptr, 0);
  std::size_t offset = 0;
  for (int before = 0; before < member; ++before) offset += share_of(d, counts, before);
  return offset;
}

OpExtent extent_of(const OpDescriptor& d, const Counts& counts, int members, int me) {
  if (d.kind == OpKind::Barrier || d.kind == OpKind::Coalesced) return {0, 0};
  const bool root = me == d.root;
  const std::size_t share = share_of(d, counts.shares, me);
  const auto all = [&](const std::size_t* of) { return share_offset(d, of, members); };
  switch (d.kind) {
    case OpKind::AllReduce: return {share, share};
    case OpKind::Reduce: return {share, root ? share : 0};
    case OpKind::Broadcast: return root ? OpExtent{share, 0} : OpExtent{0, share};
    case OpKind::AllGather:
    case OpKind::AllGatherV: return {share, all(counts.shares)};
    case OpKind::ReduceScatter:
    case OpKind::ReduceScatterV: return {all(counts.shares), share};
    case OpKind::AllToAll:
    case OpKind::AllToAllV: return {all(counts.shares), all(counts.recv)};
    case OpKind::Gather:
    case OpKind::GatherV: return {share, root ? all(counts.shares) : 0};
    case OpKind::Scatter:
    case OpKind::ScatterV: return {root ? all(counts.shares) : 0, share};
    case OpKind::Coalesced:
    case OpKind::Barrier: break;
  }
  return {};
}

Plan::Plan(const OpDescriptor& descriptor, const PlanShape& shape)
    : descriptor_(descriptor), shape_(shape) {
  REGROUP_ASSERT(descriptor.kind != OpKind::Coalesced);
  bytes_total_ = largest_share(descriptor, shape.counts);
  algorithm_ = choose(descriptor, shape, bytes_total_);
  chunk_bytes_max_ = shape.slot_bytes;
  if (spi::scatters(descriptor.kind)) {
    // A slot holds one share per member.
    const std::size_t share = shape.slot_bytes / static_cast<std::size_t>(shape.members);
    chunk_bytes_max_ = share / kCacheLine * kCacheLine;
  }
  REGROUP_ASSERT(chunk_bytes_max_ >= kCacheLine);
  if (descriptor.kind == OpKind::AllToAllV) {
    counting_ = true;
    first_turn_ = 1;
    chunks_ = 0;
    return;
  }
  // Nothing to move still synchronises.
  chunks_ = std::max<std::uint64_t>(1, (bytes_total_ + chunk_bytes_max_ - 1) / chunk_bytes_max_);
}

std::uint64_t Plan::learn(std::size_t largest_count) {
  REGROUP_ASSERT(counting_);
  counting_ = false;
  bytes_total_ = largest_count * size_of(descriptor_.dtype);
  chunks_ = (bytes_total_ + chunk_bytes_max_ - 1) / chunk_bytes_max_;
  enter(0);
  return chunks_;
}

std::optional<std::uint64_t> Plan::last_send_turn(int member) const {
  if (!spi::sends(descriptor_.kind, descriptor_.root, member)) return std::nullopt;
  return turns() - 1;
}

std::size_t Plan::chunk_bytes(std::uint64_t chunk) const {
  const std::size_t begin = chunk * chunk_bytes_max_;
  return std::min(chunk_bytes_max_, bytes_total_ - std::min(begin, bytes_total_));
}

std::size_t Plan::share_bytes(const std::size_t* counts, int member) const {
  return share_of(descriptor_, counts, member);
}

/// Of a share of so many bytes, those that belong to the chunk.
std::size_t Plan::part_of(std::size_t share_bytes) const {
  const std::size_t begin = chunk_ * chunk_bytes_max_;
  return std::min(chunk_bytes_max_, share_bytes - std::min(begin, share_bytes));
}

/// Where the share of `member` lies in a buffer that holds all of them.
std::size_t Plan::slot_place(int member) const {
  return spi::scatters(descriptor_.kind) ? static_cast<std::size_t>(member) * chunk_bytes(chunk_)
                                         : 0;
}

void Plan::enter(int phase) {
  phase_ = phase;
  member_ = 0;
  place_ = 0;
}

// Field by field: this is on the path of the smallest operations.
void Plan::make(Step& step, StepKind kind, std::uint64_t turn) const {
  step.kind = kind;
  step.turn = turn;
  step.member = 0;
  step.in_offset = step.out_offset = chunk_ * chunk_bytes_max_;
  step.slot_offset = 0;
  step.bytes = chunk_bytes(chunk_);
  step.check = step.into_slot = step.mine_from_input = false;
  step.chunk = chunk_;
}

bool Plan::next(Step& step) {
  if (counting_) return next_of_counts(step);
  while (chunk_ < chunks_) {
    bool made = false;
    switch (spi::flow_of(descriptor_.kind)) {
      case spi::Flow::Symmetric:
        made = algorithm_ == Algorithm::TwoShot ? next_of_two_shot(step) : next_of_symmetric(step);
        break;
      case spi::Flow::ToRoot: made = next_to_root(step); break;
      case spi::Flow::FromRoot: made = next_from_root(step); break;
    }
    if (made) return true;
    ++chunk_;
    enter(0);
  }
  return false;
}

// One turn in front of the chunks: nobody knows before it how many there are.
bool Plan::next_of_counts(Step& step) {
  switch (phase_++) {
    case 0: make(step, StepKind::Reclaim, 0); return true;
    case 1: make(step, StepKind::CopyCounts, 0); return true;
    case 2: make(step, StepKind::Publish, 0); return true;
    case 3:
      make(step, StepKind::AwaitAll, 0);
      step.check = true;
      return true;
    case 4: make(step, StepKind::ReadCounts, 0); return true;
    default: return false;
  }
}

// What the kinds have in common. Each of these writes the next step of the phase, or returns false
// at the phase's end.

/// What I give: one part, or one for each member behind the other.
bool Plan::next_copy_in(Step& step, bool own) {
  if (spi::scatters(descriptor_.kind)) return next_shares(step, StepKind::CopyIn, own);
  if (member_++ != 0) return false;
  const std::size_t bytes = part_of(share_bytes(shape_.counts.shares, shape_.me));
  if (bytes == 0) return false;
  make(step, StepKind::CopyIn, first_turn_ + chunk_);
  step.bytes = bytes;
  return true;
}

/// The shares in my input, or in my output, that are not empty in this chunk.
bool Plan::next_shares(Step& step, StepKind kind, bool own) {
  const bool in = kind == StepKind::CopyIn;
  const Counts& counts = shape_.counts;
  const std::size_t* const of = !in && counts.recv != nullptr ? counts.recv : counts.shares;
  while (member_ < shape_.members) {
    const int member = member_++;
    const std::size_t share = share_bytes(of, member);
    const std::size_t place = place_;
    place_ += share;
    const std::size_t bytes = part_of(share);
    if (bytes == 0 || (member == shape_.me && !own)) continue;
    make(step, kind, first_turn_ + chunk_);
    step.member = member;
    step.bytes = bytes;
    (in ? step.in_offset : step.out_offset) += place;
    step.slot_offset = slot_place(in ? member : shape_.me);
    return true;
  }
  return false;
}

/// What I give myself, past shared memory.
bool Plan::copy_own(Step& step) {
  const Counts& counts = shape_.counts;
  const std::size_t bytes = part_of(share_bytes(counts.shares, shape_.me));
  if (bytes == 0) return false;
  make(step, StepKind::CopyOwn, first_turn_ + chunk_);
  step.bytes = bytes;
  if (spi::scatters(descriptor_.kind))
    step.in_offset += share_offset(descriptor_, counts.shares, shape_.me);
  if (spi::gathers(descriptor_.kind)) {
    const std::size_t* const of = counts.recv != nullptr ? counts.recv : counts.shares;
    step.out_offset += share_offset(descriptor_, of, shape_.me);
  }
  return true;
}

bool Plan::reduce_chunk(Step& step) {
  const std::size_t bytes = part_of(share_bytes(shape_.counts.shares, shape_.me));
  if (bytes == 0) return false;
  make(step, StepKind::Reduce, first_turn_ + chunk_);
  step.bytes = bytes;
  step.slot_offset = slot_place(shape_.me);
  step.mine_from_input = descriptor_.kind == OpKind::Reduce ||
                         (descriptor_.kind == OpKind::AllReduce && shape_.own_from_input);
  return true;
}

// One turn a chunk: everybody publishes, everybody reads everybody. Each of the functions below
// writes the next step of the current chunk, or returns false at the chunk's end.
bool Plan::next_of_symmetric(Step& step) {
  const OpKind kind = descriptor_.kind;
  const bool exchanges = spi::scatters(kind) && spi::gathers(kind);
  const std::uint64_t turn = first_turn_ + chunk_;
  switch (phase_) {
    case 0:
      enter(1);
      make(step, StepKind::Reclaim, turn);
      return true;
    case 1:
      if (kind != OpKind::Barrier && next_copy_in(step, !exchanges)) return true;
      enter(2);
      if (exchanges && copy_own(step)) return true;
      [[fallthrough]];
    case 2:
      enter(3);
      make(step, StepKind::Publish, turn);
      return true;
    case 3:
      enter(4);
      make(step, StepKind::AwaitAll, turn);
      step.check = turn == 0;
      return true;
    case 4:
      if (spi::gathers(kind)) return next_shares(step, StepKind::CopyOut, !exchanges);
      enter(5);
      return spi::reduces(kind) && reduce_chunk(step);
    default: return false;
  }
}

// Two turns a chunk: A publishes the inputs, B the combined slices. Why two buffers suffice: A(c+1)
// stores into A(c)'s slot after B(c) was awaited, and who published B(c) has read A(c); B(c+1)
// stores into B(c)'s slot after A(c+1) was awaited, and who published A(c+1) has read B(c). Across
// operations the same holds by I1 and Reclaim.
bool Plan::next_of_two_shot(Step& step) {
  const std::uint64_t a = 2 * chunk_;
  const Slice mine = slice_of(chunk_bytes(chunk_), shape_.members, shape_.me);
  switch (phase_++) {
    case 0: make(step, StepKind::Reclaim, a); return true;
    case 1: make(step, StepKind::CopyIn, a); return true;
    case 2: make(step, StepKind::Publish, a); return true;
    case 3:
      make(step, StepKind::AwaitAll, a);
      step.check = chunk_ == 0;
      return true;
    case 4: make(step, StepKind::Reclaim, a + 1); return true;
    case 5:
      make(step, StepKind::Reduce, a);
      step.slot_offset = mine.begin;
      step.bytes = mine.bytes;
      step.into_slot = true;
      return true;
    case 6: make(step, StepKind::Publish, a + 1); return true;
    case 7: make(step, StepKind::AwaitAll, a + 1); return true;
    default: break;
  }
  if (member_ == shape_.members) return false;
  const Slice theirs = slice_of(chunk_bytes(chunk_), shape_.members, member_);
  make(step, StepKind::CopyOut, a + 1);
  step.member = member_++;
  step.out_offset += theirs.begin;
  step.bytes = theirs.bytes;
  return true;
}

bool Plan::next_to_root(Step& step) {
  const bool gathers = spi::gathers(descriptor_.kind);
  if (shape_.me != descriptor_.root) {
    switch (phase_) {
      case 0:
        enter(1);
        make(step, StepKind::Reclaim, chunk_);
        return true;
      case 1:
        if (next_copy_in(step, true)) return true;
        enter(2);
        make(step, StepKind::Publish, chunk_);
        return true;
      default: return false;
    }
  }
  switch (phase_) {
    case 0:
      enter(1);
      make(step, StepKind::AwaitAll, chunk_);
      step.check = chunk_ == 0;
      return true;
    case 1:
      // First: the place of another one's share may be where mine lies in the input.
      enter(2);
      if (gathers ? copy_own(step) : reduce_chunk(step)) return true;
      [[fallthrough]];
    case 2:
      if (gathers && next_shares(step, StepKind::CopyOut, false)) return true;
      enter(3);
      return said_read(step);
    default: return false;
  }
}

bool Plan::next_from_root(Step& step) {
  const bool scatters = spi::scatters(descriptor_.kind);
  if (shape_.me == descriptor_.root) {
    switch (phase_) {
      case 0:
        enter(1);
        make(step, StepKind::Reclaim, chunk_);
        return true;
      case 1:
        if (next_copy_in(step, false)) return true;
        enter(2);
        if (scatters && copy_own(step)) return true;
        [[fallthrough]];
      case 2:
        enter(3);
        make(step, StepKind::Publish, chunk_);
        return true;
      default: return false;
    }
  }
  switch (phase_) {
    case 0:
      enter(1);
      make(step, StepKind::AwaitOne, chunk_);
      step.member = descriptor_.root;
      step.check = chunk_ == 0;
      return true;
    case 1: {
      enter(2);
      const std::size_t bytes = part_of(share_bytes(shape_.counts.shares, shape_.me));
      make(step, StepKind::CopyOut, chunk_);
      step.member = descriptor_.root;
      step.slot_offset = slot_place(shape_.me);
      step.bytes = bytes;
      if (bytes > 0) return true;
      [[fallthrough]];
    }
    case 2: enter(3); return said_read(step);
    default: return false;
  }
}

/// Only of a turn whose buffer is used again within the operation: completing says the rest.
bool Plan::said_read(Step& step) const {
  if (chunk_ + 2 >= chunks_ && !shape_.coalesced) return false;
  make(step, StepKind::SaidRead, chunk_);
  return true;
}

}  // namespace regroup::collective
