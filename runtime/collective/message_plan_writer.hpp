/// What the plans over messages are written with. Not for others to include.
#pragma once

#include <algorithm>
#include <cstddef>

#include "base/check.hpp"
#include "collective/schedule_messages.hpp"

namespace regroup::collective {

inline constexpr std::size_t kCacheLine = 64;

[[nodiscard]] constexpr std::size_t whole_lines(std::size_t bytes) {
  return (bytes + kCacheLine - 1) / kCacheLine * kCacheLine;
}

/// The rounds in which each rank comes to have what belongs to all: each(distance, how many ranks'
/// belongings that round brings), distances growing.
template <class Each>
void for_each_round(int members, Each each) {
  for (int d = 1; d < members; d *= 2) each(d, std::min(d, members - d));
}

/// A range of bytes of the input or output.
struct Piece {
  std::size_t begin = 0;
  std::size_t bytes = 0;
};

/// Appends steps to a plan. Thread safety: a value.
class MessagePlanWriter {
 public:
  MessagePlanWriter(const spi::OpDescriptor& descriptor, const MessageShape& shape,
                    MessagePlan& plan)
      : d_(descriptor),
        shape_(shape),
        plan_(plan),
        unit_(d_.kind == OpKind::Barrier ? 0 : d_.count * size_of(d_.dtype)) {
    REGROUP_ASSERT(!spi::has_counts(d_.kind) || shape.counts.ranks >= shape.members);
    REGROUP_ASSERT(shape.chunk_bytes >= kCacheLine && shape.chunk_bytes % kCacheLine == 0);
    plan_.steps.clear();
    plan_.places.clear();
    plan_.scratch_bytes = 0;
  }

 protected:
  [[nodiscard]] static std::size_t index(int member) { return static_cast<std::size_t>(member); }
  template <class Each>
  void others(Each each) {
    // Beginning behind me, so that not everybody sends to rank 0 first.
    for (int i = 1; i < shape_.members; ++i) each((shape_.me + i) % shape_.members);
  }
  void receive(int from, std::uint32_t part, Region into, std::size_t offset, std::size_t bytes) {
    plan_.steps.push_back({.kind = MessageStepKind::Receive,
                           .member = from,
                           .part = part,
                           .region = into,
                           .offset = offset,
                           .bytes = bytes});
  }
  void send(int to, std::uint32_t part, Region from, std::size_t offset, std::size_t bytes) {
    plan_.steps.push_back({.kind = MessageStepKind::Send,
                           .member = to,
                           .part = part,
                           .region = from,
                           .offset = offset,
                           .bytes = bytes});
  }
  void await(int from, std::uint32_t part) {
    plan_.steps.push_back({.kind = MessageStepKind::Await, .member = from, .part = part});
  }
  void await_sent(int to, std::uint32_t part) {
    plan_.steps.push_back({.kind = MessageStepKind::AwaitSent, .member = to, .part = part});
  }
  void copy(std::size_t in_offset, std::size_t out_offset, std::size_t bytes) {
    if (bytes == 0) return;
    plan_.steps.push_back({.kind = MessageStepKind::Copy,
                           .region = Region::Output,
                           .bytes = bytes,
                           .in_offset = in_offset,
                           .out_offset = out_offset});
  }
  /// The `number`th of `parts` slices of a piece, in whole cache lines.
  [[nodiscard]] static Piece slice_of(Piece whole, int parts, int number) {
    const std::size_t width = whole_lines((whole.bytes + index(parts) - 1) / index(parts));
    const std::size_t begin = std::min(whole.bytes, index(number) * width);
    return {whole.begin + begin, std::min(whole.bytes, begin + width) - begin};
  }
  [[nodiscard]] static Piece chunk_of(Piece whole, std::size_t chunk_bytes, std::size_t chunk) {
    const std::size_t skipped = std::min(whole.bytes, chunk * chunk_bytes);
    return {whole.begin + skipped, std::min(chunk_bytes, whole.bytes - skipped)};
  }

  [[nodiscard]] Piece share_piece(int member) const {
    const std::size_t* const counts = shape_.counts.shares;
    return {share_offset(d_, counts, member), share_of(d_, counts, member)};
  }

  const spi::OpDescriptor& d_;
  const MessageShape& shape_;
  MessagePlan& plan_;
  std::size_t unit_;
};

/// schedule_rails.cpp: all_reduce.
void make_rails_plan(const spi::OpDescriptor& descriptor, const MessageShape& shape,
                     MessagePlan& plan);
/// schedule_rounds.cpp: Doubling of all_reduce, barrier, all_gather and all_gather_v.
void make_doubling_plan(const spi::OpDescriptor& descriptor, const MessageShape& shape,
                        MessagePlan& plan);
/// Halving of all_reduce, reduce_scatter and reduce_scatter_v.
void make_halving_plan(const spi::OpDescriptor& descriptor, const MessageShape& shape,
                       MessagePlan& plan);
/// schedule_chain.cpp: Ring of all_reduce, reduce, broadcast, all_gather and all_gather_v; Tree of
/// all_reduce and broadcast.
void make_chain_plan(const spi::OpDescriptor& descriptor, const MessageShape& shape,
                     Algorithm algorithm, MessagePlan& plan);

}  // namespace regroup::collective
