#include "perf/sweep.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "collective/algorithm_rules.hpp"
#include "perf/measure.hpp"
#include "spi/shared_slots.hpp"

namespace regroup::perf {
namespace {

constexpr std::uint64_t kIterationsMax = 1'000'000;
constexpr std::uint64_t kIterationsMin = 3;

/// Anything that runs a block of a workload.
class Contestant {
 public:
  Contestant() = default;
  Contestant(const Contestant&) = delete;
  Contestant& operator=(const Contestant&) = delete;
  virtual ~Contestant() = default;
  [[nodiscard]] virtual std::string name() const = 0;
  virtual Status begin(const Workload& workload) = 0;
  virtual Result<Block> run(const BlockPlan& plan) = 0;
};

class Ours final : public Contestant {
 public:
  /// `pipes`: those of our other ranks when they wait for commands, else null.
  Ours(ProcessGroup group, Pipes* pipes) : group_(std::move(group)), pipes_(pipes) {}
  [[nodiscard]] std::string name() const override { return "regroup"; }
  Status begin(const Workload& workload) override {
    workload_ = workload;
    bench_.emplace(group_, workload);
    return {};
  }
  Result<Block> run(const BlockPlan& plan) override {
    if (pipes_ != nullptr) {
      if (auto status = pipes_->tell(to_line(workload_, plan), 1); !status) return status;
    }
    return bench_->run(plan);
  }

 private:
  ProcessGroup group_;
  Pipes* pipes_;
  Workload workload_;
  std::optional<Bench> bench_;
};

class Theirs final : public Contestant {
 public:
  explicit Theirs(std::unique_ptr<Rival> rival) : rival_(std::move(rival)) {}
  [[nodiscard]] std::string name() const override { return rival_->name(); }
  [[nodiscard]] const Rival& rival() const { return *rival_; }
  Status begin(const Workload& workload) override {
    workload_ = workload;
    return {};
  }
  Result<Block> run(const BlockPlan& plan) override { return rival_->run(workload_, plan); }

 private:
  std::unique_ptr<Rival> rival_;
  Workload workload_;
};

/// How many operations fill a block: the same on all ranks, since all know the slowest rank's time.
Result<std::uint64_t> choose_iterations(Contestant& contestant, const Options& options) {
  std::uint64_t iterations = 1;
  // The first probe meets cold memory; the second, longer one says what to expect.
  for (const double share : {0.1, 1.0}) {
    auto block = contestant.run({.iterations = iterations, .warmups = 1});
    if (!block) return block.error();
    const double us = std::max(0.01, block->us.front());
    const double fitting = options.block_seconds * share * 1e6 / us;
    iterations = std::clamp(static_cast<std::uint64_t>(fitting), std::uint64_t{1}, kIterationsMax);
  }
  return std::max(iterations, kIterationsMin);
}

std::string algorithm_of(const Workload& w, const collective::AlgorithmRules& rules) {
  collective::OpDescriptor d{.dtype = w.dtype, .op = w.op, .root = w.root, .count = w.count};
  switch (w.collective) {
    case Collective::AllReduce: d.kind = collective::OpKind::AllReduce; break;
    case Collective::Reduce: d.kind = collective::OpKind::Reduce; break;
    case Collective::Broadcast: d.kind = collective::OpKind::Broadcast; break;
    case Collective::AllGather: d.kind = collective::OpKind::AllGather; break;
    case Collective::ReduceScatter: d.kind = collective::OpKind::ReduceScatter; break;
    case Collective::Barrier: d.kind = collective::OpKind::Barrier; break;
    case Collective::SendRecv: return "ring";
  }
  const auto geometry = spi::arena_geometry(static_cast<std::uint32_t>(w.ranks));
  const collective::Plan plan(d, {.members = w.ranks,
                                  .me = 0,
                                  .slot_bytes = geometry.slot_bytes,
                                  .forced = rules.pick(d.kind, w.count * size_of(w.dtype))});
  return collective::name(plan.algorithm());
}

/// Rank 0 prints; with rivals it also leads, and the other ranks wait for its commands.
class Sweep {
 public:
  Sweep(Job& job, const Options& options)
      : options_(options), world_(job.world()), prints_(job.world().rank() == 0) {
    if (const char* const text = std::getenv("REGROUP_ALGO"); text != nullptr) {
      // attach() has refused a wrong one.
      rules_ = collective::AlgorithmRules::parse(text).value();
    }
  }
  Status run();
  [[nodiscard]] const std::vector<Row>& rows() const { return rows_; }
  [[nodiscard]] const nlohmann::json& rivals() const { return rival_versions_; }

