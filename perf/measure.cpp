#include "perf/measure.hpp"

#include <sched.h>
#include <sys/resource.h>

#include <chrono>

namespace regroup::perf {
namespace {

double seconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
}

/// Processor time of this process, all its threads.
double cpu_seconds() {
  rusage usage{};
  (void)::getrusage(RUSAGE_SELF, &usage);
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double us_between(TimePoint begin, TimePoint end) {
  return std::chrono::duration<double, std::micro>(end - begin).count();
}

}  // namespace

void bind_to_core(int rank, int ranks) {
  cpu_set_t allowed;
  if (::sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) < ranks) return;
  int before = 0;
  for (std::size_t cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed) || before++ != rank) continue;
    cpu_set_t mine;
    CPU_ZERO(&mine);
    CPU_SET(cpu, &mine);
    (void)::sched_setaffinity(0, sizeof mine, &mine);
    return;
  }
}

Bench::Bench(ProcessGroup group, const Workload& workload)
    : group_(std::move(group)),
      workload_(workload),
      counts_(workload.counts(group_.rank())),
      received_(workload.received(group_.rank())),
      buffers_(workload, group_.rank()) {
  buffers_.fill(salt_);
}

Status Bench::once() {
  const Workload& w = workload_;
  const void* const in = buffers_.in();
  void* const out = buffers_.out();
  const OpOptions options{.factor = kPremulFactor};
  switch (w.collective) {
    case Collective::AllReduce: return group_.all_reduce(in, out, w.count, w.dtype, w.op, options);
    case Collective::Reduce: return group_.reduce(in, out, w.count, w.dtype, w.op, w.root, options);
    case Collective::Broadcast: return group_.broadcast(out, w.count, w.dtype, w.root);
    case Collective::AllGather: return group_.all_gather(in, out, w.count, w.dtype);
    case Collective::ReduceScatter:
      return group_.reduce_scatter(in, out, w.count, w.dtype, w.op, options);
    case Collective::Barrier: return group_.barrier();
    case Collective::AllToAll: return group_.all_to_all(in, out, w.count, w.dtype);
    case Collective::Gather: return group_.gather(in, out, w.count, w.dtype, w.root);
    case Collective::Scatter: return group_.scatter(in, out, w.count, w.dtype, w.root);
    case Collective::AllGatherV: return group_.all_gather_v(in, out, counts_, w.dtype);
    case Collective::ReduceScatterV:
      return group_.reduce_scatter_v(in, out, counts_, w.dtype, w.op, options);
    case Collective::AllToAllV: return group_.all_to_all_v(in, counts_, out, received_, w.dtype);
    case Collective::GatherV: return group_.gather_v(in, out, counts_, w.dtype, w.root);
    case Collective::ScatterV: return group_.scatter_v(in, out, counts_, w.dtype, w.root);
    case Collective::SendRecv: break;
  }
  const int next = (group_.rank() + 1) % w.ranks;
  const int before = (group_.rank() + w.ranks - 1) % w.ranks;
  if (auto status = group_.send(in, w.count, w.dtype, next, 0); !status) return status;
  return group_.recv(out, w.count, w.dtype, before, 0);
}

Result<Block> Bench::run(const BlockPlan& plan) {
  Block block;
  for (std::uint64_t i = 0; i < plan.warmups; ++i) {
    if (auto status = once(); !status) return status;
  }
  if (auto status = group_.barrier(); !status) return status;
  const double cpu_before = cpu_seconds();
  auto status = plan.mode == Mode::Streaming ? time_streaming(plan.iterations, block)
                                             : time_isolated(plan.iterations, block);
  if (!status) return status;
  block.cpu_s = cpu_seconds() - cpu_before;
  if (status = to_slowest(block.us); !status) return status;
  if (status = to_sum(block.cpu_s); !status) return status;
  if (plan.checks > 0) {
    if (status = check(plan.checks, block); !status) return status;
  }
  return block;
}

Status Bench::time_streaming(std::uint64_t iterations, Block& block) {
  const TimePoint begin = Clock::now();
  for (std::uint64_t i = 0; i < iterations; ++i) {
    if (auto status = once(); !status) return status;
  }
  block.us = {us_between(begin, Clock::now()) / static_cast<double>(iterations)};
  return {};
}

Status Bench::time_isolated(std::uint64_t iterations, Block& block) {
  block.us.resize(iterations);
  for (double& us : block.us) {
    if (auto status = group_.barrier(); !status) return status;
    const TimePoint begin = Clock::now();
    if (auto status = once(); !status) return status;
    us = us_between(begin, Clock::now());
  }
  return {};
}

Status Bench::check(std::uint64_t operations, Block& block) {
  double wrong = 0;
  for (std::uint64_t i = 0; i < operations; ++i) {
    buffers_.fill(++salt_);
    if (auto status = once(); !status) return status;
    wrong += static_cast<double>(buffers_.count_wrong(salt_));
  }
  if (auto status = to_sum(wrong); !status) return status;
  block.wrong = static_cast<std::uint64_t>(wrong);
  block.checked = operations;
  return {};
}

Status Bench::to_slowest(std::vector<double>& values) {
  return group_.all_reduce(values, ReduceOp::Max);
}

Status Bench::to_sum(double& value) {
  return group_.all_reduce(std::span<double>(&value, 1), ReduceOp::Sum);
}

}  // namespace regroup::perf
