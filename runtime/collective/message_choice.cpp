// The model: an operation takes as long as its messages that follow each other, the bytes that the
// busiest host sends (or receives), and the messages of the busiest rank, one after the other.
// Within a host bytes cost nothing.
#include "collective/message_choice.hpp"

#include <algorithm>
#include <map>

#include "collective/message_plan_writer.hpp"
#include "collective/message_spread.hpp"
#include "collective/partial_sums.hpp"
#include "spi/message_port.hpp"

namespace regroup::collective {
namespace {

using spi::OpDescriptor;
using spi::OpKind;

struct Course {
  double bytes = 0;        ///< through the busiest host
  double rounds = 0;       ///< messages that follow each other until the first chunk is through
  double messages = 0;     ///< of one rank after the other on the way, or of the busiest one
  double chunk_bytes = 0;  ///< of the messages that rounds counts, beyond what `bytes` says
};

/// What each host sends to others. Thread safety: none.
class Crossing {
 public:
  explicit Crossing(const MessageShape& shape) : shape_(shape) {}
  void add(int from, int to, double bytes) {
    if (host(from) != host(to)) sent_[host(from)] += bytes;
  }
  [[nodiscard]] double most() const {
    double most = 0;
    for (const auto& [host, bytes] : sent_) most = std::max(most, bytes);
    return most;
  }
  /// Where each rank sends as many bytes to each other one.
  [[nodiscard]] static double pairs(const MessageShape& shape) {
    if (shape.hosts.empty()) return shape.members - 1;
    std::map<int, int> here;
    for (const int host : shape.hosts) ++here[host];
    int most = 0;
    for (const auto& [host, ranks] : here) most = std::max(most, ranks * (shape.members - ranks));
    return most;
  }
  /// Of the ranks that are not on the host of `member`.
  [[nodiscard]] static double elsewhere(const MessageShape& shape, int member) {
    if (shape.hosts.empty()) return shape.members - 1;
    const auto here =
        std::ranges::count(shape.hosts, shape.hosts[static_cast<std::size_t>(member)]);
    return static_cast<double>(shape.members - here);
  }

 private:
  [[nodiscard]] int host(int member) const {
    return shape_.hosts.empty() ? member : shape_.hosts[static_cast<std::size_t>(member)];
  }
  const MessageShape& shape_;
  std::map<int, double> sent_;
};

/// What an operation is to the model. Thread safety: a value.
class Model {
 public:
  Model(const OpDescriptor& d, const MessageShape& shape)
      : d_(d), shape_(shape), unit_(d.kind == OpKind::Barrier ? 0 : d.count * size_of(d.dtype)) {
    for_each_round(shape.members, [this](int, int) { ++log_; });
  }

  [[nodiscard]] Course course(Algorithm algorithm) const {
    switch (algorithm) {
      case Algorithm::Inline: break;
      case Algorithm::OneShot: return direct();
      case Algorithm::TwoShot: return slices();
      case Algorithm::Rails: return rails();
      case Algorithm::Doubling: return doubling();
      case Algorithm::Halving: return halving();
      case Algorithm::Ring:
        return spi::gathers(d_.kind) ? ring_of_shares() : chain(Spread::Form::Ring);
      case Algorithm::Tree: return chain(Spread::Form::Trees);
    }
    return {};
  }

 private:
  [[nodiscard]] double unit() const { return static_cast<double>(unit_); }
  [[nodiscard]] double sums() const { return static_cast<double>(sum_bytes(d_.dtype, unit_)); }
  /// Of all ranks together, where each has a share: a call with counts says it so.
  [[nodiscard]] double shares() const {
    return spi::has_counts(d_.kind) ? unit() : unit() * shape_.members;
  }
  [[nodiscard]] double chunks(double bytes) const {
    return std::max(1.0, bytes / static_cast<double>(shape_.chunk_bytes));
  }
  [[nodiscard]] double chunk_of(double bytes) const {
    return std::min(bytes, static_cast<double>(shape_.chunk_bytes));
  }

  [[nodiscard]] Course direct() const {
    const double others = shape_.members - 1;
    const spi::Flow flow = spi::flow_of(d_.kind);
    double each = unit();  // that a rank sends to another one
    if (spi::scatters(d_.kind) || spi::gathers(d_.kind)) each = shares() / shape_.members;
    const double pairs = flow == spi::Flow::Symmetric ? Crossing::pairs(shape_)
                                                      : Crossing::elsewhere(shape_, d_.root);
    return {each * pairs, 1, others * chunks(each), 0};
  }

