#include <cstdio>
#include <vector>

#include <regroup/regroup.hpp>

int main() {
  auto attached = regroup::Job::attach();
  if (!attached) {
    std::fprintf(stderr, "%s\n", attached.error().to_string().c_str());
    return 1;
  }
  regroup::Job& job = *attached;
  std::vector<float> values(3, static_cast<float>(job.rank() + 1));
  if (auto status = job.world().all_reduce(values, regroup::ReduceOp::Sum); !status) {
    std::fprintf(stderr, "%s\n", status.to_string().c_str());
    return 1;
  }
  std::printf("size %d sum %g\n", job.size(), values[0]);
  return 0;
}
