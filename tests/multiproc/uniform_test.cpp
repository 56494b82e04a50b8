/// Kills each rank at each phase of each algorithm, with real processes, and checks that all
/// survivors report the same outcome of every operation, that what is done is right, and that what
/// is revoked left its input as it was.
///
/// The parent is the agent: it sees the death, wedges, cuts, decides. One survivor, the laggard,
/// stays just short of completing until the wedge has come: if somebody else completed, only the
/// flush can bring it there.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "collective/runner.hpp"
#include "spi/arena_agent.hpp"
#include "tests/support/sanitized.hpp"
#include "transports/shm/arena.hpp"

namespace regroup {
namespace {

using collective::OpSpec;
using collective::Outcome;
using collective::OutcomeKind;
using collective::SlotRunner;
using spi::OpKind;

constexpr std::size_t kSlotBytes = 16 * 1024;
constexpr int kRanksMax = test::kSanitized ? 3 : 5;
constexpr int kOperations = 5;
constexpr int kTested = 3;  // number of the operation in which the victim dies
constexpr int kSecondsMax = 20;
constexpr int kMissedItsPhase = 3;

struct Case {
  const char* name;
  OpKind kind;
  std::size_t count;
  bool in_place;
};
constexpr std::array<Case, 17> kCases{{
    {"all_reduce inline", OpKind::AllReduce, 3, false},
    {"all_reduce one-shot", OpKind::AllReduce, 1000, false},
    {"all_reduce one-shot in place", OpKind::AllReduce, 1000, true},
    {"all_reduce two-shot", OpKind::AllReduce, 40000, false},
    {"all_reduce two-shot in place", OpKind::AllReduce, 40000, true},
    {"reduce", OpKind::Reduce, 10000, false},
    {"broadcast", OpKind::Broadcast, 10000, true},
    {"all_gather", OpKind::AllGather, 5000, false},
    {"reduce_scatter", OpKind::ReduceScatter, 3000, false},
    {"all_gather_v", OpKind::AllGatherV, 3000, false},
    {"reduce_scatter_v", OpKind::ReduceScatterV, 2000, false},
    {"all_to_all in place", OpKind::AllToAll, 2000, true},
    {"all_to_all_v", OpKind::AllToAllV, 1000, false},
    {"gather", OpKind::Gather, 5000, false},
    {"scatter", OpKind::Scatter, 3000, false},
    {"gather_v", OpKind::GatherV, 3000, false},
    {"scatter_v", OpKind::ScatterV, 2000, false},
}};
constexpr std::array<const char*, 8> kPhases{"enter",           "before_copy_in", "after_copy_in",
                                             "after_publish",   "after_await",    "after_reduce",
                                             "before_complete", "after_complete"};
/// Of a chunk: in front of it others lie whose output is written already, behind it some whose is
/// not.
constexpr std::array<const char*, 5> kChunkPhases{"before_copy_in", "after_copy_in",
                                                  "after_publish", "after_await", "after_reduce"};
constexpr std::array<std::int64_t, 2> kChunks{1, 5};
constexpr std::array<const char*, 2> kCommitPhases{"before_prepare", "after_prepare"};

/// What a rank says of one operation; lies in memory shared with the parent.
struct Report {
  bool returned;
  OutcomeKind kind;
  bool value_right;
  bool input_intact;
};
struct Board {
  std::array<std::array<Report, kOperations + 2>, kRanksMax>
      reports;  // [rank][number], commit last
};

struct Cell {
  int ranks = 2;
  int victim = 0;
  int laggard = 1;
  const char* phase = "enter";
  std::int64_t chunk = -1;  ///< the victim dies in this one; -1: in the first one, or outside
  bool in_commit = false;
  Case tested = kCases[0];
};

std::string describe(const Cell& cell) {
  return std::string(cell.in_commit ? "commit" : cell.tested.name) + ", " +
         std::to_string(cell.ranks) + " ranks, rank " + std::to_string(cell.victim) + " dies at " +
         cell.phase + (cell.chunk < 0 ? "" : " of chunk " + std::to_string(cell.chunk)) +
         ", laggard " + std::to_string(cell.laggard);
}

/// Exactly representable in f32, also summed over five ranks; tells who contributed to which
/// operation.
float contribution(int rank, int number, std::size_t element) {
  return static_cast<float>((rank + 1) * (rank + 1) * 1000 + number * 100 +
                            static_cast<int>(element % 13));
}
float sum_of_all(int ranks, int number, std::size_t element) {
  float sum = 0;
  for (int rank = 0; rank < ranks; ++rank) sum += contribution(rank, number, element);
  return sum;
}

/// One rank's life in its own process.
class RankProcess {
 public:
  RankProcess(const Cell& cell, int me, int fd, Board& board)
      : cell_(cell),
        me_(me),
        board_(board),
        arena_(shm::open_arena(fd, Epoch(1), 0).value()),
        runner_(arena_.slots, me, {.cores = 2, .fault = {&RankProcess::on_phase, this}}) {}

