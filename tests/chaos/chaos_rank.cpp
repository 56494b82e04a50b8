/// The program of a chaos job: steps full of collectives whose every result it checks itself.
///
/// It prints `WRONG ...` for each thing that is not as promised, and at its end
/// `chaos seat=R steps=S size=N digest=H`.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/mman.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <regroup/regroup.hpp>

#include "payload.hpp"

namespace {

using chaos::Line;
using chaos::Where;
using regroup::DType;
using regroup::ProcessGroup;
using regroup::ReduceOp;
using regroup::Status;

struct Options {
  std::uint64_t seed = 1;
  std::size_t resident_mib = 0;
  std::string stop_file;
  std::int64_t oracle_ranks = 0;
  std::uint64_t oracle_steps = 0;
  bool shrinks = false;
  bool carries_on = false;
  std::string sabotage;
};

constexpr std::uint64_t kStepsMax = 1ULL << 40;
constexpr std::uint64_t kSabotageStep = 40;

/// Makes this process as large as asked for: each page is touched, none is huge, so that taking it
/// down costs the kernel what it costs for a real program.
void grow(std::size_t mib) {
  if (mib == 0) return;
  const std::size_t bytes = mib << 20;
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    fmt::print("cannot have {} MiB\n", mib);
    std::exit(3);
  }
  ::madvise(memory, bytes, MADV_NOHUGEPAGE);
  auto* bytes_at = static_cast<volatile unsigned char*>(memory);
  for (std::size_t at = 0; at < bytes; at += 4096) bytes_at[at] = 1;
}

/// One rank's course through the steps.
class Course {
 public:
  Course(regroup::Job& job, const Options& options, ProcessGroup& parity)
      : job_(job), options_(options), world_(job.world()), parity_(parity) {
    generator_ = chaos::generator_of(options.seed, job.rank(), 0);
    job.state()
        .add("chain", model_.chain)
        .add("means", model_.means)
        .add("stop_at", model_.stop_at)
        .add_volatile("generator", generator_);
  }

  int run() {
    auto loop = job_.steps(kStepsMax);
    while (model_.stop_at == 0 && loop.next()) {
      if (model_.stop_at != 0) break;  // a newcomer, healed to the end
      step_ = loop.index();
      stop_ = 0;
      // A seat's own state stands still while the others carry on without it.
      if (options_.carries_on) generator_ = chaos::generator_of(options_.seed, job_.rank(), step_);
      sabotage();
      if (const Status status = perform(); !status) {
        check_status(status);
        continue;
      }
      if (const Status status = loop.commit(); !status) {
        check_status(status);
        continue;
      }
      model_.apply(sums_, means_);
      model_.stop_at = stop_;
    }
    if (model_.stop_at == 0) {
      say(fmt::format("seat {} ended: {}", job_.rank(), loop.status().to_string()));
      return 1;
    }
    say(fmt::format("chaos seat={} steps={} size={} digest={:016x}", job_.rank(), model_.stop_at,
                    members_.size(), model_.digest()));
    return 0;
  }

 private:
  static void say(const std::string& line) {
    fmt::print("{}\n", line);
    std::fflush(stdout);
  }
  void wrong(const std::string& what) const {
    say(fmt::format("WRONG seat={} incarnation={} epoch={} step={} {}", job_.rank(),
                    job_.incarnation().value(), world_.epoch().value(), step_, what));
  }
  /// A loss is the only reason for which an operation may fail here, and it names who was lost.
  void check_status(const Status& status) const {
    using regroup::Code;
    // Cancelled: the job ends by its policy, and the driver knows whether it should.
    if (status.code() != Code::RankLost && status.code() != Code::Revoked &&
        status.code() != Code::Cancelled)
      wrong("unexpected status: " + status.to_string());
  }
  [[nodiscard]] Where where(std::uint64_t operation) const {
    return {options_.seed, step_, operation};
  }

