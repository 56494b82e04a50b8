#include "tests/support/terminal.hpp"

#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>

#include <regroup/types.hpp>

namespace regroup::test {
namespace {

constexpr std::chrono::seconds kPatience{40};

}  // namespace

Terminal::Terminal() {
  int fd = -1;
  shell_ = ::forkpty(&fd, nullptr, nullptr, nullptr);
  EXPECT_GE(shell_, 0);
  if (shell_ == 0) {
    ::setenv("PS1", "ready> ", 1);
    ::unsetenv("ENV");
    ::execl("/bin/sh", "sh", "-i", static_cast<char*>(nullptr));
    ::_exit(127);
  }
  fd_.reset(fd);
}

Terminal::~Terminal() {
  fd_.reset();
  ::kill(shell_, SIGHUP);
  ::kill(shell_, SIGCONT);
  ::kill(shell_, SIGKILL);
  while (::waitpid(shell_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

void Terminal::type(const std::string& text) {
  EXPECT_EQ(::write(fd_.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
}

bool Terminal::wait_for(const std::string& text) {
  const TimePoint until = Clock::now() + kPatience;
  while (true) {
    const std::size_t at = screen_.find(text, found_);
    if (at != std::string::npos) {
      found_ = at + text.size();
      return true;
    }
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
    pollfd ready{fd_.get(), POLLIN, 0};
    if (left <= 0 || ::poll(&ready, 1, static_cast<int>(left)) <= 0) return false;
    char buffer[4096];
    const ssize_t got = ::read(fd_.get(), buffer, sizeof buffer);
    if (got <= 0) return false;
    screen_.append(buffer, static_cast<std::size_t>(got));
  }
}

}  // namespace regroup::test
