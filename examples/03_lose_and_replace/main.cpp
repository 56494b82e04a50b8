// A rank dies in the middle of a step. The others keep their processes, a newcomer takes its seat,
// and the result is what it would have been.
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <span>
#include <vector>

#include <regroup/regroup.hpp>

namespace {

constexpr std::uint64_t kSteps = 10;
constexpr std::uint64_t kFatalStep = 5;
constexpr int kVictim = 1;

std::int64_t contribution(std::uint64_t step, int rank) {
  return static_cast<std::int64_t>(step) * (rank + 1);
}

std::int64_t undisturbed_total(int ranks) {
  std::int64_t total = 0;
  for (std::uint64_t step = 0; step < kSteps; ++step) {
    for (int rank = 0; rank < ranks; ++rank) total += contribution(step, rank);
  }
  return total;
}

}  // namespace

int main() {
  auto attached = regroup::Job::attach();
  if (!attached) {
    std::fprintf(stderr, "%s\n", attached.error().to_string().c_str());
    return 1;
  }
  regroup::Job job = *attached;
  auto world = job.world();

  // A newcomer gets it from the other ranks before its first step.
  std::int64_t total = 0;
  job.state().add("total", total);

  auto steps = job.steps(kSteps);
  while (steps.next()) {
    const bool first_life = !job.is_replacement() && job.size() > 1;
    if (first_life && job.rank() == kVictim && steps.index() == kFatalStep) std::raise(SIGKILL);

    std::vector<std::int64_t> sum = {contribution(steps.index(), job.rank())};
    if (!world.all_reduce(sum, regroup::ReduceOp::Sum)) continue;  // a rank was lost: again
    if (!steps.commit()) continue;
    total += sum[0];  // state changes after commit only
    if (job.rank() == 0 && steps.attempt() > 1) {
      std::printf("step %llu needed %d attempts, now in epoch %llu\n",
                  static_cast<unsigned long long>(steps.index()), steps.attempt(),
                  static_cast<unsigned long long>(world.epoch().value()));
    }
  }
  if (!steps.status()) {
    std::fprintf(stderr, "%s\n", steps.status().to_string().c_str());
    return 1;
  }
  const std::int64_t expected = undisturbed_total(job.size());
  std::printf("rank %d%s: total %lld, undisturbed %lld\n", job.rank(),
              job.is_replacement() ? " (a replacement)" : "", static_cast<long long>(total),
              static_cast<long long>(expected));
  return total == expected ? 0 : 1;
}
