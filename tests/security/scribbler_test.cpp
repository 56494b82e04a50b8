/// A rank that writes random values into all shared memory within its reach, while the others use
/// it. They may lose operations and the job, with a named cause; nobody else may crash, nothing may
/// hang, and under REGROUP_VERIFY=1 nobody may take a wrong result for a right one.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
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

constexpr const char* kWrong = "WRONG BITS";

/// One job of three ranks with a scribbler among them; checks what holds for every one.
Ended scribbled(std::uint64_t seed, const char* what, bool verify) {
  SCOPED_TRACE(fmt::format("REGROUP_TEST_SEED={} {} verify={}", seed, what, verify));
  const TempDir dir;
  const std::string logs = (dir.path() / "logs").string();
  Ended ended =
      run({"run", "-n", "3", "--grace", "2s", "--log-dir", logs, "--", SCRIBBLING_RANK,
           std::to_string(seed), "12", what},
          {.environment = {verify ? "REGROUP_VERIFY=1" : "REGROUP_VERIFY=0"}, .patience = kHangs});
  const std::string said = ended.err + ended.out;
  EXPECT_FALSE(ended.timed_out) << said;
  EXPECT_EQ(crashes(logs), "") << said;
  EXPECT_TRUE(ended.exit_code == 0 || count(ended.err, "job ended with exit code") == 1)
      << "the launcher itself died\n"
      << said;
  EXPECT_NE(ended.exit_code, 70) << "a defect of ours\n" << said;
  EXPECT_EQ(count(said, "exited with code 4"), 0U) << "an error without a cause\n" << said;
  if (verify) {
    EXPECT_EQ(count(said, kWrong), 0U) << said;
  }
  return ended;
}

TEST(Scribbler, CostsTheOthersAnOperationAndNeverTheirLife) {
  const std::uint64_t first = first_seed();
  fmt::print("seeds from {}: REGROUP_TEST_SEED repeats them\n", first);
  const TimePoint until = Clock::now() + kTimeForAll;
  int jobs = 0;
  for (std::uint64_t seed = first; jobs < 3 || Clock::now() < until; ++seed, ++jobs) {
    scribbled(seed, "all", true);
    if (HasFailure()) return;
  }
  fmt::print("{} jobs\n", jobs);
}

TEST(Scribbler, BitsOfAContributionAreNoticedByEveryRankAndTheStepIsDoneAgain) {
  const Ended ended = scribbled(first_seed(), "slots", true);
  EXPECT_EQ(ended.exit_code, 0) << ended.err << ended.out;
  EXPECT_EQ(count(ended.out, "done, 0 attempts refused"), 0U) << ended.out;
  EXPECT_EQ(count(ended.out, "done, "), 3U) << ended.out;
  EXPECT_GE(count(ended.out, "found by REGROUP_VERIFY"), 1U) << ended.err << ended.out;
}

TEST(Scribbler, WithoutVerificationTheSameBitsReachTheProgram) {
  const Ended ended = scribbled(first_seed(), "slots", false);
  EXPECT_GE(count(ended.out, kWrong), 1U) << "the test above tests nothing\n" << ended.out;
}

}  // namespace
}  // namespace regroup::test
