// Plans of few rounds: what a message carries doubles from round to round, or halves. For any
// number of ranks, after Bruck, Ho, Kipnis, Upfal, Weathersby, "Efficient Algorithms for All-to-All
// Communications in Multiport Message-Passing Systems" (1997).
//
// Doubling. After the rounds of distance 1, 2, ... d each rank has what belongs to itself and to
// the 2d - 1 ranks ahead of it; it sends all of that d ranks back.
//
// Halving. Each rank begins with a block for every rank, of which that one folds everybody's. In
// the rounds of distance d = ..., 2, 1 it sends the blocks for those at least d ahead of it to the
// rank that is d ahead. Contributions of different ranks to a block stay apart, since only a fold
// in seat order has the bits that are promised: so the first message of a round is not half as
// large as the one before it, but each carries about half the buffer. What that buys is log2(p)
// messages in place of p - 1.
#include <vector>

#include "collective/message_plan_writer.hpp"

namespace regroup::collective {
namespace {

class RoundsMaker : MessagePlanWriter {
 public:
  using MessagePlanWriter::MessagePlanWriter;

  void double_up() {
    if (!spi::gathers(d_.kind)) return double_inputs();
    const Piece mine = share_piece(shape_.me);
    copy(0, mine.begin, mine.bytes);
    gather([this](int member) { return share_piece(member); });
  }

  void halve() {
    if (d_.kind == spi::OpKind::AllReduce) {
      const auto slice = [this](int member) {
        return slice_of({0, unit_}, shape_.members, member);
      };
      halve_blocks(slice, slice(shape_.me).begin);
      gather(slice);
    } else {
      halve_blocks([this](int member) { return share_piece(member); }, 0);
    }
  }

 private:
  /// What halving and the gathering behind it number their parts with.
  enum class Carries : std::uint8_t { Blocks, Results };
  [[nodiscard]] static std::uint32_t part(std::size_t number, Carries what) {
    return static_cast<std::uint32_t>(2 * number) + static_cast<std::uint32_t>(what);
  }

  [[nodiscard]] int ahead(int distance) const { return (shape_.me + distance) % shape_.members; }
  [[nodiscard]] int behind(int distance) const {
    return (shape_.me - distance + shape_.members) % shape_.members;
  }
  template <class Each>
  void rounds(Each each) const {
    for_each_round(shape_.members, each);
  }

  /// Everybody's input to everybody. In scratch they lie in the order of the ranks ahead of me, so
  /// that each message is one range.
  void double_inputs() {
    const std::size_t segments =
        std::max<std::size_t>(1, (unit_ + shape_.chunk_bytes - 1) / shape_.chunk_bytes);
    plan_.scratch_bytes = std::min(unit_, shape_.chunk_bytes) * index(shape_.members);
    for (std::size_t segment = 0; segment < segments; ++segment) {
      const Piece piece = chunk_of({0, unit_}, shape_.chunk_bytes, segment);
      const auto number = static_cast<std::uint32_t>(segment);
      if (segment > 0) rounds([&](int d, int) { await_sent(behind(d), number - 1); });
      copy_to_scratch(piece.begin, 0, piece.bytes);
      rounds([&](int d, int ranks) {
        receive(ahead(d), number, Region::Scratch, index(d) * piece.bytes,
                index(ranks) * piece.bytes);
      });
      rounds([&](int d, int ranks) {
        send(behind(d), number, Region::Scratch, 0, index(ranks) * piece.bytes);
        await(ahead(d), number);
      });
      fold(piece.begin, piece.begin, piece.bytes,
           [&](int member) { return index(distance_to(member)) * piece.bytes; });
    }
  }

  /// From ranges of the output, of which mine is there, to all of them. They lie one behind the
  /// other: those of several ranks are one range, or two where the first rank follows the last one.
  template <class RangeOf>
  void gather(RangeOf range_of) {
    rounds([&](int d, int ranks) {
      parts_of(range_of, ahead(d), ranks, [&](std::uint32_t number, Piece each) {
        receive(ahead(d), number, Region::Output, each.begin, each.bytes);
      });
    });
    rounds([&](int d, int ranks) {
      parts_of(range_of, shape_.me, ranks, [&](std::uint32_t number, Piece each) {
        send(behind(d), number, Region::Output, each.begin, each.bytes);
      });
      parts_of(range_of, ahead(d), ranks,
               [&](std::uint32_t number, Piece) { await(ahead(d), number); });
    });
  }
  template <class RangeOf, class Each>
  void parts_of(RangeOf range_of, int first, int ranks, Each each) const {
    std::size_t number = 0;
    const auto cut = [&](int from, int to) {
      const Piece last = range_of(to - 1);
      const std::size_t begin = range_of(from).begin;
      const Piece whole{begin, last.begin + last.bytes - begin};
      for (std::size_t c = 0; c * shape_.chunk_bytes < whole.bytes; ++c)
        each(part(number++, Carries::Results), chunk_of(whole, shape_.chunk_bytes, c));
    };
    const int end = first + ranks;
    cut(first, std::min(end, shape_.members));
    if (end > shape_.members) cut(0, end - shape_.members);
  }

  /// A contribution to a block: from so many ranks behind me, and where it lies in scratch.
  struct Held {
    int behind = 0;
    std::size_t at = kInput;
    static constexpr std::size_t kInput = ~std::size_t{0};
  };
  struct Round {
    int distance = 0;
    std::vector<MessageStep> copies;
    Piece out;  ///< of the scratch
    Piece in;
  };

