#include "launcher/host_list.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace regroup::launcher {
namespace {

using testing::HasSubstr;

/// "user@name:slots" of each, 's' behind a spare host, "/port" behind one with an ssh port.
std::string text(const Result<std::vector<HostEntry>>& hosts) {
  if (!hosts) return std::string(hosts.error().text());
  std::string out;
  for (const HostEntry& host : *hosts) {
    out += (out.empty() ? "" : " ") + host.target();
    if (host.slots) out += ":" + std::to_string(*host.slots);
    if (host.spare) out += "s";
    if (host.ssh_port) out += "/" + std::to_string(*host.ssh_port);
  }
  return out;
}

TEST(HostList, ReadsWhatStandsOnACommandLine) {
  EXPECT_EQ(text(parse_host_list("a:2,b:2")), "a:2 b:2");
  EXPECT_EQ(text(parse_host_list("a, b ,c:16")), "a b c:16");
  EXPECT_EQ(text(parse_host_list("me@a:2,10.0.0.4:1")), "me@a:2 10.0.0.4:1");
  EXPECT_EQ(text(parse_host_list("[fd00::1]:2,fd00::2")), "fd00::1:2 fd00::2");
  EXPECT_EQ(text(parse_host_list("gnode[08-10,20]:4,b")),
            "gnode08:4 gnode09:4 gnode10:4 gnode20:4 b");
}

TEST(HostList, ReadsTheFilesOfOtherLaunchers) {
  EXPECT_EQ(text(parse_host_file("# Open MPI\na slots=8\nb slots=2 max_slots=4  # big\n")),
            "a:8 b:2");
  EXPECT_EQ(text(parse_host_file("a:8\nb:4\r\n\n")), "a:8 b:4");
  EXPECT_EQ(text(parse_host_file("me@a slots=2 ssh_port=2222\nb spare\nc:1 zone=rackA gpus=0-3")),
            "me@a:2/2222 bs c:1");
  EXPECT_EQ(text(parse_host_file("node[1-2] slots=2")), "node1:2 node2:2");
}

TEST(HostList, ReadsSlurmsForm) {
  EXPECT_EQ(text(parse_slurm("gnode[10,20-21],b1", "4(x2),3,1")),
            "gnode10:4 gnode20:4 gnode21:3 b1:1");
  EXPECT_THAT(text(parse_slurm("a,b", "4")), HasSubstr("2 hosts and the tasks of 1"));
  EXPECT_THAT(text(parse_slurm("a", "4(x")), HasSubstr("no number of tasks"));
}

TEST(HostList, EachMistakeIsNamed) {
  EXPECT_THAT(text(parse_host_list("")), HasSubstr("is no host"));
  EXPECT_THAT(text(parse_host_list("a,,b")), HasSubstr("'' is no host"));
  EXPECT_THAT(text(parse_host_list("a:x")), HasSubstr("'a:x' is no host"));
  EXPECT_THAT(text(parse_host_list("a:")), HasSubstr("'a:' is no host"));
  EXPECT_THAT(text(parse_host_list("a:99999")), HasSubstr("is no host"));
  EXPECT_THAT(text(parse_host_list("-oProxyCommand=x")), HasSubstr("is no host"));
  EXPECT_THAT(text(parse_host_list("a;rm:2")), HasSubstr("is no host"));
  EXPECT_THAT(text(parse_host_list("@a")), HasSubstr("is no host"));
  EXPECT_THAT(text(parse_host_list("[fd00::1:2")), HasSubstr("is no host"));
  EXPECT_THAT(text(parse_host_list("n[3-1]")), HasSubstr("no range"));
  EXPECT_THAT(text(parse_host_list("n[1-99999999]")), HasSubstr("no range"));
  EXPECT_THAT(text(parse_host_list("n[1]x[2]")), HasSubstr("one pair of brackets"));
  EXPECT_THAT(text(parse_host_list("a:2,b:1,a:2")), HasSubstr("host a is listed twice"));
  EXPECT_THAT(text(parse_host_file("# nothing\n")), HasSubstr("empty"));
  EXPECT_THAT(text(parse_host_file("a slots=2\nb solts=2\n")),
              testing::AllOf(HasSubstr("'solts=2' is not known"), HasSubstr("line 2")));
  EXPECT_THAT(text(parse_host_file("a\nb\na slots=1\n")),
              testing::AllOf(HasSubstr("listed twice"), HasSubstr("line 3")));
}

TEST(HostList, SeatsFillTheHostsInOrder) {
  const std::vector<HostEntry> hosts = parse_host_file("a:3\nb:2 spare\nc\n").value();
  const auto plan = plan_seats(hosts, 4, 2).value();
  EXPECT_EQ(plan, (std::vector<membership::HostPlan>{{3, true}, {0, true}, {1, true}}));
  const auto refused = plan_seats(hosts, 6, 2);
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().text(), HasSubstr("6 ranks do not fit"));
  EXPECT_THAT(refused.error().text(), HasSubstr("5 slots"));
}

}  // namespace
}  // namespace regroup::launcher
