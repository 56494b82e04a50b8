/// Everything a stranger can do to the coordinator's port, and what an agent gone wrong can do.
/// Each is refused, counted by its cause, and changes nothing.
#include <gtest/gtest.h>
#include <openssl/ssl.h>

#include <cstring>

#include "control/codec.hpp"
#include "tests/security/coordinator.hpp"

namespace regroup::test {
namespace {

using secure::Refusal;
using namespace std::chrono_literals;

/// Compares before and after: the job's state on disk, and that its agent is served.
class Attacks : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(coordinator_.agent_comes());
    // One event after the other: who is heard the second time knows that the first hello is done
    // with, records on disk included.
    ASSERT_TRUE(coordinator_.agent_comes());
    before_ = coordinator_.durable();
    ASSERT_FALSE(before_.empty());
  }
  void TearDown() override {
    EXPECT_TRUE(coordinator_.agent_is_served()) << "the connection of the agent must not suffer";
    EXPECT_TRUE(coordinator_.durable() == before_) << "nothing of it may change the state";
  }
  /// As SetUp's connection is the agent's only one, whoever has the secret takes its place.
  void agent_returns() { ASSERT_TRUE(coordinator_.agent_comes()); }

  Coordinator coordinator_;
  std::string before_;
};

/// A client of plain OpenSSL that names this identity with this key; none: no key at all.
struct PlainClient {
  std::string identity;
  const secure::JobSecret* secret = nullptr;
  int max_version = TLS1_3_VERSION;

  static int use_key(SSL* ssl, const EVP_MD*, const unsigned char** id, std::size_t* bytes,
                     SSL_SESSION** used) {
    const auto& self = *static_cast<PlainClient*>(SSL_get_app_data(ssl));
    *used = nullptr;
    if (self.secret == nullptr) return 1;
    constexpr unsigned char kSuite[] = {0x13, 0x02};
    *used = SSL_SESSION_new();
    const auto key = self.secret->bytes();
    SSL_SESSION_set_cipher(*used, SSL_CIPHER_find(ssl, kSuite));
    SSL_SESSION_set_protocol_version(*used, TLS1_3_VERSION);
    SSL_SESSION_set1_master_key(*used, reinterpret_cast<const unsigned char*>(key.data()),
                                key.size());
    *id = reinterpret_cast<const unsigned char*>(self.identity.data());
    *bytes = self.identity.size();
    return 1;
  }

  /// Whether the handshake came to its end.
  bool connect(const Stranger& line) {
    const std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context(
        SSL_CTX_new(TLS_client_method()), SSL_CTX_free);
    SSL_CTX_set_max_proto_version(context.get(), max_version);
    SSL_CTX_set_psk_use_session_callback(context.get(), use_key);
    const std::unique_ptr<SSL, decltype(&SSL_free)> ssl(SSL_new(context.get()), SSL_free);
    SSL_set_app_data(ssl.get(), this);
    SSL_set_fd(ssl.get(), line.fd());
    char byte = 0;
    return SSL_connect(ssl.get()) == 1 && SSL_read(ssl.get(), &byte, 1) > 0;
  }
};

TEST_F(Attacks, NoKey) {
  PlainClient client;
  EXPECT_FALSE(client.connect(Stranger(coordinator_.port())));
  EXPECT_TRUE(coordinator_.refused(Refusal::NoKey, 1));
  client.max_version = TLS1_2_VERSION;
  EXPECT_FALSE(client.connect(Stranger(coordinator_.port())));
  EXPECT_TRUE(coordinator_.refused(Refusal::NoKey, 2));
}

TEST_F(Attacks, WrongKey) {
  const secure::JobSecret other = secure::JobSecret::make().value();
  Speaker speaker(coordinator_.port(), other, "attacked");
  EXPECT_FALSE(speaker.handshake());
  EXPECT_TRUE(coordinator_.refused(Refusal::WrongKey, 1));
}

