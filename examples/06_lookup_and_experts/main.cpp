// What each rank has for each other one differs in size: rows of a sharded table are looked up, and
// tokens go to the ranks that hold their experts and back.
#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include <regroup/regroup.hpp>

namespace {

using regroup::DType;
using regroup::ProcessGroup;
using regroup::ReduceOp;
using regroup::Status;
using Counts = std::vector<std::size_t>;

constexpr std::uint32_t kRows = 5000;
constexpr std::size_t kWidth = 16;  // of a row, and of a token
constexpr std::size_t kExperts = 8;
constexpr int kVictim = 1;

/// Row of the table; whole numbers, so that every comparison is exact.
float table(std::uint32_t row, std::size_t column) {
  return static_cast<float>((row * 31 + column * 7) % 1000);
}
/// What an expert makes of a value.
float expert(std::size_t number, float value) {
  return static_cast<float>(number + 1) * value + static_cast<float>(number);
}

/// Row r lies on rank r % ranks, expert e on rank e % ranks.
std::size_t home(std::size_t number, std::size_t ranks) { return number % ranks; }

/// The rows that this rank wants in this step: some often, some never; now and then none at all.
std::vector<std::uint32_t> wanted(int rank, std::uint64_t step) {
  std::mt19937 random(static_cast<std::uint32_t>(step * 1000 + static_cast<std::uint64_t>(rank)));
  const auto below = [&](std::uint32_t limit) {
    return static_cast<std::uint32_t>(random() % limit);
  };
  const bool none = (step + static_cast<std::uint64_t>(rank)) % 4 == 3;
  std::vector<std::uint32_t> rows(none ? 0 : 20 + below(180));
  for (std::uint32_t& row : rows) row = below(1 + below(kRows));
  return rows;
}
/// Half of all tokens like the same expert.
std::size_t route(std::uint32_t row, std::uint64_t step) {
  return row % 2 == 0 ? step % kExperts : (row + step) % kExperts;
}

std::size_t sum(const Counts& counts) {
  return std::accumulate(counts.begin(), counts.end(), std::size_t{0});
}
/// The same counts of whole rows.
Counts in_elements(const Counts& counts) {
  Counts elements = counts;
  for (std::size_t& count : elements) count *= kWidth;
  return elements;
}

/// Numbers sorted by the rank that they go to.
struct Sorted {
  Counts counts;                   ///< by rank
  std::vector<std::size_t> order;  ///< positions in the original, those of rank 0 first
};
template <class RankOf>
Sorted sort_by_rank(std::size_t size, std::size_t ranks, RankOf rank_of) {
  Sorted sorted{Counts(ranks), {}};
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    for (std::size_t i = 0; i < size; ++i) {
      if (rank_of(i) != rank) continue;
      ++sorted.counts[rank];
      sorted.order.push_back(i);
    }
  }
  return sorted;
}

/// How many each rank has for me, when I have `mine` for each.
Status exchange_counts(ProcessGroup& world, const Counts& mine, Counts& theirs) {
  theirs.resize(mine.size());
  static_assert(sizeof(std::size_t) == sizeof(std::uint64_t));
  return world.all_to_all(mine.data(), theirs.data(), 1, DType::U64);
}

/// The wanted rows of the table, in order. Numbers go out, rows come back.
Status look_up(ProcessGroup& world, const std::vector<std::uint32_t>& rows,
               std::vector<float>& found) {
  const auto ranks = static_cast<std::size_t>(world.size());
  const Sorted sorted =
      sort_by_rank(rows.size(), ranks, [&](std::size_t i) { return home(rows[i], ranks); });
  std::vector<std::uint32_t> asked;
  for (const std::size_t i : sorted.order) asked.push_back(rows[i]);

  Counts due;
  if (Status s = exchange_counts(world, sorted.counts, due); !s) return s;
  std::vector<std::uint32_t> questions(sum(due));
  if (Status s = world.all_to_all_v(asked.data(), sorted.counts, questions.data(), due, DType::U32);
      !s) {
    return s;
  }
  std::vector<float> answers;
  for (const std::uint32_t row : questions) {
    for (std::size_t column = 0; column < kWidth; ++column) answers.push_back(table(row, column));
  }
  std::vector<float> received(rows.size() * kWidth);
  if (Status s = world.all_to_all_v(answers.data(), in_elements(due), received.data(),
                                    in_elements(sorted.counts), DType::F32);
      !s) {
    return s;
  }
  found.resize(received.size());
  for (std::size_t k = 0; k < sorted.order.size(); ++k) {
    for (std::size_t column = 0; column < kWidth; ++column)
      found[sorted.order[k] * kWidth + column] = received[k * kWidth + column];
  }
  return {};
}

/// Tokens of all ranks at the rank of their experts.
struct Dispatched {
  Sorted sent;
  Counts received;                     ///< tokens, by the rank they come from
  std::vector<std::uint32_t> experts;  ///< of each token received
  std::vector<float> tokens;
};

