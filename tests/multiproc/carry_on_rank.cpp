/// The program of carry_on_test: what a rank contributes is a function of rank, step and operation,
/// so that every rank can check every result against the contributors that it reports. Results and
/// contributors go into the registered state, whose digest all ranks print at their end.
#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include <regroup/regroup.hpp>

namespace {

using regroup::Code;
using regroup::Contributors;
using regroup::DType;
using regroup::Job;
using regroup::ProcessGroup;
using regroup::ReduceOp;
using regroup::Status;

constexpr std::uint64_t kFullStepsAtEnd = 20;
constexpr std::uint64_t kDrawnBefore = 1000;

void say(const std::string& line) {
  fmt::print("{}\n", line);
  std::fflush(stdout);
}

/// What a rank contributes; small whole numbers, so that every order of addition gives the same.
double given(int rank, std::uint64_t step, std::uint64_t operation, std::size_t element) {
  std::uint64_t z = static_cast<std::uint64_t>(rank) * 1'000'003 + step * 7919 +
                    operation * 104'729 + element % 97;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  return static_cast<double>((z >> 40) % 1000);
}

/// Replicated: equal on all ranks after each step.
struct State {
  std::uint64_t steps = 0;
  std::uint64_t digest = 14695981039346656037ULL;
  std::uint64_t missing = 0;     ///< results that lacked somebody
  std::uint64_t full_steps = 0;  ///< in a row, with all ranks, since the first loss
};

class Program {
 public:
  Program(Job& job, std::string mode) : job_(job), mode_(std::move(mode)), world_(job.world()) {
    if (has("groups")) half_ = world_.split(world_.rank() % 2, 0, "half").value();
  }

  int run(std::uint64_t steps_min) {
    std::uint64_t drawn = kDrawnBefore;
    job_.state().add("state", state_).add_volatile("drawn", drawn);
    auto loop = job_.steps(10'000'000);
    while (!over(steps_min) && loop.next()) {
      if (loop.index() == 3) say(fmt::format("rank {} makes steps", job_.rank()));
      if (loop.attempt() > 1) ++repeats_;
      if (loop.index() != state_.steps) ++wrong_;
      // A seat's own state stands still while nobody has the seat.
      if (drawn < kDrawnBefore || drawn > kDrawnBefore + loop.index()) ++wrong_;
      ++drawn;
      next_ = state_;
      full_ = true;
      operation_ = 0;
      auto status = operations(loop.index());
      if (status) status = loop.commit();
      if (!status) {
        say(fmt::format("rank {} step {} error {}", job_.rank(), loop.index(), status.to_string()));
        ++errors_;
        continue;
      }
      ++next_.steps;
      next_.full_steps = full_ && disturbed_ ? next_.full_steps + 1 : 0;
      state_ = next_;
    }
    const auto status = loop.status();
    say(fmt::format(
        "rank {} ended wrong={} repeats={} errors={} missing={} size={} {} digest={:016x}",
        job_.rank(), wrong_, repeats_, errors_, state_.missing, world_.size(), status.to_string(),
        state_.digest));
    return status && wrong_ == 0 ? 0 : 1;
  }

 private:
  [[nodiscard]] bool has(const char* what) const { return mode_.find(what) != std::string::npos; }
  [[nodiscard]] bool over(std::uint64_t steps_min) const {
    if (state_.steps < steps_min) return false;
    return !has("until_full") || state_.full_steps >= kFullStepsAtEnd;
  }

  /// Every result goes into the next state, once it was compared with arithmetic.
  void take(ProcessGroup& group, const Contributors& who, std::uint64_t step, ReduceOp op,
            std::span<const double> result) {
    for (std::size_t i = 0; i < result.size(); ++i) {
      double expected = 0;
      for (const int rank : who.ranks) expected += given(rank, step, operation_, i);
      if (op == ReduceOp::Avg) expected /= static_cast<double>(who.ranks.size());
      if (expected != result[i]) ++wrong_;
    }
    took_part(group, who);
    for (const double value : result) mix(static_cast<std::uint64_t>(value * 64));
    ++operation_;
  }
  void took_part(ProcessGroup& group, const Contributors& who) {
    disturbed_ = who.epoch > regroup::Epoch(1);
    for (const int rank : who.ranks) mix(static_cast<std::uint64_t>(rank));
    if (who.ranks.size() > static_cast<std::size_t>(group.size()) || who.ranks.empty()) ++wrong_;
    if (&group == &world_ && who.ranks.size() < static_cast<std::size_t>(job_.size())) {
      full_ = false;
      ++next_.missing;
    }
  }
  void mix(std::uint64_t value) { next_.digest = (next_.digest ^ value) * 1099511628211ULL; }

  [[nodiscard]] std::vector<double> input(std::uint64_t step, std::size_t count) const {
    std::vector<double> in(count);
    for (std::size_t i = 0; i < count; ++i) in[i] = given(job_.rank(), step, operation_, i);
    return in;
  }

