#include "launcher/host_options.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "launcher/host_address.hpp"

namespace regroup::launcher {
namespace {

using testing::HasSubstr;
using Plans = std::vector<membership::HostPlan>;

FleetPlan fleet(const char* list, std::optional<std::size_t> here, int ranks) {
  return make_fleet(parse_host_list(list).value(), here, ranks).value();
}

TEST(Fleet, ThisHostIsAgentZeroWhereverItStands) {
  const FleetPlan plan = fleet("a:1,me:2,b:1", 1, 4);
  EXPECT_EQ(plan.plans, (Plans{{2, true}, {1, true}, {1, true}}));
  ASSERT_EQ(plan.places.size(), 3U);
  EXPECT_EQ(plan.places[0], (HostPlace{membership::AgentId{0}, "me", 0, 3, 0, 2}));
  EXPECT_EQ(plan.places[2], (HostPlace{membership::AgentId{2}, "b", 2, 3, 3, 1}));
  EXPECT_EQ(plan.others.size(), 2U);
  EXPECT_EQ(plan.others.at(membership::AgentId{1}).name, "a");
}

TEST(Fleet, AHostThatIsNotListedRunsNothing) {
  const FleetPlan plan = fleet("a:2,b:2", std::nullopt, 3);
  EXPECT_EQ(plan.plans, (Plans{{0, false}, {2, true}, {1, true}}));
  EXPECT_EQ(plan.places[1], (HostPlace{membership::AgentId{1}, "a", 0, 2, 0, 2}));
  EXPECT_EQ(plan.places[2], (HostPlace{membership::AgentId{2}, "b", 1, 2, 2, 1}));
}

TEST(Fleet, HostsWithoutNumbersShareWhatIsLeft) {
  EXPECT_EQ(fleet("a,b,c", 0, 5).plans, (Plans{{2, true}, {2, true}, {1, true}}));
  EXPECT_EQ(fleet("a:3,b", 0, 4).plans, (Plans{{3, true}, {1, true}}));
  const auto refused = make_fleet(parse_host_list("a:1,b:2").value(), 0, 4);
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().text(), HasSubstr("4 ranks do not fit"));
}

TEST(Address, KnowsThisHost) {
  const std::vector<secure::SocketAddress> own = {
      secure::SocketAddress::parse("10.0.0.4", 0).value()};
  for (const char* name : {"localhost", "127.0.0.1", "::1", "10.0.0.4", "node7", "node7.cluster"})
    EXPECT_TRUE(is_this_host(name, "node7", own)) << name;
  EXPECT_TRUE(is_this_host("node7", "node7.cluster", own));
  for (const char* name : {"10.0.0.5", "node8", "node77"})
    EXPECT_FALSE(is_this_host(name, "node7", own)) << name;
  EXPECT_FALSE(is_this_host("node7.east", "node7.west", own));
}

TEST(Address, TheInterfaceIsANameOrAnAddress) {
  EXPECT_TRUE(listen_address("lo", "")->is_loopback());
  EXPECT_EQ(listen_address("127.0.0.1", "")->host(), "127.0.0.1");
  EXPECT_THAT(listen_address("203.0.113.9", "").error().text(), HasSubstr("E-HOST-8"));
  EXPECT_THAT(listen_address("no-such-if", "").error().text(), HasSubstr("no such interface"));
  EXPECT_TRUE(listen_address("", "127.0.0.1")->is_loopback());
  EXPECT_THAT(listen_address("", "no-such-host.invalid").error().text(), HasSubstr("--interface"));
}

}  // namespace
}  // namespace regroup::launcher
