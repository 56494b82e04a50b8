#include "control/channel.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <thread>

namespace regroup::control {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

TimePoint soon() { return Clock::now() + 20s; }

Bytes pattern(std::size_t bytes, std::size_t seed) {
  Bytes made(bytes);
  for (std::size_t i = 0; i < bytes; ++i)
    made[i] = static_cast<std::byte>((i * 131 + seed * 17) >> 3);
  return made;
}

base::Fd memory(char content) {
  base::Fd fd(::memfd_create("test", MFD_CLOEXEC));
  EXPECT_EQ(::write(fd.get(), &content, 1), 1);
  return fd;
}
char content(const base::Fd& fd) {
  char read = 0;
  EXPECT_EQ(::pread(fd.get(), &read, 1, 0), 1);
  return read;
}

class ChannelTest : public testing::Test {
 protected:
  std::pair<Channel, Channel> both_ = Channel::pair().value();
  Channel& near_ = both_.first;
  Channel& far_ = both_.second;
};

TEST_F(ChannelTest, MessagesArriveInOrderWithTheirDescriptors) {
  const base::Fd a = memory('a');
  const base::Fd b = memory('b');
  ASSERT_TRUE(near_.send(pattern(10, 1), std::array{a.get(), b.get()}));
  ASSERT_TRUE(near_.send(pattern(20, 2)));
  const Packet first = far_.recv(soon()).value();
  EXPECT_EQ(first.bytes, pattern(10, 1));
  ASSERT_EQ(first.fds.size(), 2U);
  EXPECT_EQ(content(first.fds[0]), 'a');
  EXPECT_EQ(content(first.fds[1]), 'b');
  for (const base::Fd& fd : first.fds) EXPECT_NE(::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC, 0);
  const Packet second = far_.recv(soon()).value();
  EXPECT_EQ(second.bytes, pattern(20, 2));
  EXPECT_TRUE(second.fds.empty());
  EXPECT_FALSE(far_.try_recv().value().has_value());
}

TEST_F(ChannelTest, TypedMessages) {
  ASSERT_TRUE(near_.send(Hello{.pid = 4, .build = "test"}));
  ASSERT_TRUE(far_.send(Stop{.exit_code = 3, .reason = "end"}));
  EXPECT_EQ(far_.recv_as<RankMessage>(soon()).value().message,
            RankMessage(Hello{.pid = 4, .build = "test"}));
  EXPECT_EQ(near_.try_recv_as<AgentToRank>().value()->message,
            AgentToRank(Stop{.exit_code = 3, .reason = "end"}));
  EXPECT_FALSE(near_.try_recv_as<AgentToRank>().value().has_value());
  ASSERT_TRUE(near_.send(membership::Note{"a", "b"}));
  EXPECT_EQ(far_.recv_as<RankMessage>(soon()).error().code(), Code::InvalidArgument);
}

TEST_F(ChannelTest, LargeMessagesOfEverySizeArriveWhole) {
  const std::size_t frame = Channel::kFrameBytesMax;
  const std::array sizes{std::size_t{1}, frame - 1, frame, frame + 1, 3 * frame, kMessageBytesMax};
  const base::Fd descriptor = memory('x');
  std::thread sender([&] {
    for (const std::size_t size : sizes) {
      EXPECT_TRUE(near_.send(pattern(size, size), std::array{descriptor.get()}));
    }
    EXPECT_TRUE(near_.flush(soon()));
  });
  for (const std::size_t size : sizes) {
    const Packet packet = far_.recv(soon()).value();
    EXPECT_EQ(packet.bytes, pattern(size, size)) << size;
    ASSERT_EQ(packet.fds.size(), 1U);
    EXPECT_EQ(content(packet.fds[0]), 'x');
  }
  sender.join();
}

TEST_F(ChannelTest, ReaderThatDoesNotReadMeansBackPressure) {
  base::Fd descriptor = memory('q');
  std::size_t sent = 0;
  Status status;
  while ((status = near_.send(pattern(100'000, sent), std::array{descriptor.get()}))) ++sent;
  EXPECT_EQ(status.code(), Code::ResourceExhausted);
  EXPECT_THAT(std::string(status.text()), HasSubstr("does not read"));
  EXPECT_TRUE(near_.wants_write());
  EXPECT_EQ(near_.flush(Clock::now() + 1ms).code(), Code::DeadlineExceeded);
  descriptor.reset();  // queued messages hold descriptors of their own
  std::thread reader([&] {
    for (std::size_t i = 0; i < sent; ++i) {
      const Packet packet = far_.recv(soon()).value();
      ASSERT_EQ(packet.bytes, pattern(100'000, i)) << i;
      ASSERT_EQ(content(packet.fds.at(0)), 'q');
    }
  });
  EXPECT_TRUE(near_.flush(soon()));
  reader.join();
  EXPECT_FALSE(near_.wants_write());
  EXPECT_FALSE(far_.try_recv().value().has_value());
}

TEST_F(ChannelTest, LimitsAreRefusedBeforeAnythingIsSent) {
  EXPECT_EQ(near_.send(Bytes(kMessageBytesMax + 1)).code(), Code::ResourceExhausted);
  EXPECT_EQ(near_.send(Bytes()).code(), Code::InvalidArgument);
  const base::Fd one = memory('1');
  const std::vector<int> many(Channel::kDescriptorsMax, one.get());
  const std::vector<int> too_many(Channel::kDescriptorsMax + 1, one.get());
  EXPECT_EQ(near_.send(Bytes(1), too_many).code(), Code::ResourceExhausted);
  ASSERT_TRUE(near_.send(pattern(5, 5), many));
  EXPECT_EQ(far_.recv(soon()).value().fds.size(), Channel::kDescriptorsMax);
  EXPECT_EQ(near_.send(Bytes(1), std::array{1 << 20}).code(), Code::InvalidArgument);
}

TEST_F(ChannelTest, DeathOfTheOtherSideIsCancelled) {
  ASSERT_TRUE(near_.send(pattern(3, 3)));
  { const Channel gone = std::move(near_); }
  EXPECT_EQ(far_.recv(soon()).value().bytes, pattern(3, 3));  // what it said last still arrives
  EXPECT_EQ(far_.recv(soon()).error().code(), Code::Cancelled);
  EXPECT_EQ(far_.send(Bytes(1)).code(), Code::Cancelled);
}

TEST_F(ChannelTest, DeadlinesHold) {
  EXPECT_EQ(far_.recv(Clock::now() + 2ms).error().code(), Code::DeadlineExceeded);
  ASSERT_TRUE(near_.send(pattern(3, 3)));
  EXPECT_TRUE(far_.recv(Clock::now() - 1s));  // what is there is taken even then
}

// In a child, as the limit is the process's: descriptors beyond it are an error that says so, not a
// short message.
TEST_F(ChannelTest, DescriptorLimitSaysWhatToDo) {
#if defined(__SANITIZE_ADDRESS__)
  // Its check of virtual tables opens a pipe to probe an address, and reports an error when it
  // cannot.
  GTEST_SKIP() << "the sanitizer itself needs the descriptors that this test takes away";
#endif
  const base::Fd one = memory('1');
  ASSERT_TRUE(near_.send(pattern(5, 5), std::vector<int>(8, one.get())));
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit limit{static_cast<rlim_t>(one.get()) + 4, static_cast<rlim_t>(one.get()) + 4};
    ::setrlimit(RLIMIT_NOFILE, &limit);
    const Result<Packet> packet = far_.recv(soon());
    const bool named =
        !packet && packet.error().code() == Code::ResourceExhausted &&
        packet.error().text().find("descriptor limit reached") != std::string_view::npos;
    const base::Fd still_free(::dup(one.get()));  // those that did arrive were closed again
    ::_exit(named && still_free ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

TEST_F(ChannelTest, BytesThatAreNotOursAreRefused) {
  const Bytes noise = pattern(100, 1);
  for (const std::size_t size : {std::size_t{1}, std::size_t{16}, std::size_t{100}}) {
    auto [raw, reader] = Channel::pair().value();
    ASSERT_EQ(::send(raw.fd(), noise.data(), size, 0), static_cast<ssize_t>(size));
    EXPECT_EQ(reader.recv(soon()).error().code(), Code::InvalidArgument) << size;
  }
}

// A frame that claims more than a message may hold, or continues nothing, must not make the reader
// allocate or wait.
TEST_F(ChannelTest, ForgedFramesAreRefused) {
  const std::array<std::array<std::uint32_t, 5>, 5> forged{{
      {0x31464752, kMessageBytesMax + 1, 0, 0, 7},  // too large
      {0x31464752, 4, 8, 0, 7},                     // continues nothing
      {0x31464752, 2, 0, 0, 7},                     // holds more than it says
      {0x31464752, 4, 0, 1, 7},                     // its descriptor is missing
      {0x31464752, 0, 0, 0, 7},                     // nothing
  }};
  for (const auto& frame : forged) {
    auto [raw, reader] = Channel::pair().value();
    ASSERT_EQ(::send(raw.fd(), frame.data(), sizeof(frame), 0),
              static_cast<ssize_t>(sizeof(frame)));
    EXPECT_EQ(reader.recv(soon()).error().code(), Code::InvalidArgument);
  }
}

TEST_F(ChannelTest, InheritedEndWorks) {
  Channel adopted(far_.release());
  ASSERT_TRUE(near_.send(Detach{}));
  EXPECT_EQ(adopted.recv_as<RankMessage>(soon()).value().message, RankMessage(Detach{}));
}

}  // namespace
}  // namespace regroup::control
