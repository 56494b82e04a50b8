/// A job's rank that goes mad: `scribbling_rank SEED STEPS WHAT`. After a few steps rank 1, in its
/// first life, writes over the memory that it shares with others, while they are in the midst of
/// their operations: random values all over (WHAT is `all`), or single bits of the contributions
/// (`slots`), until an operation is refused. The other ranks do what programs do.
///
/// No rank may crash or hang. A result that is not what arithmetic says is printed as WRONG BITS;
/// under REGROUP_VERIFY=1 there is none.
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdint>
#include <fstream>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <regroup/regroup.hpp>

namespace {

using regroup::DType;
using regroup::Job;
using regroup::ProcessGroup;
using regroup::ReduceOp;
using regroup::Status;

struct Words {
  std::atomic<std::uint64_t>* at = nullptr;
  std::size_t count = 0;
};

/// All memory of this process that others map too. Mapped once more: the runtime may give its own
/// mapping back.
class SharedMemory {
 public:
  SharedMemory() {
    find_more();
    if (all_.empty()) ::_exit(3);
  }
  /// A new epoch brings new memory.
  void find_more() {
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
      if (line.find("memfd:regroup-") == std::string::npos ||
          line.find(" rw-s") == std::string::npos)
        continue;
      std::uintptr_t begin = 0;
      std::uintptr_t end = 0;
      char dash = 0;
      std::string access;
      std::string offset;
      std::string device;
      std::string inode;
      std::istringstream(line) >> std::hex >> begin >> dash >> end >> access >> offset >> device >>
          inode;
      if (!known_.insert(inode).second) continue;
      void* const again =
          ::mremap(reinterpret_cast<void*>(begin), 0, end - begin, MREMAP_MAYMOVE);  // a second one
      if (again == MAP_FAILED) continue;  // the runtime was quicker
      all_.push_back({static_cast<std::atomic<std::uint64_t>*>(again), (end - begin) / 8});
    }
  }
  [[nodiscard]] const std::vector<Words>& all() const { return all_; }

 private:
  std::set<std::string> known_;
  std::vector<Words> all_;
};

std::uint64_t value(std::mt19937_64& random) {
  switch (random() % 6) {
    case 0: return 0;
    case 1: return ~std::uint64_t{0};
    case 2: return random() % 64;                        // a small count or index
    case 3: return std::uint64_t{1} << (random() % 64);  // a flag
    case 4: return (random() % 1000) << 32 | random() % 8;
    default: return random();
  }
}

/// Most words that steer others lie at the beginning of an arena.
void scribble_all(std::uint64_t seed, const std::atomic<bool>& over) {
  std::mt19937_64 random(seed);
  SharedMemory memory;
  // From a single word to most of those that steer anything.
  const std::uint64_t most = 1 + random() % (std::uint64_t{2} << random() % 14);
  for (std::uint64_t i = 0; i < most && !over; ++i) {
    if (i % 500 == 499) memory.find_more();
    const Words& words = memory.all()[random() % memory.all().size()];
    const std::size_t reach =
        random() % 4 == 0 ? words.count : std::min<std::size_t>(words.count, 2048);
    std::atomic<std::uint64_t>& word = words.at[random() % reach];
    if (random() % 3 == 0) {
      word.fetch_xor(std::uint64_t{1} << (random() % 64));
    } else {
      word.store(value(random));
    }
  }
  // Half of them die of their madness; the others live on among the ruins.
  if (random() % 2 == 0) (void)::raise(SIGKILL);
}

/// Payload alone: the arena is the largest memory; its words end within 64 KiB, its rings lie in
/// the second half.
void scribble_slots(std::uint64_t seed, const std::atomic<bool>& over) {
  constexpr std::size_t kBehindTheWords = 65536 / 8;
  std::mt19937_64 random(seed);
  const SharedMemory memory;
  const Words& arena = *std::ranges::max_element(memory.all(), {}, &Words::count);
  while (!over) {
    const std::size_t at = kBehindTheWords + random() % (arena.count / 2 - kBehindTheWords);
    arena.at[at].fetch_xor(std::uint64_t{1} << (random() % 64), std::memory_order_relaxed);
  }
}

