#include "collective/schedule_messages.hpp"

#include <algorithm>

#include "base/check.hpp"
#include "collective/message_choice.hpp"
#include "collective/message_plan_writer.hpp"
#include "spi/message_port.hpp"

namespace regroup::collective {
namespace {

using spi::OpDescriptor;
using spi::OpKind;

class Maker : MessagePlanWriter {
 public:
  using MessagePlanWriter::MessagePlanWriter;

  void make(Algorithm algorithm) {
    switch (d_.kind) {
      case OpKind::Barrier: exchange(false); break;
      case OpKind::AllReduce:
        if (algorithm == Algorithm::OneShot) {
          exchange(true);
        } else {
          scatter_and_gather();
        }
        break;
      case OpKind::ReduceScatter:
      case OpKind::ReduceScatterV: reduce_scatter(); break;
      case OpKind::AllGather:
      case OpKind::AllGatherV:
      case OpKind::AllToAll: move_shares(0); break;
      case OpKind::AllToAllV: move_shares(compare_counts()); break;
      case OpKind::Reduce:
      case OpKind::Gather:
      case OpKind::GatherV: to_root(); break;
      case OpKind::Broadcast:
      case OpKind::Scatter:
      case OpKind::ScatterV: from_root(); break;
      case OpKind::Coalesced: REGROUP_UNREACHABLE("a plan of several operations");
    }
  }

 private:
  /// Of the pieces in the window's scratch of `chunk`.
  void fold(std::size_t chunk, std::size_t in_offset, std::size_t out_offset, std::size_t bytes) {
    if (bytes == 0) return;
    plan_.steps.push_back({.kind = MessageStepKind::Fold,
                           .region = Region::Output,
                           .offset = scratch(chunk, 0),
                           .bytes = bytes,
                           .in_offset = in_offset,
                           .out_offset = out_offset,
                           .stride = stride_,
                           .first = 0,
                           .count = shape_.members});
  }

  /// What `member` gets of my input.
  [[nodiscard]] Piece given_to(int member) const {
    const std::size_t* const counts = shape_.counts.shares;
    if (!spi::scatters(d_.kind)) return {0, share_of(d_, counts, shape_.me)};
    return share_piece(member);
  }
  /// Where in my output lies what comes from `member`.
  [[nodiscard]] Piece got_from(int member) const {
    const Counts& counts = shape_.counts;
    if (!spi::gathers(d_.kind)) return {0, share_of(d_, counts.shares, shape_.me)};
    const std::size_t* const of = counts.recv != nullptr ? counts.recv : counts.shares;
    return {share_offset(d_, of, member), share_of(d_, of, member)};
  }

  /// Scratch for one piece of each member in each chunk of the window.
  void want_scratch(std::size_t piece_bytes) {
    stride_ = whole_lines(piece_bytes);
    plan_.scratch_bytes = stride_ * index(shape_.members) * shape_.window;
  }
  [[nodiscard]] std::size_t scratch(std::size_t chunk, int member) const {
    return (chunk % shape_.window * index(shape_.members) + index(member)) * stride_;
  }

