#include "launcher/coordinator_link.hpp"

#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/wait.h>

#include <algorithm>
#include <cerrno>
#include <csignal>

namespace regroup::launcher {
namespace {

constexpr std::chrono::milliseconds kEndTime{500};
/// By which the failure detector knows the coordinator.
constexpr Incarnation kCoordinator{1};

}  // namespace

CoordinatorLink::~CoordinatorLink() {
  close();
  if (!process_) return;
  signal_process(*process_, SIGKILL);
  while (::waitpid(process_->pid, nullptr, 0) < 0 && errno == EINTR) {
  }
}

SpawnRequest CoordinatorLink::request(const base::Fd& theirs) {
  options_.fd = theirs.get();
  SpawnRequest request;
  request.path = "/proc/self/exe";
  request.environment = {"REGROUP_JOB_ID=" + job_, "PATH=/usr/bin:/bin"};
  request.kept = {theirs.get()};
  if (options_.beat >= 0) request.kept.push_back(options_.beat);
  if (tcp_) {
    options_.tcp = CoordinatorOptions::Tcp{.listening = tcp_->port.fd.get(),
                                           .secret = tcp_->secret.fd(),
                                           .refusals = refusals_fd_,
                                           .job = job_};
    request.kept.insert(request.kept.end(), {tcp_->port.fd.get(), tcp_->secret.fd(), refusals_fd_});
  }
  request.arguments = coordinator_arguments(options_);
  request.arguments.insert(request.arguments.begin(), "regroup");
  return request;
}

void CoordinatorLink::start(TimePoint now) {
  due_.reset();
  started_at_ = now;
  attempts_ = 0;
  if (is_elsewhere()) {
    away_since_ = now;
    return connect(now);
  }
  Result<std::pair<control::Channel, control::Channel>> channels = control::Channel::pair();
  if (!channels) return fail(now, 0, std::string(channels.error().text()));
  const base::Fd theirs = channels->second.release();
  Result<Spawned> spawned = spawn(request(theirs));
  if (!spawned) return fail(now, 0, std::string(spawned.error().text()));
  process_.emplace(std::move(*spawned));
  if (tcp_) {
    lifeline_.emplace(std::move(channels->first));
    return connect(now);
  }
  wire_ = make_wire(std::move(channels->first));
  watch();
  up_ = true;
  callbacks_.up();
}

void CoordinatorLink::turn(TimePoint now) {
  if (kill_due_ && *kill_due_ <= now) kill();
  if (stopping_) return;
  if (handshake_until_ && *handshake_until_ <= now)
    return disconnect(now, "it did not answer the handshake");
  if (beat_due_ && *beat_due_ <= now) beat(now);
  if (!due_ || *due_ > now) return;
  due_.reset();
  if (process_ || is_elsewhere()) return connect(now);
  restarts_ += 1;
  start(now);
}

void CoordinatorLink::connect(TimePoint now) {
  attempts_ += 1;
  Result<secure::SecureChannel> channel =
      secure::SecureChannel::connect(tcp_->context, tcp_->port.address, tcp_->agent);
  if (!channel) return disconnect(now, std::string(channel.error().text()));
  wire_ = make_wire(std::move(*channel));
  handshake_until_ = now + secure::kHandshakeTime;
  watch();
}

/// The connection is gone; the process may be fine.
void CoordinatorLink::disconnect(TimePoint now, const std::string& why) {
  const bool was_up = up_;
  close();
  if (was_up) {
    callbacks_.disconnected(why);
    attempts_ = 0;
  }
  away_why_ = why;
  if (!away_since_) away_since_ = now;
  if (attempts_ >= kAttemptsMax && !is_elsewhere()) return kill();
  const int doublings = std::clamp(attempts_ - 1, 0, kAttemptsMax);
  due_ = attempts_ == 0
             ? now
             : now + std::min(std::chrono::milliseconds(10) * (1 << doublings), kAgainMax);
}

/// Between hosts: shows that this end is there, and looks whether the other one is.
void CoordinatorLink::beat(TimePoint now) {
  beat_due_ = now + timeouts_.beat_every;
  if (!wire_->send_beat()) return disconnect(now, "the connection broke");
  watch();
  detector_.beat(kCoordinator, wire_->heard() + 1, now);
  for (const auto& finding : detector_.check(now)) {
    if (finding.verdict == membership::FailureDetector::Verdict::Confirmed)
      return disconnect(now, "nothing was heard of the coordinator: " + finding.why);
  }
}

void CoordinatorLink::watch() {
  if (wire_)
    loop_.watch(
        wire_->fd(), [this](std::uint32_t) { pump(); }, wire_->wants_write());
}

/// Over a socket pair what is left of it ends, and the next one asks for everything again: by
/// itself when it closed the channel, else at once.
void CoordinatorLink::broken(const Status& why) {
  if (tcp_) return disconnect(Clock::now(), std::string(why.text()));
  if (why.code() != Code::Cancelled) return kill();
  close();
  kill_due_ = Clock::now() + kEndTime;
}

void CoordinatorLink::pump() {
  const Status progressed = wire_->progress();
  if (!up_ && wire_->ready()) {
    up_ = true;
    attempts_ = 0;
    handshake_until_.reset();
    away_since_.reset();
    if (is_elsewhere()) {
      detector_ = membership::FailureDetector(timeouts_);
      detector_.watch(kCoordinator, Clock::now());
      beat_due_ = Clock::now();
    }
    callbacks_.up();
  }
  while (wire_) {
    Result<std::optional<control::Bytes>> bytes = wire_->next();
    if (!bytes) return broken(bytes.error());
    if (!bytes->has_value()) break;
    Result<membership::CoordinatorMessage> message =
        control::decode<membership::CoordinatorMessage>(**bytes);
    if (!message) return broken(message.error());
    callbacks_.message(std::move(*message));
  }
  if (!wire_) return;
  if (!progressed) return broken(progressed);
  watch();
}

void CoordinatorLink::send(const membership::AgentMessage& message) {
  if (!up_) return;
  const Result<control::Bytes> bytes = control::encode(message);
  const Status sent = bytes ? wire_->send(*bytes) : bytes.error();
  // A queue that is full means that it has stopped reading. The next one learns all by AgentHello.
  if (!sent && is_elsewhere()) return disconnect(Clock::now(), std::string(sent.text()));
  if (!sent) return kill();
  watch();
}

void CoordinatorLink::kill() {
  close();
  kill_due_.reset();
  if (process_) signal_process(*process_, SIGKILL);
}

void CoordinatorLink::close() {
  if (wire_) loop_.forget(wire_->fd());
  wire_.reset();
  up_ = false;
  due_.reset();
  handshake_until_.reset();
  beat_due_.reset();
}

bool CoordinatorLink::reaped(pid_t pid, const ExitStatus& status, TimePoint now) {
  if (!process_ || process_->pid != pid) return false;
  process_.reset();
  kill_due_.reset();
  close();
  lifeline_.reset();
  fail(now, pid, status.text());
  return true;
}

void CoordinatorLink::fail(TimePoint now, pid_t pid, const std::string& why) {
  if (stopping_) return;
  callbacks_.down(pid, why);
  quick_ends_ = now - started_at_ < kQuickEnd ? quick_ends_ + 1 : 0;
  if (quick_ends_ >= kQuickEndsMax) {
    stopping_ = true;
    callbacks_.given_up(why);
    return;
  }
  // The first restart is immediate: a recovery may be waiting for it.
  const int doublings = std::max(0, quick_ends_ - 2);
  due_ = quick_ends_ <= 1 ? now : now + std::chrono::milliseconds(20) * (1 << doublings);
}

void CoordinatorLink::stop() {
  stopping_ = true;
  if (wire_) wire_->close();
  close();
  lifeline_.reset();
}

}  // namespace regroup::launcher
