#include "launcher/relay.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <optional>

#include <string>

namespace regroup::launcher {
namespace {

using testing::HasSubstr;
using namespace std::chrono_literals;

/// A relay and the other end of its pipe.
class RelayTest : public testing::Test {
 protected:
  RelayTest() : loop_(EventLoop::create().value()) {
    int fds[2];
    EXPECT_EQ(::pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
    read_.reset(fds[0]);
    relay_.emplace(loop_, base::Fd(fds[1]));
  }
  std::string read() {
    std::string out(1 << 20, '\0');
    const ssize_t got = ::read(read_.get(), out.data(), out.size());
    out.resize(got > 0 ? static_cast<std::size_t>(got) : 0);
    return out;
  }

  EventLoop loop_;
  base::Fd read_;
  std::optional<Relay> relay_;
};

TEST_F(RelayTest, EachLineHasItsLetter) {
  relay_->say(LineKind::Output, "0: a\n0: b\n");
  relay_->say(LineKind::Text, "no end");
  relay_->say(LineKind::Alive, "\n");
  EXPECT_EQ(read(), "O0: a\nO0: b\nAno end\nB\n");
}

TEST_F(RelayTest, NobodyWaitsForAPipeThatIsFullAndWhatIsLostIsCounted) {
  const std::string line(1000, 'x');
  for (int i = 0; i < 5000; ++i) relay_->say(LineKind::Output, line);
  EXPECT_GT(relay_->dropped(), 3000U);
  relay_->say(LineKind::Text, "a loss");  // there is room for what matters
  const std::uint64_t dropped = relay_->dropped();
  std::string all;
  const TimePoint until = Clock::now() + 20s;
  while (all.find("did not get through") == std::string::npos && Clock::now() < until) {
    all += read();
    loop_.turn(Clock::now());
  }
  EXPECT_THAT(all, HasSubstr("Aa loss\n"));
  EXPECT_THAT(all, HasSubstr("regroup: " + std::to_string(dropped) + " lines"));
  relay_->say(LineKind::Output, "again");
  EXPECT_THAT(read(), HasSubstr("Oagain\n"));
}

TEST_F(RelayTest, AReaderThatIsGoneCostsNothing) {
  read_.reset();
  ::signal(SIGPIPE, SIG_IGN);
  for (int i = 0; i < 3; ++i) relay_->say(LineKind::Output, "nobody");
  relay_->finish(Clock::now() + 1s);
}

TEST_F(RelayTest, TheEndWritesWhatWaits) {
  const std::string line(1000, 'x');
  for (int i = 0; i < 100; ++i) relay_->say(LineKind::Output, line);
  std::size_t got = read().size();
  while (got < 100 * 1002) {
    relay_->finish(Clock::now() + 10ms);
    const std::string more = read();
    ASSERT_FALSE(more.empty());
    got += more.size();
  }
  EXPECT_EQ(got, 100U * 1002U);
}

}  // namespace
}  // namespace regroup::launcher
