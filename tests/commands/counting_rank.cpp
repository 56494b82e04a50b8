/// Counts together with all ranks, step by step, until a file appears: `counting_rank FILE`.
/// With a second file a newcomer begins its first step only when that one is there.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <span>

#include <poll.h>
#include <unistd.h>

#include <regroup/regroup.hpp>

int main(int argc, char** argv) {
  if (argc != 2 && argc != 3) return 64;
  auto job = regroup::Job::attach();
  if (!job) {
    std::fprintf(stderr, "%s\n", job.error().to_string().c_str());
    return 70;
  }
  auto world = job->world();
  std::int64_t count = 0;
  job->state().add("count", count);
  const char* const life = std::getenv("REGROUP_LIFE");
  const bool newcomer = life == nullptr || std::strcmp(life, "0") != 0;
  while (argc == 3 && newcomer && ::access(argv[2], F_OK) != 0) ::poll(nullptr, 0, 10);
  auto steps = job->steps(std::numeric_limits<std::int32_t>::max());
  bool over = false;
  while (!over && steps.next()) {
    // What rank 0 sees decides for all, so that all leave after the same step.
    std::int64_t both[2] = {1, job->rank() == 0 && ::access(argv[1], F_OK) == 0 ? 1 : 0};
    if (!world.all_reduce(std::span<std::int64_t>(both), regroup::ReduceOp::Sum)) continue;
    if (!steps.commit()) continue;
    count += both[0];
    over = both[1] != 0;
  }
  const auto expected = static_cast<std::int64_t>(steps.index() + 1) * job->size();
  std::printf("count %lld is %s\n", static_cast<long long>(count),
              count == expected ? "right" : "wrong");
  return over ? 0 : 70;
}