  /// Proves the test: a soak that does not notice these is worth nothing.
  void sabotage() {
    if (step_ < kSabotageStep || job_.rank() != 1) return;
    // In every step, and what this one compares: a kill would take damage away before it is seen.
    if (options_.sabotage == "state") model_.chain[step_ % chaos::kStateElements] ^= 1;
    if (step_ != kSabotageStep) return;
    if (options_.sabotage == "hang") ::pause();
    if (options_.sabotage == "residue") {
      const char* folder = std::getenv("TMPDIR");
      std::fclose(std::fopen(fmt::format("{}/left", folder).c_str(), "w"));
    }
  }

  Status perform() {
    if (Status s = meet(); !s) return s;
    if (Status s = move_state(); !s) return s;
    const std::uint64_t drawn = chaos::mix(options_.seed ^ chaos::mix(step_));
    const std::uint64_t operations = drawn % 4;
    for (std::uint64_t k = 0; k < operations; ++k) {
      if (Status s = one(chaos::kFirstDrawn + k, chaos::mix(drawn + k)); !s) return s;
    }
    return {};
  }

  /// Who is here: everybody's seat, step, next draw, wish to stop and a piece of its state.
  Status meet() {
    generator_ += 0x9e3779b97f4a7c15ULL;
    constexpr std::size_t kFields = 5;
    const bool asked =
        !options_.stop_file.empty() && ::access(options_.stop_file.c_str(), F_OK) == 0;
    const std::array<std::uint64_t, kFields> mine{static_cast<std::uint64_t>(job_.rank()), step_,
                                                  generator_, asked ? step_ + 1 : 0,
                                                  model_.chain[step_ % chaos::kStateElements]};
    const auto size = static_cast<std::size_t>(world_.size());
    std::vector<std::uint64_t> all(kFields * size);
    if (Status s = world_.all_gather(mine.data(), all.data(), kFields, DType::I64); !s) return s;
    members_.clear();
    for (std::size_t at = 0; at < size; ++at) {
      const std::uint64_t* one = &all[kFields * at];
      const auto seat = static_cast<std::int64_t>(one[0]);
      if (seat < 0 || seat >= job_.size() || (!members_.empty() && seat <= members_.back()))
        wrong(fmt::format("member {} calls itself seat {}", at, seat));
      members_.push_back(seat);
      if (one[1] != step_) wrong(fmt::format("seat {} is in step {}", seat, one[1]));
      if (one[2] != chaos::generator_of(options_.seed, seat, step_ + 1))
        wrong(fmt::format("seat {} drew {:016x}", seat, one[2]));
      if (one[4] != mine[4]) wrong(fmt::format("seat {} holds another state", seat));
    }
    // All hear all wishes; that of the first member counts.
    stop_ = all[3];
    took_part(world_.contributors(), members_, "all_gather", true);
    const bool may_lack = options_.shrinks || options_.carries_on;
    if (!may_lack && members_.size() != static_cast<std::size_t>(job_.size()))
      wrong(fmt::format("{} of {} members", members_.size(), job_.size()));
    return {};
  }