  /// The part of the input that `member` folds.
  [[nodiscard]] Piece slice(int member) const {
    return slice_of({0, unit_}, shape_.members, member);
  }
  [[nodiscard]] Piece chunk_of(Piece whole, std::size_t chunk) const {
    return MessagePlanWriter::chunk_of(whole, shape_.chunk_bytes, chunk);
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
    if (!folds) return;
    others([&](int q) { await_sent(q, 0); });  // in place the fold writes over it
    fold(0, 0, 0, unit_);
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

  // A piece as parts, numbered from `first`.
  template <class Each>
  void parts_of(Piece piece, std::uint32_t first, Each each) const {
    // Counts synchronise by themselves: where they are exchanged, nothing is not sent.
    const bool counted = d_.kind == OpKind::AllToAllV;
    const std::size_t chunks = counted && piece.bytes == 0 ? 0 : chunks_of(piece.bytes);
    for (std::size_t c = 0; c < chunks; ++c)
      each(first + static_cast<std::uint32_t>(c), chunk_of(piece, c));
  }
  void send_parts(int to, Piece piece, std::uint32_t first = 0) {
    parts_of(piece, first, [&](std::uint32_t part, Piece each) {
      send(to, part, Region::Input, each.begin, each.bytes);
    });
  }
  void receive_parts(int from, std::uint32_t first = 0) {
    parts_of(got_from(from), first, [&](std::uint32_t part, Piece each) {
      receive(from, part, Region::Output, each.begin, each.bytes);
    });
  }
  void await_parts(int from, std::uint32_t first = 0) {
    parts_of(got_from(from), first, [&](std::uint32_t part, Piece) { await(from, part); });
  }
  void copy_own() {
    const Piece given = given_to(shape_.me);
    copy(given.begin, got_from(shape_.me).begin, given.bytes);
  }

  /// Everybody else sends me its part of this piece of my input; I fold in chunks.
  void gather_and_fold(Piece mine) {
    want_scratch(std::min(shape_.chunk_bytes, mine.bytes));
    in_window(
        chunks_of(mine.bytes),
        [&](std::size_t c) {
          const Piece piece = chunk_of(mine, c);
          others([&](int q) {
            receive(q, static_cast<std::uint32_t>(c), Region::Scratch, scratch(c, q), piece.bytes);
          });
        },
        [&](std::size_t c) {
          const Piece piece = chunk_of(mine, c);
          others([&](int q) { await(q, static_cast<std::uint32_t>(c)); });
          fold(c, piece.begin, piece.begin - mine.begin, piece.bytes);
        });
  }

  void reduce_scatter() {
    others([&](int q) { send_parts(q, given_to(q)); });
    gather_and_fold(given_to(shape_.me));
  }

  void to_root() {
    if (shape_.me != d_.root) {
      send_parts(d_.root, given_to(d_.root));
    } else if (spi::reduces(d_.kind)) {
      gather_and_fold(given_to(shape_.me));
    } else {
      copy_own();
      others([&](int q) { receive_parts(q); });
      others([&](int q) { await_parts(q); });
    }
  }

  void from_root() {
    if (shape_.me != d_.root) {
      receive_parts(d_.root);
      await_parts(d_.root);
      return;
    }
    if (spi::scatters(d_.kind)) copy_own();
    others([&](int q) { send_parts(q, given_to(q)); });
  }

  /// Everybody gets something from everybody, as it is. `counted`: parts that were exchanged before
  /// and are yet to be compared.
  void move_shares(std::uint32_t counted) {
    copy_own();
    others([&](int q) { receive_parts(q, counted); });
    others([&](int q) { send_parts(q, given_to(q), counted); });
    if (counted > 0) {
      others([&](int q) {
        for (std::uint32_t part = 0; part < counted; ++part) await(q, part);
      });
      plan_.steps.push_back({.kind = MessageStepKind::Compare,
                             .region = Region::Scratch,
                             .bytes = counts_bytes(),
                             .stride = stride_});
    }
    others([&](int q) { await_parts(q, counted); });
  }

  [[nodiscard]] std::size_t counts_bytes() const {
    return 2 * index(shape_.members) * sizeof(std::uint64_t);
  }
  /// Everybody's counts to everybody, beside the data; as how many parts. None of them has to be
  /// asked for: who finds a difference has sent all that others need to find it.
  std::uint32_t compare_counts() {
    stride_ = whole_lines(counts_bytes());
    plan_.scratch_bytes = stride_ * index(shape_.members);
    std::uint32_t parts = 0;
    for (std::size_t at = 0; at < counts_bytes(); at += spi::kPostedBytesMax, ++parts) {
      const std::size_t bytes = std::min(spi::kPostedBytesMax, counts_bytes() - at);
      others([&](int q) { receive(q, parts, Region::Scratch, index(q) * stride_ + at, bytes); });
      others([&](int q) { send(q, parts, Region::Counts, at, bytes); });
    }
    return parts;
  }

  std::size_t stride_ = 0;
};

}  // namespace

bool sends_late(OpKind kind, bool own_place) {
  // all_reduce keeps M4, and a reducing or gathering root sends nothing.
  if (own_place || kind == OpKind::AllReduce) return false;
  return spi::flow_of(kind) != spi::Flow::ToRoot;
}

void make_message_plan(const OpDescriptor& descriptor, const MessageShape& shape,
                       MessagePlan& plan) {
  switch (const Algorithm chosen = choose(descriptor, shape)) {
    case Algorithm::Rails: return make_rails_plan(descriptor, shape, plan);
    case Algorithm::Doubling: return make_doubling_plan(descriptor, shape, plan);
    case Algorithm::Halving: return make_halving_plan(descriptor, shape, plan);
    case Algorithm::Ring:
    case Algorithm::Tree: return make_chain_plan(descriptor, shape, chosen, plan);
    case Algorithm::Inline:
    case Algorithm::OneShot:
    case Algorithm::TwoShot: return Maker(descriptor, shape, plan).make(chosen);
  }
  REGROUP_UNREACHABLE("algorithm");
}

}  // namespace regroup::collective
