#include "perf/sweep.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "collective/algorithm_rules.hpp"
#include "collective/message_choice.hpp"
#include "perf/measure.hpp"
#include "spi/shared_slots.hpp"

namespace regroup::perf {
namespace {

using nlohmann::json;
/// Of the directory that the ranks meet in, with its end.
using Directory = std::array<char, 4096>;

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

/// Where the ranks are, and what the network between them is said to be.
struct Layout {
  std::vector<int> hosts;
  collective::NetworkCost cost;
  [[nodiscard]] bool several() const {
    return std::ranges::adjacent_find(hosts, std::not_equal_to()) != hosts.end();
  }
};

Result<Layout> find_layout(ProcessGroup world) {
  Layout layout;
  const char* const mine = std::getenv("REGROUP_NODE_RANK");
  const std::int32_t host = mine == nullptr ? 0 : std::atoi(mine);
  layout.hosts.resize(static_cast<std::size_t>(world.size()));
  if (auto status = world.all_gather(&host, layout.hosts.data(), 1, DType::I32); !status)
    return status;
  // attach() has refused a wrong one.
  if (const char* const text = std::getenv("REGROUP_TUNING"); text != nullptr)
    layout.cost = collective::parse_tuning(text).value();
  return layout;
}

std::string algorithm_of(const Workload& w, const collective::AlgorithmRules& rules,
                         const Layout& layout) {
  if (!kind_of(w.collective)) return "ring";
  const collective::OpDescriptor d{.kind = *kind_of(w.collective),
                                   .dtype = w.dtype,
                                   .op = w.op,
                                   .root = w.root,
                                   .count = w.count};
  const auto counts = w.counts(0);
  if (layout.several()) {
    const collective::MessageShape shape{.members = w.ranks,
                                         .counts = {counts.data(), counts.data(), w.ranks},
                                         .hosts = layout.hosts,
                                         .forced = rules.pick(d.kind, w.count * size_of(w.dtype)),
                                         .cost = layout.cost};
    return collective::name(collective::choose(d, shape));
  }
  const auto geometry = spi::arena_geometry(static_cast<std::uint32_t>(w.ranks));
  const collective::Plan plan(d, {.members = w.ranks,
                                  .me = 0,
                                  .slot_bytes = geometry.slot_bytes,
                                  .forced = rules.pick(d.kind, w.count * size_of(w.dtype)),
                                  .counts = {counts.data(), counts.data(), w.ranks}});
  return collective::name(plan.algorithm());
}

json settings_of(const Options& options, const std::vector<std::string>& arguments, int ranks) {
  json environment = json::object();
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
          {"rivals", json::object()}};
}

/// Rank 0 prints; with rivals it also leads, and the other ranks wait for its commands.
class Sweep {
 public:
  Sweep(Job& job, const Options& options, const std::vector<std::string>& arguments)
      : options_(options),
        world_(job.world()),
        prints_(job.world().rank() == 0),
        document_({{"machine", describe_machine()},
                   {"settings", settings_of(options, arguments, job.size())},
                   {"finished", false},
                   {"missing", json::array()},
                   {"results", json::array()}}) {
    if (const char* const text = std::getenv("REGROUP_ALGO"); text != nullptr) {
      // attach() has refused a wrong one.
      rules_ = collective::AlgorithmRules::parse(text).value();
    }
  }
  /// The exit code, the same on all ranks.
  Result<int> run();

 private:
  /// One of those that measure a workload in turns.
  struct Turn {
    std::size_t contestant;  ///< where in contestants_
    std::uint64_t iterations;
    Row row;
    bool out = false;  ///< has no figure of this workload
  };

  Result<std::optional<int>> gather_contestants();
  [[nodiscard]] int own_exit_code() const;
  void start_rivals(const std::vector<RivalSpec>& specs, const Seating& seating);
  Result<Seating> agree_on_seating();
  Status share_directory(Directory& directory);
  Status run_rows();
  Status run_line(const Workload& base);
  Status run_place(const Workload& workload, std::vector<Row>& rows);
  Status enter(Turn& turn);
  Status take_turn(Turn& turn, int block);
  Status settle(Turn& turn, const Status& status);
  void leave_out(const std::string& who, const Workload* w, const Status& why);
  void save();
  [[nodiscard]] Row new_row(const Contestant& contestant, const Workload& workload) const;

