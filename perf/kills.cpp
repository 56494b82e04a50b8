#include "perf/kills.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <optional>
#include <string>
#include <utility>

#include "base/fd.hpp"
#include "perf/results.hpp"
#include "perf/statistics.hpp"

namespace regroup::perf {
namespace {

using nlohmann::json;

/// Operations of a round after the one in which the kill happens.
constexpr std::uint64_t kOperationsAfter = 3;
constexpr std::chrono::seconds kWarmMax{60};
constexpr int kRanksMax = 52;  // one bit each in an f64 sum

std::uint64_t clock_ns(clockid_t clock) {
  timespec t{};
  (void)::clock_gettime(clock, &t);
  return static_cast<std::uint64_t>(t.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(t.tv_nsec);
}

/// What the ranks of one round leave in a file that all of them map: it outlives whoever is killed.
struct Round {
  std::atomic<std::uint64_t> killed_ns;      ///< CLOCK_MONOTONIC, of all ranks of the host
  std::atomic<std::uint64_t> killed_utc_ns;  ///< CLOCK_REALTIME, as the launcher's log has it
  struct Seat {
    std::atomic<std::uint64_t> released_ns;
    std::atomic<std::uint64_t> first_ns;
  } seats[kRanksMax];
};

/// Thread safety: the words are atomic.
class Notes {
 public:
  static Result<Notes> open(std::size_t rounds) {
    const char* const folder = std::getenv("REGROUP_RUN_DIR");
    if (folder == nullptr) {
      return Status(Code::FailedPrecondition,
                    "--kill needs a job: regroup run -n 4 --spares 1 -- regroup-perf ...");
    }
    const char* const job = std::getenv("REGROUP_JOB_ID");
    // Of this job alone: a log directory may have been another one's before.
    const std::string path = fmt::format("{}/perf-kills.{}", folder, job == nullptr ? "0" : job);
    const base::Fd file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    const std::size_t bytes = rounds * sizeof(Round) + sizeof(std::atomic<std::uint64_t>);
    if (!file || ::ftruncate(file.get(), static_cast<off_t>(bytes)) != 0) {
      return Status(Code::ResourceExhausted, path + " cannot be made");
    }
    void* const memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
    if (memory == MAP_FAILED) return Status(Code::ResourceExhausted, path + " cannot be mapped");
    return Notes(memory);
  }
  // Mapped until the process ends.
  [[nodiscard]] std::atomic<std::uint64_t>& wrong() const {
    return *static_cast<std::atomic<std::uint64_t>*>(memory_);
  }
  [[nodiscard]] Round& round(std::size_t index) const {
    return reinterpret_cast<Round*>(&wrong() + 1)[index];
  }

 private:
  explicit Notes(void* memory) : memory_(memory) {}
  void* memory_;
};

/// The launcher's log of this job, read on as it grows. Thread safety: none.
class EventLog {
 public:
  EventLog() {
    const char* const folder = std::getenv("REGROUP_RUN_DIR");
    const std::string path = std::string(folder == nullptr ? "." : folder) + "/events.jsonl";
    // Watched before it is read: what is written in between is not missed.
    growth_ = base::Fd(::inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
    (void)::inotify_add_watch(growth_.get(), path.c_str(), IN_MODIFY);
    file_.open(path);
  }
  /// Waits until there is more to read on. False: not before `until`.
  bool await_growth(TimePoint until) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now());
    pollfd grown{growth_.get(), POLLIN, 0};
    const int ready = ::poll(&grown, 1, static_cast<int>(std::max<std::int64_t>(0, left.count())));
    char notices[4096];
    while (::read(growth_.get(), notices, sizeof notices) > 0) {
    }
    return ready > 0 || (ready < 0 && errno == EINTR);
  }
  void read_on() {
    file_.clear();
    for (std::string part; std::getline(file_, part);) {
      unread_ += part;
      if (file_.eof()) break;  // the rest of this line is not written yet
      take(json::parse(unread_, nullptr, false));
      unread_.clear();
    }
  }
  [[nodiscard]] std::size_t spares() const { return spares_; }
  [[nodiscard]] std::size_t attached() const { return attached_; }
  /// When each loss of `rank` was known, in order.
  [[nodiscard]] std::vector<std::int64_t> losses_of(int rank) const {
    std::vector<std::int64_t> out;
    for (const auto& [lost, at] : losses_) {
      if (lost == rank) out.push_back(at);
    }
    return out;
  }

 private:
  void take(const json& event) {
    if (!event.is_object()) return;
    const std::string kind = event.value("kind", "");
    if (kind == "job_started") spares_ = event.value("spares", std::size_t{0});
    if (kind == "attached") ++attached_;
    if (kind == "lost") {
      losses_.emplace_back(event.value("rank", -1), parse_utc_ns(event.value("time", "")));
    }
  }
  base::Fd growth_;
  std::ifstream file_;
  std::string unread_;
  std::size_t spares_ = 0;
  std::size_t attached_ = 0;
  std::vector<std::pair<int, std::int64_t>> losses_;
};

/// Thread safety: none.
class Killer {
 public:
  Killer(Job& job, const Options& options, Notes notes)
      : job_(job), options_(options), notes_(notes), seat_(job.rank()) {
    values_.resize(std::max<std::size_t>(1, options.sizes.front() / sizeof(double)));
    sums_.resize(values_.size());
    state_.resize(options.state_bytes, std::byte{1});
    if (!state_.empty()) job.state().add("state", state_);
  }
  Status run();
  [[nodiscard]] KillSamples samples() const;

