// all_reduce over hosts with several ranks each, in seat order.
//
// Consecutive members of one host are a run. The buffer is cut into as many shards as the largest
// run has members; in each run one of them is the shard's rail. A rail folds what its run gives
// onto what the runs before came to, and passes that on to the next run's; the last run's has the
// result, which goes back the same way. So each host sends the buffer once to the next one and once
// back, whatever its number of ranks, over as many channels at a time as it has ranks, chunk by
// chunk. What is passed on is the left part of the fold in seat order, so the bits are those of any
// other plan.
#include <array>

#include "collective/message_choice.hpp"
#include "collective/message_plan_writer.hpp"
#include "collective/partial_sums.hpp"

namespace regroup::collective {
namespace {

/// Messages of one chunk of one shard.
enum class Carries : std::uint8_t { Input, SumSoFar, Result };
constexpr std::uint32_t kKinds = 3;

class RailsMaker : MessagePlanWriter {
 public:
  RailsMaker(const spi::OpDescriptor& descriptor, const MessageShape& shape, MessagePlan& plan)
      : MessagePlanWriter(descriptor, shape, plan), runs_(runs_of(shape.hosts)) {
    for (std::size_t run = 0; run < runs_.size(); ++run) {
      rails_ = std::max(rails_, runs_[run].count);
      const int behind = shape.me - runs_[run].first;
      if (behind >= 0 && behind < runs_[run].count) mine_ = run;
    }
    chunk_bytes_ = rails_chunk_bytes(unit_, runs_, shape.chunk_bytes);
    for (int shard = 0; shard < rails_; ++shard) {
      if (rail(mine_, shard) == shape.me) shards_.push_back(shard);
    }
    const std::size_t longest = slice_of({0, unit_}, rails_, 0).bytes;
    chunks_ = (longest + chunk_bytes_ - 1) / chunk_bytes_;
    stride_ = whole_lines(std::min(chunk_bytes_, longest));
    sum_stride_ = whole_lines(sum_bytes(d_.dtype, std::min(chunk_bytes_, longest)));
    plan_.scratch_bytes = shape_.window * shards_.size() * shard_bytes();
  }

  void make() {
    for (std::size_t c = 0; c < std::min(chunks_, shape_.window); ++c) start(c);
    // Results come back after so many turns of the runs behind; until then there is more to fold.
    const std::size_t lag = 2 * (runs_.size() - 1 - mine_);
    for (std::size_t c = 0; c < chunks_ + lag; ++c) {
      if (c < chunks_) fold(c);
      if (c + shape_.window < chunks_) start(c + shape_.window);
      if (c >= lag && !is_last()) pass_back(c - lag);
    }
    for (std::size_t c = 0; c < chunks_; ++c) {
      for (int shard = 0; shard < rails_; ++shard) {
        const int from = rail(mine_, shard);
        if (from != shape_.me && piece(shard, c).bytes > 0)
          await(from, part(shard, c, Carries::Result));
      }
    }
  }

 private:
  [[nodiscard]] bool is_last() const { return mine_ + 1 == runs_.size(); }
  [[nodiscard]] const Run& run() const { return runs_[mine_]; }
  [[nodiscard]] int rail(std::size_t run, int shard) const {
    return runs_[run].first + shard % runs_[run].count;
  }
  [[nodiscard]] Piece piece(int shard, std::size_t chunk) const {
    return chunk_of(slice_of({0, unit_}, rails_, shard), chunk_bytes_, chunk);
  }
  [[nodiscard]] std::uint32_t part(int shard, std::size_t chunk, Carries what) const {
    return static_cast<std::uint32_t>(chunk * index(rails_) + index(shard)) * kKinds +
           static_cast<std::uint32_t>(what);
  }
  template <class Each>
  void others_of_run(Each each) const {
    for (int i = 1; i < run().count; ++i)
      each(run().first + (shape_.me - run().first + i) % run().count);
  }