  Status move_state() {
    std::vector<std::uint64_t> in(chaos::kStateElements);
    fill(in, chaos::line_of(where(chaos::kSumsOfState), job_.rank()));
    if (options_.sabotage == "payload" && step_ == kSabotageStep) in[5] ^= 1;
    sums_.assign(chaos::kStateElements, 0);
    if (Status s = reduce_all(in, sums_, chaos::kSumsOfState, false); !s) return s;
    std::vector<double> values(chaos::kStateElements);
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] = chaos::fraction_of(where(chaos::kMeansOfState), job_.rank(), i);
    means_.assign(chaos::kStateElements, 0);
    if (Status s = world_.all_reduce(std::span<const double>(values), std::span<double>(means_),
                                     ReduceOp::Avg);
        !s) {
      return s;
    }
    const auto seats = took_part(world_.contributors(), members_, "all_reduce");
    for (std::size_t i = 0; i < values.size(); ++i) {
      double total = 0;
      for (const std::int64_t seat : seats)
        total += chaos::fraction_of(where(chaos::kMeansOfState), seat, i);
      const double expected = total / static_cast<double>(seats.size());
      if (means_[i] != expected) {
        wrong(fmt::format("mean of element {} is {}, not {}", i, means_[i], expected));
        break;
      }
    }
    return {};
  }

  /// One drawn operation.
  Status one(std::uint64_t operation, std::uint64_t drawn) {
    static constexpr std::array<std::size_t, 8> kCounts{1, 2, 7, 64, 1000, 8192, 65'536, 200'000};
    const std::size_t count = kCounts[std::min(drawn >> 8 & 7, drawn >> 12 & 7)];
    const auto root = static_cast<int>((drawn >> 20) % members_.size());
    switch (drawn & 7) {
      case 0: return all_reduce(operation, count, false);
      case 1: return all_reduce(operation, count, true);
      case 2: return broadcast(operation, count, root);
      case 3:
        return (drawn >> 24 & 1) == 0 ? all_gather(operation, std::min<std::size_t>(count, 8192))
                                      : all_to_all(operation, std::min<std::size_t>(count, 8192));
      case 4: return reduce_scatter(operation, std::min<std::size_t>(count, 8192));
      case 5:
        return (drawn >> 24 & 1) == 0 ? reduce(operation, count, root)
                                      : coalesced(operation, count, root);
      case 6: return ring(operation, std::min<std::size_t>(count, 1000));
      default: return in_parity(operation, count);
    }
  }

  static void fill(std::span<std::uint64_t> out, const Line& line) {
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = line.at(i);
  }
  [[nodiscard]] Line sum_of(std::uint64_t operation, const std::vector<std::int64_t>& seats) const {
    Line sum;
    for (const std::int64_t seat : seats) sum += chaos::line_of(where(operation), seat);
    return sum;
  }
  void expect(const char* what, std::span<const std::uint64_t> got, const Line& line,
              std::size_t first = 0) const {
    for (std::size_t i = 0; i < got.size(); ++i) {
      if (got[i] == line.at(first + i)) continue;
      return wrong(fmt::format("{} of {} elements: element {} is {:016x}, not {:016x}", what,
                               got.size(), i, got[i], line.at(first + i)));
    }
  }

  /// Whose contributions a result holds: of those that began the step, all but the lost.
  std::vector<std::int64_t> took_part(const regroup::Contributors& who,
                                      const std::vector<std::int64_t>& counted, const char* what,
                                      bool all = false) const {
    const std::vector<std::int64_t> seats(who.ranks.begin(), who.ranks.end());
    const bool may_lack = options_.carries_on && !all;
    const bool plausible =
        may_lack ? std::ranges::includes(counted, seats) && !seats.empty() : seats == counted;
    const bool with_me = std::ranges::find(seats, job_.rank()) != seats.end();
    if (!plausible || !with_me)
      wrong(fmt::format("{}: contributions of {}, in a step of {}", what, fmt::join(seats, " "),
                        fmt::join(counted, " ")));
    return seats;
  }

  Status reduce_all(const std::vector<std::uint64_t>& in, std::vector<std::uint64_t>& out,
                    std::uint64_t operation, bool async) {
    Status status;
    regroup::Contributors who;
    if (async) {
      auto work =
          world_.all_reduce_async(in.data(), out.data(), in.size(), DType::I64, ReduceOp::Sum);
      status = work.wait();
      who = work.contributors();
    } else {
      status = world_.all_reduce(in.data(), out.data(), in.size(), DType::I64, ReduceOp::Sum);
      who = world_.contributors();
    }
    // Done or not: the input is as it was.
    expect("input of all_reduce", in, chaos::line_of(where(operation), job_.rank()));
    if (status)
      expect("all_reduce", out, sum_of(operation, took_part(who, members_, "all_reduce")));
    return status;
  }
  Status all_reduce(std::uint64_t operation, std::size_t count, bool async) {
    std::vector<std::uint64_t> in(count), out(count);
    fill(in, chaos::line_of(where(operation), job_.rank()));
    return reduce_all(in, out, operation, async);
  }
  Status broadcast(std::uint64_t operation, std::size_t count, int root) {
    const Line line = chaos::line_of(where(operation), members_[static_cast<std::size_t>(root)]);
    std::vector<std::uint64_t> buffer(count);
    if (world_.rank() == root) fill(buffer, line);
    Status status = world_.broadcast(buffer.data(), count, DType::I64, root);
    if (status) expect("broadcast", buffer, line);
    return status;
  }
  Status all_gather(std::uint64_t operation, std::size_t count) {
    std::vector<std::uint64_t> in(count), out(count * members_.size());
    fill(in, chaos::line_of(where(operation), job_.rank()));
    Status status = world_.all_gather(in.data(), out.data(), count, DType::I64);
    expect("input of all_gather", in, chaos::line_of(where(operation), job_.rank()));
    for (std::size_t at = 0; status && at < members_.size(); ++at) {
      expect("all_gather", std::span(out).subspan(at * count, count),
             chaos::line_of(where(operation), members_[at]));
    }
    return status;
  }
  Status reduce_scatter(std::uint64_t operation, std::size_t count) {
    std::vector<std::uint64_t> in(count * members_.size()), out(count);
    fill(in, chaos::line_of(where(operation), job_.rank()));
    Status status = world_.reduce_scatter(in.data(), out.data(), count, DType::I64, ReduceOp::Sum);
    expect("input of reduce_scatter", in, chaos::line_of(where(operation), job_.rank()));
    if (status) {
      expect("reduce_scatter", out, sum_of(operation, members_),
             count * static_cast<std::size_t>(world_.rank()));
    }
    return status;
  }
  Status reduce(std::uint64_t operation, std::size_t count, int root) {
    std::vector<std::uint64_t> in(count), out(count);
    fill(in, chaos::line_of(where(operation), job_.rank()));
    Status status = world_.reduce(in.data(), out.data(), count, DType::I64, ReduceOp::Sum, root);
    expect("input of reduce", in, chaos::line_of(where(operation), job_.rank()));
    if (!status) return status;
    const auto gave = took_part(world_.contributors(), members_, "reduce");
    if (world_.rank() == root) expect("reduce", out, sum_of(operation, gave));
    return status;
  }
  /// In place: what each member gave to each other one changes places.
  Status all_to_all(std::uint64_t operation, std::size_t count) {
    const Line mine = chaos::line_of(where(operation), job_.rank());
    std::vector<std::uint64_t> inout(count * members_.size());
    fill(inout, mine);
    Status status = world_.all_to_all(inout.data(), inout.data(), count, DType::I64);
    for (std::size_t at = 0; status && at < members_.size(); ++at) {
      expect("all_to_all", std::span(inout).subspan(at * count, count),
             chaos::line_of(where(operation), members_[at]),
             count * static_cast<std::size_t>(world_.rank()));
    }
    return status;
  }
  /// A broadcast and an all_reduce as one.
  Status coalesced(std::uint64_t operation, std::size_t count, int root) {
    const Line mine = chaos::line_of(where(operation), job_.rank());
    const Line of_root = chaos::line_of(where(operation), members_[static_cast<std::size_t>(root)]);
    std::vector<std::uint64_t> buffer(count), in(count), out(count);
    if (world_.rank() == root) fill(buffer, of_root);
    fill(in, mine);
    if (Status s = world_.begin_coalescing(); !s) return s;
    Status status = world_.broadcast(buffer.data(), count, DType::I64, root);
    if (status) status = world_.all_reduce(in.data(), out.data(), count, DType::I64, ReduceOp::Sum);
    if (Status end = world_.end_coalescing(); status) status = end;
    expect("input of coalesced", in, mine);
    if (!status) return status;
    expect("coalesced broadcast", buffer, of_root);
    expect("coalesced all_reduce", out,
           sum_of(operation, took_part(world_.contributors(), members_, "coalesced")));
    return status;
  }
  /// Everybody sends to the next member and receives from the one before.
  Status ring(std::uint64_t operation, std::size_t count) {
    const int size = world_.size();
    if (size < 2) return world_.barrier();
    const int rank = world_.rank();
    const int before = (rank + size - 1) % size;
    std::vector<std::uint64_t> in(count), out(count);
    fill(in, chaos::line_of(where(operation), job_.rank()));
    const auto send = [&] { return world_.send(in.data(), count, DType::I64, (rank + 1) % size); };
    const auto recv = [&] { return world_.recv(out.data(), count, DType::I64, before); };
    const bool sends_first = rank % 2 == 0;
    if (Status s = sends_first ? send() : recv(); !s) return s;
    if (Status s = sends_first ? recv() : send(); !s) return s;
    expect("recv", out,
           chaos::line_of(where(operation), members_[static_cast<std::size_t>(before)]));
    return {};
  }
  /// The even seats among themselves, and the odd ones.
  Status in_parity(std::uint64_t operation, std::size_t count) {
    std::vector<std::int64_t> seats;
    for (const std::int64_t seat : members_) {
      if (seat % 2 == job_.rank() % 2) seats.push_back(seat);
    }
    std::vector<std::uint64_t> inout(count);
    fill(inout, chaos::line_of(where(operation), job_.rank()));
    Status status =
        parity_.all_reduce(inout.data(), inout.data(), count, DType::I64, ReduceOp::Sum);
    if (status) {
      const auto gave = took_part(parity_.contributors(), seats, "all_reduce of the parity group");
      expect("all_reduce of the parity group", inout, sum_of(operation, gave));
    }
    return status;
  }

  regroup::Job& job_;
  const Options& options_;
  ProcessGroup world_;
  ProcessGroup& parity_;
  chaos::Model model_;
  std::uint64_t generator_ = 0;
  std::uint64_t step_ = 0;
  std::uint64_t stop_ = 0;
  std::vector<std::int64_t> members_;
  std::vector<std::uint64_t> sums_;
  std::vector<double> means_;
};