 private:
  Result<bool> gather_contestants();
  Status share_directory(std::array<char, 256>& directory);
  Status run_rows();
  Status run_line(const Workload& base);
  Status run_place(const Workload& workload, std::vector<Row>& rows);
  [[nodiscard]] Row new_row(const Contestant& contestant, const Workload& workload) const;

  const Options& options_;
  ProcessGroup world_;
  bool prints_;
  collective::AlgorithmRules rules_;
  std::optional<Pipes> own_pipes_;
  std::vector<std::unique_ptr<Contestant>> contestants_;
  nlohmann::json rival_versions_ = nlohmann::json::object();
  std::vector<Row> rows_;
};

Status Sweep::share_directory(std::array<char, 256>& directory) {
  if (prints_) {
    auto pipes = Pipes::create(world_.size());
    if (!pipes) return pipes.error();
    own_pipes_ = std::move(*pipes);
    const std::string& path = own_pipes_->directory();
    if (path.size() >= directory.size()) return {Code::InvalidArgument, path + ": too long"};
    std::ranges::copy(path, directory.begin());
  }
  return world_.broadcast(directory.data(), directory.size(), DType::U8, 0);
}

/// False on a rank that has served and is done.
Result<bool> Sweep::gather_contestants() {
  if (options_.compare.empty()) {
    contestants_.push_back(std::make_unique<Ours>(world_, nullptr));
    return true;
  }
  // All ranks look, so that what is missing ends all of them alike.
  auto specs = find_rivals(options_.compare, options_.rivals_dir, world_.size());
  if (!specs) return specs.error();
  std::array<char, 256> directory{};
  if (auto status = share_directory(directory); !status) return status;
  if (!prints_) {
    if (options_.bind) bind_to_core(world_.rank(), world_.size());
    if (auto status = serve(world_, directory.data(), false); !status) return status;
    return false;
  }
  if (auto status = world_.barrier(); !status) return status;
  contestants_.push_back(std::make_unique<Ours>(world_, &*own_pipes_));
  for (const RivalSpec& spec : *specs) {
    auto rival = Rival::start(spec, world_.size());
    if (!rival) return rival.error();
    rival_versions_[spec.name] = (*rival)->version();
    contestants_.push_back(std::make_unique<Theirs>(std::move(*rival)));
  }
  return true;
}

Status Sweep::run() {
  auto leads = gather_contestants();
  if (!leads) return leads.error();
  if (!*leads) return {};
  // Not earlier: rivals inherit what is allowed here.
  if (options_.bind) bind_to_core(world_.rank(), world_.size());
  if (prints_) {
    fmt::print("{}", table_head(options_, world_.size()));
    for (const auto& [name, version] : rival_versions_.items()) {
      fmt::print("# in turns with {}: {}\n", name, version.get<std::string>());
    }
    std::fflush(stdout);
  }
  if (auto status = run_rows(); !status) return status;
  if (prints_) fmt::print("{}", table_foot(rows_));
  if (own_pipes_) return own_pipes_->tell("end\n", 1);
  return {};
}

Status Sweep::run_rows() {
  for (const DType dtype : options_.dtypes) {
    const bool integer = dtype == DType::I32 || dtype == DType::I64 || dtype == DType::U8;
    for (const ReduceOp op : options_.ops) {
      if (op == ReduceOp::Avg && integer && options_.dtypes.size() * options_.ops.size() > 1) {
        continue;  // of "all" those that exist
      }
      for (const std::size_t bytes : options_.sizes) {
        const auto workload =
            make_workload(options_.collective, bytes, dtype, op, options_.root, world_.size());
        if (auto status = run_line(workload); !status) return status;
      }
    }
  }
  return {};
}

Status Sweep::run_line(const Workload& base) {
  // What has one buffer, or never shares two, is the same in place.
  const bool one_place = base.collective == Collective::Broadcast ||
                         base.collective == Collective::Barrier ||
                         base.collective == Collective::SendRecv;
  std::vector<Row> apart;
  std::vector<Row> together;
  if (one_place || options_.places != Places::InPlace) {
    if (auto status = run_place(base, apart); !status) return status;
  }
  if (!one_place && options_.places != Places::OutOfPlace) {
    Workload workload = base;
    workload.in_place = true;
    if (auto status = run_place(workload, together); !status) return status;
  }
  const auto first = [](const std::vector<Row>& rows) {
    return rows.empty() ? std::nullopt : std::optional(rows.front());
  };
  if (prints_) fmt::print("{}", table_line(first(apart), first(together)));
  for (const auto* rows : {&apart, &together}) {
    for (std::size_t i = 1; prints_ && i < rows->size(); ++i) {
      fmt::print("{}", rival_line((*rows)[i], rows->front()));
    }
    rows_.insert(rows_.end(), rows->begin(), rows->end());
  }
  std::fflush(stdout);
  return {};
}

Row Sweep::new_row(const Contestant& contestant, const Workload& workload) const {
  const bool ours = contestant.name() == "regroup";
  return {.implementation = contestant.name(),
          .algorithm = ours ? algorithm_of(workload, rules_) : "its own",
          .workload = workload,
          .mode = options_.mode};
}

Status Sweep::run_place(const Workload& workload, std::vector<Row>& rows) {
  std::vector<std::uint64_t> iterations;
  for (const auto& contestant : contestants_) {
    if (auto status = contestant->begin(workload); !status) return status;
    rows.push_back(new_row(*contestant, workload));
    auto chosen = options_.iterations > 0 ? Result<std::uint64_t>(options_.iterations)
                                          : choose_iterations(*contestant, options_);
    if (!chosen) return chosen.error();
    iterations.push_back(*chosen);
  }
  for (int block = 0; block < options_.blocks; ++block) {
    for (std::size_t turn = 0; turn < contestants_.size(); ++turn) {
      // Another one begins in each round, so that nobody always follows the same one.
      const std::size_t i = (turn + static_cast<std::size_t>(block)) % contestants_.size();
      const std::uint64_t wanted = options_.check_all ? iterations[i] : options_.checks;
      // Where few operations fill a block, warming up must not take longer than measuring.
      const std::uint64_t warmups = std::min(options_.warmups, 1 + iterations[i] / 4);
      auto done = contestants_[i]->run({.mode = options_.mode,
                                        .iterations = iterations[i],
                                        .warmups = warmups,
                                        .checks = block == 0 ? wanted : 0});
      if (!done) return done.error();
      Row& row = rows[i];
      row.us.insert(row.us.end(), done->us.begin(), done->us.end());
      row.cpu_s += done->cpu_s;
      row.iterations += iterations[i];
      row.wrong += done->wrong;
      row.checked += done->checked;
    }
  }
  for (Row& row : rows)
    row.cpu_s /= static_cast<double>(std::max<std::uint64_t>(1, row.iterations));
  return {};
}

nlohmann::json settings_of(const Options& options, const std::vector<std::string>& arguments,
                           int ranks, const nlohmann::json& rivals) {
  nlohmann::json environment = nlohmann::json::object();
  for (const char* const name : {"REGROUP_ALGO", "REGROUP_FAULTS", "OMP_NUM_THREADS"}) {
    if (const char* const value = std::getenv(name); value != nullptr) environment[name] = value;
  }
  return {{"version", REGROUP_VERSION},
          {"arguments", arguments},
          {"ranks", ranks},
          {"mode", options.mode == Mode::Streaming ? "streaming" : "isolated"},
          {"blocks", options.blocks},
          {"block_seconds", options.block_seconds},
          {"warmups", options.warmups},
          {"environment", environment},
          {"rivals", rivals}};
}

}  // namespace

int run_sweep(Job& job, const Options& options, const std::vector<std::string>& arguments) {
  const nlohmann::json machine = describe_machine();
  Sweep sweep(job, options);
  const auto status = sweep.run();
  if (!status) {
    fmt::print(stderr, "regroup-perf: rank {}: {}\n", job.rank(), status.to_string());
    return status.code() == Code::InvalidArgument ? kExitBadUsage : 1;
  }
  std::uint64_t wrong = 0;
  nlohmann::json results = nlohmann::json::array();
  for (const Row& row : sweep.rows()) {
    wrong += row.wrong;
    results.push_back(to_json(row));
  }
  if (job.world().rank() == 0 && !options.json_file.empty()) {
    const nlohmann::json all = {
        {"machine", machine},
        {"settings", settings_of(options, arguments, job.size(), sweep.rivals())},
        {"results", results}};
    std::ofstream file(options.json_file);
    file << all.dump(1) << "\n";
    if (!file.flush()) {
      fmt::print(stderr, "regroup-perf: {}: cannot be written\n", options.json_file);
      return 1;
    }
  }
  return wrong == 0 ? 0 : 1;
}

}  // namespace regroup::perf