TEST_F(Attacks, KeyOfAnotherJob) {
  Speaker speaker(coordinator_.port(), coordinator_.secret(), "another");
  EXPECT_FALSE(speaker.handshake());
  EXPECT_TRUE(coordinator_.refused(Refusal::NoKey, 1));
}

TEST_F(Attacks, AnotherVersionOfTheHandshake) {
  PlainClient client{"regroup/2/attacked/agent/0", &coordinator_.secret()};
  EXPECT_FALSE(client.connect(Stranger(coordinator_.port())));
  EXPECT_TRUE(coordinator_.refused(Refusal::Version, 1));
}

TEST_F(Attacks, AnAgentThatDoesNotExist) {
  PlainClient client{"regroup/1/attacked/agent/7", &coordinator_.secret()};
  EXPECT_FALSE(client.connect(Stranger(coordinator_.port())));
  EXPECT_TRUE(coordinator_.refused(Refusal::UnknownAgent, 1));
}

TEST_F(Attacks, AWholeConversationReplayed) {
  control::Bytes recorded;
  {
    Speaker speaker(coordinator_.port(), coordinator_.secret(), "attacked");
    ASSERT_TRUE(speaker.handshake());
    recorded = speaker.sent;
  }
  agent_returns();
  const Stranger thief(coordinator_.port());
  thief.say(recorded);
  EXPECT_TRUE(thief.was_cut_off());
  EXPECT_TRUE(coordinator_.refused(Refusal::WrongKey, 1));
}

TEST_F(Attacks, AReplayedRecord) {
  Speaker speaker(coordinator_.port(), coordinator_.secret(), "attacked");
  ASSERT_TRUE(speaker.handshake());
  const control::Bytes hello = *control::encode(membership::AgentMessage(membership::AgentHello{}));
  control::Bytes frame;
  secure::append_frame(frame, hello);
  const control::Bytes record = speaker.record(frame);
  speaker.line.say(record);
  speaker.line.say(record);
  EXPECT_TRUE(speaker.line.was_cut_off());
  EXPECT_TRUE(coordinator_.refused(Refusal::BadRecord, 1));
  agent_returns();
}

TEST_F(Attacks, AnAlteredRecord) {
  Speaker speaker(coordinator_.port(), coordinator_.secret(), "attacked");
  ASSERT_TRUE(speaker.handshake());
  control::Bytes record = speaker.record(std::as_bytes(std::span("some frame")));
  record.back() ^= std::byte{1};
  speaker.line.say(record);
  EXPECT_TRUE(speaker.line.was_cut_off());
  EXPECT_TRUE(coordinator_.refused(Refusal::BadRecord, 1));
  agent_returns();
}

TEST_F(Attacks, ATruncatedStream) {
  Speaker speaker(coordinator_.port(), coordinator_.secret(), "attacked");
  ASSERT_TRUE(speaker.handshake());
  control::Bytes record = speaker.record(std::as_bytes(std::span("some frame")));
  record.resize(record.size() / 2);
  speaker.line.say(record);
  speaker.line.leave();
  EXPECT_TRUE(coordinator_.refused(Refusal::Truncated, 1));
  agent_returns();
}

TEST_F(Attacks, LengthsBeyondAnyLimitBeforeTheProof) {
  const Stranger one(coordinator_.port());
  one.say("\x16\x03\x01\xff\xff\x01");
  EXPECT_TRUE(one.was_cut_off());
  EXPECT_TRUE(coordinator_.refused(Refusal::Oversized, 1));
  const Stranger other(coordinator_.port());
  other.say(std::string_view("\x16\x03\x01\x00\x10\x01\xff\xff\xff", 9));
  EXPECT_TRUE(other.was_cut_off());
  EXPECT_TRUE(coordinator_.refused(Refusal::Oversized, 2));
}

