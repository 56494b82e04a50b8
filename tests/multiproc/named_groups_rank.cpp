/// Ranks that meet in the job's store and in groups by name, each asking for its own in an order of
/// its own; what named_groups_test launches.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include <regroup/regroup.hpp>

namespace {

using regroup::Code;
using regroup::Job;
using regroup::ProcessGroup;
using regroup::ReduceOp;
using regroup::Result;
using regroup::Status;

void say(const std::string& line) {
  fmt::print("{}\n", line);
  std::fflush(stdout);
}

/// Everybody passes once all have come; who comes again, later, passes at once.
Status meet(Job& job) {
  auto store = job.store();
  const auto come = store.add("come", 1);
  if (!come) return come.error();
  if (*come == job.size()) {
    if (auto s = store.set("all", std::string("are\0here", 8)); !s) return s;
  }
  const std::array<std::string, 2> keys{"all", "come"};
  if (auto s = store.wait(keys); !s) return s;
  const auto all = store.get("all");
  if (!all) return all.error();
  return *all == std::string("are\0here", 8) ? Status() : Status(Code::Internal, "another value");
}

/// Pair i: ranks i and i + 1, in this order. Each rank has two, and asks for the later one first.
Result<ProcessGroup> pair(Job& job, int first) {
  const std::array<int, 2> ranks{first, (first + 1) % job.size()};
  return job.group(fmt::format("pair {}", first), ranks);
}

std::string misuse(Job& job) {
  const int me = job.rank();
  const std::array<int, 2> others{(me + 1) % job.size(), (me + 2) % job.size()};
  const std::array<int, 2> twice{me, me};
  const std::array<int, 2> outside{me, job.size()};
  const std::array<int, 1> alone{me};
  std::string codes;
  for (const auto& group : {job.group("x", others), job.group("y", twice), job.group("z", outside),
                            job.group("", alone), job.group(fmt::format("pair {}", me), alone)})
    codes += fmt::format("{} ", regroup::name(group.error().code()));
  return codes;
}

int train(Job& job) {
  const int me = job.rank();
  const int size = job.size();
  if (auto s = meet(job); !s) {
    say("store: " + s.to_string());
    return 1;
  }
  auto higher = pair(job, me);
  auto lower = pair(job, (me + size - 1) % size);
  if (!higher || !lower) {
    say("group: " + (higher ? lower : higher).error().to_string());
    return 1;
  }
  say(fmt::format("rank {} misuse: {}", me, misuse(job)));
  std::vector<double> state(64, 1.0);
  job.state().add("state", state);
  auto steps = job.steps(6);
  while (steps.next()) {
    std::vector<double> of_pair(state), of_other(state);
    for (auto& x : of_pair) x *= me + 1;
    of_other = of_pair;
    // In the order of the pairs, so that the ring of them cannot wait for itself.
    const bool last = me == 0;
    if (!(last ? *higher : *lower).all_reduce(of_pair, ReduceOp::Sum)) continue;
    if (!(last ? *lower : *higher).all_reduce(of_other, ReduceOp::Sum)) continue;
    for (std::size_t i = 0; i < of_pair.size(); ++i) of_pair[i] += of_other[i];
    if (!job.world().all_reduce(of_pair, ReduceOp::Avg)) continue;
    if (!steps.commit()) continue;
    for (std::size_t i = 0; i < state.size(); ++i) state[i] = state[i] * 0.5 + of_pair[i] * 0.01;
  }
  if (!steps.status()) {
    say("steps: " + steps.status().to_string());
    return 1;
  }
  say(fmt::format("rank {} {} of pair {} digest={:016.12f}", me, higher->rank(), higher->name(),
                  state[7]));
  return 0;
}

}  // namespace

int main() {
  auto job = Job::attach();
  if (!job) {
    say(job.error().to_string());
    return 1;
  }
  return train(*job);
}
