/// What another user of the same machine can do to a running job: nothing. Needs root, to become
/// somebody else.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "launcher/control_address.hpp"
#include "tests/support/job.hpp"

namespace regroup::test {
namespace {

using nlohmann::json;

constexpr uid_t kNobody = 65534;
constexpr int kNumbersTried = 64;
constexpr std::chrono::seconds kPatience{40};

/// Runs `what` as nobody in a process of its own. Returns its answer, or -1.
int as_nobody(const std::function<int()>& what) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    if (::setgid(kNobody) != 0 || ::setuid(kNobody) != 0) ::_exit(99);
    ::_exit(what());
  }
  int status = -1;
  (void)::waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/// How many of a process's descriptors can be got hold of, in either way that Linux has.
int descriptors_taken(pid_t pid) {
  int taken = 0;
  const int pidfd = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
  for (int number = 0; number < kNumbersTried; ++number) {
    const std::string path = "/proc/" + std::to_string(pid) + "/fd/" + std::to_string(number);
    if (::open(path.c_str(), O_RDWR | O_CLOEXEC) >= 0) taken += 1;
    if (::syscall(SYS_pidfd_getfd, pidfd, number, 0) >= 0) taken += 1;
  }
  return taken;
}

class OtherUser : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::getuid() != 0) GTEST_SKIP() << "only root can become another user";
    job_.emplace(std::vector<std::string>{"run", "-n", "2", "--control=tcp", "--log-dir",
                                          (dir_.path() / "logs").string(), "--", COUNTING_RANK,
                                          (dir_.path() / "stop").string()});
    ASSERT_TRUE(job_->wait_for("job "));
  }
  json status() {
    const Ended asked = run({"status", job_->id(), "--json"});
    return json::parse(asked.out, nullptr, false);
  }
  json status_when(const std::function<bool(const json&)>& good) {
    const TimePoint until = Clock::now() + kPatience;
    json last = status();
    while (Clock::now() < until && !(last.is_object() && good(last))) {
      (void)::poll(nullptr, 0, 20);
      last = status();
    }
    return last;
  }

  TempDir dir_;
  std::optional<Job> job_;
};

TEST_F(OtherUser, GetsNoAnswerAtTheStatusSocketAndIsCounted) {
  const auto address = launcher::control_address({.uid = 0, .job = job_->id()}).value();
  status_when([](const json& s) { return s["state"] == "steady"; });
  const int answer = as_nobody([&] {
    const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
    if (::connect(fd, address.get(), address.bytes) != 0) return 1;
    const std::string_view request = "{\"v\":1,\"do\":\"status\"}\n";
    (void)::send(fd, request.data(), request.size(), MSG_NOSIGNAL);
    char byte = 0;
    return ::recv(fd, &byte, 1, 0) > 0 ? 2 : 0;
  });
  EXPECT_EQ(answer, 0) << "1: could not connect, 2: was answered";
  const json told = status_when([](const json& s) { return s["refused"].contains("other_user"); });
  EXPECT_EQ(told["refused"]["other_user"], 1);
}

TEST_F(OtherUser, CannotTakeASocketOrMemoryOfARankOrTheSecretOfTheJob) {
  const json told = status_when(
      [](const json& s) { return s["state"] == "steady" && s["processes"].size() == 2; });
  std::vector<pid_t> pids = {job_->pid(), told["coordinator"]["pid"].get<pid_t>()};
  for (const json& process : told["processes"]) pids.push_back(process["pid"].get<pid_t>());
  for (const pid_t pid : pids) {
    EXPECT_GT(descriptors_taken(pid), 0) << "root can: the search works";
    EXPECT_EQ(as_nobody([&] { return descriptors_taken(pid); }), 0) << "process " << pid;
  }
}

}  // namespace
}  // namespace regroup::test
