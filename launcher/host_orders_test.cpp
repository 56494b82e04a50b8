#include "launcher/host_orders.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "launcher/host_fleet.hpp"

namespace regroup::launcher {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

HostOrders sample() {
  HostOrders out;
  out.job = "7f3a";
  out.place = {membership::AgentId{2}, "gnode10", 2, 3, 4, 2};
  out.coordinator = "fd00::1";
  out.port = 4711;
  for (std::size_t i = 0; i < out.secret.size(); ++i)
    out.secret[i] = static_cast<std::byte>(255 - i);
  out.master_address = "10.0.0.1";
  out.master_port = 29500;
  out.age_ns = 123456789012;
  out.directory = "/data/run";
  out.environment = {"PATH=/bin", "ODD=\xff\n\"", "EMPTY="};
  out.options.ranks = 6;
  out.options.ranks_min = 2;
  out.options.spares = 1;
  out.options.on_loss = OnLoss::Shrink;
  out.options.restart = true;
  out.options.log_dir = "/data/runs/7f3a";
  out.options.program = {"./train", "", "--name=\xc3\xa9"};
  return out;
}

TEST(HostOrders, EveryFieldGetsThere) {
  const Result<HostOrders> read = parse_orders(orders_line(sample()));
  ASSERT_TRUE(read) << read.error().text();
  EXPECT_EQ(*read, sample());
  EXPECT_EQ(orders_line(sample()).find('\n'), std::string::npos);
}

TEST(HostOrders, WhatIsDamagedIsRefusedByName) {
  const std::string line = orders_line(sample());
  EXPECT_THAT(parse_orders("").error().text(), HasSubstr("no JSON object"));
  EXPECT_THAT(parse_orders(line.substr(0, line.size() / 2)).error().text(), HasSubstr("E-HOST-4"));
  std::string other = line;
  other.replace(other.find("\"port\":4711"), 11, "\"port\":70000");
  EXPECT_THAT(parse_orders(other).error().text(), HasSubstr("'port'"));
  other = line;
  other.replace(other.find("\"secret\":\"fffe"), 14, "\"secret\":\"xffe");
  EXPECT_THAT(parse_orders(other).error().text(), HasSubstr("'secret'"));
  other = line;
  other.replace(other.find("\"ranks\":6"), 9, "\"ranks\":0");
  EXPECT_THAT(parse_orders(other).error().text(), HasSubstr("-n 0"));
}

TEST(HostOrders, TheGreetingIsKnownAmongNoise) {
  const AgentGreeting greeting{kHostProtocol, "0.1.0", "gnode10"};
  EXPECT_EQ(parse_greeting(greeting_line(greeting)), greeting);
  for (const char* noise :
       {"", "Hello, you have mail", "H{}", "H{\"regroup\":\"1\"}", "Last login: now"})
    EXPECT_FALSE(parse_greeting(noise)) << noise;
}

TEST(HostOrders, WordsGetThere) {
  for (const HostWord& word :
       {HostWord{}, HostWord{HostWord::Kind::End, 0, {}}, HostWord{HostWord::Kind::Forward, 10, {}},
        HostWord{HostWord::Kind::Signal, 9, Incarnation{77}}}) {
    EXPECT_EQ(parse_word(word_line(word)), word) << word_line(word);
  }
  for (const char* wrong : {"", "ends", "forward", "forward x", "forward 0", "forward 99",
                            "signal 9", "signal 9 x", "kill 1"}) {
    EXPECT_FALSE(parse_word(wrong)) << wrong;
  }
}

TEST(LineReader, PutsPiecesTogether) {
  LineReader lines(8);
  lines.feed("ab");
  EXPECT_FALSE(lines.next());
  lines.feed("c\n\nde");
  EXPECT_EQ(lines.next(), "abc");
  EXPECT_EQ(lines.next(), "");
  EXPECT_FALSE(lines.next());
  lines.feed("fghijklm\nn");
  EXPECT_EQ(lines.next(), "defghijk") << "a line that is too long comes in pieces";
  EXPECT_EQ(lines.next(), "lm");
  EXPECT_FALSE(lines.next());
  EXPECT_EQ(lines.rest(), "n");
}

TEST(Travelling, LeavesWhatIsOfThisHost) {
  EXPECT_THAT(travelling({"PATH=/bin", "SSH_TTY=/dev/pts/1", "XDG_RUNTIME_DIR=/run/user/0", "A=1"}),
              ElementsAre("PATH=/bin", "A=1"));
}

TEST(Starter, FillsInTheHost) {
  const HostEntry host{.name = "b", .user = "me", .slots = {}, .spare = false, .ssh_port = 2222};
  EXPECT_THAT(starter_words({{"ip", "netns", "exec", "{host}"}, "/opt/regroup"}, host),
              ElementsAre("ip", "netns", "exec", "b", "/opt/regroup", "agent", "--stdio"));
  EXPECT_THAT(starter_words({{"x", "{user}/{target}"}, "r"}, host),
              ElementsAre("x", "me/me@b", "r", "agent", "--stdio"));
  const std::vector<std::string> ssh = starter_words({{}, "/opt/my regroup"}, host);
  EXPECT_EQ(ssh.front(), "ssh");
  EXPECT_EQ(ssh[ssh.size() - 2], "me@b");
  EXPECT_EQ(ssh.back(), "'/opt/my regroup' agent --stdio");
  EXPECT_THAT(ssh, testing::Contains("2222"));
}

TEST(Starter, WordsAreSplitAtBlanksOutsideOfQuotes) {
  EXPECT_THAT(split_words("ip netns  exec {host}").value(),
              ElementsAre("ip", "netns", "exec", "{host}"));
  EXPECT_THAT(split_words("sh -c 'exec \"$@\"' x").value(),
              ElementsAre("sh", "-c", "exec \"$@\"", "x"));
  EXPECT_FALSE(split_words("  "));
  EXPECT_FALSE(split_words("sh 'x"));
}

}  // namespace
}  // namespace regroup::launcher
