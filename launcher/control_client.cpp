#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstring>
#include <fstream>
#include <iterator>
#include <tuple>

#include <poll.h>
#include <unistd.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/fd.hpp"
#include "launcher/control_address.hpp"
#include "launcher/control_socket.hpp"

namespace regroup::launcher {
namespace {

using nlohmann::json;

constexpr std::string_view kPrefix = "@regroup/";
/// Bit of the fifth column of /proc/net/unix: the socket listens (not one of its connections).
constexpr unsigned kListens = 0x10000;
constexpr std::size_t kAnswerBytesMax = std::size_t{16} << 20;

Status io_error(const RunningJob& job, std::string_view what, int error) {
  return {Code::FailedPrecondition,
          fmt::format("E-CTL-2 cannot {} job {} of user {}: {}. \"regroup status\" lists "
                      "the jobs that run on this machine.",
                      what, job.job, job.uid, std::strerror(error))};
}

int milliseconds_left(TimePoint until) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
  return static_cast<int>(std::clamp<std::int64_t>(left, 0, 3'600'000));
}

/// Waits for `events`; false when time is over.
bool wait_for(int fd, short events, TimePoint until) {
  while (true) {
    pollfd ready{fd, events, 0};
    const int count = ::poll(&ready, 1, milliseconds_left(until));
    if (count > 0) return true;
    if (count == 0 || errno != EINTR) return false;
  }
}

Status late(const RunningJob& job) {
  return {Code::DeadlineExceeded,
          fmt::format("E-CTL-3 job {} did not answer in time; its launcher may be stopped or busy",
                      job.job)};
}

Status send_all(int fd, std::string_view bytes, const RunningJob& job, TimePoint until) {
  while (!bytes.empty()) {
    const ssize_t n = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n > 0) {
      bytes.remove_prefix(static_cast<std::size_t>(n));
    } else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      if (!wait_for(fd, POLLOUT, until)) return late(job);
    } else if (errno != EINTR) {
      return io_error(job, "ask", errno);
    }
  }
  return {};
}

Result<std::string> receive_line(int fd, const RunningJob& job, TimePoint until) {
  std::string in;
  std::array<char, 16384> buffer{};
  while (in.find('\n') == std::string::npos) {
    const ssize_t n = ::recv(fd, buffer.data(), buffer.size(), 0);
    if (n > 0) {
      in.append(buffer.data(), static_cast<std::size_t>(n));
      if (in.size() > kAnswerBytesMax)
        return Status(Code::InvalidArgument, "the answer is too long");
    } else if (n == 0) {
      return Status(
          Code::FailedPrecondition,
          fmt::format(
              "E-CTL-2 job {} closed the connection without an answer: it is ending, or it serves "
              "other users only",
              job.job));
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      if (!wait_for(fd, POLLIN, until)) return late(job);
    } else if (errno != EINTR) {
      return io_error(job, "hear from", errno);
    }
  }
  return in.substr(0, in.find('\n'));
}

std::optional<RunningJob> parse_name(std::string_view name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  name.remove_prefix(kPrefix.size());
  RunningJob out;
  const char* const end = name.data() + name.size();
  const auto [rest, error] = std::from_chars(name.data(), end, out.uid);
  if (error != std::errc() || rest == end || *rest != '/' || rest + 1 == end) return std::nullopt;
  out.job.assign(rest + 1, end);
  return out;
}

}  // namespace

std::string control_name(const RunningJob& job) {
  return fmt::format("{}{}/{}", kPrefix, job.uid, job.job);
}

Result<ControlAddress> control_address(const RunningJob& job) {
  ControlAddress out;
  const std::string name = control_name(job);
  const auto plain = [](char c) { return c > ' ' && c < 0x7f && c != '/' && c != '@'; };
  if (job.job.empty() || name.size() > sizeof out.address.sun_path ||
      !std::all_of(job.job.begin(), job.job.end(), plain)) {
    return Status(
        Code::InvalidArgument,
        fmt::format(
            "E-CTL-4 a job's name is 1 to {} printable characters without blank, '/' and '@'",
            sizeof out.address.sun_path - kPrefix.size() - 11));
  }
  out.address.sun_family = AF_UNIX;
  // The leading NUL says "abstract": the kernel frees the name with the last descriptor, even after
  // a SIGKILL.
  std::memcpy(out.address.sun_path + 1, name.data() + 1, name.size() - 1);
  out.bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
  return out;
}

