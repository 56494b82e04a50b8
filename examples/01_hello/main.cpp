// The smallest job: attach, learn who one is, meet the others.
#include <cstdio>

#include <regroup/regroup.hpp>

int main() {
  auto attached = regroup::Job::attach();
  if (!attached) {
    std::fprintf(stderr, "%s\n", attached.error().to_string().c_str());
    return 1;
  }
  const regroup::Job job = *attached;
  auto world = job.world();
  if (const auto met = world.barrier(); !met) {
    std::fprintf(stderr, "%s\n", met.to_string().c_str());
    return 1;
  }
  std::printf("hello from rank %d of %d, epoch %llu\n", job.rank(), job.size(),
              static_cast<unsigned long long>(world.epoch().value()));
  return 0;
}