  void live() {
    for (int number = 1; number <= kOperations; ++number) {
      run(number, number == kTested ? cell_.tested : filler(number));
      // A phase that this operation does not have on this rank: it is lost right behind the
      // operation instead.
      if (number == kTested && me_ == cell_.victim && !cell_.in_commit) ::_exit(kMissedItsPhase);
    }
    const auto outcome = runner_.commit(1, Clock::now() + std::chrono::seconds(kSecondsMax));
    board_.reports[static_cast<std::size_t>(me_)][kOperations + 1] = {true, outcome.kind, true,
                                                                      true};
  }

 private:
  static Case filler(int number) {
    return number % 2 == 1 ? kCases[0] : Case{"broadcast", OpKind::Broadcast, 5, true};
  }

  static void on_phase(void* context, collective::Instant instant, std::uint64_t number,
                       std::int64_t chunk) {
    auto& self = *static_cast<RankProcess*>(context);
    const char* const phase = collective::name(instant);
    const bool committing = std::strstr(phase, "prepare") != nullptr;
    if (committing != self.cell_.in_commit || (!committing && number != kTested)) return;
    const bool due = self.cell_.chunk < 0 || chunk == self.cell_.chunk;
    if (self.me_ == self.cell_.victim && due && std::strcmp(phase, self.cell_.phase) == 0)
      ::kill(::getpid(), SIGKILL);
    if (self.me_ == self.cell_.laggard &&
        std::strcmp(phase, committing ? "before_prepare" : "before_complete") == 0) {
      while (!spi::read(self.arena_.slots.group_word(self.me_)).wedged) spi::yield_cpu();
    }
  }

  void run(int number, const Case& what) {
    const int root = cell_.ranks > 1 ? 1 : 0;
    std::vector<std::size_t> shares;  // of each rank; of all_to_all_v to it, and from it
    std::vector<std::size_t> from;
    for (int rank = 0; rank < cell_.ranks; ++rank) {
      shares.push_back(share(what, me_, rank));
      from.push_back(share(what, rank, me_));
    }
    OpSpec spec{.kind = what.kind,
                .dtype = DType::F32,
                .op = ReduceOp::Sum,
                .root = root,
                .count = what.count};
    if (spi::has_counts(what.kind)) {
      spec.counts = {.shares = shares.data(), .ranks = cell_.ranks};
      if (what.kind == OpKind::AllToAllV) spec.counts.recv = from.data();
    }
    const auto extent =
        collective::extent_of(collective::describe_call(spec), spec.counts, cell_.ranks, me_);
    std::vector<float> in(std::max(extent.in_bytes / sizeof(float), what.count));
    for (std::size_t i = 0; i < in.size(); ++i) in[i] = contribution(me_, number, i);
    const std::vector<float> before = in;
    std::vector<float> out(extent.out_bytes / sizeof(float));
    float* const target = what.in_place ? in.data() : out.data();
    spec.in = in.data();
    spec.out = target;
    auto outcome = runner_.run(spec, Clock::now() + std::chrono::seconds(kSecondsMax));
    Report report{true, outcome.kind, true, true};
    if (outcome.kind == OutcomeKind::Done) {
      for (std::size_t i = 0; i < out.size(); ++i)
        report.value_right &= target[i] == expected(what, number, root, i);
    } else if (outcome.kind == OutcomeKind::Lost) {
      report.input_intact = what.kind == OpKind::Broadcast || in == before;
    }
    board_.reports[static_cast<std::size_t>(me_)][static_cast<std::size_t>(number)] = report;
  }

  /// Elements of the share that `giver` has for `taker`; uneven, and rank 0 has none of some.
  static std::size_t share(const Case& what, int giver, int taker) {
    if (!spi::has_counts(what.kind)) return what.count;
    const int who = what.kind == OpKind::AllToAllV ? giver + 2 * taker : taker;
    return what.count * static_cast<std::size_t>(who % 3);
  }

  [[nodiscard]] float expected(const Case& what, int number, int root, std::size_t element) const {
    int giver = root;
    if (spi::gathers(what.kind)) {
      const auto given = [&](int rank) {
        return what.kind == OpKind::AllToAllV ? share(what, rank, me_) : share(what, me_, rank);
      };
      for (giver = 0; element >= given(giver); ++giver) element -= given(giver);
    }
    if (spi::scatters(what.kind)) {
      for (int rank = 0; rank < me_; ++rank) element += share(what, giver, rank);
    }
    return spi::reduces(what.kind) ? sum_of_all(cell_.ranks, number, element)
                                   : contribution(giver, number, element);
  }