  /// Scratch of one shard and chunk: a piece of each of the run, the sum before it, the sum with
  /// it.
  [[nodiscard]] std::size_t shard_bytes() const {
    return index(run().count) * stride_ + 2 * sum_stride_;
  }
  [[nodiscard]] std::size_t scratch(std::size_t nth_shard, std::size_t chunk,
                                    std::size_t nth_piece) const {
    return (chunk % shape_.window * shards_.size() + nth_shard) * shard_bytes() +
           nth_piece * stride_;
  }
  [[nodiscard]] std::size_t before(std::size_t nth_shard, std::size_t chunk) const {
    return scratch(nth_shard, chunk, index(run().count));
  }
  [[nodiscard]] std::size_t with(std::size_t nth_shard, std::size_t chunk) const {
    return before(nth_shard, chunk) + sum_stride_;
  }

  void start(std::size_t c) {
    for (std::size_t n = 0; n < shards_.size(); ++n) {
      const int shard = shards_[n];
      const Piece here = piece(shard, c);
      if (here.bytes == 0) continue;
      others_of_run([&](int q) {
        receive(q, part(shard, c, Carries::Input), Region::Scratch,
                scratch(n, c, index(q - run().first)), here.bytes);
      });
      if (mine_ > 0) {
        receive(rail(mine_ - 1, shard), part(shard, c, Carries::SumSoFar), Region::Scratch,
                before(n, c), sum_bytes(d_.dtype, here.bytes));
      }
      if (!is_last()) receive_result(rail(mine_ + 1, shard), shard, c);
    }
    for (int shard = 0; shard < rails_; ++shard) {
      const int to = rail(mine_, shard);
      const Piece here = piece(shard, c);
      if (to == shape_.me || here.bytes == 0) continue;
      receive_result(to, shard, c);
      send(to, part(shard, c, Carries::Input), Region::Input, here.begin, here.bytes);
    }
  }
  void receive_result(int from, int shard, std::size_t c) {
    const Piece here = piece(shard, c);
    receive(from, part(shard, c, Carries::Result), Region::Output, here.begin, here.bytes);
  }

  void fold(std::size_t c) {
    for (std::size_t n = 0; n < shards_.size(); ++n) {
      const int shard = shards_[n];
      const Piece here = piece(shard, c);
      if (here.bytes == 0) continue;
      others_of_run([&](int q) { await(q, part(shard, c, Carries::Input)); });
      if (mine_ > 0) await(rail(mine_ - 1, shard), part(shard, c, Carries::SumSoFar));
      MessageStep step{.kind = MessageStepKind::Fold,
                       .region = Region::Output,
                       .offset = scratch(n, c, 0),
                       .bytes = here.bytes,
                       .in_offset = here.begin,
                       .out_offset = here.begin,
                       .stride = stride_,
                       .first = run().first,
                       .count = run().count};
      if (mine_ > 0) step.prior = before(n, c);
      if (is_last()) {
        plan_.steps.push_back(step);
        send_result(shard, c);
        continue;
      }
      const int next = rail(mine_ + 1, shard);
      if (c >= shape_.window) await_sent(next, part(shard, c - shape_.window, Carries::SumSoFar));
      step.region = Region::Scratch;
      step.out_offset = with(n, c);
      step.goes_on = true;
      plan_.steps.push_back(step);
      send(next, part(shard, c, Carries::SumSoFar), Region::Scratch, step.out_offset,
           sum_bytes(d_.dtype, here.bytes));
    }
  }

  void pass_back(std::size_t c) {
    for (const int shard : shards_) {
      if (piece(shard, c).bytes == 0) continue;
      await(rail(mine_ + 1, shard), part(shard, c, Carries::Result));
      send_result(shard, c);
    }
  }
  void send_result(int shard, std::size_t c) {
    const Piece here = piece(shard, c);
    const auto to = [&](int q) {
      send(q, part(shard, c, Carries::Result), Region::Output, here.begin, here.bytes);
    };
    if (mine_ > 0) to(rail(mine_ - 1, shard));
    others_of_run(to);
  }

  std::vector<Run> runs_;
  std::size_t mine_ = 0;  ///< which of them I am in
  int rails_ = 1;
  std::vector<int> shards_;  ///< whose rail I am
  std::size_t chunk_bytes_ = 0;
  std::size_t chunks_ = 0;
  std::size_t stride_ = 0;
  std::size_t sum_stride_ = 0;
};

}  // namespace

void make_rails_plan(const spi::OpDescriptor& descriptor, const MessageShape& shape,
                     MessagePlan& plan) {
  RailsMaker(descriptor, shape, plan).make();
}

}  // namespace regroup::collective