  template <class BlockOf>
  void halve_blocks(BlockOf block_of, std::size_t out_begin) {
    // Scratch holds what comes and goes in all rounds of a chunk.
    const std::size_t chunk_bytes = whole_lines((shape_.chunk_bytes + 3) / 4);
    std::size_t longest = 0;
    for (int member = 0; member < shape_.members; ++member)
      longest = std::max(longest, block_of(member).bytes);
    std::vector<Round> before;
    for (std::size_t c = 0; c * chunk_bytes < longest; ++c) {
      const auto piece_of = [&](int member) { return chunk_of(block_of(member), chunk_bytes, c); };
      std::vector<Held> mine;
      std::vector<Round> now = plan_rounds(piece_of, mine);
      for (const Round& round : before) {
        if (round.out.bytes > 0) await_sent(ahead(round.distance), part(c - 1, Carries::Blocks));
      }
      perform(now, part(c, Carries::Blocks));
      const Piece piece = piece_of(shape_.me);
      std::vector<std::size_t> places(index(shape_.members));
      for (const Held& held : mine) places[index(behind(held.behind))] = held.at;
      fold(piece.begin, out_begin + c * chunk_bytes, piece.bytes,
           [&](int member) { return member == shape_.me ? 0 : places[index(member)]; });
      before = std::move(now);
    }
  }

  void perform(const std::vector<Round>& now, std::uint32_t number) {
    for (const Round& round : now) {
      if (round.in.bytes == 0) continue;
      receive(behind(round.distance), number, Region::Scratch, round.in.begin, round.in.bytes);
    }
    for (const Round& round : now) {
      plan_.steps.insert(plan_.steps.end(), round.copies.begin(), round.copies.end());
      if (round.out.bytes > 0)
        send(ahead(round.distance), number, Region::Scratch, round.out.begin, round.out.bytes);
      if (round.in.bytes > 0) await(behind(round.distance), number);
    }
  }

  /// The rounds of one chunk, and at the end everybody's contribution to my block.
  template <class PieceOf>
  std::vector<Round> plan_rounds(PieceOf piece_of, std::vector<Held>& mine) {
    std::vector<Round> all;
    // By how far ahead of me the rank is that a block is for. Looks alike on all ranks.
    std::vector<std::vector<Held>> held(index(shape_.members), {Held{}});
    std::size_t used = 0;
    int top = 1;
    while (2 * top < shape_.members) top *= 2;
    int limit = shape_.members;
    for (int d = top; limit > 1; limit = d, d /= 2) {
      Round round{.distance = d, .copies = {}, .out = {used, 0}, .in = {}};
      for (int j = d; j < limit; ++j) {
        const Piece piece = piece_of(ahead(j));
        for (const Held& each : held[index(j)]) {
          if (piece.bytes > 0) round.copies.push_back(pack(each, piece, used));
          used += piece.bytes;
        }
      }
      round.out.bytes = used - round.out.begin;
      used = whole_lines(used);
      round.in.begin = used;
      for (int j = d; j < limit; ++j) {
        for (const Held& each : held[index(j)]) {
          held[index(j - d)].push_back({each.behind + d, used});
          used += piece_of(ahead(j - d)).bytes;
        }
      }
      round.in.bytes = used - round.in.begin;
      used = whole_lines(used);
      all.push_back(std::move(round));
    }
    plan_.scratch_bytes = std::max(plan_.scratch_bytes, used);
    mine = held[0];
    return all;
  }
  [[nodiscard]] static MessageStep pack(const Held& held, Piece piece, std::size_t to) {
    const bool from_scratch = held.at != Held::kInput;
    return {.kind = MessageStepKind::Copy,
            .region = Region::Scratch,
            .offset = from_scratch ? held.at : 0,
            .bytes = piece.bytes,
            .in_offset = piece.begin,
            .out_offset = to,
            .from_scratch = from_scratch};
  }

  [[nodiscard]] int distance_to(int member) const {
    return (member - shape_.me + shape_.members) % shape_.members;
  }
  void copy_to_scratch(std::size_t in_offset, std::size_t at, std::size_t bytes) {
    if (bytes > 0) plan_.steps.push_back(pack({}, {in_offset, bytes}, at));
  }
  /// Of everybody's pieces, each at its place in scratch; mine from the input.
  template <class PlaceOf>
  void fold(std::size_t in_offset, std::size_t out_offset, std::size_t bytes, PlaceOf place_of) {
    if (bytes == 0) return;
    plan_.steps.push_back({.kind = MessageStepKind::Fold,
                           .region = Region::Output,
                           .bytes = bytes,
                           .in_offset = in_offset,
                           .out_offset = out_offset,
                           .first = 0,
                           .count = shape_.members,
                           .places = plan_.places.size()});
    for (int member = 0; member < shape_.members; ++member)
      plan_.places.push_back(place_of(member));
  }
};

}  // namespace

void make_doubling_plan(const spi::OpDescriptor& descriptor, const MessageShape& shape,
                        MessagePlan& plan) {
  RoundsMaker(descriptor, shape, plan).double_up();
}

void make_halving_plan(const spi::OpDescriptor& descriptor, const MessageShape& shape,
                       MessagePlan& plan) {
  RoundsMaker(descriptor, shape, plan).halve();
}

}  // namespace regroup::collective
