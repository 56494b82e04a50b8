#include "tests/security/coordinator.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>

#include "control/codec.hpp"

namespace regroup::test {
namespace {

const std::string kJob = "attacked";

int milliseconds_until(TimePoint until) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
  return static_cast<int>(std::max<std::int64_t>(left, 0));
}

}  // namespace

Stranger::Stranger(std::uint16_t port) : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  EXPECT_EQ(::connect(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0)
      << std::strerror(errno);
}

void Stranger::say(std::span<const std::byte> bytes) const {
  // It may have been cut off already: that is what the tests look for afterwards.
  (void)::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
}
void Stranger::say(std::string_view text) const { say(std::as_bytes(std::span(text))); }

bool Stranger::was_cut_off() const {
  const TimePoint until = Clock::now() + kPatience;
  std::array<std::byte, 4096> buffer{};
  while (true) {
    pollfd ready{fd_.get(), POLLIN, 0};
    if (::poll(&ready, 1, milliseconds_until(until)) <= 0) return false;
    if (::recv(fd_.get(), buffer.data(), buffer.size(), 0) <= 0) return true;
  }
}

control::Bytes Stranger::hear(std::chrono::milliseconds patience) const {
  pollfd ready{fd_.get(), POLLIN, 0};
  if (::poll(&ready, 1, static_cast<int>(patience.count())) <= 0) return {};
  control::Bytes out(64 * 1024);
  const ssize_t n = ::recv(fd_.get(), out.data(), out.size(), 0);
  out.resize(static_cast<std::size_t>(std::max<ssize_t>(n, 0)));
  return out;
}

Speaker::Speaker(std::uint16_t port, const secure::JobSecret& secret, const std::string& job)
    : line(port),
      context_(secure::TlsContext::make(secure::Role::Agent, secret, job).value()),
      session_(secure::TlsSession::make(context_, launcher::kLocalAgent).value()) {}

bool Speaker::handshake() {
  for (int turn = 0; turn < 10; ++turn) {
    if (!session_.advance()) return false;
    control::Bytes out;
    session_.take_output(out);
    line.say(out);
    sent.insert(sent.end(), out.begin(), out.end());
    if (session_.established()) return true;
    const control::Bytes heard = line.hear(kPatience);
    if (heard.empty() || !session_.feed(heard)) return false;
  }
  return false;
}

control::Bytes Speaker::record(std::span<const std::byte> plain) {
  control::Bytes out;
  EXPECT_TRUE(session_.write(plain));
  session_.take_output(out);
  return out;
}

Coordinator::Coordinator()
    : tcp_(launcher::TcpControl::make(kJob).value()),
      counters_(secure::RefusalCounters::make().value()) {
  auto [mine, its] = control::Channel::pair().value();
  const base::Fd theirs = its.release();
  launcher::CoordinatorOptions options{.fd = theirs.get(), .state = dir_.path() / "state"};
  options.config = {.ranks = 1, .ranks_min = 1};
  options.tcp =
      launcher::CoordinatorOptions::Tcp{tcp_.port.fd.get(), tcp_.secret.fd(), counters_.fd(), kJob};
  const std::vector<std::string> words = coordinator_arguments(options);
  std::vector<char*> argv = {const_cast<char*>(REGROUP_BINARY)};
  for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  pid_ = ::fork();
  if (pid_ == 0) {
    for (const int fd : {theirs.get(), tcp_.port.fd.get(), tcp_.secret.fd(), counters_.fd()})
      (void)::fcntl(fd, F_SETFD, 0);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  lifeline_.emplace(std::move(mine));
}

Coordinator::~Coordinator() {
  lifeline_.reset();
  int status = -1;
  EXPECT_EQ(::waitpid(pid_, &status, 0), pid_);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0)
      << "the coordinator ended before it was told to, with status " << status;
}

bool Coordinator::answered() {
  const TimePoint until = Clock::now() + kPatience;
  bool said = false;
  while (Clock::now() < until) {
    if (!agent_->progress()) return false;
    if (agent_->established() && !said) {
      const membership::AgentHello hello{.agent = launcher::kLocalAgent};
      said = true;
      if (!agent_->send(*control::encode(membership::AgentMessage(hello)))) return false;
    }
    if (agent_->next()) return true;
    pollfd ready{agent_->fd(),
                 static_cast<short>(agent_->wants_write() ? POLLIN | POLLOUT : POLLIN), 0};
    (void)::poll(&ready, 1, milliseconds_until(until));
  }
  return false;
}

bool Coordinator::agent_comes() {
  // A connection that ends without saying so is counted, sometimes: a reset is none.
  if (agent_) agent_->close();
  agent_.emplace(
      secure::SecureChannel::connect(tcp_.context, tcp_.port.address, launcher::kLocalAgent)
          .value());
  return answered();
}

bool Coordinator::agent_is_served() {
  while (agent_->next()) {
  }
  return answered();
}

std::uint64_t Coordinator::count(secure::Refusal cause) const {
  return counters_.read().at(static_cast<std::size_t>(cause));
}

bool Coordinator::refused(secure::Refusal cause, std::uint64_t times) {
  const TimePoint until = Clock::now() + kPatience;
  while (count(cause) < times) {
    if (Clock::now() >= until) return false;
    (void)::poll(nullptr, 0, 5);  // counters make no sound
  }
  return count(cause) == times;
}

std::string Coordinator::durable() const {
  std::ifstream file(dir_.path() / "state", std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::size_t Coordinator::descriptors() const {
  const std::filesystem::directory_iterator all("/proc/" + std::to_string(pid_) + "/fd");
  return static_cast<std::size_t>(std::distance(begin(all), end(all)));
}

std::size_t Coordinator::resident_bytes() const {
  std::ifstream file("/proc/" + std::to_string(pid_) + "/statm");
  std::size_t total = 0;
  std::size_t resident = 0;
  file >> total >> resident;
  return resident * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
}

}  // namespace regroup::test
