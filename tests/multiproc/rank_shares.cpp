#include "tests/multiproc/rank_shares.hpp"

#include <fmt/format.h>

#include <cstdio>
#include <string>
#include <vector>

namespace regroup::test {
namespace {

using Elements = std::vector<std::int64_t>;
using Shares = std::vector<std::size_t>;

/// All operations of one step, or of the prologue (step 0).
class Round {
 public:
  Round(ProcessGroup& world, std::uint64_t step)
      : world_(world),
        step_(step),
        me_(static_cast<std::size_t>(world.rank())),
        ranks_(static_cast<std::size_t>(world.size())),
        root_(static_cast<int>(step % ranks_)) {
    for (std::size_t r = 0; r < ranks_; ++r) {
      shares_.push_back(size_of_share(r));
      sent_.push_back(size_of_share(me_ + 2 * r));
      received_.push_back(size_of_share(r + 2 * me_));
    }
  }

  Status prologue() {
    if (auto s = exchange_uneven(); !s) return s;
    if (auto s = coalesced(); !s) return s;
    return scatter();
  }

  Status all() {
    for (const auto part :
         {&Round::gather, &Round::scatter, &Round::exchange, &Round::exchange_uneven,
          &Round::uneven, &Round::uneven_to_root, &Round::coalesced}) {
      if (auto s = (this->*part)(); !s) return s;
    }
    return {};
  }

  [[nodiscard]] std::uint64_t wrong() const { return wrong_; }
  [[nodiscard]] std::uint64_t digest() const { return digest_; }

 private:
  static constexpr std::size_t kCount = 700;

  /// 0, 400 or 800 elements.
  [[nodiscard]] std::size_t size_of_share(std::size_t who) const {
    return 400 * ((who + step_) % 3);
  }
  [[nodiscard]] std::int64_t value(std::size_t rank, std::size_t element) const {
    return static_cast<std::int64_t>((rank + 1) * 1'000'000 + step_ * 10'000 + element);
  }
  [[nodiscard]] Elements mine(std::size_t count) const {
    Elements in(count);
    for (std::size_t i = 0; i < count; ++i) in[i] = value(me_, i);
    return in;
  }
  static std::size_t before(const Shares& shares, std::size_t rank) {
    std::size_t sum = 0;
    for (std::size_t r = 0; r < rank; ++r) sum += shares[r];
    return sum;
  }
  /// `count` elements that `rank` gave, from its element `first` on.
  void check(const std::int64_t* got, std::size_t rank, std::size_t first, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      wrong_ += got[i] != value(rank, first + i) ? 1 : 0;
      digest_ = (digest_ ^ static_cast<std::uint64_t>(got[i])) * 1099511628211ULL;
    }
  }

  Status gather() {
    const Elements in = mine(kCount);
    Elements out(kCount * ranks_);
    if (auto s = world_.gather(in.data(), out.data(), kCount, DType::I64, root_); !s) return s;
    for (std::size_t r = 0; r < ranks_ && world_.rank() == root_; ++r)
      check(&out[r * kCount], r, 0, kCount);
    return {};
  }
  Status scatter() {
    const Elements in = mine(kCount * ranks_);
    Elements out(kCount);
    auto work = world_.scatter_async(in.data(), out.data(), kCount, DType::I64, root_);
    if (auto s = work.wait(); !s) return s;
    check(out.data(), static_cast<std::size_t>(root_), me_ * kCount, kCount);
    return {};
  }
  Status exchange() {
    Elements both = mine(kCount * ranks_);
    if (auto s = world_.all_to_all(both.data(), both.data(), kCount, DType::I64); !s) return s;
    for (std::size_t r = 0; r < ranks_; ++r) check(&both[r * kCount], r, me_ * kCount, kCount);
    return {};
  }
  Status exchange_uneven() {
    const Elements in = mine(before(sent_, ranks_));
    Elements out(before(received_, ranks_));
    Work work;
    {
      const Shares sent = sent_;  // gone before the operation is over
      work = world_.all_to_all_v_async(in.data(), sent, out.data(), received_, DType::I64);
    }
    if (auto s = work.wait(); !s) return s;
    const std::int64_t* got = out.data();
    for (std::size_t r = 0; r < ranks_; ++r) {
      std::size_t first = 0;
      for (std::size_t q = 0; q < me_; ++q) first += size_of_share(r + 2 * q);
      check(got, r, first, received_[r]);
      got += received_[r];
    }
    return {};
  }
  /// all_gather_v, each share at its own place; and reduce_scatter_v.
  Status uneven() {
    Elements all(before(shares_, ranks_));
    std::int64_t* const own = all.data() + before(shares_, me_);
    const Elements in = mine(shares_[me_]);
    std::copy(in.begin(), in.end(), own);
    if (auto s = world_.all_gather_v(own, all.data(), shares_, DType::I64); !s) return s;
    for (std::size_t r = 0; r < ranks_; ++r)
      check(all.data() + before(shares_, r), r, 0, shares_[r]);

    const Elements whole = mine(before(shares_, ranks_));
    Elements sum(shares_[me_]);
    if (auto s =
            world_.reduce_scatter_v(whole.data(), sum.data(), shares_, DType::I64, ReduceOp::Sum);
        !s)
      return s;
    for (std::size_t i = 0; i < sum.size(); ++i) {
      std::int64_t wanted = 0;
      for (std::size_t r = 0; r < ranks_; ++r) wanted += value(r, before(shares_, me_) + i);
      wrong_ += sum[i] != wanted ? 1 : 0;
    }
    return {};
  }
  Status uneven_to_root() {
    const Elements in = mine(shares_[me_]);
    Elements all(before(shares_, ranks_));
    if (auto s = world_.gather_v(in.data(), all.data(), shares_, DType::I64, root_); !s) return s;
    for (std::size_t r = 0; r < ranks_ && world_.rank() == root_; ++r)
      check(all.data() + before(shares_, r), r, 0, shares_[r]);
    const Elements whole = mine(before(shares_, ranks_));
    Elements out(shares_[me_]);
    if (auto s = world_.scatter_v(whole.data(), out.data(), shares_, DType::I64, root_); !s)
      return s;
    check(out.data(), static_cast<std::size_t>(root_), before(shares_, me_), out.size());
    return {};
  }

