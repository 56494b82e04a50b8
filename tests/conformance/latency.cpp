// Prints what one all_reduce costs over shared memory with ranks as processes. Prints, never
// judges.
//   regroup_latency [ranks] [milliseconds per size] [bytes per slot]
#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <string>
#include <vector>

#include "tests/conformance/harness.hpp"

namespace regroup::conformance {
namespace {

double microseconds_each(SlotRunner& runner, const OpSpec& spec, int iterations) {
  const TimePoint begin = Clock::now();
  for (int i = 0; i < iterations; ++i) {
    if (!runner.run(spec, kNoDeadline).ok()) std::exit(1);  // NOLINT(concurrency-mt-unsafe)
  }
  const std::chrono::duration<double, std::micro> spent = Clock::now() - begin;
  return spent.count() / iterations;
}

void run_rank(int fd, int rank, int budget_ms) {
  const auto arena = shm::open_arena(fd, Epoch(1), 0).value();
  SlotRunner runner(arena.slots, rank, {.cores = cores()});
  for (std::size_t bytes = 8; bytes <= (std::size_t{16} << 20); bytes *= 8) {
    std::vector<float> in(bytes / 4, 1.0F);
    std::vector<float> out(bytes / 4);
    OpSpec spec{.kind = OpKind::AllReduce, .dtype = DType::F32, .count = in.size()};
    spec.in = in.data();
    spec.out = out.data();
    // Equal on all ranks: the number of iterations depends on the size alone.
    const double guess_us = 2.0 + static_cast<double>(bytes) / 2000.0;
    const int iterations = std::max(3, static_cast<int>(budget_ms * 1000.0 / guess_us));
    (void)microseconds_each(runner, spec, std::max(1, iterations / 10));
    double best = 1e300;
    for (int round = 0; round < 3; ++round) {
      best = std::min(best, microseconds_each(runner, spec, iterations));
    }
    if (rank == 0) fmt::print("{:>10} bytes {:>12.2f} us\n", bytes, best);
  }
}

int main_of(int argc, char** argv) {
  const int ranks = argc > 1 ? std::stoi(argv[1]) : 2;
  const int budget_ms = argc > 2 ? std::stoi(argv[2]) : 100;
  const std::size_t slot_bytes = argc > 3 ? std::stoul(argv[3]) : 0;
  const auto made =
      shm::make_arena(Epoch(1), 0, static_cast<std::uint32_t>(ranks), {.slot_bytes = slot_bytes})
          .value();
  std::vector<pid_t> children;
  for (int rank = 0; rank < ranks; ++rank) {
    const pid_t child = ::fork();
    if (child == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      run_rank(made.fd.get(), rank, budget_ms);
      std::fflush(stdout);
      ::_exit(0);
    }
    children.push_back(child);
  }
  int failed = 0;
  for (const pid_t child : children) {
    int status = 0;
    ::waitpid(child, &status, 0);
    failed += status != 0 ? 1 : 0;
  }
  return failed;
}

}  // namespace
}  // namespace regroup::conformance

int main(int argc, char** argv) { return regroup::conformance::main_of(argc, argv); }