TEST_F(Attacks, AnEndlessHandshake) {
  control::Bytes hello;
  {
    Speaker speaker(coordinator_.port(), coordinator_.secret(), "attacked");
    ASSERT_TRUE(speaker.handshake());
    hello = speaker.sent;
  }
  agent_returns();
  hello.resize(
      5 + (std::to_integer<std::size_t>(hello[3]) << 8 | std::to_integer<std::size_t>(hello[4])));
  const Stranger one(coordinator_.port());
  one.say(hello);
  // Records that TLS 1.3 tells every end to pass over. At most kHandshakeBytesMax of them are read.
  std::string padding;
  for (int i = 0; i < 2000; ++i) padding += std::string("\x14\x03\x03\x00\x01\x01", 6);
  one.say(padding);
  EXPECT_TRUE(one.was_cut_off());
  EXPECT_EQ(coordinator_.count(Refusal::Oversized) + coordinator_.count(Refusal::WrongKey), 1u);
}

TEST_F(Attacks, AnAuthenticFrameBeyondTheLimit) {
  Speaker speaker(coordinator_.port(), coordinator_.secret(), "attacked");
  ASSERT_TRUE(speaker.handshake());
  const std::size_t resident = coordinator_.resident_bytes();
  const control::Bytes length(4, std::byte{0xff});
  speaker.line.say(speaker.record(length));
  EXPECT_TRUE(speaker.line.was_cut_off());
  EXPECT_TRUE(coordinator_.refused(Refusal::Oversized, 1));
  EXPECT_LT(coordinator_.resident_bytes(), resident + (std::size_t{1} << 20));
  agent_returns();
}

TEST_F(Attacks, AuthenticMessagesOfAnotherVersionAndOfNone) {
  control::Bytes message = *control::encode(membership::AgentMessage(membership::AgentHello{}));
  bool altered = false;
  for (std::size_t at = 0; at + 4 <= message.size() && !altered; ++at) {
    std::uint32_t word = 0;
    std::memcpy(&word, message.data() + at, sizeof word);
    if (word != control::kProtocolVersion) continue;
    control::Bytes other = message;
    word += 1;
    std::memcpy(other.data() + at, &word, sizeof word);
    const auto read = control::decode<membership::AgentMessage>(other);
    altered = !read && read.error().code() == Code::Unsupported;
    if (altered) message = other;
  }
  ASSERT_TRUE(altered) << "no place in the message says the version";
  const auto send = [&](std::span<const std::byte> bytes) {
    Speaker speaker(coordinator_.port(), coordinator_.secret(), "attacked");
    ASSERT_TRUE(speaker.handshake());
    control::Bytes frame;
    secure::append_frame(frame, bytes);
    speaker.line.say(speaker.record(frame));
    EXPECT_TRUE(speaker.line.was_cut_off());
  };
  send(message);
  EXPECT_TRUE(coordinator_.refused(Refusal::Version, 1));
  send(std::as_bytes(std::span("no message at all")));
  EXPECT_TRUE(coordinator_.refused(Refusal::BadMessage, 1));
  agent_returns();
}

TEST_F(Attacks, APortScanner) {
  for (int i = 0; i < 50; ++i) Stranger(coordinator_.port()).leave();
  EXPECT_TRUE(coordinator_.refused(Refusal::Left, 50));
  const std::vector<std::string> probes = {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "\n\n",
                                           "SSH-2.0-x\r\n", std::string(4000, '\0'),
                                           std::string("\x80\x04", 2)};
  for (const std::string& probe : probes) {
    const Stranger one(coordinator_.port());
    one.say(probe);
    EXPECT_TRUE(one.was_cut_off());
  }
  EXPECT_TRUE(coordinator_.refused(Refusal::NotTls, probes.size()));
}

TEST_F(Attacks, SilenceIsCutOff) {
  const Stranger quiet(coordinator_.port());
  const Stranger slow(coordinator_.port());
  slow.say("\x16\x03");
  EXPECT_TRUE(quiet.was_cut_off());
  EXPECT_TRUE(slow.was_cut_off());
  EXPECT_TRUE(coordinator_.refused(Refusal::Slow, 2));
}

}  // namespace
}  // namespace regroup::test
