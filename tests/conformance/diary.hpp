/// What the ranks of the process tests write down, for whoever looks after they were killed.
#pragma once

#include <atomic>
#include <chrono>

#include "spi/waiting.hpp"
#include "tests/conformance/harness.hpp"

namespace regroup::conformance {

/// Of one rank, in memory that outlives it.
struct Diary {
  std::atomic<std::uint64_t> done;  ///< operations that were done with right values
  std::atomic<std::uint64_t> lost;  ///< number of the operation that was lost, 0 none
  std::atomic<std::uint64_t> wrong;
  std::atomic<std::uint32_t> entries;  ///< changed by each
  char why[256];                       ///< what the last wrong one was told
  void clear() {
    done = lost = wrong = 0;
    entries = 0;
    why[0] = 0;
  }
};

/// Reads a diary until `ready` holds; nobody wakes the reader. It looks seldom: whoever spins takes
/// the time of those it looks at.
template <class ReadyFn>
void read_until(Diary& diary, ReadyFn&& ready) {
  for (std::uint32_t seen = diary.entries; !ready(); seen = diary.entries)
    spi::sleep_on(diary.entries, seen, std::chrono::microseconds(50));
}

/// All_reduce operations 1, 2, 3... of `ranks` ranks in place, with three numbers of elements in
/// turn, until one is lost. `ways_break`: the way to a rank that is killed may be found broken
/// before its end is told; then what is decided counts, as it does in the engine.
inline void reduce_until_lost(GroupRunner& runner, int rank, int ranks,
                              const std::size_t (&counts)[3], Diary& diary,
                              bool ways_break = false) {
  for (std::uint64_t number = 1; diary.lost == 0; ++number) {
    const Case c{{.kind = OpKind::AllReduce, .dtype = DType::F32, .count = counts[number % 3]},
                 ranks,
                 number % 7};
    std::vector<std::byte> data = c.input(rank);
    const std::vector<std::byte> before = data;
    OpSpec spec = c.spec;
    spec.in = spec.out = data.data();
    Outcome outcome = runner.run(spec, kNoDeadline);
    if (ways_break && outcome.kind == OutcomeKind::Damaged) outcome = runner.settle(kNoDeadline);
    if (outcome.kind == OutcomeKind::Lost) {
      if (data != before) ++diary.wrong;
      diary.lost = number;
      ++diary.entries;
    } else {
      if (outcome.kind != OutcomeKind::Done || data != c.expected(rank)) {
        std::snprintf(diary.why, sizeof diary.why, "%s: %s", name(outcome.kind),
                      outcome.text.c_str());
        ++diary.wrong;
      }
      diary.done = number;
      ++diary.entries;
    }
  }
}

}  // namespace regroup::conformance
