#include "launcher/relay.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>

namespace regroup::launcher {

Relay::Relay(EventLoop& loop, base::Fd out) : loop_(loop), out_(std::move(out)) {
  ::fcntl(out_.get(), F_SETFL, ::fcntl(out_.get(), F_GETFL) | O_NONBLOCK);
}

Relay::~Relay() {
  if (watched_) loop_.forget(out_.get());
}

void Relay::say(LineKind kind, std::string_view text) {
  if (!out_) return;
  const bool of_ranks = kind == LineKind::Output || kind == LineKind::Error;
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    if (waiting_.size() + line.size() > (of_ranks ? kOutputBytesMax : kBytesMax)) {
      ++dropped_;
      continue;
    }
    waiting_ += static_cast<char>(kind);
    waiting_ += line;
    waiting_ += '\n';
  }
  flush();
}

void Relay::flush() {
  while (out_ && !waiting_.empty()) {
    const ssize_t sent = ::write(out_.get(), waiting_.data(), waiting_.size());
    if (sent > 0) {
      waiting_.erase(0, static_cast<std::size_t>(sent));
      continue;
    }
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && errno == EAGAIN) break;
    if (watched_) loop_.forget(out_.get());
    watched_ = false;
    out_.reset();  // nobody reads any more
    waiting_.clear();
  }
  if (waiting_.empty() && dropped_ != dropped_told_ && out_) {
    const std::uint64_t fresh = dropped_ - dropped_told_;
    dropped_told_ = dropped_;
    return say(LineKind::Text,
               fmt::format("regroup: {} lines of this host did not get through; what ranks printed "
                           "stands in their files there",
                           fresh));
  }
  watch();
}

void Relay::watch() {
  if (out_ && !waiting_.empty() && !watched_) {
    watched_ = true;
    loop_.watch(
        out_.get(), [this](std::uint32_t) { flush(); }, true);
  } else if (watched_ && waiting_.empty()) {
    watched_ = false;
    loop_.forget(out_.get());
  }
}

void Relay::finish(TimePoint until) {
  flush();
  while (out_ && !waiting_.empty()) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
    pollfd ready{out_.get(), POLLOUT, 0};
    if (left <= 0 || ::poll(&ready, 1, static_cast<int>(left)) <= 0) return;
    flush();
  }
}

}  // namespace regroup::launcher
