// Plans in which a rank gets from one other and gives to one or two, chunk by chunk: the volume of
// a large operation goes through every rank once.
//
// Sums. The first rank sends its input to the second one, which folds its own onto it, and so on in
// the order of seats: the left part of the fold in seat order, so the bits are those of any other
// plan. The last rank has the result. all_reduce sends it on around the ring or down two trees, and
// reduce to the root.
//
// broadcast goes the second half of that way, from the root. In all_gather the shares go around.
#include <array>

#include "collective/message_choice.hpp"
#include "collective/message_plan_writer.hpp"
#include "collective/message_spread.hpp"
#include "collective/partial_sums.hpp"

namespace regroup::collective {
namespace {

enum class Carries : std::uint8_t { SumSoFar, Result };
constexpr std::uint32_t kKinds = 2;

class ChainMaker : MessagePlanWriter {
 public:
  ChainMaker(const spi::OpDescriptor& descriptor, const MessageShape& shape, Algorithm algorithm,
             MessagePlan& plan)
      : MessagePlanWriter(descriptor, shape, plan),
        last_(shape.members - 1),
        spread_(algorithm == Algorithm::Tree ? Spread::Form::Trees : Spread::Form::Ring,
                shape.members, is_reduction() ? last_ : descriptor.root),
        chunk_bytes_(chain_chunk_bytes(unit_, shape.chunk_bytes)),
        chunks_(std::max<std::size_t>(1, (unit_ + chunk_bytes_ - 1) / chunk_bytes_)) {}

  void make() {
    if (spi::gathers(d_.kind)) {
      pass_shares();
    } else if (is_reduction()) {
      pass_sums();
    } else {
      broadcast();
    }
  }

 private:
  [[nodiscard]] bool is_reduction() const { return spi::reduces(d_.kind); }
  [[nodiscard]] bool is_last() const { return shape_.me == last_; }
  [[nodiscard]] Piece piece(std::size_t chunk) const {
    return chunk_of({0, unit_}, chunk_bytes_, chunk);
  }
  [[nodiscard]] static std::uint32_t part(std::size_t chunk, Carries what) {
    return static_cast<std::uint32_t>(chunk) * kKinds + static_cast<std::uint32_t>(what);
  }

  void send_on(std::size_t c, Region from, std::size_t offset) {
    for (const int to : spread_.to(shape_.me, c)) {
      if (to >= 0) send(to, part(c, Carries::Result), from, offset, piece(c).bytes);
    }
  }
  void broadcast() {
    if (shape_.me == d_.root) {
      for (std::size_t c = 0; c < chunks_; ++c) send_on(c, Region::Input, piece(c).begin);
      return;
    }
    for (std::size_t c = 0; c < chunks_; ++c)
      receive(spread_.from(shape_.me, c), part(c, Carries::Result), Region::Output, piece(c).begin,
              piece(c).bytes);
    for (std::size_t c = 0; c < chunks_; ++c) {
      await(spread_.from(shape_.me, c), part(c, Carries::Result));
      send_on(c, Region::Output, piece(c).begin);
    }
  }

  // ---- sums

  /// Who sends me results; -1: nobody.
  [[nodiscard]] int result_from(std::size_t c) const {
    if (d_.kind == spi::OpKind::AllReduce) return spread_.from(shape_.me, c);
    return shape_.me == d_.root && !is_last() ? last_ : -1;
  }

  void pass_sums() {
    stride_ = whole_lines(sum_bytes(d_.dtype, std::min(chunk_bytes_, unit_)));
    plan_.scratch_bytes = shape_.me == 0 ? 0 : 2 * shape_.window * stride_;
    for (std::size_t c = 0; c < std::min(chunks_, shape_.window); ++c) start(c);
    const bool spreads = d_.kind == spi::OpKind::AllReduce;
    const std::size_t lag = turns_until_results();
    for (std::size_t c = 0; c < chunks_ + lag; ++c) {
      if (c < chunks_) fold(c);
      if (c + shape_.window < chunks_) start(c + shape_.window);
      if (c < lag || result_from(c - lag) < 0) continue;
      await(result_from(c - lag), part(c - lag, Carries::Result));
      if (spreads) send_on(c - lag, Region::Output, piece(c - lag).begin);
    }
  }