  Cell cell_;
  int me_;
  Board& board_;
  shm::Arena arena_;
  SlotRunner runner_;
};

struct Tally {
  int cells = 0;
  int reached = 0;
  int mixed = 0;
  int flushed = 0;  ///< cells in which the laggard's operation was done
};

/// The agent's part, for one cell.
class Trial {
 public:
  explicit Trial(const Cell& cell) : cell_(cell) {
    arena_ = shm::make_arena(Epoch(1), 0, static_cast<std::uint32_t>(cell.ranks),
                             {.slot_bytes = kSlotBytes})
                 .value();
    board_ = static_cast<Board*>(
        ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  }
  Trial(const Trial&) = delete;
  Trial& operator=(const Trial&) = delete;
  ~Trial() { ::munmap(board_, sizeof(Board)); }

  void run(Tally& tally) {
    for (int rank = 0; rank < cell_.ranks; ++rank) pids_.push_back(start(rank));
    int status = 0;
    ::waitpid(pids_[static_cast<std::size_t>(cell_.victim)], &status, 0);
    const bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    EXPECT_TRUE(killed || (WIFEXITED(status) && WEXITSTATUS(status) == kMissedItsPhase))
        << describe(cell_);
    recover();
    for (int rank = 0; rank < cell_.ranks; ++rank) {
      if (rank == cell_.victim) continue;
      ::waitpid(pids_[static_cast<std::size_t>(rank)], &status, 0);
      EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0)
          << describe(cell_) << ": rank " << rank << " did not end, or crashed";
    }
    ++tally.cells;
    if (killed) ++tally.reached;
    judge(tally);
  }

 private:
  pid_t start(int rank) {
    const pid_t pid = ::fork();
    if (pid != 0) return pid;
    ::alarm(kSecondsMax);  // the watchdog: a rank that hangs is reported by its signal
    RankProcess(cell_, rank, arena_.fd.get(), *board_).live();
    ::_exit(0);
  }

  void recover() {
    std::vector<int> survivors;
    for (int rank = 0; rank < cell_.ranks; ++rank) {
      if (rank != cell_.victim) survivors.push_back(rank);
    }
    spi::wedge_all(arena_.slots);
    spi::wake_all(arena_.slots);
    const auto report = spi::read_report(arena_.slots);
    spi::decide_all(arena_.slots, survivors, report.completed, report.prepared);
    spi::wake_all(arena_.slots);
  }

  /// Handing over is no outcome; everything else has to be one and the same on all survivors.
  void judge(Tally& tally) {
    bool mixed = false;
    for (std::size_t number = 1; number <= kOperations + 1; ++number) {
      std::array<int, 2> said{};
      for (int rank = 0; rank < cell_.ranks; ++rank) {
        const auto& report = board_->reports[static_cast<std::size_t>(rank)][number];
        if (!report.returned) continue;
        EXPECT_TRUE(report.value_right)
            << describe(cell_) << ": wrong bytes on rank " << rank << ", operation " << number;
        EXPECT_TRUE(report.input_intact)
            << describe(cell_) << ": input changed on rank " << rank << ", operation " << number;
        EXPECT_LE(report.kind, OutcomeKind::Lost)
            << describe(cell_) << ": " << collective::name(report.kind);
        if (report.kind == OutcomeKind::Done) ++said[0];
        if (report.kind == OutcomeKind::Lost) ++said[1];
      }
      mixed |= said[0] > 0 && said[1] > 0;
    }
    const auto& laggard = board_->reports[static_cast<std::size_t>(cell_.laggard)][kTested];
    if (cell_.ranks > 2 && laggard.returned && laggard.kind == OutcomeKind::Done) ++tally.flushed;
    if (!mixed) return;
    ++tally.mixed;
    std::printf("mixed: %s\n", describe(cell_).c_str());
  }

  Cell cell_;
  shm::Arena arena_;
  Board* board_;
  std::vector<pid_t> pids_;
};

/// What was in the place of outputs is put back, whichever of them are written.
void run_chunks(Cell cell, Tally& tally) {
  const std::size_t bytes = cell.tested.count * sizeof(float);
  for (const auto chunk : kChunks) {
    if (static_cast<std::size_t>(chunk) * kSlotBytes >= bytes) continue;
    for (const auto* phase : kChunkPhases) {
      cell.chunk = chunk;
      cell.phase = phase;
      Trial(cell).run(tally);
    }
  }
}

void run_cells(int ranks, Tally& tally) {
  for (int victim = 0; victim < ranks; ++victim) {
    Cell cell{.ranks = ranks, .victim = victim, .laggard = (victim + 1) % ranks};
    for (const auto& tested : kCases) {
      if (ranks > 4 && spi::has_counts(tested.kind)) continue;  // four ranks show it all
      for (const auto* phase : kPhases) {
        cell.tested = tested;
        cell.phase = phase;
        Trial(cell).run(tally);
      }
      if (tested.kind == OpKind::AllReduce && tested.in_place) run_chunks(cell, tally);
    }
    cell.in_commit = true;
    for (const auto* phase : kCommitPhases) {
      cell.phase = phase;
      Trial(cell).run(tally);
    }
  }
}

TEST(Uniform, EachRankKilledAtEachPhaseOfEachAlgorithm) {
  Tally tally;
  for (int ranks = 2; ranks <= kRanksMax; ++ranks) run_cells(ranks, tally);
  std::printf("cells %d, of which the victim reached its phase in %d; flushed %d; %d mixed\n",
              tally.cells, tally.reached, tally.flushed, tally.mixed);
  EXPECT_EQ(tally.mixed, 0);
  EXPECT_GT(tally.reached, tally.cells / 2);
  EXPECT_GT(tally.flushed, 0) << "no cell needed the flush: the test would not notice its absence";
}

}  // namespace
}  // namespace regroup