int attend(const Options& options) {
  grow(options.resident_mib);
  auto attached = regroup::Job::attach();
  if (!attached) {
    fmt::print("attach: {}\n", attached.error().to_string());
    return 1;
  }
  regroup::Job job = std::move(*attached);
  auto parity = job.world().split(job.rank() % 2, 0, "parity");
  if (!parity) {
    fmt::print("split: {}\n", parity.error().to_string());
    return 1;
  }
  return Course(job, options, *parity).run();
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("A rank of a chaos job.");
  app.add_option("--seed", options.seed);
  app.add_option("--resident-mib", options.resident_mib);
  app.add_option("--stop-file", options.stop_file, "all end soon after this file is there");
  app.add_option("--oracle-ranks", options.oracle_ranks, "print what so many ranks end with");
  app.add_option("--oracle-steps", options.oracle_steps);
  app.add_flag("--shrinks", options.shrinks, "seats may stay vacant");
  app.add_flag("--carries-on", options.carries_on,
               "results may lack ranks: they are compared with those that contributed");
  app.add_option("--sabotage", options.sabotage,
                 "state, payload, hang or residue: tests of the test");
  CLI11_PARSE(app, argc, argv);
  if (options.oracle_ranks > 0) {
    fmt::print("{:016x}\n",
               chaos::undisturbed_digest(options.seed, options.oracle_ranks, options.oracle_steps));
    return 0;
  }
  return attend(options);
}