  const Options& options_;
  ProcessGroup world_;
  bool prints_;
  collective::AlgorithmRules rules_;
  Layout layout_;
  std::optional<Pipes> own_pipes_;
  std::vector<std::unique_ptr<Contestant>> contestants_;  ///< ours first; null: it is gone
  json document_;
  std::vector<Row> rows_;
  bool rival_gone_ = false;
  bool saved_ = true;
};

/// The cores that the ranks may use together: mpirun binds each of them to one.
Result<Seating> Sweep::agree_on_seating() {
  cpu_set_t mine;
  CPU_ZERO(&mine);
  (void)::sched_getaffinity(0, sizeof mine, &mine);
  std::array<std::uint8_t, CPU_SETSIZE> allowed{};
  for (std::size_t cpu = 0; cpu < CPU_SETSIZE; ++cpu) allowed[cpu] = CPU_ISSET(cpu, &mine) ? 1 : 0;
  auto status =
      world_.all_reduce(allowed.data(), allowed.data(), allowed.size(), DType::U8, ReduceOp::Max);
  if (!status) return status;
  Seating seating{.ranks = world_.size()};
  CPU_ZERO(&seating.cores);
  for (std::size_t cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (allowed[cpu] != 0) CPU_SET(cpu, &seating.cores);
  }
  return seating;
}

Status Sweep::share_directory(Directory& directory) {
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

/// What a rank ends with that has served; the one that leads has nothing yet.
Result<std::optional<int>> Sweep::gather_contestants() {
  auto seating = agree_on_seating();
  if (!seating) return seating.error();
  // All ranks look, so that what is missing ends all of them alike.
  auto specs = find_rivals(options_.compare, options_.rivals_dir, *seating);
  if (!specs) return specs.error();
  Directory directory{};
  if (auto status = share_directory(directory); !status) return status;
  if (!prints_) {
    if (options_.bind) bind_to_core(world_.rank(), world_.size());
    auto code = serve(world_, directory.data(), false);
    if (!code) return code.error();
    return std::optional(*code);
  }
  if (auto status = world_.barrier(); !status) return status;
  own_pipes_->remove_names();
  contestants_.push_back(std::make_unique<Ours>(world_, &*own_pipes_));
  start_rivals(*specs, *seating);
  return std::optional<int>();
}

void Sweep::start_rivals(const std::vector<RivalSpec>& specs, const Seating& seating) {
  for (const RivalSpec& spec : specs) {
    auto rival = Rival::start(spec, seating);
    if (!rival) {
      leave_out(spec.name, nullptr, rival.error());
      continue;
    }
    document_["settings"]["rivals"][spec.name] = (*rival)->version();
    contestants_.push_back(std::make_unique<Theirs>(std::move(*rival)));
  }
}

Result<int> Sweep::run() {
  auto layout = find_layout(world_);
  if (!layout) return layout.error();
  layout_ = std::move(*layout);
  if (options_.compare.empty()) {
    contestants_.push_back(std::make_unique<Ours>(world_, nullptr));
  } else {
    auto served = gather_contestants();
    if (!served) return served.error();
    if (*served) return **served;
  }
  if (options_.bind) bind_to_core(world_.rank(), world_.size());
  if (prints_) {
    fmt::print("{}", table_head(options_, world_.size()));
    for (const auto& [name, version] : document_["settings"]["rivals"].items()) {
      fmt::print("# in turns with {}: {}\n", name, version.get<std::string>());
    }
    std::fflush(stdout);
  }
  if (auto status = run_rows(); !status) return status;
  if (prints_) fmt::print("{}", table_foot(rows_));
  document_["finished"] = true;
  save();
  // All ranks end alike: the code of one of them that ends early is not always the job's.
  std::int32_t code = own_exit_code();
  const Status told = own_pipes_ ? own_pipes_->tell(fmt::format("end {}\n", code), 1)
                                 : world_.broadcast(std::span(&code, 1), 0);
  if (!told) return told;
  return code;
}

int Sweep::own_exit_code() const {
  if (!saved_) {
    fmt::print(stderr, "regroup-perf: {}: cannot be written\n", options_.json_file);
    return 1;
  }
  const bool wrong = std::ranges::any_of(rows_, [](const Row& row) { return row.wrong > 0; });
  if (wrong) return 1;
  return rival_gone_ ? kExitRivalGone : 0;
}

/// After each line of the table, so that whoever ends us in the middle has what was measured.
void Sweep::save() {
  if (!prints_ || options_.json_file.empty()) return;
  const std::string unfinished = options_.json_file + ".new";
  std::ofstream file(unfinished);
  file << document_.dump(1, ' ', false, json::error_handler_t::replace) << "\n";
  file.close();
  std::error_code error;
  if (file) std::filesystem::rename(unfinished, options_.json_file, error);
  saved_ = file && !error;
}

/// Says and notes that somebody has no figure: of this workload, or, when it is gone, from there
/// on.
void Sweep::leave_out(const std::string& who, const Workload* w, const Status& why) {
  const bool gone = why.code() != Code::Unsupported;
  rival_gone_ = rival_gone_ || gone;
  std::string place = "at its start";
  json missing = {{"implementation", who}, {"gone", gone}, {"why", why.text()}};
  if (w != nullptr) {
    place = fmt::format("at {} bytes, {} {}{}", w->bytes(), name(w->dtype), name(w->op),
                        w->in_place ? ", in place" : "");
    missing["at"] = to_json(*w);
  }
  document_["missing"].push_back(missing);
  fmt::print("# {} {} {}: {}\n", who, gone ? "is left out from here on," : "has no figure", place,
             why.text());
}

Status Sweep::run_rows() {
  for (const DType dtype : options_.dtypes) {
    for (const ReduceOp op : options_.ops) {
      if (!is_defined(op, dtype) && options_.dtypes.size() * options_.ops.size() > 1) {
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
  const auto kind = kind_of(base.collective);
  const bool one_place = !kind || *kind == spi::OpKind::Broadcast ||
                         *kind == spi::OpKind::Barrier || spi::has_counts(*kind);
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
    for (const Row& row : *rows) document_["results"].push_back(to_json(row));
  }
  std::fflush(stdout);
  save();
  return {};
}

Row Sweep::new_row(const Contestant& contestant, const Workload& workload) const {
  const bool ours = contestant.name() == "regroup";
  return {.implementation = contestant.name(),
          .algorithm = ours ? algorithm_of(workload, rules_, layout_) : "its own",
          .workload = workload,
          .mode = options_.mode};
}

Status Sweep::run_place(const Workload& workload, std::vector<Row>& rows) {
  std::vector<Turn> turns;
  for (std::size_t i = 0; i < contestants_.size(); ++i) {
    if (!contestants_[i]) continue;
    turns.push_back({.contestant = i,
                     .iterations = options_.iterations,
                     .row = new_row(*contestants_[i], workload)});
    if (auto status = settle(turns.back(), enter(turns.back())); !status) return status;
  }
  for (int block = 0; block < options_.blocks; ++block) {
    for (std::size_t i = 0; i < turns.size(); ++i) {
      // Another one begins in each round, so that nobody always follows the same one.
      Turn& turn = turns[(i + static_cast<std::size_t>(block)) % turns.size()];
      if (turn.out) continue;
      if (auto status = settle(turn, take_turn(turn, block)); !status) return status;
    }
  }
  for (Turn& turn : turns) {
    if (turn.out) continue;
    turn.row.cpu_s /= static_cast<double>(std::max<std::uint64_t>(1, turn.row.iterations));
    rows.push_back(std::move(turn.row));
  }
  return {};
}

/// A rival that failed is left out; a failure of ours is returned.
Status Sweep::settle(Turn& turn, const Status& status) {
  if (status || turn.contestant == 0) return status;
  turn.out = true;
  leave_out(turn.row.implementation, &turn.row.workload, status);
  if (status.code() != Code::Unsupported) contestants_[turn.contestant].reset();
  return {};
}

Status Sweep::enter(Turn& turn) {
  Contestant& contestant = *contestants_[turn.contestant];
  if (auto status = contestant.begin(turn.row.workload); !status) return status;
  if (turn.iterations > 0) return {};
  auto chosen = choose_iterations(contestant, options_);
  if (!chosen) return chosen.error();
  turn.iterations = *chosen;
  return {};
}

Status Sweep::take_turn(Turn& turn, int block) {
  const std::uint64_t wanted = options_.check_all ? turn.iterations : options_.checks;
  // Where few operations fill a block, warming up must not take longer than measuring.
  const std::uint64_t warmups = std::min(options_.warmups, 1 + turn.iterations / 4);
  auto done = contestants_[turn.contestant]->run({.mode = options_.mode,
                                                  .iterations = turn.iterations,
                                                  .warmups = warmups,
                                                  .checks = block == 0 ? wanted : 0});
  if (!done) return done.error();
  Row& row = turn.row;
  row.us.insert(row.us.end(), done->us.begin(), done->us.end());
  row.cpu_s += done->cpu_s;
  row.iterations += turn.iterations;
  row.wrong += done->wrong;
  row.checked += done->checked;
  return {};
}

}  // namespace

int run_sweep(Job& job, const Options& options, const std::vector<std::string>& arguments) {
  Sweep sweep(job, options, arguments);
  const auto code = sweep.run();
  if (code) return *code;
  fmt::print(stderr, "regroup-perf: rank {}: {}\n", job.rank(), code.error().to_string());
  return code.error().code() == Code::InvalidArgument ? kExitBadUsage : 1;
}

}  // namespace regroup::perf