 private:
  [[nodiscard]] bool one_round(std::size_t index, bool again);
  [[nodiscard]] bool is_right() const;
  void await_warm_spare(std::size_t kills_before);

  Job& job_;
  const Options& options_;
  Notes notes_;
  int seat_;
  EventLog log_;
  std::vector<double> values_;
  std::vector<double> sums_;
  std::vector<std::byte> state_;
};

/// Each seat contributes its own bit, so that a sum tells exactly who took part.
bool Killer::is_right() const {
  double expected = 0;
  const bool whole = job_.world().size() == job_.size();
  for (int seat = 0; seat < job_.size(); ++seat) {
    if (whole || seat != options_.kill->rank) expected += static_cast<double>(1ULL << seat);
  }
  return std::ranges::all_of(sums_, [&](double sum) { return sum == expected; });
}

/// With spares, what is measured is that a warm one takes over: the refill of the one before has
/// started, touched its memory and attached. The others wait in their first operation meanwhile.
void Killer::await_warm_spare(std::size_t kills_before) {
  const TimePoint until = Clock::now() + kWarmMax;
  const auto ranks = static_cast<std::size_t>(job_.size());
  const auto is_cold = [&] {
    log_.read_on();
    return log_.spares() > 0 && log_.attached() < ranks + log_.spares() + kills_before;
  };
  while (is_cold() && log_.await_growth(until)) {
  }
}

/// False when the round has to be begun again. `again`: it lost a rank already.
bool Killer::one_round(std::size_t index, bool again) {
  Round& round = notes_.round(index);
  Round::Seat& mine = round.seats[seat_];
  auto world = job_.world();
  const bool dies = seat_ == options_.kill->rank && index < options_.kills && !again;
  if (dies && round.killed_ns.load() == 0) await_warm_spare(index);
  for (std::uint64_t op = 1; op <= options_.kill->op + kOperationsAfter; ++op) {
    if (dies && op == options_.kill->op && round.killed_ns.load() == 0) {
      round.killed_utc_ns.store(clock_ns(CLOCK_REALTIME));
      round.killed_ns.store(clock_ns(CLOCK_MONOTONIC));
      (void)::kill(::getpid(), SIGKILL);
    }
    std::ranges::fill(values_, static_cast<double>(1ULL << seat_));
    std::ranges::fill(sums_, -1.0);
    const auto status =
        world.all_reduce(std::span<const double>(values_), std::span<double>(sums_), ReduceOp::Sum);
    if (!status) {
      mine.released_ns.store(clock_ns(CLOCK_MONOTONIC));
      return false;
    }
    const bool right = is_right();
    if (!right) notes_.wrong().fetch_add(1);
    // The result is correct once it has been looked at.
    if (right && again && mine.first_ns.load() == 0) {
      mine.first_ns.store(clock_ns(CLOCK_MONOTONIC));
    }
  }
  return true;
}

Status Killer::run() {
  auto steps = job_.steps(options_.kills + 1);
  // A newcomer's first round is the one that its predecessor was killed in.
  bool again = job_.is_replacement();
  while (steps.next()) {
    if (one_round(steps.index(), again || steps.attempt() > 1)) (void)steps.commit();
    again = false;
  }
  return steps.status();
}

KillSamples Killer::samples() const {
  KillSamples out;
  EventLog log;
  log.read_on();
  const auto losses = log.losses_of(options_.kill->rank);
  const bool whole = job_.world().size() == job_.size();
  out.wrong = notes_.wrong().load();
  const auto us_since = [](std::uint64_t later, std::uint64_t earlier) {
    return static_cast<double>(later - earlier) / 1e3;
  };
  for (std::size_t index = 0; index < options_.kills; ++index) {
    const Round& round = notes_.round(index);
    const std::uint64_t killed = round.killed_ns.load();
    std::uint64_t released = 0;
    std::uint64_t first = 0;
    bool complete = killed != 0;
    for (int seat = 0; seat < job_.size(); ++seat) {
      const bool survivor = seat != options_.kill->rank;
      const auto& noted = round.seats[seat];
      if (survivor) released = std::max(released, noted.released_ns.load());
      if (survivor || whole) {
        first = std::max(first, noted.first_ns.load());
        complete = complete && noted.first_ns.load() != 0;
      }
    }
    if (!complete || released < killed) {
      ++out.incomplete;
      continue;
    }
    out.release_us.push_back(us_since(released, killed));
    out.first_us.push_back(us_since(first, killed));
    if (losses.size() == options_.kills) {
      const auto evidence = losses[index] - static_cast<std::int64_t>(round.killed_utc_ns.load());
      out.detect_us.push_back(static_cast<double>(evidence) / 1e3);
    }
  }
  return out;
}

json percentiles(const std::vector<double>& us) {
  if (us.empty()) return nullptr;
  return {{"n", us.size()},
          {"p50", percentile(us, 0.5)},
          {"p90", percentile(us, 0.9)},
          {"p99", percentile(us, 0.99)},
          {"max", percentile(us, 1)}};
}

std::string text_of(const char* what, const std::vector<double>& us) {
  if (us.empty()) return fmt::format("# {:<42} not known\n", what);
  return fmt::format("# {:<42} {:>10.2f} {:>10.2f} {:>10.2f}\n", what, percentile(us, 0.5) / 1e3,
                     percentile(us, 0.99) / 1e3, percentile(us, 1) / 1e3);
}

void print(const Options& options, const Job& job, const KillSamples& samples) {
  const bool whole = job.world().size() == job.size();
  fmt::print(
      "# {} kills of rank {} of {} in operation {}, {} bytes resident in each rank\n"
      "# from the kill until, in ms                        p50        p99        max\n",
      options.kills, options.kill->rank, job.size(), options.kill->op, options.resident_bytes);
  fmt::print("{}{}{}", text_of("the launcher has evidence", samples.detect_us),
             text_of("all survivors have their error", samples.release_us),
             text_of(whole ? "first correct operation of the full world"
                           : "first correct operation of the smaller world",
                     samples.first_us));
  fmt::print("# wrong values: {}, rounds without figures: {}\n", samples.wrong, samples.incomplete);
}

}  // namespace

Resident::Resident(std::size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  memory_ = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory_ == MAP_FAILED) {
    memory_ = nullptr;
    return;
  }
  constexpr std::size_t kPage = 4096;
  for (std::size_t at = 0; at < bytes; at += kPage) static_cast<volatile char*>(memory_)[at] = 1;
}

