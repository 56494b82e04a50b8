#include "collective/schedule_messages.hpp"

#include <algorithm>

#include "base/check.hpp"

namespace regroup::collective {
namespace {

using spi::OpDescriptor;
using spi::OpKind;

constexpr std::size_t kCacheLine = 64;

std::size_t index(int member) { return static_cast<std::size_t>(member); }

/// A range of bytes of the input or output.
struct Piece {
  std::size_t begin = 0;
  std::size_t bytes = 0;
};

class Maker {
 public:
  Maker(const OpDescriptor& descriptor, const MessageShape& shape, MessagePlan& plan)
      : d_(descriptor),
        shape_(shape),
        plan_(plan),
        unit_(d_.kind == OpKind::Barrier ? 0 : d_.count * size_of(d_.dtype)) {
    REGROUP_ASSERT(static_cast<int>(d_.kind) < kMessageKindCount);
    REGROUP_ASSERT(shape.chunk_bytes >= kCacheLine && shape.chunk_bytes % kCacheLine == 0);
    plan_.steps.clear();
    plan_.scratch_bytes = 0;
  }

  void make() {
    switch (d_.kind) {
      case OpKind::Barrier: exchange(false); break;
      case OpKind::AllReduce:
        if (unit_ <= shape_.direct_bytes) {
          exchange(true);
        } else {
          scatter_and_gather();
        }
        break;
      case OpKind::Reduce: reduce(); break;
      case OpKind::Broadcast: broadcast(); break;
      case OpKind::AllGather: all_gather(); break;
      case OpKind::ReduceScatter: reduce_scatter(); break;
      case OpKind::AllGatherV:
      case OpKind::ReduceScatterV:
      case OpKind::AllToAll:
      case OpKind::AllToAllV:
      case OpKind::Gather:
      case OpKind::Scatter:
      case OpKind::GatherV:
      case OpKind::ScatterV:
      case OpKind::Coalesced: break;
    }
  }

 private:
  template <class Each>
  void others(Each each) {
    // Beginning behind me, so that not everybody sends to rank 0 first.
    for (int i = 1; i < shape_.members; ++i) each((shape_.me + i) % shape_.members);
  }
  void receive(int from, std::uint32_t part, Region into, std::size_t offset, std::size_t bytes) {
    plan_.steps.push_back({MessageStepKind::Receive, from, part, into, offset, bytes, 0, 0, 0});
  }
  void send(int to, std::uint32_t part, Region from, std::size_t offset, std::size_t bytes) {
    plan_.steps.push_back({MessageStepKind::Send, to, part, from, offset, bytes, 0, 0, 0});
  }
  void await(int from, std::uint32_t part) {
    plan_.steps.push_back({MessageStepKind::Await, from, part, Region::Input, 0, 0, 0, 0, 0});
  }
  /// Of the pieces in the window's scratch of `chunk`.
  void fold(std::size_t chunk, std::size_t in_offset, std::size_t out_offset, std::size_t bytes) {
    if (bytes == 0) return;
    plan_.steps.push_back({MessageStepKind::Fold, 0, 0, Region::Scratch, scratch(chunk, 0), bytes,
                           in_offset, out_offset, stride_});
  }
  void copy(std::size_t in_offset, std::size_t out_offset, std::size_t bytes) {
    if (bytes == 0) return;
    plan_.steps.push_back(
        {MessageStepKind::Copy, 0, 0, Region::Input, 0, bytes, in_offset, out_offset, 0});
  }

  /// Scratch for one piece of each member in each chunk of the window.
  void want_scratch(std::size_t piece_bytes) {
    stride_ = (piece_bytes + kCacheLine - 1) / kCacheLine * kCacheLine;
    plan_.scratch_bytes = stride_ * index(shape_.members) * shape_.window;
  }
  [[nodiscard]] std::size_t scratch(std::size_t chunk, int member) const {
    return (chunk % shape_.window * index(shape_.members) + index(member)) * stride_;
  }

  /// The part of the input that `member` folds.
  [[nodiscard]] Piece slice(int member) const {
    const std::size_t even = (unit_ + index(shape_.members) - 1) / index(shape_.members);
    const std::size_t width = (even + kCacheLine - 1) / kCacheLine * kCacheLine;
    const std::size_t begin = std::min(unit_, index(member) * width);
    return {begin, std::min(unit_, begin + width) - begin};
  }
  [[nodiscard]] Piece chunk_of(Piece whole, std::size_t chunk) const {
    const std::size_t skipped = std::min(whole.bytes, chunk * shape_.chunk_bytes);
    return {whole.begin + skipped, std::min(shape_.chunk_bytes, whole.bytes - skipped)};
  }
  /// Nothing to move still synchronises: one chunk at least.
  [[nodiscard]] std::size_t chunks_of(std::size_t bytes) const {
    return std::max<std::size_t>(1, (bytes + shape_.chunk_bytes - 1) / shape_.chunk_bytes);
  }

  /// start(c) for the chunks of the window, then finish(c), start(c + window) one after the other.
  template <class Start, class Finish>
  void in_window(std::size_t chunks, Start start, Finish finish) {
    for (std::size_t c = 0; c < std::min(chunks, shape_.window); ++c) start(c);
    for (std::size_t c = 0; c < chunks; ++c) {
      finish(c);
      if (c + shape_.window < chunks) start(c + shape_.window);
    }
  }

