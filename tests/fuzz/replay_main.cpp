/// Runs every target over its committed corpus and over inputs made from it, with any compiler:
/// `regroup-fuzz-replay CORPUS [ROUNDS [SEED]]`.
#include <fmt/format.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "tests/fuzz/targets.hpp"

namespace {

using regroup::fuzz::Bytes;
using regroup::fuzz::Target;

std::vector<std::string> read_corpus(const std::filesystem::path& folder) {
  std::vector<std::string> out;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    std::ifstream file(entry.path(), std::ios::binary);
    out.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return out;
}

std::string mutated(std::string input, const std::vector<std::string>& corpus,
                    std::mt19937_64& random) {
  for (std::uint64_t i = 0; i <= random() % 4; ++i) {
    const std::size_t at = input.empty() ? 0 : random() % input.size();
    switch (random() % 5) {
      case 0:
        if (!input.empty()) input[at] = static_cast<char>(random());
        break;
      case 1: input.resize(at); break;
      case 2: input.insert(at, std::string(random() % 9, static_cast<char>(random()))); break;
      case 3: input += corpus[random() % corpus.size()].substr(0, random() % 64); break;
      default:
        if (!input.empty()) input[at] = static_cast<char>(input[at] ^ 1 << random() % 8);
    }
  }
  return input;
}

bool run(const Target& target, const std::string& input) {
  return target.run(std::as_bytes(std::span(input)));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 64;
  const std::filesystem::path folder = argv[1];
  const std::uint64_t rounds = argc > 2 ? std::stoull(argv[2]) : 2000;
  const std::uint64_t seed = argc > 3 ? std::stoull(argv[3]) : 1;
  for (const Target& target : regroup::fuzz::kTargets) {
    const std::vector<std::string> corpus = read_corpus(folder / target.name);
    if (corpus.empty()) {
      fmt::print(stderr, "{}: no corpus\n", target.name);
      return 1;
    }
    // Said before, so that a crash names its target.
    fmt::print("{}: {} inputs, {} rounds, seed {}\n", target.name, corpus.size(), rounds, seed);
    std::fflush(stdout);
    std::mt19937_64 random(seed);
    std::size_t accepted = 0;
    for (const std::string& input : corpus) accepted += run(target, input) ? 1 : 0;
    if (accepted == 0) {
      fmt::print(stderr, "{}: refuses its whole corpus, so nothing is tested\n", target.name);
      return 1;
    }
    for (std::uint64_t i = 0; i < rounds; ++i)
      (void)run(target, mutated(corpus[random() % corpus.size()], corpus, random));
  }
  return 0;
}
