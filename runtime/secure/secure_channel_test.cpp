#include "secure/secure_channel.hpp"

#include <gtest/gtest.h>
#include <poll.h>

#include <optional>

#include "secure/listener.hpp"

namespace regroup::secure {
namespace {

using membership::AgentId;
using namespace std::chrono_literals;

/// An agent's end and a coordinator's port in one thread.
class Meeting {
 public:
  explicit Meeting(std::uint32_t agents = 1)
      : secret_(JobSecret::make().value()),
        counters_(RefusalCounters::make().value()),
        port_(ListeningPort::make().value()),
        address_(port_.address),
        listener_(Listener::make(std::move(port_.fd),
                                 TlsContext::make(Role::Coordinator, secret_, "job").value(),
                                 counters_, {.agents = agents})
                      .value()) {}

  /// The coordinator's end once it is there; none when the agent's end failed first.
  std::optional<SecureChannel> meet(SecureChannel& agent) {
    const TimePoint until = Clock::now() + 10s;
    std::optional<SecureChannel> admitted;
    while (Clock::now() < until) {
      pollfd ready[2] = {
          {listener_.fd(), POLLIN, 0},
          {agent.fd(), static_cast<short>(agent.wants_write() ? POLLIN | POLLOUT : POLLIN), 0}};
      (void)::poll(ready, 2, 100);
      for (SecureChannel& one : listener_.turn()) admitted.emplace(std::move(one));
      status = agent.progress();
      if (!status) return std::nullopt;
      if (agent.established() && admitted) return admitted;
    }
    ADD_FAILURE() << "nothing happened for ten seconds";
    return std::nullopt;
  }
  std::optional<SecureChannel> meet(const JobSecret& secret, const std::string& job, AgentId id) {
    const TlsContext context = TlsContext::make(Role::Agent, secret, job).value();
    SecureChannel agent = SecureChannel::connect(context, address_, id).value();
    return meet(agent);
  }

  [[nodiscard]] std::uint64_t refused(Refusal cause) const {
    return counters_.read().at(static_cast<std::size_t>(cause));
  }
  [[nodiscard]] const JobSecret& secret() const { return secret_; }
  [[nodiscard]] const SocketAddress& address() const { return address_; }

  Status status;