  /// Three operations as one: in place, with a root, and asynchronous.
  Status coalesced() {
    Elements sum = mine(kCount);
    Elements of_root = mine(kCount);
    const Elements in = mine(shares_[me_]);
    Elements all(before(shares_, ranks_));
    Status status = world_.begin_coalescing();
    Work work;
    if (status) status = world_.broadcast(of_root.data(), kCount, DType::I64, root_);
    if (status)
      status = world_.all_reduce(sum.data(), sum.data(), kCount, DType::I64, ReduceOp::Sum);
    if (status) work = world_.all_gather_v_async(in.data(), all.data(), shares_, DType::I64);
    if (status) {
      status = step_ % 2 == 0 ? world_.end_coalescing() : world_.end_coalescing_async().wait();
    }
    if (!status) return status;
    if (auto s = work.wait(); !s) return s;
    check(of_root.data(), static_cast<std::size_t>(root_), 0, kCount);
    for (std::size_t r = 0; r < ranks_; ++r)
      check(all.data() + before(shares_, r), r, 0, shares_[r]);
    for (std::size_t i = 0; i < kCount; ++i) {
      std::int64_t wanted = 0;
      for (std::size_t r = 0; r < ranks_; ++r) wanted += value(r, i);
      wrong_ += sum[i] != wanted ? 1 : 0;
    }
    return {};
  }

  ProcessGroup& world_;
  std::uint64_t step_;
  std::size_t me_;
  std::size_t ranks_;
  int root_;
  Shares shares_;
  Shares sent_;
  Shares received_;
  std::uint64_t wrong_ = 0;
  std::uint64_t digest_ = 14695981039346656037ULL;
};

void say(const std::string& line) {
  fmt::print("{}\n", line);
  std::fflush(stdout);
}

}  // namespace

int run_shares(Job& job, std::uint64_t steps) {
  auto world = job.world();
  Round first(world, 0);
  if (auto s = first.prologue(); !s) {
    say("prologue: " + s.to_string());
    return 1;
  }
  std::uint64_t all = 0;  // of all ranks and steps
  job.state().add("all", all);
  std::uint64_t wrong = first.wrong();
  std::uint64_t mine = first.digest();
  if (auto s = world.all_reduce(std::span<std::uint64_t>(&mine, 1), ReduceOp::BXor); !s) {
    say("prologue: " + s.to_string());
    return 1;
  }
  const std::uint64_t of_prologue = mine;
  auto loop = job.steps(steps);
  while (loop.next()) {
    Round round(world, loop.index() + 1);
    if (!round.all()) continue;
    wrong += round.wrong();
    std::uint64_t digest = round.digest();
    if (!world.all_reduce(std::span<std::uint64_t>(&digest, 1), ReduceOp::BXor)) continue;
    if (!loop.commit()) continue;
    all = all * 31 + digest;
  }
  if (!loop.status()) {
    say(fmt::format("rank {} ended: {}", job.rank(), loop.status().to_string()));
    return 1;
  }
  say(fmt::format("rank {} newcomer={} wrong={} digest={:016x}", job.rank(), job.is_replacement(),
                  wrong, all ^ of_prologue));
  return wrong == 0 ? 0 : 1;
}

}  // namespace regroup::test