Resident::~Resident() {
  if (memory_ != nullptr) ::munmap(memory_, bytes_);
}

std::int64_t parse_utc_ns(const std::string& text) {
  std::tm parts{};
  const char* const rest = ::strptime(text.c_str(), "%Y-%m-%dT%H:%M:%S", &parts);
  if (rest == nullptr || *rest != '.') return 0;
  char* end = nullptr;
  const std::int64_t fraction = std::strtoll(rest + 1, &end, 10);
  if (end != rest + 10) return 0;
  return static_cast<std::int64_t>(::timegm(&parts)) * 1'000'000'000 + fraction;
}

json to_json(const KillSamples& samples) {
  return {{"detect_us", percentiles(samples.detect_us)},
          {"release_us", percentiles(samples.release_us)},
          {"first_us", percentiles(samples.first_us)},
          {"wrong", samples.wrong},
          {"incomplete", samples.incomplete},
          {"samples",
           {{"detect_us", samples.detect_us},
            {"release_us", samples.release_us},
            {"first_us", samples.first_us}}}};
}

int run_kills(Job& job, const Options& options, const std::vector<std::string>& arguments) {
  const auto fail = [&](const Status& status, int code) {
    fmt::print(stderr, "regroup-perf: rank {}: {}\n", job.rank(), status.to_string());
    return code;
  };
  if (options.kill->rank >= job.size() || job.size() > kRanksMax || job.size() < 2) {
    return fail({Code::InvalidArgument, fmt::format("--kill {}: the job has {} ranks; 2 to {} can "
                                                    "be measured",
                                                    options.kill->rank, job.size(), kRanksMax)},
                kExitBadUsage);
  }
  auto notes = Notes::open(options.kills + 1);
  if (!notes) return fail(notes.error(), kExitBadUsage);
  Killer killer(job, options, *notes);
  if (auto status = killer.run(); !status) return fail(status, 1);
  if (job.world().rank() != 0) return 0;
  const KillSamples samples = killer.samples();
  print(options, job, samples);
  if (!options.json_file.empty()) {
    json result = to_json(samples);
    result["collective"] = "all_reduce";
    result["implementation"] = "regroup";
    result["ranks"] = job.size();
    result["ranks_after"] = job.world().size();
    result["kills"] = options.kills;
    result["resident_bytes"] = options.resident_bytes;
    std::ofstream file(options.json_file);
    file << json({{"machine", describe_machine()},
                  {"settings", {{"arguments", arguments}, {"version", REGROUP_VERSION}}},
                  {"results", json::array({result})}})
                .dump(1)
         << "\n";
    if (!file.flush()) return fail({Code::ResourceExhausted, options.json_file}, 1);
  }
  return samples.wrong == 0 && samples.incomplete == 0 ? 0 : 1;
}

}  // namespace regroup::perf
