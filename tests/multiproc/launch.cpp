#include "launch.hpp"

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <sstream>

namespace regroup::test {
namespace {

using SteadyClock = std::chrono::steady_clock;

/// One folder for all jobs of this process, gone with it.
class RunFolder {
 public:
  RunFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "regroup-test-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;
  ~RunFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string next() { return path_ + "/" + std::to_string(++count_); }

 private:
  std::string path_;
  int count_ = 0;
};

std::string next_run_dir() {
  static RunFolder folder;
  return folder.next();
}

[[noreturn]] void become(std::vector<std::string> words,
                         const std::map<std::string, std::string>& environment, int out, int err) {
  ::dup2(out, 1);
  ::dup2(err, 2);
  for (const auto& [key, value] : environment) ::setenv(key.c_str(), value.c_str(), 1);
  std::vector<char*> argv;
  for (auto& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  ::execv(argv[0], argv.data());
  ::_exit(127);
}

/// Reads both pipes until they close or the time is over.
bool drain(std::array<pollfd, 2> pipes, std::array<std::string*, 2> texts,
           SteadyClock::time_point until) {
  int open = 2;
  while (open > 0) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(until - SteadyClock::now()).count();
    if (left <= 0) return false;
    if (::poll(pipes.data(), pipes.size(), static_cast<int>(left)) <= 0) continue;
    for (std::size_t i = 0; i < pipes.size(); ++i) {
      if (pipes[i].revents == 0) continue;
      std::array<char, 4096> buffer{};
      const ssize_t got = ::read(pipes[i].fd, buffer.data(), buffer.size());
      if (got > 0) {
        texts[i]->append(buffer.data(), static_cast<std::size_t>(got));
      } else {
        pipes[i].fd = -1;
        --open;
      }
    }
  }
  return true;
}

}  // namespace

std::string Finished::value_of(const std::string& key) const {
  const auto at = out.find(key);
  if (at == std::string::npos) return {};
  const auto from = at + key.size();
  return out.substr(from, out.find_first_of(" \n", from) - from);
}

std::vector<std::string> Finished::lines_with(const std::string& part) const {
  std::vector<std::string> found;
  std::istringstream lines(out);
  for (std::string line; std::getline(lines, line);) {
    if (line.find(part) != std::string::npos) found.push_back(line);
  }
  return found;
}

Finished run_job(const std::vector<std::string>& flags, const std::vector<std::string>& arguments,
                 const std::map<std::string, std::string>& environment, int seconds) {
  Finished finished;
  finished.run_dir = next_run_dir();
  std::vector<std::string> words{REGROUP_BINARY, "run", "--log-dir", finished.run_dir};
  words.insert(words.end(), flags.begin(), flags.end());
  words.insert(words.end(), {"--", REGROUP_RANK_PROGRAM});
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::array<int, 2> out{}, err{};
  if (::pipe(out.data()) != 0 || ::pipe(err.data()) != 0) return finished;
  const pid_t pid = ::fork();
  if (pid == 0) become(words, environment, out[1], err[1]);
  ::close(out[1]);
  ::close(err[1]);
  const auto until = SteadyClock::now() + std::chrono::seconds(seconds);
  finished.timed_out =
      !drain({{{out[0], POLLIN, 0}, {err[0], POLLIN, 0}}}, {&finished.out, &finished.err}, until);
  if (finished.timed_out) ::kill(pid, SIGKILL);
  int status = 0;
  ::waitpid(pid, &status, 0);
  finished.exit_code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  ::close(out[0]);
  ::close(err[0]);
  return finished;
}

}  // namespace regroup::test
