// Collectives: every rank calls the same operation, and every call answers with a Status.
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <vector>

#include <regroup/regroup.hpp>

namespace {

/// Ends the example with the status's own words.
bool succeeded(const regroup::Status& status) {
  if (!status) std::fprintf(stderr, "%s\n", status.to_string().c_str());
  return status.ok();
}

bool is(const char* what, double expected, double actual) {
  if (expected == actual) return true;
  std::fprintf(stderr, "%s: expected %g, got %g\n", what, expected, actual);
  return false;
}

/// Large enough to be cut into chunks; element i of rank r is i + r.
bool sum_of_many(regroup::ProcessGroup& world) {
  std::vector<double> in(1 << 18);
  std::iota(in.begin(), in.end(), static_cast<double>(world.rank()));
  std::vector<double> out(in.size());
  const std::span<const double> input(in);
  if (!succeeded(world.all_reduce(input, std::span(out), regroup::ReduceOp::Sum))) return false;
  const double ranks = world.size();
  for (std::size_t i = 0; i < out.size(); ++i) {
    const double expected = ranks * static_cast<double>(i) + ranks * (ranks - 1) / 2;
    if (!is("sum", expected, out[i])) return false;
  }
  return true;
}

bool average_in_place(regroup::ProcessGroup& world) {
  std::vector<float> values(3, static_cast<float>(world.rank()));
  if (!succeeded(world.all_reduce(values, regroup::ReduceOp::Avg))) return false;
  return is("average", static_cast<float>(world.size() - 1) / 2.0F, values[0]);
}

bool largest(regroup::ProcessGroup& world) {
  std::vector<std::int64_t> value = {world.rank()};
  if (!succeeded(world.all_reduce(value, regroup::ReduceOp::Max))) return false;
  return is("maximum", world.size() - 1, static_cast<double>(value[0]));
}

bool everybodys(regroup::ProcessGroup& world) {
  const std::int32_t mine = 10 * world.rank();
  std::vector<std::int32_t> all(static_cast<std::size_t>(world.size()));
  if (!succeeded(world.all_gather(&mine, all.data(), 1, regroup::DType::I32))) return false;
  for (int rank = 0; rank < world.size(); ++rank) {
    if (!is("gathered", 10 * rank, all[static_cast<std::size_t>(rank)])) return false;
  }
  return true;
}

bool from_the_last_rank(regroup::ProcessGroup& world) {
  std::vector<float> value = {static_cast<float>(world.rank())};
  const int root = world.size() - 1;
  if (!succeeded(world.broadcast(value, root))) return false;
  return is("broadcast", root, value[0]);
}

}  // namespace

int main() {
  auto attached = regroup::Job::attach();
  if (!attached) return succeeded(attached.error()) ? 0 : 1;
  auto world = attached->world();
  const bool right = sum_of_many(world) && average_in_place(world) && largest(world) &&
                     everybodys(world) && from_the_last_rank(world);
  if (!right) return 1;
  std::printf("rank %d: sum, average, maximum, all_gather and broadcast are right\n", world.rank());
  return 0;
}
