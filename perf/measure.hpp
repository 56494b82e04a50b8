/// Runs blocks of one workload on a group and takes their time.
#pragma once

#include <cstdint>
#include <vector>

#include <regroup/regroup.hpp>

#include "perf/options.hpp"
#include "perf/workload.hpp"

namespace regroup::perf {

/// What one block gave, the same on every rank.
struct Block {
  /// Microseconds an operation took the slowest rank. Streaming: one value, the mean over the
  /// block. Isolated: one value for each operation.
  std::vector<double> us;
  double cpu_s = 0;           ///< user and system time of all ranks together
  std::uint64_t wrong = 0;    ///< elements on all ranks that are not what they must be
  std::uint64_t checked = 0;  ///< operations that were checked
};

/// One block as all ranks run it.
struct BlockPlan {
  Mode mode = Mode::Streaming;
  std::uint64_t iterations = 1;
  std::uint64_t warmups = 0;
  std::uint64_t checks = 0;
};

/// Binds the calling thread to a core of its own where `ranks` find one each among those that it
/// may use; else does nothing.
void bind_to_core(int rank, int ranks);

/// One workload on one group. Every rank makes it and calls run() with the same plan.
/// Thread safety: none. Errors: those of the collective.
class Bench {
 public:
  Bench(ProcessGroup group, const Workload& workload);
  Result<Block> run(const BlockPlan& plan);

 private:
  Status once();
  Status time_streaming(std::uint64_t iterations, Block& block);
  Status time_isolated(std::uint64_t iterations, Block& block);
  Status check(std::uint64_t operations, Block& block);
  Status to_slowest(std::vector<double>& values);
  Status to_sum(double& value);

  ProcessGroup group_;
  Workload workload_;
  std::vector<std::size_t> counts_;  ///< where the operation takes them
  std::vector<std::size_t> received_;
  Buffers buffers_;
  std::uint64_t salt_ = 0;
};

}  // namespace regroup::perf
