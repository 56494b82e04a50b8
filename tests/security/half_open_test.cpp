/// Ten thousand connections that prove nothing.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <deque>

#include "secure/listener.hpp"
#include "tests/security/coordinator.hpp"

namespace regroup::test {
namespace {

constexpr std::size_t kConnections = 10'000;
/// What the coordinator may need beyond what it had: the table of the unproven, and a few.
constexpr std::size_t kDescriptorsMore = secure::Listener::kUnprovenMax + 8;
constexpr std::size_t kBytesMore = std::size_t{4} << 20;

/// How many of them this process may hold at once.
std::size_t raise_descriptors() {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
  ::getrlimit(RLIMIT_NOFILE, &limit);
  return std::min<std::size_t>(kConnections, limit.rlim_cur - 200);
}

TEST(HalfOpen, TenThousandCostTheCoordinatorATableOfFixedSize) {
  Coordinator coordinator;
  ASSERT_TRUE(coordinator.agent_comes());
  ASSERT_TRUE(coordinator.agent_comes());  // everything that the first hello caused is done
  const std::string before = coordinator.durable();
  const std::size_t descriptors = coordinator.descriptors();
  const std::size_t resident = coordinator.resident_bytes();
  const std::size_t held = raise_descriptors();
  std::deque<Stranger> strangers;
  for (std::size_t i = 0; i < kConnections; ++i) {
    if (strangers.size() >= held) strangers.pop_front();
    strangers.emplace_back(coordinator.port());
    // Half of them begin a hello, which is no better than silence.
    if (i % 2 == 0) strangers.back().say(std::string_view("\x16\x03\x01\x01\x00\x01", 6));
    if (i % 1000 == 999) {
      ASSERT_TRUE(coordinator.agent_is_served()) << "after " << i + 1 << " connections";
      ASSERT_LE(coordinator.descriptors(), descriptors + kDescriptorsMore);
    }
  }
  // A new connection of the agent gets through the crowd, too.
  EXPECT_TRUE(coordinator.agent_comes());
  EXPECT_LE(coordinator.descriptors(), descriptors + kDescriptorsMore);
#if defined(__SANITIZE_ADDRESS__)
  // The sanitizer keeps freed memory on purpose.
  fmt::print("resident memory is not compared under the address sanitizer: {} bytes before\n",
             resident);
#else
  EXPECT_LE(coordinator.resident_bytes(), resident + kBytesMore);
#endif
  EXPECT_GT(coordinator.count(secure::Refusal::Crowded), kConnections / 2);
  EXPECT_TRUE(coordinator.durable() == before);
}

}  // namespace
}  // namespace regroup::test