/// What rank `rank` gives in `step`, small enough that sums are exact.
double given(int rank, std::uint64_t step, std::size_t i) {
  return static_cast<double>((i * 7 + static_cast<std::size_t>(rank) * 13 + step) % 1000);
}

struct Buffers {
  std::vector<float> small = std::vector<float>(5);
  std::vector<double> large = std::vector<double>(30'000);
  std::vector<double> gathered;
};

/// Ends the process with a word about it: nothing that follows would mean anything.
void check(bool right, const char* what, std::uint64_t step) {
  if (right) return;
  fmt::print("WRONG BITS in step {}: {}\n", step, what);
  std::fflush(stdout);
  ::_exit(5);
}

Status exchange(ProcessGroup& world, Buffers& b, std::uint64_t step) {
  const int ranks = world.size();
  const auto most = [&](std::size_t i) {
    double out = 0;
    for (int rank = 0; rank < ranks; ++rank) out = std::max(out, given(rank, step, i));
    return out;
  };
  const auto is_most = [&](const char* what) {
    for (std::size_t i = 0; i < b.large.size(); ++i) check(b.large[i] == most(i), what, step);
  };
  for (std::size_t i = 0; i < b.small.size(); ++i)
    b.small[i] = static_cast<float>(given(world.rank(), step, i));
  for (std::size_t i = 0; i < b.large.size(); ++i) b.large[i] = given(world.rank(), step, i);
  if (Status s = world.all_reduce(b.small, ReduceOp::Sum); !s) return s;
  for (std::size_t i = 0; i < b.small.size(); ++i) {
    float sum = 0;
    for (int rank = 0; rank < ranks; ++rank) sum += static_cast<float>(given(rank, step, i));
    check(b.small[i] == sum, "sum", step);
  }
  if (Status s = world.all_reduce(b.large, ReduceOp::Max); !s) return s;
  is_most("max");
  if (world.rank() != 0) std::ranges::fill(b.large, -1);
  if (Status s = world.broadcast(b.large.data(), b.large.size(), DType::F64, 0); !s) return s;
  is_most("broadcast");
  for (double& one : b.large) one += world.rank();
  b.gathered.assign(b.large.size() * static_cast<std::size_t>(ranks), -1);
  if (Status s = world.all_gather(b.large.data(), b.gathered.data(), b.large.size(), DType::F64);
      !s)
    return s;
  for (std::size_t i = 0; i < b.gathered.size(); ++i) {
    const std::size_t rank = i / b.large.size();
    check(b.gathered[i] == most(i % b.large.size()) + static_cast<double>(rank), "gather", step);
  }
  return world.barrier();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 64;
  const std::uint64_t seed = std::stoull(argv[1]);
  const bool slots = std::string_view(argv[3]) == "slots";
  auto job = Job::attach();
  if (!job) {
    fmt::print(stderr, "{}\n", job.error().to_string());
    return 1;
  }
  auto world = job->world();
  std::vector<double> state(5000, 1.0);
  job->state().add("state", state);
  Buffers buffers;
  std::atomic<bool> over{false};
  std::thread madness;
  const bool mad = job->rank() == 1 && job->incarnation().value() <= 3;
  std::uint64_t refused = 0;
  auto steps = job->steps(std::stoull(argv[2]));
  while (steps.next()) {
    if (mad && !madness.joinable() && steps.index() == 2) {
      madness = std::thread([&] {
        if (slots) return scribble_slots(seed, over);
        scribble_all(seed, over);
      });
    }
    const Status done = exchange(world, buffers, steps.index());
    if (!done && done.text().empty()) return 4;  // an error without a cause
    if (!done || !steps.commit()) {
      if (!done) fmt::print("rank {} refused: {}\n", job->rank(), done.text());
      if (slots) over = true;
      refused += 1;
      continue;
    }
    for (double& one : state) one += 1;
  }
  over = true;
  if (madness.joinable()) madness.join();
  fmt::print("rank {} done, {} attempts refused: {}\n", job->rank(), refused,
             steps.status().to_string());
  return steps.status() ? 0 : 1;
}
