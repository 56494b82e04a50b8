/// A job's rank that goes mad: `scribbling_rank SEED STEPS`. After a few steps rank 1, in its first
/// life, writes random values all over the memory that it shares with others, while they are in
/// the midst of their operations. The other ranks do what programs do.
///
/// Results may be wrong then, and are not looked at. No rank may crash or hang.
#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdint>
#include <fstream>
#include <random>
#include <sstream>
#include <string>
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

/// All memory of this process that others map too.
std::vector<Words> shared_memory() {
  std::vector<Words> out;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.find("memfd:regroup-") == std::string::npos || line.find(" rw") == std::string::npos)
      continue;
    std::uintptr_t begin = 0;
    std::uintptr_t end = 0;
    char dash = 0;
    std::istringstream(line) >> std::hex >> begin >> dash >> end;
    out.push_back({reinterpret_cast<std::atomic<std::uint64_t>*>(begin), (end - begin) / 8});
  }
  return out;
}

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
void scribble(std::uint64_t seed, const std::atomic<bool>& over) {
  std::mt19937_64 random(seed);
  const std::vector<Words> all = shared_memory();
  if (all.empty()) ::_exit(3);
  const std::uint64_t most = 1 + random() % 20'000;
  for (std::uint64_t i = 0; i < most && !over; ++i) {
    const Words& words = all[random() % all.size()];
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

Status exchange(ProcessGroup& world, std::vector<float>& small, std::vector<double>& large) {
  if (Status s = world.all_reduce(small, ReduceOp::Sum); !s) return s;
  if (Status s = world.all_reduce(large, ReduceOp::Max); !s) return s;
  if (Status s = world.broadcast(large.data(), large.size(), DType::F64, 0); !s) return s;
  std::vector<double> gathered(large.size() * static_cast<std::size_t>(world.size()));
  if (Status s = world.all_gather(large.data(), gathered.data(), large.size(), DType::F64); !s)
    return s;
  return world.barrier();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 64;
  const std::uint64_t seed = std::stoull(argv[1]);
  auto job = Job::attach();
  if (!job) {
    fmt::print(stderr, "{}\n", job.error().to_string());
    return 1;
  }
  auto world = job->world();
  std::vector<double> state(5000, 1.0);
  job->state().add("state", state);
  std::vector<float> small(5);
  std::vector<double> large(30'000);
  std::atomic<bool> over{false};
  std::thread madness;
  const bool mad = job->rank() == 1 && job->incarnation().value() <= 3;
  std::uint64_t refused = 0;
  auto steps = job->steps(std::stoull(argv[2]));
  while (steps.next()) {
    if (mad && !madness.joinable() && steps.index() == 2)
      madness = std::thread([&] { scribble(seed, over); });
    const Status done = exchange(world, small, large);
    if (!done && done.text().empty()) return 4;  // an error without a cause
    if (!done || !steps.commit()) {
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