  /// A result comes after so many turns; until then there is more to fold. As many on all ranks:
  /// one that waited for a result which another one is to pass on later, after it has folded more,
  /// would keep that one from folding.
  [[nodiscard]] std::size_t turns_until_results() const {
    if (d_.kind == spi::OpKind::Reduce) return index(last_ - shape_.me) + 1;
    int most = 0;
    for (int member = 0; member < last_; ++member)
      most = std::max(most, last_ - member + spread_.depth(member));
    return index(most);
  }

  /// Of each chunk of the window: the sum before me, the sum with me.
  [[nodiscard]] std::size_t before(std::size_t c) const {
    return 2 * (c % shape_.window) * stride_;
  }
  [[nodiscard]] std::size_t with(std::size_t c) const { return before(c) + stride_; }

  void start(std::size_t c) {
    const Piece here = piece(c);
    // The first one sends what it has.
    if (shape_.me > 0) {
      receive(shape_.me - 1, part(c, Carries::SumSoFar), Region::Scratch, before(c),
              shape_.me == 1 ? here.bytes : sum_bytes(d_.dtype, here.bytes));
    }
    if (result_from(c) >= 0) {
      receive(result_from(c), part(c, Carries::Result), Region::Output, here.begin, here.bytes);
    }
  }

  void fold(std::size_t c) {
    const Piece here = piece(c);
    const int next = shape_.me + 1;
    if (shape_.me == 0)
      return send(next, part(c, Carries::SumSoFar), Region::Input, here.begin, here.bytes);
    await(shape_.me - 1, part(c, Carries::SumSoFar));
    MessageStep step{.kind = MessageStepKind::Fold,
                     .region = Region::Output,
                     .offset = before(c),
                     .bytes = here.bytes,
                     .in_offset = here.begin,
                     .out_offset = here.begin,
                     .stride = stride_,
                     .first = shape_.me == 1 ? 0 : shape_.me,
                     .count = shape_.me == 1 ? 2 : 1};
    if (shape_.me > 1) step.prior = before(c);
    step.goes_on = !is_last();
    const bool keeps = is_last() && (d_.kind == spi::OpKind::AllReduce || d_.root == last_);
    if (keeps) {
      plan_.steps.push_back(step);
      if (d_.kind == spi::OpKind::AllReduce) send_on(c, Region::Output, here.begin);
      return;
    }
    const int to = is_last() ? d_.root : next;
    const Carries what = is_last() ? Carries::Result : Carries::SumSoFar;
    if (c >= shape_.window) await_sent(to, part(c - shape_.window, what));
    step.region = Region::Scratch;
    step.out_offset = with(c);
    plan_.steps.push_back(step);
    send(to, part(c, what), Region::Scratch, step.out_offset,
         is_last() ? here.bytes : sum_bytes(d_.dtype, here.bytes));
  }

  // ---- shares

  template <class Each>
  void parts_of(int member, Each each) const {
    const Piece whole = share_piece(member);
    std::size_t number = 0;
    for (int before = 0; before < member; ++before)
      number += (share_piece(before).bytes + shape_.chunk_bytes - 1) / shape_.chunk_bytes;
    for (std::size_t c = 0; c * shape_.chunk_bytes < whole.bytes; ++c)
      each(static_cast<std::uint32_t>(number + c), chunk_of(whole, shape_.chunk_bytes, c));
  }

  void pass_shares() {
    const int next = (shape_.me + 1) % shape_.members;
    const int previous = (shape_.me + shape_.members - 1) % shape_.members;
    const auto owner = [&](int turn) {
      return (shape_.me - turn + shape_.members) % shape_.members;
    };
    const Piece mine = share_piece(shape_.me);
    copy(0, mine.begin, mine.bytes);
    for (int turn = 1; turn < shape_.members; ++turn) {
      parts_of(owner(turn), [&](std::uint32_t number, Piece each) {
        receive(previous, number, Region::Output, each.begin, each.bytes);
      });
    }
    for (int turn = 0; turn < shape_.members; ++turn) {
      parts_of(owner(turn), [&](std::uint32_t number, Piece each) {
        if (turn > 0) await(previous, number);
        if (owner(turn) != next) send(next, number, Region::Output, each.begin, each.bytes);
      });
    }
  }

  int last_;
  Spread spread_;
  std::size_t chunk_bytes_;
  std::size_t chunks_;
  std::size_t stride_ = 0;
};

}  // namespace

void make_chain_plan(const spi::OpDescriptor& descriptor, const MessageShape& shape,
                     Algorithm algorithm, MessagePlan& plan) {
  ChainMaker(descriptor, shape, algorithm, plan).make();
}

}  // namespace regroup::collective
