#include "perf/tune.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <vector>

#include "perf/options.hpp"

namespace regroup::perf {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRounds = 9;     ///< a figure is their median
constexpr int kTrips = 200;    ///< there and back, in a round
constexpr int kBurst = 1000;   ///< messages one after the other
constexpr int kTransfers = 8;  ///< of kTransferBytes, by each pair of ranks
constexpr std::size_t kTransferBytes = std::size_t{4} << 20;

/// Ranks of two hosts, the first one's and the other one's, of which each has one opposite.
struct Pairs {
  std::vector<int> here;
  std::vector<int> there;
  [[nodiscard]] std::size_t count() const { return std::min(here.size(), there.size()); }
};

std::int64_t my_host() {
  const char* const text = std::getenv("REGROUP_NODE_RANK");  // NOLINT(concurrency-mt-unsafe)
  return text == nullptr ? 0 : std::strtoll(text, nullptr, 10);
}

Result<Pairs> find_pairs(Job& job) {
  const std::int64_t mine = my_host();
  std::vector<std::int64_t> hosts(static_cast<std::size_t>(job.size()));
  if (auto status = job.world().all_gather(&mine, hosts.data(), 1, DType::I64); !status)
    return status;
  Pairs pairs;
  const auto other = std::ranges::find_if(hosts, [&](auto host) { return host != hosts[0]; });
  for (std::size_t rank = 0; rank < hosts.size(); ++rank) {
    if (hosts[rank] == hosts[0]) pairs.here.push_back(static_cast<int>(rank));
    if (other != hosts.end() && hosts[rank] == *other)
      pairs.there.push_back(static_cast<int>(rank));
  }
  return pairs;
}

/// One rank's part of what is measured. Thread safety: none.
class Tuner {
 public:
  Tuner(Job& job, const Pairs& pairs) : world_(job.world()), rank_(job.rank()) {
    for (std::size_t i = 0; i < pairs.count(); ++i) {
      if (pairs.here[i] == rank_) opposite_ = pairs.there[i];
      if (pairs.there[i] == rank_) opposite_ = pairs.here[i];
    }
    first_ = rank_ == pairs.here[0] || rank_ == pairs.there[0];
    sends_ = std::ranges::find(pairs.here, rank_) != pairs.here.end();
    data_.resize(kTransferBytes);
  }

  /// Of a message of 8 bytes, in us.
  Result<double> latency_us() {
    auto took = median_us(first_, [this] { return trips(kTrips); });
    if (took) *took /= 2 * kTrips;
    return took;
  }
  /// With one message more, in us.
  Result<double> message_us() {
    auto took = median_us(first_, [this] { return burst(8, kBurst); });
    if (took) *took /= kBurst;
    return took;
  }
  /// All ranks of a host at a time, in bytes a us.
  Result<double> bytes_per_us(std::size_t pairs) {
    auto took = median_us(opposite_ >= 0, [this] { return burst(kTransferBytes, kTransfers); });
    if (!took) return took;
    return static_cast<double>(kTransferBytes * kTransfers * pairs) / *took;
  }

 private:
  Status give(std::size_t bytes) { return world_.send(data_.data(), bytes, DType::U8, opposite_); }
  Status take(std::size_t bytes) { return world_.recv(data_.data(), bytes, DType::U8, opposite_); }

  Status trips(int count) {
    for (int i = 0; i < count; ++i) {
      if (auto status = sends_ ? give(8) : take(8); !status) return status;
      if (auto status = sends_ ? take(8) : give(8); !status) return status;
    }
    return {};
  }
  /// One way, then an answer.
  Status burst(std::size_t bytes, int count) {
    for (int i = 0; i < count; ++i) {
      if (auto status = sends_ ? give(bytes) : take(bytes); !status) return status;
    }
    return sends_ ? take(1) : give(1);
  }

  /// The slowest rank's time of a round, the median of all.
  Result<double> median_us(bool takes_part, const std::function<Status()>& round) {
    std::vector<double> all;
    for (int i = 0; i <= kRounds; ++i) {
      if (auto status = world_.barrier(); !status) return status;
      const auto begin = Clock::now();
      if (auto status = takes_part ? round() : Status(); !status) return status;
      double us = std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
      if (auto status = world_.all_reduce(&us, &us, 1, DType::F64, ReduceOp::Max); !status)
        return status;
      if (i > 0) all.push_back(us);  // the first one finds nobody awake
    }
    std::ranges::nth_element(all, all.begin() + kRounds / 2);
    return all[kRounds / 2];
  }

  ProcessGroup world_;
  int rank_;
  int opposite_ = -1;
  bool first_ = false;
  bool sends_ = false;
  std::vector<std::byte> data_;
};

struct Measured {
  double latency_us = 0;
  double message_us = 0;
  double bytes_per_us = 0;
};

Result<Measured> measure(Job& job, const Pairs& pairs) {
  Tuner tuner(job, pairs);
  const auto latency = tuner.latency_us();
  if (!latency) return latency.error();
  const auto message = tuner.message_us();
  if (!message) return message.error();
  const auto bytes = tuner.bytes_per_us(pairs.count());
  if (!bytes) return bytes.error();
  return Measured{*latency, *message, *bytes};
}

bool write(const std::string& file, const std::string& text) {
  std::ofstream out(file);
  out << text;
  out.close();
  return out.good();
}

}  // namespace

int run_tune(Job& job, const std::string& file) {
  const auto pairs = find_pairs(job);
  if (pairs && pairs->count() == 0) {
    if (job.rank() == 0) {
      fmt::print(stderr,
                 "regroup-perf: --tune measures the network between two hosts, and all ranks run "
                 "on one: regroup run --hosts a:2,b:2 -- regroup-perf --tune {}\n",
                 file);
    }
    return kExitBadUsage;
  }
  const auto found = pairs ? measure(job, *pairs) : Result<Measured>(pairs.error());
  if (!found) {
    fmt::print(stderr, "regroup-perf: {}\n", found.error().to_string());
    return 1;
  }
  if (job.rank() != 0) return 0;
  const std::string text = fmt::format(
      "# What regroup-perf --tune measured between two hosts, {} ranks of each at a time.\n"
      "# REGROUP_TUNING=\"$(cat {})\" regroup run ...\n"
      "net_latency_us={:.2f}\nnet_message_us={:.3f}\nnet_gbps={:.3f}\n",
      pairs->count(), file, found->latency_us, found->message_us, found->bytes_per_us / 1000);
  if (!write(file, text)) {
    fmt::print(stderr, "regroup-perf: --tune: {} cannot be written\n", file);
    return 1;
  }
  fmt::print("{}", text);
  return 0;
}

}  // namespace regroup::perf
