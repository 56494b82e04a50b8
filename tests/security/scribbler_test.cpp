/// A rank that writes random values into all shared memory within its reach, while the others use
/// it. They may lose operations and the job, with a named cause; nobody else may crash, and nothing
/// may hang.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/support/job.hpp"

namespace regroup::test {
namespace {

using nlohmann::json;

constexpr int kCrashes[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
/// A job that takes longer hangs: its own way is a second.
constexpr std::chrono::seconds kHangs{40};
constexpr std::chrono::seconds kTimeForAll{25};

/// The same seeds in every run; REGROUP_TEST_SEED begins elsewhere.
std::uint64_t first_seed() {
  const char* const given = std::getenv("REGROUP_TEST_SEED");
  return given == nullptr ? 1 : std::stoull(given);
}

/// Who crashed, by the job's own record; the scribbler itself may.
std::string crashes(const std::filesystem::path& logs) {
  std::string out;
  std::ifstream file(logs / "events.jsonl");
  for (std::string line; std::getline(file, line);) {
    const json event = json::parse(line, nullptr, false);
    if (!event.is_object() || event.value("kind", "") != "lost") continue;
    const int signal = event.value("signal", 0);
    const bool crash =
        std::find(std::begin(kCrashes), std::end(kCrashes), signal) != std::end(kCrashes);
    if (crash && event.value("rank", -1) != 1) out += line + "\n";
  }
  return out;
}

TEST(Scribbler, CostsTheOthersAnOperationAndNeverTheirLife) {
  const std::uint64_t first = first_seed();
  fmt::print("seeds from {}: REGROUP_TEST_SEED repeats them\n", first);
  const TimePoint until = Clock::now() + kTimeForAll;
  int jobs = 0;
  for (std::uint64_t seed = first; jobs < 3 || Clock::now() < until; ++seed, ++jobs) {
    SCOPED_TRACE(fmt::format("REGROUP_TEST_SEED={}", seed));
    const TempDir dir;
    const std::string logs = (dir.path() / "logs").string();
    const Ended ended = run({"run", "-n", "3", "--grace", "2s", "--log-dir", logs, "--",
                             SCRIBBLING_RANK, std::to_string(seed), "12"},
                            {.patience = kHangs});
    ASSERT_FALSE(ended.timed_out) << ended.err << ended.out;
    EXPECT_EQ(crashes(logs), "") << ended.err;
    EXPECT_TRUE(ended.exit_code == 0 || count(ended.err, "job ended with exit code") == 1)
        << "the launcher itself died\n"
        << ended.err;
    EXPECT_NE(ended.exit_code, 70) << "a defect of ours\n" << ended.err;
    EXPECT_EQ(count(ended.out, "exited with code 4"), 0U) << "an error without a cause";
    if (HasFailure()) return;
  }
  fmt::print("{} jobs\n", jobs);
}

}  // namespace
}  // namespace regroup::test