std::optional<std::uint32_t> uid_behind(int fd) {
  ucred who{};
  socklen_t bytes = sizeof who;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &bytes) != 0 || bytes != sizeof who)
    return std::nullopt;
  return who.uid;
}

std::vector<RunningJob> parse_running_jobs(std::string_view text) {
  std::vector<RunningJob> out;
  while (!text.empty()) {
    std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    // "Num RefCount Protocol Flags Type St Inode Path"
    std::array<std::string_view, 8> columns;
    for (std::string_view& column : columns) {
      line.remove_prefix(std::min(line.size(), line.find_first_not_of(' ')));
      column = line.substr(0, line.find(' '));
      line.remove_prefix(column.size());
    }
    unsigned flags = 0;
    std::from_chars(columns[3].data(), columns[3].data() + columns[3].size(), flags, 16);
    if ((flags & kListens) == 0) continue;
    if (std::optional<RunningJob> job = parse_name(columns[7])) out.push_back(std::move(*job));
  }
  std::sort(out.begin(), out.end(), [](const RunningJob& a, const RunningJob& b) {
    return std::tie(a.uid, a.job) < std::tie(b.uid, b.job);
  });
  return out;
}

std::vector<RunningJob> running_jobs() {
  std::ifstream file("/proc/net/unix");
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  std::vector<RunningJob> out = parse_running_jobs(text);
  const std::uint32_t me = ::getuid();
  std::erase_if(out, [me](const RunningJob& job) { return me != 0 && job.uid != me; });
  return out;
}

Result<RunningJob> only_job(const std::string& wanted) {
  std::vector<RunningJob> jobs = running_jobs();
  std::erase_if(jobs, [&](const RunningJob& job) { return !job.job.starts_with(wanted); });
  if (jobs.size() == 1) return jobs[0];
  if (jobs.empty()) {
    return Status(Code::FailedPrecondition, "E-CTL-2 no such job of yours runs on this machine");
  }
  std::string names;
  for (const RunningJob& job : jobs) names += (names.empty() ? "" : ", ") + job.job;
  return Status(Code::InvalidArgument, "E-CTL-6 name one with --job: " + names);
}

Result<nlohmann::json> ask(const RunningJob& job, const nlohmann::json& request, TimePoint until) {
  Result<ControlAddress> address = control_address(job);
  if (!address) return address.error();
  const base::Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return io_error(job, "reach", errno);
  while (::connect(fd.get(), address->get(), address->bytes) != 0) {
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return io_error(job, "reach", errno);
    // The queue of the listener is full; there is no event to wait for.
    if (Clock::now() >= until) return late(job);
    (void)::poll(nullptr, 0, 5);
  }
  // The name says whose job it is, but anybody may take a free name: whoever listens must be that
  // user, or root.
  const std::optional<std::uint32_t> uid = uid_behind(fd.get());
  if (!uid || (*uid != job.uid && *uid != 0)) {
    return Status(Code::Unauthenticated,
                  fmt::format("E-CTL-5 the socket {} does not belong to user {}: somebody else "
                              "took the name; nothing "
                              "was sent",
                              control_name(job), job.uid));
  }
  if (Status sent = send_all(fd.get(), request.dump() + "\n", job, until); !sent) return sent;
  Result<std::string> line = receive_line(fd.get(), job, until);
  if (!line) return line.error();
  json answer = json::parse(*line, nullptr, false);
  if (!answer.is_object() || !answer.contains("ok") || !answer["ok"].is_boolean()) {
    return Status(Code::InvalidArgument,
                  fmt::format("job {} gave an answer that cannot be read", job.job));
  }
  if (!answer["ok"].get<bool>()) {
    const auto text = answer.find("text");
    return Status(Code::InvalidArgument, text != answer.end() && text->is_string()
                                             ? text->get<std::string>()
                                             : "refused without a reason");
  }
  return answer;
}

}  // namespace regroup::launcher