  [[nodiscard]] Course slices() const {
    const double bytes = 2 * unit() * Crossing::pairs(shape_) / shape_.members;
    const double slice = unit() / shape_.members;
    return {bytes, 2, 2 * (shape_.members - 1) * chunks(slice), chunk_of(bytes)};
  }

  /// Sums so far go from run to run, and results back.
  [[nodiscard]] Course rails() const {
    const auto runs = runs_of(shape_.hosts);
    std::map<int, double> sent;
    int ranks = 1;
    for (std::size_t run = 0; run < runs.size(); ++run) {
      double& here = sent[shape_.hosts[static_cast<std::size_t>(runs[run].first)]];
      if (run > 0) here += unit();
      if (run + 1 < runs.size()) here += sums();
      ranks = std::max(ranks, runs[run].count);
    }
    double most = 0;
    for (const auto& [host, all] : sent) most = std::max(most, all);
    const auto chunk = static_cast<double>(rails_chunk_bytes(unit_, runs, shape_.chunk_bytes));
    const double each = std::max(1.0, unit() / ranks / chunk);
    const double rounds = 2.0 * static_cast<double>(runs.size());
    return {most, rounds, rounds + (ranks + 1) * 2 * (each - 1), std::min(most, chunk)};
  }

  [[nodiscard]] Course doubling() const {
    const double each = spi::gathers(d_.kind) ? shares() / shape_.members : unit();
    return {gathered(each), log_, log_, 0};
  }
  /// Of a gathering by doubling.
  [[nodiscard]] double gathered(double each) const {
    Crossing crossing(shape_);
    for_each_round(shape_.members, [&](int d, int ranks) {
      for (int member = 0; member < shape_.members; ++member)
        crossing.add((member + d) % shape_.members, member, each * ranks);
    });
    return crossing.most();
  }
  [[nodiscard]] Course halving() const {
    const bool all = d_.kind == OpKind::AllReduce;
    const double block = (all ? unit() : shares()) / shape_.members;
    Crossing crossing(shape_);
    // How many contributions a rank has to a block, by how far ahead its owner is.
    std::vector<double> held(static_cast<std::size_t>(shape_.members), 1);
    int top = 1;
    while (2 * top < shape_.members) top *= 2;
    int limit = shape_.members;
    for (int d = top; limit > 1; limit = d, d /= 2) {
      double sent = 0;
      for (int j = d; j < limit; ++j) {
        sent += held[static_cast<std::size_t>(j)];
        held[static_cast<std::size_t>(j - d)] += held[static_cast<std::size_t>(j)];
      }
      for (int member = 0; member < shape_.members; ++member)
        crossing.add(member, (member + d) % shape_.members, sent * block);
    }
    const double chunks_of_block =
        std::max(1.0, 4 * block / static_cast<double>(shape_.chunk_bytes));
    const double rounds = log_ * chunks_of_block;  // a chunk follows the other
    return {crossing.most() + (all ? gathered(block) : 0), rounds + (all ? log_ : 0),
            rounds + (all ? log_ : 0), 0};
  }

  /// The shares of all ranks but the last one on it go over each edge.
  [[nodiscard]] Course ring_of_shares() const {
    const double share = shares() / shape_.members;
    Crossing crossing(shape_);
    for (int member = 0; member < shape_.members; ++member)
      crossing.add(member, (member + 1) % shape_.members, share * (shape_.members - 1));
    const double others = shape_.members - 1;
    return {crossing.most(), others, others * chunks(share), 0};
  }

  /// Sums to the last rank, results from there; of broadcast the latter alone.
  [[nodiscard]] Course chain(Spread::Form form) const {
    const int last = shape_.members - 1;
    const bool reduces = spi::reduces(d_.kind);
    const Spread spread(form, shape_.members, reduces ? last : d_.root);
    const auto chunk = static_cast<double>(chain_chunk_bytes(unit_, shape_.chunk_bytes));
    const double chunks = std::max(1.0, unit() / chunk);
    Crossing crossing(shape_);
    Course course{.chunk_bytes = std::min(unit(), chunk)};
    if (reduces) {
      for (int member = 0; member < last; ++member)
        crossing.add(member, member + 1, member == 0 ? unit() : sums());
      course.rounds += last;
    }
    if (d_.kind == OpKind::Reduce) {
      crossing.add(last, d_.root, unit());
      course.rounds += 1;
    } else {
      int depth = 0;
      for (int member = 0; member < shape_.members; ++member) {
        depth = std::max(depth, spread.depth(member));
        for (std::size_t tree = 0; tree < 2; ++tree) {
          for (const int to : spread.to(member, tree))
            if (to >= 0) crossing.add(member, to, unit() / 2);
        }
      }
      course.rounds += depth;
    }
    course.messages = course.rounds + (reduces ? 2 : 1) * (chunks - 1);
    course.bytes = crossing.most();
    return course;
  }