  Status operations(std::uint64_t step) {
    auto small = input(step, 1);
    if (auto s = world_.all_reduce(small, ReduceOp::Sum); !s) return s;
    take(world_, world_.contributors(), step, ReduceOp::Sum, small);
    const auto wide = input(step, has("wide") ? 300'000 : 30'000);
    std::vector<double> average(wide.size());
    if (auto s = world_.all_reduce(std::span(wide), std::span(average), ReduceOp::Avg); !s)
      return s;
    take(world_, world_.contributors(), step, ReduceOp::Avg, average);
    auto in_place = input(step, 3000);
    auto work = world_.all_reduce_async(in_place.data(), in_place.data(), in_place.size(),
                                        DType::F64, ReduceOp::Avg);
    if (auto s = work.wait(); !s) return s;
    take(world_, work.contributors(), step, ReduceOp::Avg, in_place);
    if (auto s = world_.barrier(); !s) return s;
    if (has("rooted")) {
      if (auto s = rooted(step); !s) return s;
    }
    if (has("gather")) {
      if (auto s = gather(); !s) return s;
    }
    if (has("messages")) {
      if (auto s = messages(step); !s) return s;
    }
    if (has("anybody")) {
      if (auto s = anybody(step); !s) return s;
    }
    if (has("deadline") && step == 6 && repeats_ == 0) {
      if (auto s = missed_deadline(); !s) return s;
    }
    return has("groups") ? in_half(step) : Status();
  }

  /// The last rank gets a sum in place, and gives it to all.
  Status rooted(std::uint64_t step) {
    const int root = world_.size() - 1;
    auto sum = input(step, 500);
    if (auto s = world_.reduce(sum.data(), sum.data(), sum.size(), DType::F64, ReduceOp::Sum, root);
        !s)
      return s;
    const auto who = world_.contributors();
    if (world_.rank() != root) std::fill(sum.begin(), sum.end(), -1.0);
    if (auto s = world_.broadcast(sum, root); !s) return s;
    take(world_, who, step, ReduceOp::Sum, sum);
    return {};
  }

  Status gather() {
    std::vector<std::int64_t> all(static_cast<std::size_t>(world_.size()), -1);
    const std::int64_t mine = job_.rank();
    if (auto s = world_.all_gather(&mine, all.data(), 1, DType::I64); !s) return s;
    const auto who = world_.contributors();
    if (who.ranks.size() != all.size()) ++wrong_;
    for (std::size_t i = 0; i < std::min(all.size(), who.ranks.size()); ++i) {
      if (all[i] != who.ranks[i]) ++wrong_;
    }
    took_part(world_, who);
    return {};
  }

  /// The first two ranks swap what they have.
  Status messages(std::uint64_t step) {
    if (world_.size() < 2 || world_.rank() > 1) return {};
    const int other = 1 - world_.rank();
    double mine = static_cast<double>(step) + world_.rank(), theirs = -1;
    if (auto s = world_.send(&mine, 1, DType::F64, other); !s) return s;
    if (auto s = world_.recv(&theirs, 1, DType::F64, other); !s) return s;
    if (theirs != static_cast<double>(step) + other) ++wrong_;
    return {};
  }

  /// Rank 0 gets what each other one has, whoever is first.
  Status anybody(std::uint64_t step) {
    double mine = static_cast<double>(step) + world_.rank();
    if (world_.rank() != 0) return world_.send(&mine, 1, DType::F64, 0);
    for (int i = 1; i < world_.size(); ++i) {
      double theirs = -1;
      const auto source = world_.recv_any(&theirs, 1, DType::F64);
      if (!source) return source.error();
      if (theirs != static_cast<double>(step) + *source) ++wrong_;
    }
    return {};
  }

  /// Rank 0 waits for a while only, the others come when it has given up.
  Status missed_deadline() {
    if (job_.rank() == 0) return world_.barrier({.timeout = std::chrono::milliseconds(50)});
    double never = 0;
    return world_.recv(&never, 1, DType::F64, 0);
  }

  /// Both groups at once, on their own threads; what one half has does not enter the state.
  Status in_half(std::uint64_t step) {
    auto of_half = input(step, 2000);
    auto of_world = of_half;
    auto a = half_.all_reduce_async(of_half.data(), of_half.data(), of_half.size(), DType::F64,
                                    ReduceOp::Sum);
    auto b = world_.all_reduce_async(of_world.data(), of_world.data(), of_world.size(), DType::F64,
                                     ReduceOp::Sum);
    const auto first = a.wait();
    const auto second = b.wait();
    if (!first) return first;
    if (!second) return second;
    const auto who = a.contributors();
    for (std::size_t i = 0; i < of_half.size(); ++i) {
      double expected = 0;
      for (const int rank : who.ranks) expected += given(rank, step, operation_, i);
      if (expected != of_half[i]) ++wrong_;
    }
    take(world_, b.contributors(), step, ReduceOp::Sum, of_world);
    return {};
  }

  Job& job_;
  std::string mode_;
  ProcessGroup world_;
  ProcessGroup half_;
  State state_;
  State next_;
  bool full_ = true;
  bool disturbed_ = false;
  std::uint64_t operation_ = 0;
  std::uint64_t wrong_ = 0, repeats_ = 0, errors_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  auto attached = Job::attach();
  if (!attached || argc != 3) {
    say(attached ? "usage: carry_on_rank MODE STEPS" : attached.error().to_string());
    return 64;
  }
  auto job = std::move(*attached);
  return Program(job, argv[1]).run(std::stoull(argv[2]));
}
