// Serves requests over a group of ranks, each of which holds a part of the weights, and goes on
// serving while ranks are killed. Runs under `--on-loss replace`: there are no steps; an operation
// that a loss ended returns RankLost, reform() waits for the newcomer, the request is run again.
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include <regroup/regroup.hpp>

namespace {

constexpr std::size_t kColumns = 256;
constexpr std::size_t kRowsOfARank = 64;

/// Any process can make any weight, so that a newcomer builds its own shard.
std::int64_t weight(std::size_t row, std::size_t column) {
  return static_cast<std::int64_t>((row * 2654435761U + column * 40503U) % 201) - 100;
}

std::int64_t input_of(std::int64_t request, std::size_t column) {
  return (request * 37 + static_cast<std::int64_t>(column) * 11) % 1000;
}

std::int64_t now_ns() {
  // One clock for all processes of the host.
  return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// What every rank of a group knows and a newcomer is given: equal on all ranks between requests.
struct Ledger {
  std::int64_t served = 0;
  std::int64_t wrong = 0;
  std::int64_t answered_ns = 0;  ///< when seat 0 had the last answer
};

/// What a rank adds to its part of an answer; the answer shows it to everybody.
struct Remark {
  std::int64_t answered_ns;
  std::int64_t wrong;
};
constexpr std::size_t kRemark = sizeof(Remark) / sizeof(std::int64_t);

class Server {
 public:
  Server(regroup::Job job, std::int64_t requests, std::int64_t kill_every)
      : job_(job),
        world_(job.world()),
        kill_every_(kill_every),
        gaps_(static_cast<std::size_t>(requests)),
        shard_(kRowsOfARank * kColumns),
        input_(kColumns),
        part_(kRowsOfARank + kRemark),
        answer_(part_.size() * static_cast<std::size_t>(job.size())) {
    for (std::size_t i = 0; i < shard_.size(); ++i)
      shard_[i] = weight(first_row() + i / kColumns, i % kColumns);
    job_.state().add("ledger", ledger_).add("gaps", gaps_);
  }

  regroup::Status run() {
    auto status = job_.reform();
    may_die_ = !job_.is_replacement();
    // One request more than are counted: it carries the remarks on the last one.
    while (status && ledger_.served <= static_cast<std::int64_t>(gaps_.size())) {
      die_if_it_is_my_turn();
      status = serve(ledger_.served);
      if (status) {
        count();
      } else if (status.code() == regroup::Code::RankLost) {
        status = job_.reform();
      }
    }
    return status;
  }

  void report() const {
    if (job_.rank() != 0) return;
    auto gaps = gaps_;
    // From the first answer on: the gap before it is the start.
    gaps.erase(gaps.begin());
    std::ranges::sort(gaps);
    const auto ms = [&gaps](double quantile) {
      const auto last = static_cast<double>(gaps.size() - 1);
      return static_cast<double>(gaps[static_cast<std::size_t>(quantile * last)]) / 1e6;
    };
    std::printf("gap between answers: p50 %.3f ms, p99 %.3f ms, max %.3f ms\n", ms(0.5), ms(0.99),
                ms(1.0));
    std::printf("served=%zu wrong=%lld losses=%llu gap_ms_max=%.3f\n", gaps_.size(),
                static_cast<long long>(ledger_.wrong),
                static_cast<unsigned long long>(world_.epoch().value() - 1), ms(1.0));
  }

  [[nodiscard]] bool all_right() const { return ledger_.wrong == 0; }

 private:
  [[nodiscard]] std::size_t first_row() const {
    return static_cast<std::size_t>(job_.rank()) * kRowsOfARank;
  }

  /// A rehearsal: real signals, another seat each time, in the middle of a request.
  void die_if_it_is_my_turn() {
    const auto turn = ledger_.served / std::max<std::int64_t>(kill_every_, 1);
    const bool due = kill_every_ > 0 && ledger_.served % kill_every_ == kill_every_ - 1 &&
                     ledger_.served < static_cast<std::int64_t>(gaps_.size());
    if (due && may_die_ && turn % job_.size() == job_.rank()) std::raise(SIGKILL);
    // A newcomer does not die of the request that its predecessor died of.
    if (!due) may_die_ = true;
  }

  regroup::Status serve(std::int64_t request) {
    if (job_.rank() == 0) {
      for (std::size_t c = 0; c < kColumns; ++c) input_[c] = input_of(request, c);
    }
    if (auto status = world_.broadcast(input_, 0); !status) return status;
    for (std::size_t r = 0; r < kRowsOfARank; ++r) {
      std::int64_t sum = 0;
      for (std::size_t c = 0; c < kColumns; ++c) sum += shard_[r * kColumns + c] * input_[c];
      part_[r] = sum;
    }
    part_[kRowsOfARank] = mine_.answered_ns;
    part_[kRowsOfARank + 1] = mine_.wrong;
    // The last operation of a request is one in which all receive: it is done on all or on none.
    return world_.all_gather(part_.data(), answer_.data(), part_.size(), regroup::DType::I64);
  }

  /// The answer is here, and so are all ranks' remarks on the one before.
  void count() {
    const auto before = ledger_.served - 1;
    const auto answered_ns = answer_[kRowsOfARank];
    if (before >= 0 && answered_ns > 0) {
      gaps_[static_cast<std::size_t>(before)] = answered_ns - ledger_.answered_ns;
      ledger_.answered_ns = answered_ns;
    }
    for (int rank = 0; rank < job_.size(); ++rank)
      ledger_.wrong += answer_[static_cast<std::size_t>(rank) * part_.size() + kRowsOfARank + 1];
    mine_ = {now_ns(), check(ledger_.served) ? 0 : 1};
    ++ledger_.served;
  }

  /// Against the product of the whole matrix.
  [[nodiscard]] bool check(std::int64_t request) const {
    for (int rank = 0; rank < job_.size(); ++rank) {
      for (std::size_t r = 0; r < kRowsOfARank; ++r) {
        const auto row = static_cast<std::size_t>(rank) * kRowsOfARank + r;
        std::int64_t right = 0;
        for (std::size_t c = 0; c < kColumns; ++c) right += weight(row, c) * input_of(request, c);
        if (answer_[static_cast<std::size_t>(rank) * part_.size() + r] != right) return false;
      }
    }
    return true;
  }

  regroup::Job job_;
  regroup::ProcessGroup world_;
  std::int64_t kill_every_;
  bool may_die_ = true;
  Ledger ledger_;
  Remark mine_{};
  std::vector<std::int64_t> gaps_;  ///< between answers, in ns
  std::vector<std::int64_t> shard_;
  std::vector<std::int64_t> input_;
  std::vector<std::int64_t> part_;
  std::vector<std::int64_t> answer_;
};

}  // namespace

int main(int argc, char** argv) {
  const std::int64_t requests = argc > 1 ? std::atoll(argv[1]) : 500;
  const std::int64_t kill_every = argc > 2 ? std::atoll(argv[2]) : 0;
  if (requests < 2 || kill_every < 0) {
    std::fprintf(stderr, "usage: example_05_serve [REQUESTS [KILL_EVERY]], at least 2 requests\n");
    return 64;
  }
  auto attached = regroup::Job::attach();
  if (!attached) {
    std::fprintf(stderr, "%s\n", attached.error().to_string().c_str());
    return 1;
  }
  Server server(*attached, requests, kill_every);
  if (auto status = server.run(); !status) {
    std::fprintf(stderr, "rank %d: %s\n", attached->rank(), status.to_string().c_str());
    return 1;
  }
  server.report();
  return server.all_right() ? 0 : 1;
}
