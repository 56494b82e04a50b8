#include "tests/support/job.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <system_error>

#include "launcher/descendants.hpp"

extern char** environ;

namespace regroup::test {
namespace {

struct Pipe {
  base::Fd read;
  base::Fd write;
};
Pipe make_pipe() {
  int fds[2];
  EXPECT_EQ(::pipe2(fds, O_CLOEXEC), 0);
  return {base::Fd(fds[0]), base::Fd(fds[1])};
}

int milliseconds_until(TimePoint until) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
  return static_cast<int>(std::max<std::int64_t>(left, 0));
}

std::vector<char*> pointers(const std::vector<std::string>& words) {
  std::vector<char*> out;
  for (const std::string& word : words) out.push_back(const_cast<char*>(word.c_str()));
  out.push_back(nullptr);
  return out;
}

}  // namespace

TempDir::TempDir() {
  std::string name = (std::filesystem::temp_directory_path() / "regroup-launch-XXXXXX").string();
  EXPECT_NE(::mkdtemp(name.data()), nullptr);
  path_ = name;
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

Job::Job(const std::vector<std::string>& words, JobOptions options) : patience_(options.patience) {
  std::vector<std::string> line = {REGROUP_BINARY};
  line.insert(line.end(), words.begin(), words.end());
  std::vector<std::string> environment = std::move(options.environment);
  for (char** variable = environ; *variable != nullptr; ++variable) {
    environment.emplace_back(*variable);
  }
  const std::vector<char*> argv = pointers(line);
  const std::vector<char*> envp = pointers(environment);
  Pipe in = make_pipe();
  Pipe out = make_pipe();
  Pipe err = make_pipe();
  pid_ = ::fork();
  EXPECT_GE(pid_, 0);
  if (pid_ == 0) {
    ::setpgid(0, 0);
    ::dup2(in.read.get(), 0);
    ::dup2(out.write.get(), 1);
    ::dup2(err.write.get(), 2);
    if (options.descriptors_hard != 0) {
      const rlimit limit{options.descriptors_hard, options.descriptors_hard};
      ::setrlimit(RLIMIT_NOFILE, &limit);
    }
    if (!options.directory.empty() && ::chdir(options.directory.c_str()) != 0) ::_exit(126);
    if (options.before_exec) options.before_exec();
    ::execve(argv[0], argv.data(), envp.data());
    ::_exit(127);
  }
  in.read.reset();
  EXPECT_EQ(::write(in.write.get(), options.input.data(), options.input.size()),
            static_cast<ssize_t>(options.input.size()));
  out_pipe_ = std::move(out.read);
  err_pipe_ = std::move(err.read);
}

Job::~Job() {
  if (ended_) return;
  ::kill(pid_, SIGKILL);
  reap(true);
}

void Job::signal(int signal) const { ::kill(pid_, signal); }

void Job::reap(bool block) {
  if (ended_) return;
  int status = 0;
  const pid_t got = ::waitpid(pid_, &status, block ? 0 : WNOHANG);
  if (got != pid_) return;
  ended_ = true;
  status_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/// Reads once. False when both streams are at their end, or patience has run out.
bool Job::pump(TimePoint until) {
  std::array<pollfd, 2> ready{pollfd{out_pipe_.get(), POLLIN, 0},
                              pollfd{err_pipe_.get(), POLLIN, 0}};
  if (!out_pipe_ && !err_pipe_) return false;
  if (::poll(ready.data(), 2, milliseconds_until(until)) <= 0) return errno == EINTR;
  char buffer[4096];
  for (const bool is_error : {false, true}) {
    if (ready[is_error ? 1 : 0].revents == 0) continue;
    base::Fd& pipe = is_error ? err_pipe_ : out_pipe_;
    const ssize_t got = ::read(pipe.get(), buffer, sizeof buffer);
    if (got > 0) (is_error ? err_ : out_).append(buffer, static_cast<std::size_t>(got));
    if (got == 0) pipe.reset();
  }
  return true;
}

bool Job::wait_for(const std::string& text) {
  const TimePoint until = Clock::now() + patience_;
  while (out_.find(text) == std::string::npos && err_.find(text) == std::string::npos) {
    if (Clock::now() > until || !pump(until)) return false;
  }
  return true;
}

int Job::wait() {
  const TimePoint until = Clock::now() + patience_;
  const base::Fd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
  while (pump(until)) {
    if (Clock::now() > until) break;
  }
  // The streams may be open a little longer or shorter than the process lives.
  pollfd ready{pidfd.get(), POLLIN, 0};
  if (!ended_ && ::poll(&ready, 1, milliseconds_until(until)) <= 0) {
    timed_out_ = true;
    ADD_FAILURE() << "the job does not end; it printed:\n" << out_ << err_;
    ::kill(pid_, SIGKILL);
  }
  reap(true);
  return status_;
}

bool Job::wait_stopped() {
  const TimePoint until = Clock::now() + patience_;
  while (Clock::now() < until) {
    siginfo_t info{};
    if (::waitid(P_PID, static_cast<id_t>(pid_), &info, WSTOPPED | WEXITED | WNOHANG | WNOWAIT) !=
        0) {
      return false;
    }
    if (info.si_pid == pid_) return info.si_code == CLD_STOPPED;
    // Its output says nothing about it, but must not fill its pipes meanwhile.
    pump(Clock::now() + std::chrono::milliseconds(5));
  }
  return false;
}

std::string Job::id() const {
  const std::size_t at = err_.find("job ");
  return at == std::string::npos ? "" : err_.substr(at + 4, 12);
}

std::vector<pid_t> Job::left_behind() {
  EXPECT_FALSE(id().empty()) << err_;
  const TimePoint until = Clock::now() + std::chrono::seconds(10);
  std::vector<pid_t> left;
  do {
    left.clear();
    for (const pid_t pid : launcher::processes_with("REGROUP_JOB_ID=" + id())) {
      if (launcher::runs(pid)) left.push_back(pid);
    }
    if (left.empty()) return left;
    ::poll(nullptr, 0, 5);
  } while (Clock::now() < until);
  return left;
}

std::string Ended::value_of(const std::string& key) const {
  const auto at = out.find(key);
  if (at == std::string::npos) return {};
  const auto from = at + key.size();
  return out.substr(from, out.find_first_of(" \n", from) - from);
}

std::vector<std::string> Ended::lines_with(const std::string& part) const {
  std::vector<std::string> found;
  std::istringstream lines(out);
  for (std::string line; std::getline(lines, line);) {
    if (line.find(part) != std::string::npos) found.push_back(line);
  }
  return found;
}

Ended run(const std::vector<std::string>& words, JobOptions options) {
  Job job(words, std::move(options));
  const int code = job.wait();
  return {code, job.timed_out(), job.out(), job.err()};
}

char state_of(pid_t pid) {
  const std::string text = read_file("/proc/" + std::to_string(pid) + "/stat");
  const std::size_t name_end = text.rfind(')');
  return name_end == std::string::npos || name_end + 2 >= text.size() ? '-' : text[name_end + 2];
}

std::string read_file(const std::filesystem::path& path) {
  const std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t found = 0;
  for (std::size_t at = 0; (at = text.find(part, at)) != std::string::npos; ++at) ++found;
  return found;
}

}  // namespace regroup::test
