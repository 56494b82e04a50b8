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
  const bool pieces = d.kind == OpKind::ReduceScatter;
  const std::size_t published = pieces ? bytes * static_cast<std::size_t>(shape.members) : bytes;
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

const char* name(Algorithm algorithm) {
  switch (algorithm) {
    case Algorithm::Inline: return "inline";
    case Algorithm::OneShot: return "oneshot";
    case Algorithm::TwoShot: return "twoshot";
  }
  return "?";
}

OpExtent extent_of(const OpDescriptor& d, int members, int me) {
  const std::size_t unit = d.kind == OpKind::Barrier ? 0 : d.count * size_of(d.dtype);
  const std::size_t all = unit * static_cast<std::size_t>(members);
  switch (d.kind) {
    case OpKind::AllReduce: return {unit, unit};
    case OpKind::Reduce: return {unit, me == d.root ? unit : 0};
    case OpKind::Broadcast: return me == d.root ? OpExtent{unit, 0} : OpExtent{0, unit};
    case OpKind::AllGather: return {unit, all};
    case OpKind::ReduceScatter: return {all, unit};
    case OpKind::Barrier: return {0, 0};
  }
  return {};
}

Plan::Plan(const OpDescriptor& descriptor, const PlanShape& shape)
    : descriptor_(descriptor), shape_(shape) {
  bytes_total_ =
      descriptor.kind == OpKind::Barrier ? 0 : descriptor.count * size_of(descriptor.dtype);
  algorithm_ = choose(descriptor, shape, bytes_total_);
  chunk_bytes_max_ = shape.slot_bytes;
  if (descriptor.kind == OpKind::ReduceScatter) {
    // A slot holds one piece per member.
    const std::size_t piece = shape.slot_bytes / static_cast<std::size_t>(shape.members);
    chunk_bytes_max_ = piece / kCacheLine * kCacheLine;
  }
  REGROUP_ASSERT(chunk_bytes_max_ >= kCacheLine);
  const std::size_t chunks = (bytes_total_ + chunk_bytes_max_ - 1) / chunk_bytes_max_;
  chunks_ = std::max<std::uint64_t>(1, chunks);  // nothing to move still synchronises
}

std::optional<std::uint64_t> Plan::last_send_turn(int member) const {
  if (!spi::sends(descriptor_.kind, descriptor_.root, member)) return std::nullopt;
  return turns() - 1;
}

std::size_t Plan::chunk_bytes(std::uint64_t chunk) const {
  const std::size_t begin = chunk * chunk_bytes_max_;
  return std::min(chunk_bytes_max_, bytes_total_ - std::min(begin, bytes_total_));
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
  while (chunk_ < chunks_) {
    bool made = false;
    switch (descriptor_.kind) {
      case OpKind::AllReduce:
        made = algorithm_ == Algorithm::TwoShot ? next_of_two_shot(step) : next_of_symmetric(step);
        break;
      case OpKind::AllGather:
      case OpKind::ReduceScatter:
      case OpKind::Barrier: made = next_of_symmetric(step); break;
      case OpKind::Reduce: made = next_of_reduce(step); break;
      case OpKind::Broadcast: made = next_of_broadcast(step); break;
    }
    if (made) return true;
    ++chunk_;
    phase_ = 0;
    member_ = 0;
  }
  return false;
}

// One turn a chunk: everybody publishes, everybody reads everybody. Each of the functions below
// writes the next step of the current chunk, or returns false at the chunk's end.
bool Plan::next_of_symmetric(Step& step) {
  const std::size_t bytes = chunk_bytes(chunk_);
  const bool scatter = descriptor_.kind == OpKind::ReduceScatter;
  switch (phase_) {
    case 0:
      phase_ = bytes == 0 ? 2 : 1;
      make(step, StepKind::Reclaim, chunk_);
      return true;
    case 1:
      make(step, StepKind::CopyIn, chunk_);
      if (scatter) {
        // The piece for each member, one behind the other.
        step.in_offset += static_cast<std::size_t>(member_) * bytes_total_;
        step.slot_offset = static_cast<std::size_t>(member_) * bytes;
      }
      if (!scatter || ++member_ == shape_.members) phase_ = 2;
      return true;
    case 2:
      phase_ = 3;
      make(step, StepKind::Publish, chunk_);
      return true;
    case 3:
      phase_ = 4;
      member_ = 0;
      make(step, StepKind::AwaitAll, chunk_);
      step.check = chunk_ == 0;
      return true;
    default: break;
  }
  if (phase_ == 5 || bytes == 0) return false;
  if (descriptor_.kind == OpKind::AllGather) {
    make(step, StepKind::CopyOut, chunk_);
    step.member = member_;
    step.out_offset += static_cast<std::size_t>(member_) * bytes_total_;
    if (++member_ == shape_.members) phase_ = 5;
    return true;
  }
  phase_ = 5;
  make(step, StepKind::Reduce, chunk_);
  if (scatter) step.slot_offset = static_cast<std::size_t>(shape_.me) * bytes;
  step.mine_from_input = shape_.own_from_input && !scatter;
  return true;
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

bool Plan::next_of_reduce(Step& step) {
  const bool receiver = shape_.me == descriptor_.root;
  const std::size_t bytes = chunk_bytes(chunk_);
  switch (phase_++) {
    case 0:
      make(step, receiver ? StepKind::AwaitAll : StepKind::Reclaim, chunk_);
      step.check = receiver && chunk_ == 0;
      return true;
    case 1:
      make(step, receiver ? StepKind::Reduce : StepKind::CopyIn, chunk_);
      step.mine_from_input = receiver;
      if (bytes > 0) return true;
      [[fallthrough]];
    case 2:
      phase_ = 3;
      if (!receiver) {
        make(step, StepKind::Publish, chunk_);
        return true;
      }
      // Only a turn whose buffer is used again within the operation: completing says the rest.
      if (chunk_ + 2 >= chunks_) return false;
      make(step, StepKind::SaidRead, chunk_);
      return true;
    default: return false;
  }
}

bool Plan::next_of_broadcast(Step& step) {
  const bool sender = shape_.me == descriptor_.root;
  const std::size_t bytes = chunk_bytes(chunk_);
  switch (phase_++) {
    case 0:
      make(step, sender ? StepKind::Reclaim : StepKind::AwaitOne, chunk_);
      step.member = descriptor_.root;
      step.check = !sender && chunk_ == 0;
      return true;
    case 1:
      make(step, sender ? StepKind::CopyIn : StepKind::CopyOut, chunk_);
      step.member = descriptor_.root;
      if (bytes > 0) return true;
      [[fallthrough]];
    case 2:
      phase_ = 3;
      if (sender) {
        make(step, StepKind::Publish, chunk_);
        return true;
      }
      if (chunk_ + 2 >= chunks_) return false;
      make(step, StepKind::SaidRead, chunk_);
      return true;
    default: return false;
  }
}

}  // namespace regroup::collective
