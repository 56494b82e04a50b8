#include "launcher/terminal_input.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace regroup::launcher {

Result<std::optional<TerminalInput>> TerminalInput::open() {
  if (::isatty(STDIN_FILENO) == 0) return std::optional<TerminalInput>();
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC) != 0)
    return Status(Code::ResourceExhausted, fmt::format("pipe: {}", std::strerror(errno)));
  base::Fd read_end(fds[0]);
  base::Fd write_end(fds[1]);
  // This end only: the program's is its own business.
  ::fcntl(write_end.get(), F_SETFL, O_NONBLOCK);
  return std::optional<TerminalInput>(TerminalInput(std::move(read_end), std::move(write_end)));
}

void TerminalInput::start(EventLoop& loop) {
  loop_ = &loop;
  if (write_end_ && waiting_.empty()) loop_->watch(STDIN_FILENO, [this](std::uint32_t) { read(); });
}

void TerminalInput::read() {
  char buffer[4096];
  const ssize_t got = ::read(STDIN_FILENO, buffer, sizeof buffer);
  if (got < 0 && errno == EINTR) return;
  if (got <= 0) {
    loop_->forget(STDIN_FILENO);
    // EIO: in the background, until somebody brings us forward again.
    if (got == 0 || errno != EIO) write_end_.reset();
    return;
  }
  waiting_.assign(buffer, static_cast<std::size_t>(got));
  write();
}

void TerminalInput::write() {
  while (!waiting_.empty()) {
    const ssize_t put = ::write(write_end_.get(), waiting_.data(), waiting_.size());
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) {
      // Nobody reads it now: the terminal keeps what is typed until somebody does.
      loop_->forget(STDIN_FILENO);
      loop_->watch(
          write_end_.get(), [this](std::uint32_t) { write(); }, true);
      return;
    }
    waiting_.erase(0, static_cast<std::size_t>(put));
  }
  loop_->forget(write_end_.get());
  start(*loop_);
}

}  // namespace regroup::launcher