  const OpDescriptor& d_;
  const MessageShape& shape_;
  std::size_t unit_;
  double log_ = 0;
};

/// Those that the built-in choice is between, the first of equal ones first.
constexpr Algorithm kSmall[] = {Algorithm::OneShot, Algorithm::Doubling};
constexpr Algorithm kLarge[] = {Algorithm::TwoShot, Algorithm::Rails, Algorithm::Halving,
                                Algorithm::Ring, Algorithm::Tree};
constexpr Algorithm kOther[] = {Algorithm::OneShot, Algorithm::Doubling, Algorithm::Halving,
                                Algorithm::Ring, Algorithm::Tree};

}  // namespace

bool can_carry(Algorithm algorithm, const OpDescriptor& d, const MessageShape& shape) {
  const bool all_reduce = d.kind == OpKind::AllReduce;
  if (algorithm == Algorithm::OneShot) return true;
  if (algorithm == Algorithm::TwoShot) return all_reduce;
  if (shape.members == 1) return false;
  const std::size_t bytes = d.count * size_of(d.dtype);
  const bool gathers = d.kind == OpKind::AllGather || d.kind == OpKind::AllGatherV;
  if (algorithm == Algorithm::Doubling) return all_reduce || gathers || d.kind == OpKind::Barrier;
  if (bytes == 0) return false;
  switch (algorithm) {
    case Algorithm::Rails:
      return all_reduce && !shape.hosts.empty() && runs_of(shape.hosts).size() > 1;
    case Algorithm::Halving:
      return all_reduce || d.kind == OpKind::ReduceScatter || d.kind == OpKind::ReduceScatterV;
    case Algorithm::Ring:
      // Those that only give are not held back by who gets, but by who asks for their part.
      if (d.kind == OpKind::Reduce)
        return std::min(bytes, chain_chunk_bytes(bytes, shape.chunk_bytes)) > spi::kPostedBytesMax;
      return all_reduce || gathers || d.kind == OpKind::Broadcast;
    case Algorithm::Tree: return all_reduce || d.kind == OpKind::Broadcast;
    default: return false;
  }
}

double expected_us(Algorithm algorithm, const OpDescriptor& d, const MessageShape& shape) {
  const Course course = Model(d, shape).course(algorithm);
  const NetworkCost& cost = shape.cost;
  return course.rounds * (cost.latency_us + course.chunk_bytes / cost.bytes_per_us) +
         course.bytes / cost.bytes_per_us + course.messages * cost.message_us;
}

Algorithm choose(const OpDescriptor& d, const MessageShape& shape) {
  if (shape.forced && can_carry(*shape.forced, d, shape)) return *shape.forced;
  if (shape.members == 1) return Algorithm::OneShot;
  std::span<const Algorithm> candidates = kOther;
  if (d.kind == OpKind::AllReduce) {
    candidates = kLarge;
    if (d.count * size_of(d.dtype) <= shape.direct_bytes) candidates = kSmall;
  }
  Algorithm best = candidates.front();
  double best_us = -1;
  for (const Algorithm each : candidates) {
    if (!can_carry(each, d, shape)) continue;
    const double us = expected_us(each, d, shape);
    if (best_us >= 0 && us >= best_us) continue;
    best = each;
    best_us = us;
  }
  return best;
}

std::vector<Run> runs_of(std::span<const int> hosts) {
  std::vector<Run> runs;
  for (std::size_t member = 0; member < hosts.size(); ++member) {
    if (member == 0 || hosts[member] != hosts[member - 1])
      runs.push_back({static_cast<int>(member), 0});
    ++runs.back().count;
  }
  return runs;
}

namespace {

/// Of a buffer that is not large enough chunks are smaller, so that some are under way at a time.
std::size_t some_chunks_of(std::size_t bytes, std::size_t chunk_bytes_max) {
  constexpr std::size_t kChunks = 8;
  constexpr std::size_t kLeast = std::size_t{32} << 10;
  return std::min(chunk_bytes_max, std::max(kLeast, whole_lines(bytes / kChunks)));
}

}  // namespace

std::size_t rails_chunk_bytes(std::size_t bytes, const std::vector<Run>& runs,
                              std::size_t chunk_bytes_max) {
  int rails = 1;
  for (const Run& run : runs) rails = std::max(rails, run.count);
  return some_chunks_of(bytes / static_cast<std::size_t>(rails), chunk_bytes_max);
}

std::size_t chain_chunk_bytes(std::size_t bytes, std::size_t chunk_bytes_max) {
  return some_chunks_of(bytes, chunk_bytes_max);
}

}  // namespace regroup::collective