/// Two buffers travel as one: either both arrive everywhere, or the step is begun again.
Status dispatch(ProcessGroup& world, const std::vector<std::uint32_t>& experts,
                const std::vector<float>& tokens, Dispatched& d) {
  const auto ranks = static_cast<std::size_t>(world.size());
  d.sent =
      sort_by_rank(experts.size(), ranks, [&](std::size_t i) { return home(experts[i], ranks); });
  std::vector<std::uint32_t> numbers;
  std::vector<float> values;
  for (const std::size_t i : d.sent.order) {
    numbers.push_back(experts[i]);
    for (std::size_t column = 0; column < kWidth; ++column)
      values.push_back(tokens[i * kWidth + column]);
  }
  if (Status s = exchange_counts(world, d.sent.counts, d.received); !s) return s;
  d.experts.resize(sum(d.received));
  d.tokens.resize(d.experts.size() * kWidth);
  if (Status s = world.begin_coalescing(); !s) return s;
  // An error of these two is returned by end_coalescing(), too.
  (void)world.all_to_all_v(numbers.data(), d.sent.counts, d.experts.data(), d.received, DType::U32);
  (void)world.all_to_all_v(values.data(), in_elements(d.sent.counts), d.tokens.data(),
                           in_elements(d.received), DType::F32);
  return world.end_coalescing();
}

/// What the experts made of my tokens, in their original order.
Status combine(ProcessGroup& world, const Dispatched& d, std::vector<float>& results) {
  std::vector<float> sorted(d.sent.order.size() * kWidth);
  if (Status s = world.all_to_all_v(d.tokens.data(), in_elements(d.received), sorted.data(),
                                    in_elements(d.sent.counts), DType::F32);
      !s) {
    return s;
  }
  results.resize(sorted.size());
  for (std::size_t k = 0; k < d.sent.order.size(); ++k) {
    for (std::size_t column = 0; column < kWidth; ++column)
      results[d.sent.order[k] * kWidth + column] = sorted[k * kWidth + column];
  }
  return {};
}

/// What all ranks know of the past; a newcomer gets it from them.
struct Totals {
  std::int64_t tokens[kExperts] = {};
  std::int64_t wrong = 0;
};

/// One step; `made` is what it adds to the totals, summed over all ranks.
Status step(ProcessGroup& world, std::uint64_t number, bool fatal, Totals& made) {
  const auto rows = wanted(world.rank(), number);
  std::vector<float> tokens;
  if (Status s = look_up(world, rows, tokens); !s) return s;

  std::vector<std::uint32_t> experts;
  for (const std::uint32_t row : rows)
    experts.push_back(static_cast<std::uint32_t>(route(row, number)));
  Dispatched d;
  if (Status s = dispatch(world, experts, tokens, d); !s) return s;
  if (fatal) std::raise(SIGKILL);  // with everybody's tokens
  Totals mine;
  for (std::size_t k = 0; k < d.experts.size(); ++k) {
    ++mine.tokens[d.experts[k]];
    for (std::size_t column = 0; column < kWidth; ++column) {
      float& value = d.tokens[k * kWidth + column];
      value = expert(d.experts[k], value);
    }
  }
  std::vector<float> results;
  if (Status s = combine(world, d, results); !s) return s;

  for (std::size_t i = 0; i < rows.size(); ++i) {
    for (std::size_t column = 0; column < kWidth; ++column) {
      const std::size_t at = i * kWidth + column;
      const float row = table(rows[i], column);
      if (tokens[at] != row || results[at] != expert(experts[i], row)) ++mine.wrong;
    }
  }
  std::vector<std::int64_t> both(mine.tokens, mine.tokens + kExperts);
  both.push_back(mine.wrong);
  if (Status s = world.all_reduce(both, ReduceOp::Sum); !s) return s;
  std::copy_n(both.begin(), kExperts, made.tokens);
  made.wrong = both.back();
  return {};
}

/// Of all ranks in all steps, without any communication.
std::vector<std::int64_t> undisturbed(int ranks, std::uint64_t steps) {
  std::vector<std::int64_t> tokens(kExperts);
  for (std::uint64_t number = 0; number < steps; ++number) {
    for (int rank = 0; rank < ranks; ++rank) {
      for (const std::uint32_t row : wanted(rank, number)) ++tokens[route(row, number)];
    }
  }
  return tokens;
}

}  // namespace

int main(int argc, char** argv) {
  const std::uint64_t count = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 20;
  const std::uint64_t fatal_step = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : count;
  auto attached = regroup::Job::attach();
  if (!attached) {
    std::fprintf(stderr, "%s\n", attached.error().to_string().c_str());
    return 1;
  }
  regroup::Job job = *attached;
  auto world = job.world();
  Totals totals;
  job.state().add("totals", totals);

  const bool kills = !job.is_replacement() && job.rank() == kVictim;
  auto steps = job.steps(count);
  while (steps.next()) {
    Totals made;
    if (!step(world, steps.index(), kills && steps.index() == fatal_step, made))
      continue;  // a rank was lost: this step again
    if (!steps.commit()) continue;
    for (std::size_t e = 0; e < kExperts; ++e) totals.tokens[e] += made.tokens[e];
    totals.wrong += made.wrong;
  }
  if (!steps.status()) {
    std::fprintf(stderr, "%s\n", steps.status().to_string().c_str());
    return 1;
  }
  const auto expected = undisturbed(job.size(), count);
  const bool right =
      totals.wrong == 0 && std::equal(expected.begin(), expected.end(), totals.tokens);
  if (job.rank() == 0) {
    std::printf("tokens by expert:");
    for (const std::int64_t tokens : totals.tokens)
      std::printf(" %lld", static_cast<long long>(tokens));
    std::printf("\nlookups=%lld wrong=%lld %s\n",
                static_cast<long long>(std::accumulate(expected.begin(), expected.end(), 0LL)),
                static_cast<long long>(totals.wrong), right ? "as undisturbed" : "DIFFERENT");
  }
  return right ? 0 : 1;
}