  void exchange(bool folds) {
    want_scratch(unit_);
    others([&](int q) { receive(q, 0, Region::Scratch, scratch(0, q), unit_); });
    others([&](int q) { send(q, 0, Region::Input, 0, unit_); });
    others([&](int q) { await(q, 0); });
    if (folds) fold(0, 0, 0, unit_);
  }

  void scatter_and_gather() {
    want_scratch(std::min(shape_.chunk_bytes, slice(0).bytes));
    const auto inputs = [](std::size_t chunk) { return static_cast<std::uint32_t>(2 * chunk); };
    const auto results = [](std::size_t chunk) {
      return static_cast<std::uint32_t>(2 * chunk + 1);
    };
    const Piece mine = slice(shape_.me);
    const std::size_t chunks = chunks_of(slice(0).bytes);  // the first slice is the longest
    const auto start = [&](std::size_t c) {
      const Piece piece = chunk_of(mine, c);
      others([&](int q) {
        const Piece theirs = chunk_of(slice(q), c);
        if (piece.bytes > 0) receive(q, inputs(c), Region::Scratch, scratch(c, q), piece.bytes);
        if (theirs.bytes > 0) receive(q, results(c), Region::Output, theirs.begin, theirs.bytes);
      });
      others([&](int q) {
        const Piece theirs = chunk_of(slice(q), c);
        if (theirs.bytes > 0) send(q, inputs(c), Region::Input, theirs.begin, theirs.bytes);
      });
    };
    const auto finish = [&](std::size_t c) {
      const Piece piece = chunk_of(mine, c);
      if (piece.bytes == 0) return;
      others([&](int q) { await(q, inputs(c)); });
      fold(c, piece.begin, piece.begin, piece.bytes);
      others([&](int q) { send(q, results(c), Region::Output, piece.begin, piece.bytes); });
    };
    in_window(chunks, start, finish);
    for (std::size_t c = 0; c < chunks; ++c) {
      others([&](int q) {
        if (chunk_of(slice(q), c).bytes > 0) await(q, results(c));
      });
    }
  }

  /// Everybody else sends `from(q)` of its input to whoever is `me`; it folds in chunks.
  void gather_and_fold(std::size_t in_offset) {
    want_scratch(std::min(shape_.chunk_bytes, unit_));
    in_window(
        chunks_of(unit_),
        [&](std::size_t c) {
          const Piece piece = chunk_of({0, unit_}, c);
          others([&](int q) {
            receive(q, static_cast<std::uint32_t>(c), Region::Scratch, scratch(c, q), piece.bytes);
          });
        },
        [&](std::size_t c) {
          const Piece piece = chunk_of({0, unit_}, c);
          others([&](int q) { await(q, static_cast<std::uint32_t>(c)); });
          fold(c, in_offset + piece.begin, piece.begin, piece.bytes);
        });
  }
  void send_in_chunks(int to, std::size_t in_offset) {
    for (std::size_t c = 0; c < chunks_of(unit_); ++c) {
      const Piece piece = chunk_of({in_offset, unit_}, c);
      send(to, static_cast<std::uint32_t>(c), Region::Input, piece.begin, piece.bytes);
    }
  }

  void reduce() {
    if (shape_.me == d_.root) {
      gather_and_fold(0);
    } else {
      send_in_chunks(d_.root, 0);
    }
  }

  void reduce_scatter() {
    others([&](int q) { send_in_chunks(q, index(q) * unit_); });
    gather_and_fold(index(shape_.me) * unit_);
  }

  void broadcast() {
    if (shape_.me == d_.root) {
      others([&](int q) { send_in_chunks(q, 0); });
      return;
    }
    for (std::size_t c = 0; c < chunks_of(unit_); ++c) {
      const Piece piece = chunk_of({0, unit_}, c);
      receive(d_.root, static_cast<std::uint32_t>(c), Region::Output, piece.begin, piece.bytes);
    }
    for (std::size_t c = 0; c < chunks_of(unit_); ++c) {
      await(d_.root, static_cast<std::uint32_t>(c));
    }
  }

  void all_gather() {
    others([&](int q) {
      for (std::size_t c = 0; c < chunks_of(unit_); ++c) {
        const Piece piece = chunk_of({index(q) * unit_, unit_}, c);
        receive(q, static_cast<std::uint32_t>(c), Region::Output, piece.begin, piece.bytes);
      }
    });
    others([&](int q) { send_in_chunks(q, 0); });
    copy(0, index(shape_.me) * unit_, unit_);
    others([&](int q) {
      for (std::size_t c = 0; c < chunks_of(unit_); ++c) await(q, static_cast<std::uint32_t>(c));
    });
  }

  const OpDescriptor& d_;
  const MessageShape& shape_;
  MessagePlan& plan_;
  std::size_t unit_;
  std::size_t stride_ = 0;
};

}  // namespace

void make_message_plan(const OpDescriptor& descriptor, const MessageShape& shape,
                       MessagePlan& plan) {
  Maker(descriptor, shape, plan).make();
}

}  // namespace regroup::collective
