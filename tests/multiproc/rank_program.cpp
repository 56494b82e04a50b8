/// The program that the whole-job tests launch. Each mode is one situation; what it prints is what
/// the test checks.
#include <fmt/format.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include <regroup/regroup.hpp>

#include "tests/multiproc/rank_shares.hpp"

namespace {

using regroup::Job;
using regroup::ProcessGroup;
using regroup::ReduceOp;
using regroup::Status;

void say(const std::string& line) {
  fmt::print("{}\n", line);
  std::fflush(stdout);
}

std::uint64_t fnv(const void* data, std::size_t bytes,
                  std::uint64_t seed = 14695981039346656037ULL) {
  const auto* p = static_cast<const unsigned char*>(data);
  for (std::size_t i = 0; i < bytes; ++i) seed = (seed ^ p[i]) * 1099511628211ULL;
  return seed;
}

/// splitmix64: the volatile state of a rank.
std::uint64_t draw(std::uint64_t& state) {
  std::uint64_t z = (state += 0x9e3779b97f4a7c15ULL);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

struct Model {
  std::vector<double> params = std::vector<double>(1000, 1.0);
  std::vector<float> large = std::vector<float>(100'000, 0.5F);
  std::uint64_t generator = 0;
};

/// One step's operations, on the world and on a group of it.
Status exchange(Model& model, ProcessGroup& world, ProcessGroup& half, std::vector<double>& grads) {
  for (std::size_t i = 0; i < grads.size(); ++i) {
    grads[i] = model.params[i] * 0.01 + static_cast<double>(draw(model.generator) % 1024);
  }
  std::vector<float> wide(model.large.size());
  for (std::size_t i = 0; i < wide.size(); ++i)
    wide[i] = model.large[i] + static_cast<float>(i % 7);
  float scale = world.rank() == 0 ? static_cast<float>(model.params[0]) : 0.0F;
  std::vector<double> of_half(8);
  if (auto s = half.all_reduce(std::span<const double>(grads.data(), 8), std::span<double>(of_half),
                               ReduceOp::Sum);
      !s) {
    return s;
  }
  for (std::size_t i = 0; i < grads.size(); ++i) grads[i] += of_half[i % 8] * 1e-3;
  if (auto s = world.all_reduce(grads, ReduceOp::Avg); !s) return s;
  if (auto s = world.all_reduce(wide, ReduceOp::Avg); !s) return s;
  if (auto s = world.broadcast(&scale, 1, regroup::DType::F32, 0); !s) return s;
  auto pending = world.all_reduce_async(wide.data(), wide.data(), wide.size(), regroup::DType::F32,
                                        ReduceOp::Max);
  if (auto s = pending.wait(); !s) return s;
  std::vector<double> sum(grads.size());
  if (auto s = world.reduce(grads.data(), sum.data(), grads.size(), regroup::DType::F64,
                            ReduceOp::Sum, 0);
      !s)
    return s;
  for (std::size_t i = 0; i < grads.size(); ++i) grads[i] += scale;
  return {};
}

int train(Job& job, std::uint64_t steps) {
  auto world = job.world();
  auto half = world.split(world.rank() % 2, 0, "half").value();
  Model model;
  model.generator = 1000 + static_cast<std::uint64_t>(job.rank());
  // A prologue collective: a newcomer has to be answered from the record.
  double start = world.rank() + 1.0;
  if (auto s = world.all_reduce(std::span<double>(&start, 1), ReduceOp::Sum); !s) {
    say("prologue: " + s.to_string());
    return 1;
  }
  for (auto& p : model.params) p = start;
  job.state()
      .add("params", model.params)
      .add("large", model.large)
      .add_volatile("generator", model.generator);
  std::vector<double> grads(model.params.size());
  std::vector<std::uint64_t> generators(static_cast<std::size_t>(world.size()));
  auto loop = job.steps(steps);
  while (loop.next()) {
    if (auto s = exchange(model, world, half, grads); !s) {
      say(fmt::format("rank {} step {}: {}", job.rank(), loop.index(), s.to_string()));
      continue;
    }
    generators.resize(static_cast<std::size_t>(world.size()));
    if (!world.all_gather(&model.generator, generators.data(), 1, regroup::DType::I64)) continue;
    if (!loop.commit()) continue;
    for (std::size_t i = 0; i < grads.size(); ++i)
      model.params[i] = model.params[i] * 0.99 + grads[i] * 0.01;
    for (auto& v : model.large) v += 0.25F;
  }
  if (!loop.status()) {
    say(fmt::format("rank {} ended: {}", job.rank(), loop.status().to_string()));
    return 1;
  }
  const auto digest = fnv(model.large.data(), model.large.size() * sizeof(float),
                          fnv(model.params.data(), model.params.size() * sizeof(double),
                              fnv(generators.data(), generators.size() * sizeof(std::uint64_t))));
  say(fmt::format("rank {} incarnation {} pid {} size {} digest={:016x}", job.rank(),
                  job.incarnation().value(), ::getpid(), world.size(), digest));
  return 0;
}

/// Steps until a file appears. Every rank computes for itself what the others contribute, so that a
/// lost, repeated or foreign contribution shows in the step in which it happens; a seat's own
/// random generator has to be found by whoever takes the seat.
int changing(Job& job, const std::string& stop_file) {
  auto world = job.world();
  const auto me = static_cast<std::size_t>(job.rank());
  const auto seats = static_cast<std::size_t>(job.size());
  std::vector<std::uint64_t> generators(seats);  // of all seats, by everybody's own reckoning
  for (std::size_t seat = 0; seat < seats; ++seat) generators[seat] = 1000 + seat;
  std::uint64_t mine = generators[me];
  std::uint64_t count = 0;
  job.state().add("generators", generators).add("count", count).add_volatile("mine", mine);
  std::uint64_t wrong = 0, repeats = 0, errors = 0;
  bool over = false;
  const auto report = [&] {
    return fmt::format("steps={} wrong={} repeats={} errors={} size={}", count, wrong, repeats,
                       errors, world.size());
  };
  auto loop = job.steps(1'000'000);
  while (!over && loop.next()) {
    if (loop.attempt() > 1) ++repeats;
    if (loop.index() != count) ++wrong;
    if (mine != generators[me]) ++wrong;
    // Value, who takes part, and whether to stop, in one sum.
    const bool lowest = world.rank() == 0;
    std::int64_t sum[3] = {static_cast<std::int64_t>(draw(mine) % 1024), std::int64_t{1} << me,
                           lowest && ::access(stop_file.c_str(), F_OK) == 0 ? 1 : 0};
    if (auto s = world.all_reduce(std::span<std::int64_t>(sum, 3), ReduceOp::Sum); !s) {
      ++errors;
      continue;
    }
    if (auto s = loop.commit(); !s) {
      ++errors;
      continue;
    }
    std::int64_t expected = 0;
    for (std::size_t seat = 0; seat < seats; ++seat) {
      if (((sum[1] >> seat) & 1) != 0)
        expected += static_cast<std::int64_t>(draw(generators[seat]) % 1024);
    }
    if (expected != sum[0]) ++wrong;
    over = sum[2] != 0;
    if (++count == 16) say(fmt::format("rank {} reached {}", job.rank(), report()));
  }
  if (job.drained()) {
    say(fmt::format("rank {} drained {} then {}: {}", job.rank(), report(),
                    loop.status().to_string(), world.barrier().to_string()));
    return stop_file.ends_with("code3") ? 3 : 0;
  }
  say(fmt::format("rank {} ended {} {}", job.rank(), report(), loop.status().to_string()));
  return over ? 0 : 1;
}

/// What a constructor of a distributed model does before the first step: sizes are compared,
/// parameters broadcast, groups split off and used. It never looks at a status twice: whatever is
/// lost meanwhile, it must not notice.
Status set_up(Job& job, std::vector<double>& params, std::uint64_t& digest) {
  auto world = job.world();
  const auto ranks = static_cast<std::size_t>(world.size());
  const auto me = static_cast<std::size_t>(world.rank());
  std::vector<std::int64_t> sizes(ranks);
  const auto mine = static_cast<std::int64_t>(100 + me);
  if (auto s = world.all_gather(&mine, sizes.data(), 1, regroup::DType::I64); !s) return s;
  for (std::size_t i = 0; i < params.size(); ++i)
    params[i] = static_cast<double>(me * 1000 + i % 17);
  // The root changes its buffer as soon as it may.
  if (auto s = world.broadcast(params, world.size() - 1); !s) return s;
  for (auto& p : params) p = p * 0.5 + static_cast<double>(sizes.back());
  if (auto s = world.all_reduce(params, ReduceOp::Avg); !s) return s;
  auto half = world.split(world.rank() % 2, 0, "half");
  if (!half) return half.error();
  std::vector<double> part(8, static_cast<double>(me + 1));
  if (auto s = half->all_reduce(part, ReduceOp::Sum); !s) return s;
  std::vector<double> at_root(8);
  if (auto s = world.reduce(part.data(), at_root.data(), 8, regroup::DType::F64, ReduceOp::Sum, 0);
      !s)
    return s;
  for (auto& p : part) p = -1;  // handed over means that it may be changed
  if (auto s = world.broadcast(at_root, 0); !s) return s;
  std::vector<double> all(ranks * 4, static_cast<double>(me) + at_root[0]), share(4);
  auto pending =
      world.reduce_scatter_async(all.data(), share.data(), 4, regroup::DType::F64, ReduceOp::Sum);
  if (auto s = pending.wait(); !s) return s;
  if (auto s = world.all_gather(share.data(), all.data(), 4, regroup::DType::F64); !s) return s;
  digest = fnv(all.data(), all.size() * sizeof(double),
               fnv(at_root.data(), at_root.size() * sizeof(double),
                   fnv(params.data(), params.size() * sizeof(double))));
  return {};
}

/// Rank 0 gets two messages of each other one, in the order in which they come.
Status hear_from_anybody(Job& job) {
  auto world = job.world();
  const int me = job.rank();
  for (int i = 0; me != 0 && i < 2; ++i) {
    const double mine = 10 * me + i;
    if (auto s = world.send(&mine, 1, regroup::DType::F64, 0, 3); !s) return s;
  }
  std::string heard;
  for (int i = 0; me == 0 && i < 2 * (world.size() - 1); ++i) {
    double theirs = -1;
    const auto source = world.recv_any(&theirs, 1, regroup::DType::F64, 3);
    if (!source) return source.error();
    heard += fmt::format(" {}:{}", *source, theirs);
  }
  if (me == 0) say("rank 0 heard" + heard);
  return world.barrier();
}

int prologue(Job& job, const std::string& what) {
  std::vector<double> params(20'000);
  std::uint64_t digest = 0;
  if (what == "registered") job.state().add("params", params);
  if (auto s = set_up(job, params, digest); !s) {
    say(fmt::format("prologue: {}", s.to_string()));
    return 1;
  }
  if (what == "messages") {
    double token = 0;
    auto world = job.world();
    auto s = job.rank() == 0 ? world.send(&token, 1, regroup::DType::F64, 1)
                             : world.recv(&token, 1, regroup::DType::F64, 0);
    if (s) s = world.barrier();
    if (s) s = world.barrier();
    say(fmt::format("rank {} messages: {}", job.rank(), s.to_string()));
    if (!s) return 1;
  }
  if (what == "anybody") {
    if (auto s = hear_from_anybody(job); !s) {
      say(fmt::format("rank {} messages: {}", job.rank(), s.to_string()));
      return 1;
    }
  }
  if (what != "registered") job.state().add("params", params);
  auto world = job.world();
  auto loop = job.steps(2);
  std::vector<double> grads(params.size());
  while (loop.next()) {
    for (std::size_t i = 0; i < grads.size(); ++i) grads[i] = params[i] * (job.rank() + 1);
    if (!world.all_reduce(grads, ReduceOp::Avg)) continue;
    if (!loop.commit()) continue;
    for (std::size_t i = 0; i < params.size(); ++i) params[i] -= 0.01 * grads[i];
  }
  if (!loop.status()) {
    say(fmt::format("rank {} ended: {}", job.rank(), loop.status().to_string()));
    return 1;
  }
  digest = fnv(params.data(), params.size() * sizeof(double), digest);
  say(fmt::format("rank {} digest={:016x}", job.rank(), digest));
  return 0;
}

int mismatch(Job& job, const std::string& what) {
  auto world = job.world();
  const bool odd = job.rank() == 1;
  std::vector<float> a(16, 1.0F), b(64);
  Status status;
  if (what == "count")
    status =
        world.all_reduce(a.data(), b.data(), odd ? 15 : 16, regroup::DType::F32, ReduceOp::Sum);
  if (what == "type") {
    status = world.all_reduce(a.data(), b.data(), 8,
                              odd ? regroup::DType::F64 : regroup::DType::F32, ReduceOp::Sum);
  }
  if (what == "operation") {
    status = world.all_reduce(a.data(), b.data(), 8, regroup::DType::F32,
                              odd ? ReduceOp::Max : ReduceOp::Sum);
  }
  if (what == "kind") {
    status = odd ? world.barrier()
                 : world.all_reduce(a.data(), b.data(), 8, regroup::DType::F32, ReduceOp::Sum);
  }
  if (what == "root") {
    status = world.broadcast(a.data(), 8, regroup::DType::F32, odd ? 1 : 0);
    // The sender of a broadcast is told at its next operation at the latest.
    if (status) status = world.barrier();
  }
  say(fmt::format("rank {}: {}", job.rank(), status.to_string()));
  return status ? 1 : 0;
}

/// A step that fails for another reason than a loss ends the loop: trying again would fail alike,
/// for ever.
int mismatch_in_step(Job& job) {
  auto world = job.world();
  std::vector<float> a(16, 1.0F), b(16);
  auto loop = job.steps(3);
  while (loop.next()) {
    const std::size_t count = job.rank() == 1 ? 15 : 16;
    if (!world.all_reduce(a.data(), b.data(), count, regroup::DType::F32, ReduceOp::Sum)) continue;
    if (!loop.commit()) continue;
  }
  say(fmt::format("rank {}: {}", job.rank(), loop.status().to_string()));
  return loop.status() ? 0 : 1;
}

/// Changes registered state before commit, on one rank or in an attempt that a loss ends.
int early_change(Job& job, const std::string& what) {
  auto world = job.world();
  std::vector<float> params(100, 1.0F), grads(100, 1.0F);
  job.state().add("params", params);
  auto loop = job.steps(4);
  while (loop.next()) {
    const bool wrong = job.rank() == 0 && loop.index() == 2;
    if (wrong && what == "attempt") params[7] += 1;
    if (!world.all_reduce(grads, ReduceOp::Avg)) continue;
    if (wrong && what == "commit") params[7] += 1;
    const auto committed = loop.commit();
    if (committed.code() == regroup::Code::FailedPrecondition) say(committed.to_string());
    if (!committed) continue;
    for (auto& p : params) p += 0.5F;
  }
  say(fmt::format("rank {}: {}", job.rank(), loop.status().to_string()));
  return loop.status() ? 0 : 1;
}

/// Groups whose asynchronous operations are started in another order on every other rank; large
/// ones, which need several turns of everybody.
int crossed(Job& job) {
  auto world = job.world();
  auto other = world.split(0, 0, "other").value();
  constexpr std::size_t kCount = 300'000;
  std::vector<float> a(kCount), b(kCount);
  auto loop = job.steps(3);
  while (loop.next()) {
    std::ranges::fill(a, 1.0F);
    std::ranges::fill(b, 2.0F);
    const bool odd = job.rank() % 2 == 1;
    auto& first = odd ? other : world;
    auto& second = odd ? world : other;
    auto& first_data = odd ? b : a;
    auto& second_data = odd ? a : b;
    auto one = first.all_reduce_async(first_data.data(), first_data.data(), kCount,
                                      regroup::DType::F32, ReduceOp::Sum);
    auto two = second.all_reduce_async(second_data.data(), second_data.data(), kCount,
                                       regroup::DType::F32, ReduceOp::Sum);
    const auto said_one = one.wait();
    const auto said_two = two.wait();
    if (!said_one || !said_two || !loop.commit()) continue;
  }
  say(fmt::format("rank {}: {} {} {}", job.rank(), loop.status().to_string(), a[kCount - 1],
                  b[kCount - 1]));
  return loop.status() ? 0 : 1;
}

/// Two groups whose blocking operations are called in another order: an error of the program.
int deadlocked(Job& job) {
  auto world = job.world();
  auto other = world.split(0, 0, "other").value();
  auto& mine = job.rank() == 0 ? world : other;
  const regroup::OpOptions patience{.timeout = std::chrono::seconds(2)};
  const auto status = mine.barrier(patience);
  say(fmt::format("rank {}: {}", job.rank(), status.to_string()));
  return status ? 0 : 1;
}

std::int64_t weight(std::size_t row, std::size_t column) {
  return static_cast<std::int64_t>((row * 31 + column * 17) % 23) - 11;
}

/// One request: the root's input goes to all, each rank multiplies its rows, all get the answer and
/// agree that it is done.
Status answer(ProcessGroup& world, const std::vector<std::int64_t>& weights,
              std::vector<std::int64_t>& input, std::vector<std::int64_t>& output) {
  if (auto s = world.broadcast(input, 0); !s) return s;
  const auto rows = output.size() / static_cast<std::size_t>(world.size());
  std::vector<std::int64_t> mine(rows);
  for (std::size_t r = 0; r < rows; ++r) {
    const auto row = static_cast<std::size_t>(world.rank()) * rows + r;
    for (std::size_t c = 0; c < input.size(); ++c)
      mine[r] += weights[row * input.size() + c] * input[c];
  }
  if (auto s = world.all_gather(mine.data(), output.data(), rows, regroup::DType::I64); !s)
    return s;
  std::int64_t ranks = 1;
  if (auto s = world.all_reduce(std::span<std::int64_t>(&ranks, 1), ReduceOp::Sum); !s) return s;
  return ranks == world.size() ? Status()
                               : Status(regroup::Code::Internal, "a sum of ones is wrong");
}

/// Serves requests without steps, under --on-loss replace. A newcomer knows neither weights nor how
/// far the others are.
int serve(Job& job, std::int64_t requests) {
  constexpr std::size_t kColumns = 40;
  auto world = job.world();
  const auto total_rows = static_cast<std::size_t>(job.size()) * 30;
  std::vector<std::int64_t> weights(total_rows * kColumns), input(kColumns), output(total_rows);
  std::int64_t served = 0;
  std::int64_t wrong = 0;
  if (!job.is_replacement()) {
    for (std::size_t i = 0; i < weights.size(); ++i)
      weights[i] = weight(i / kColumns, i % kColumns);
  }
  job.state().add("weights", weights).add("served", served);
  auto status = job.reform();
  while (status && served < requests) {
    for (std::size_t c = 0; c < kColumns; ++c)
      input[c] = world.rank() == 0 ? served * 7 + static_cast<std::int64_t>(c) : -1;
    status = answer(world, weights, input, output);
    if (status.code() == regroup::Code::RankLost || status.code() == regroup::Code::Revoked) {
      say(fmt::format("rank {} request {}: {}", job.rank(), served, status.to_string()));
      status = job.reform();
      continue;
    }
    if (!status) break;
    for (std::size_t r = 0; r < total_rows; ++r) {
      std::int64_t right = 0;
      for (std::size_t c = 0; c < kColumns; ++c)
        right += weight(r, c) * (served * 7 + static_cast<std::int64_t>(c));
      if (output[r] != right) ++wrong;
    }
    ++served;
  }
  say(fmt::format("rank {} served={} wrong={} {}", job.rank(), served, wrong, status.to_string()));
  return status && wrong == 0 ? 0 : 1;
}

/// Rank 0 leaves while the others wait for it.
int leave(Job& job) { return job.rank() == 0 || job.world().barrier() ? 0 : 2; }

int bad_arguments(Job& job) {
  auto world = job.world();
  std::vector<float> a(8), b(8);
  std::vector<std::int32_t> i(8);
  const auto show = [&](const char* what, const Status& s) {
    say(fmt::format("{}: {}", what, s.to_string()));
  };
  show("null", world.all_reduce(nullptr, b.data(), 8, regroup::DType::F32, ReduceOp::Sum));
  show("root", world.broadcast(a, 99));
  show("avg", world.all_reduce(i, ReduceOp::Avg));
  show("bits", world.all_reduce(a, ReduceOp::BXor));
  show("type", world.all_reduce(a.data(), b.data(), 8, regroup::DType(99), ReduceOp::Sum));
  show("overlap", world.all_reduce(a.data(), a.data() + 1, 4, regroup::DType::F32, ReduceOp::Sum));
  show("sizes",
       world.all_reduce(std::span<const float>(a), std::span<float>(b.data(), 4), ReduceOp::Sum));
  show("self", world.send(a.data(), 1, regroup::DType::F32, world.rank()));
  const std::vector<std::size_t> one{8}, two{8, 8};
  show("counts", world.all_gather_v(a.data(), b.data(), one, regroup::DType::F32));
  show("counts", world.all_to_all_v(a.data(), one, b.data(), two, regroup::DType::F32));
  std::vector<float> large(16);
  show("place", world.all_gather_v(large.data(), large.data() + 1, two, regroup::DType::F32));
  show("place", world.all_to_all_v(large.data(), two, large.data(), two, regroup::DType::F32));
  show("end", world.end_coalescing());
  show("begin", world.begin_coalescing());
  show("begin", world.begin_coalescing());
  show("message", world.send(a.data(), 1, regroup::DType::F32, 1 - world.rank()));
  auto work = world.barrier_async();
  show("too early", work.wait());
  show("end", world.end_coalescing());
  show("empty group", ProcessGroup().barrier());
  show("good", world.all_reduce(a, ReduceOp::Sum));
  return 0;
}

int after_destroy() {
  ProcessGroup world;
  {
    auto job = Job::attach().value();
    world = job.world();
    if (!world.barrier()) return 2;
  }
  const auto status = world.barrier();
  say(status.to_string());
  return status ? 1 : 0;
}

int after_fork(Job& job) {
  auto world = job.world();
  if (!world.barrier_async().wait()) return 2;
  std::fflush(stdout);
  const pid_t child = ::fork();
  if (child == 0) {
    say(fmt::format("child: {}", world.barrier().to_string()));
    // It may also let its copies go.
    world = {};
    { const Job last = std::move(job); }
    std::fflush(stdout);
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  const auto parent = world.barrier();
  say(fmt::format("parent {}: {}", job.rank(), parent.to_string()));
  return parent ? 0 : 1;
}

/// Rank 0 ends the epoch, by a deadline or because it says so.
int end_epoch(Job& job, bool by_deadline) {
  auto world = job.world();
  // Behind the barrier nobody is in reform() any more, which would enter the next epoch as well.
  if (!job.reform() || !world.barrier()) return 2;
  std::vector<float> a(8, 1.0F);
  if (job.rank() == 0 && !by_deadline) {
    say(fmt::format("rank 0: {}", job.end_epoch("enough of it").to_string()));
    say(fmt::format("rank 0 afterwards: {}", world.barrier().to_string()));
  } else if (job.rank() == 0) {
    const auto status = world.all_reduce(a.data(), a.data(), 8, regroup::DType::F32, ReduceOp::Sum,
                                         {.timeout = std::chrono::milliseconds(200)});
    say(fmt::format("rank 0: {} input {}", status.to_string(), a[0]));
  } else {
    // Waits for something that rank 0 never sends, until the epoch ends.
    say(fmt::format("rank 1: {}", world.recv(a.data(), 1, regroup::DType::F32, 0).to_string()));
  }
  if (auto status = job.reform(); !status) {
    say(status.to_string());
    return 1;
  }
  const auto status = world.all_reduce(a, ReduceOp::Sum);
  say(fmt::format("rank {} again: {} sum {} epoch {}", job.rank(), status.to_string(), a[0],
                  world.epoch().value()));
  return status ? 0 : 1;
}

int descriptors(Job& job) {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  std::vector<int> taken;
  for (int fd = ::dup(0); fd >= 0; fd = ::dup(0)) taken.push_back(fd);
  auto group = job.world().split(0, 0, "more");
  const auto status = group.error();
  for (const int fd : taken) ::close(fd);
  say(fmt::format("rank {}: {}", job.rank(), status.to_string()));
  return status ? 1 : 0;
}

int memory(Job& job) {
  std::size_t pages = 0;
  {
    std::ifstream statm("/proc/self/statm");
    statm >> pages;
  }
  const auto in_use = static_cast<rlim_t>(pages) * static_cast<rlim_t>(::sysconf(_SC_PAGESIZE));
  rlimit limit{};
  ::getrlimit(RLIMIT_AS, &limit);
  const rlimit tight{in_use, limit.rlim_max};
  ::setrlimit(RLIMIT_AS, &tight);
  auto group = job.world().split(0, 0, "more");
  ::setrlimit(RLIMIT_AS, &limit);
  say(fmt::format("rank {}: {}", job.rank(), group.error().to_string()));
  return group.error() ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  const std::string argument = argc > 2 ? argv[2] : "";
  if (mode == "after_destroy") return after_destroy();
  auto attached = Job::attach();
  if (!attached) {
    say(attached.error().to_string());
    return 1;
  }
  auto job = std::move(*attached);
  if (mode == "train") return train(job, std::stoull(argument));
  if (mode == "shares") return regroup::test::run_shares(job, std::stoull(argument));
  if (mode == "changing") return changing(job, argument);
  if (mode == "prologue") return prologue(job, argument);
  if (mode == "mismatch") return mismatch(job, argument);
  if (mode == "mismatch_in_step") return mismatch_in_step(job);
  if (mode == "early_change") return early_change(job, argument);
  if (mode == "crossed") return crossed(job);
  if (mode == "deadlocked") return deadlocked(job);
  if (mode == "serve") return serve(job, std::stoll(argument));
  if (mode == "leave") return leave(job);
  if (mode == "bad_arguments") return bad_arguments(job);
  if (mode == "after_fork") return after_fork(job);
  if (mode == "deadline" || mode == "end_epoch") return end_epoch(job, mode == "deadline");
  if (mode == "descriptors") return descriptors(job);
  if (mode == "memory") return memory(job);
  say("unknown mode " + mode);
  return 64;
}
