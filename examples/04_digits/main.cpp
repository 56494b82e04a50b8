// Trains a classifier of handwritten digits on all ranks of a job. Whatever ranks are lost on the
// way, the final weights are the bits of an undisturbed run: digest= shows it.
#include <openssl/evp.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include <regroup/regroup.hpp>

#include "digits.hpp"
#include "network.hpp"

namespace {

constexpr std::size_t kBatch = 256;  // of all ranks together
constexpr float kLearningRate = 0.1F;
constexpr float kMomentum = 0.9F;

struct Options {
  std::uint64_t epochs = 60;
  std::uint64_t seed = 1;
  std::size_t hidden = 256;
};

std::string sha256(const std::vector<float>& values) {
  unsigned char hash[EVP_MAX_MD_SIZE];
  unsigned length = 0;
  if (EVP_Digest(values.data(), values.size() * sizeof(float), hash, &length, EVP_sha256(),
                 nullptr) != 1) {
    return "unavailable";
  }
  std::string text;
  for (unsigned i = 0; i < length; ++i) {
    char digits[3];
    std::snprintf(digits, sizeof digits, "%02x", hash[i]);
    text += digits;
  }
  return text;
}

/// Which images each step trains on: a function of (seed, step), computed anew by whoever needs it.
class Batches {
 public:
  Batches(const std::vector<digits::Sample>& samples, std::uint64_t seed)
      : samples_(samples), seed_(seed) {}

  [[nodiscard]] std::uint64_t steps_per_epoch() const { return samples_.size() / kBatch; }

  /// This rank's part of the step's batch.
  std::vector<const digits::Sample*> slice(std::uint64_t step, int rank, int ranks) {
    const std::uint64_t epoch = step / steps_per_epoch();
    if (order_.empty() || epoch != epoch_) {
      order_ = digits::shuffled(samples_.size(), seed_, epoch);
      epoch_ = epoch;
    }
    const std::size_t first = step % steps_per_epoch() * kBatch;
    const auto bound = [&](int r) {
      return first + kBatch * static_cast<std::size_t>(r) / static_cast<std::size_t>(ranks);
    };
    std::vector<const digits::Sample*> part;
    for (std::size_t i = bound(rank); i < bound(rank + 1); ++i) {
      part.push_back(&samples_[order_[i]]);
    }
    return part;
  }

 private:
  const std::vector<digits::Sample>& samples_;
  std::uint64_t seed_;
  std::uint64_t epoch_ = 0;
  std::vector<std::size_t> order_;
};

/// Momentum descent; `sums` are the averages over the ranks of their parts' sums.
void apply(const std::vector<float>& sums, float scale, float rate, std::vector<float>& parameters,
           std::vector<float>& moments) {
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    moments[i] = kMomentum * moments[i] + sums[i] * scale;
    parameters[i] -= rate * moments[i];
  }
}

int fail(const regroup::Status& status) {
  std::fprintf(stderr, "%s\n", status.to_string().c_str());
  return 1;
}

int train(const Options& options) {
  auto attached = regroup::Job::attach();
  if (!attached) return fail(attached.error());
  regroup::Job job = *attached;
  auto world = job.world();

  const digits::DataSet data = digits::load();
  digits::Network network(options.hidden, options.seed);
  std::vector<float> moments(network.parameters().size());
  job.state().add("parameters", network.parameters()).add("moments", moments);

  Batches batches(data.training, options.seed);
  const std::uint64_t total = options.epochs * batches.steps_per_epoch();
  const std::uint64_t steps_per_line = (options.epochs + 9) / 10 * batches.steps_per_epoch();
  std::vector<float> sums(network.parameters().size() + digits::kStatistics);
  auto steps = job.steps(total);
  while (steps.next()) {
    const std::uint64_t step = steps.index();
    sums.assign(sums.size(), 0.0F);
    network.accumulate(batches.slice(step, world.rank(), world.size()), sums);
    if (!world.all_reduce(sums, regroup::ReduceOp::Avg)) continue;
    if (!steps.commit()) continue;

    const float scale = static_cast<float>(world.size()) / static_cast<float>(kBatch);
    const float left = 1.0F - static_cast<float>(step) / static_cast<float>(total);
    apply(sums, scale, kLearningRate * left, network.parameters(), moments);
    if (job.rank() == 0 && (step + 1) % steps_per_line == 0) {
      std::printf("epoch %llu  loss %.4f\n",
                  static_cast<unsigned long long>((step + 1) / batches.steps_per_epoch()),
                  static_cast<double>(sums[network.parameters().size()] * scale));
      std::fflush(stdout);
    }
  }
  if (!steps.status()) return fail(steps.status());

  const std::string digest = sha256(network.parameters());
  std::printf("rank %d, pid %d, holds %s\n", job.rank(), static_cast<int>(getpid()),
              digest.c_str());
  if (job.rank() != 0) return 0;
  std::printf("digest=%s\naccuracy=%.4f\n", digest.c_str(), network.accuracy(data.held_out));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Trains a classifier of handwritten digits on all ranks of the job");
  app.add_option("--epochs", options.epochs, "Passes over the training images")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app.add_option("--seed", options.seed, "Of first weights and order of images")
      ->capture_default_str();
  app.add_option("--hidden", options.hidden, "Hidden units")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 64;
  }
  return train(options);
}