 private:
  JobSecret secret_;
  RefusalCounters counters_;
  ListeningPort port_;
  SocketAddress address_ = SocketAddress::loopback();
  Listener listener_;
};

/// Moves bytes both ways until `to` has a message.
std::optional<control::Bytes> carry(SecureChannel& from, SecureChannel& to) {
  const TimePoint until = Clock::now() + 10s;
  while (Clock::now() < until) {
    if (std::optional<control::Bytes> message = to.next()) return message;
    EXPECT_TRUE(from.progress());
    EXPECT_TRUE(to.progress());
  }
  ADD_FAILURE() << "no message in ten seconds";
  return std::nullopt;
}

TEST(SecureChannel, CarriesMessagesOfAllSizesBothWays) {
  Meeting meeting(4);
  const TlsContext context = TlsContext::make(Role::Agent, meeting.secret(), "job").value();
  SecureChannel agent = SecureChannel::connect(context, meeting.address(), AgentId{3}).value();
  std::optional<SecureChannel> coordinator = meeting.meet(agent);
  ASSERT_TRUE(coordinator) << meeting.status.to_string();
  EXPECT_EQ(coordinator->agent(), AgentId{3});
  for (const std::size_t size : {std::size_t{1}, std::size_t{20'000}, control::kMessageBytesMax}) {
    const control::Bytes message(size, std::byte{42});
    ASSERT_TRUE(agent.send(message));
    EXPECT_EQ(carry(agent, *coordinator), message);
    ASSERT_TRUE(coordinator->send(message));
    EXPECT_EQ(carry(*coordinator, agent), message);
  }
  agent.close();
  Status ended;
  while (ended) ended = coordinator->progress();
  EXPECT_EQ(ended.code(), Code::Cancelled);
  EXPECT_FALSE(coordinator->refusal()) << "an orderly end is nobody's fault";
}

TEST(SecureChannel, QueuesUpToItsLimitAndRefusesBeyondIt) {
  Meeting meeting;
  const TlsContext context = TlsContext::make(Role::Agent, meeting.secret(), "job").value();
  SecureChannel agent = SecureChannel::connect(context, meeting.address(), AgentId{0}).value();
  std::optional<SecureChannel> coordinator = meeting.meet(agent);
  ASSERT_TRUE(coordinator);
  const control::Bytes message(control::kMessageBytesMax, std::byte{7});
  int sent = 0;
  Status status;
  for (; status && sent < 100; ++sent) status = agent.send(message);
  EXPECT_EQ(status.code(), Code::ResourceExhausted);
  for (int i = 0; i + 1 < sent; ++i) EXPECT_EQ(carry(agent, *coordinator), message);
  EXPECT_TRUE(agent.send(message)) << "there is room again";
  EXPECT_EQ(agent.send(control::Bytes(control::kMessageBytesMax + 1)).code(),
            Code::ResourceExhausted);
}

TEST(SecureChannel, OnlyTheSecretOfThisJobOpensThePort) {
  Meeting meeting;
  const JobSecret other = JobSecret::make().value();
  EXPECT_FALSE(meeting.meet(other, "job", AgentId{0}));
  EXPECT_EQ(meeting.refused(Refusal::WrongKey), 1u);
  EXPECT_FALSE(meeting.meet(meeting.secret(), "another", AgentId{0}));
  EXPECT_EQ(meeting.refused(Refusal::NoKey), 1u);
  EXPECT_FALSE(meeting.meet(meeting.secret(), "job", AgentId{1}));
  EXPECT_EQ(meeting.refused(Refusal::UnknownAgent), 1u);
  EXPECT_TRUE(meeting.meet(meeting.secret(), "job", AgentId{0}));
}

TEST(Identity, ReadsOnlyWhatItWrites) {
  const Identity one{1, "7f3a", AgentId{12}};
  const std::optional<Identity> back = Identity::parse(one.text());
  ASSERT_TRUE(back);
  EXPECT_EQ(back->job, "7f3a");
  EXPECT_EQ(back->agent, AgentId{12});
  for (const char* text : {"", "regroup", "regroup/1//agent/0", "regroup/1/j/agent/", "regroup/x/j",
                           "regroup/1/j/agent/0 ", "regroup/1/j/agent/-1",
                           "regroup/99999999999/j/agent/0", "regroup/1/j/agent/99999999999"}) {
    EXPECT_FALSE(Identity::parse(text)) << text;
  }
  EXPECT_FALSE(Identity::parse("regroup/1/" + std::string(200, 'j') + "/agent/0"));
}

TEST(Hello, IsOneRecordWithOneMessageOfPlausibleSize) {
  const auto look = [](std::vector<int> bytes) {
    control::Bytes out;
    for (const int byte : bytes) out.push_back(static_cast<std::byte>(byte));
    return look_at_hello(out);
  };
  EXPECT_EQ(look({}), HelloState::Incomplete);
  EXPECT_EQ(look({'G'}), HelloState::NotTls);
  EXPECT_EQ(look({0x16, 3, 1}), HelloState::Incomplete);
  EXPECT_EQ(look({0x16, 3, 1, 0, 6, 1, 0, 0, 2, 9}), HelloState::Incomplete);
  EXPECT_EQ(look({0x16, 3, 1, 0, 6, 1, 0, 0, 2, 9, 9}), HelloState::Whole);
  EXPECT_EQ(look({0x16, 3, 1, 0xff, 0xff, 1}), HelloState::Oversized);
  EXPECT_EQ(look({0x16, 3, 1, 0, 6, 1, 0xff, 0xff, 0xff}), HelloState::Oversized);
  EXPECT_EQ(look({0x16, 3, 1, 0, 6, 1, 0, 0, 9}), HelloState::NotTls);
  EXPECT_EQ(look({0x16, 3, 1, 0, 6, 2}), HelloState::NotTls);
}

TEST(Hello, ARefusalHasOneNameHoweverTheBytesArrive) {
  const control::Bytes begins = {std::byte{0x16}, std::byte{3}, std::byte{1}};
  for (const int length : {0, 3, 4, 6, 0x3fb, 0x3fc, 0xffff}) {
    for (const int type : {0, 1, 2}) {
      control::Bytes all = begins;
      for (const int byte : {length >> 8, length & 0xff, type, 0xff, 0xff, 0xff, 0})
        all.push_back(static_cast<std::byte>(byte));
      HelloState before = HelloState::Incomplete;
      for (std::size_t n = 0; n <= all.size(); ++n) {
        const HelloState now = look_at_hello(std::span(all).first(n));
        if (before != HelloState::Incomplete) {
          EXPECT_EQ(now, before) << length << " " << type << " " << n;
        }
        before = now;
      }
      EXPECT_NE(before, HelloState::Whole);
    }
  }
}

}  // namespace
}  // namespace regroup::secure
