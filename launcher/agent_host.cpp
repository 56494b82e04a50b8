/// `regroup agent --stdio`: agent and supervisor of a host that a job's launcher is not on.
#include "launcher/agent_host.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <span>

#include "launcher/exit_codes.hpp"
#include "launcher/host_address.hpp"
#include "launcher/host_orders.hpp"
#include "launcher/preflight.hpp"
#include "launcher/rendezvous.hpp"
#include "launcher/run_options.hpp"
#include "launcher/run_shell.hpp"

namespace regroup::launcher {
namespace {

/// Takes the launcher's pipes out of the way: whatever else is printed goes to standard error.
AgentRole::Pipes take_pipes() {
  open_standard_descriptors();
  AgentRole::Pipes pipes{base::Fd(::fcntl(0, F_DUPFD_CLOEXEC, 3)),
                         base::Fd(::fcntl(1, F_DUPFD_CLOEXEC, 3))};
  const base::Fd null_fd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  ::dup2(null_fd.get(), 0);
  ::dup2(2, 1);
  return pipes;
}

bool write_line(int fd, const std::string& line) {
  const std::string whole = line + "\n";
  for (std::size_t done = 0; done < whole.size();) {
    const ssize_t sent = ::write(fd, whole.data() + done, whole.size() - done);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    done += static_cast<std::size_t>(sent);
  }
  return true;
}

/// Blocks until the orders are there. None: the launcher is gone.
std::optional<std::string> read_orders(int fd, LineReader& lines) {
  char buffer[16 * 1024];
  while (true) {
    if (std::optional<std::string> line = lines.next()) return line;
    const ssize_t got = ::read(fd, buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return std::nullopt;
    lines.feed({buffer, static_cast<std::size_t>(got)});
    secure::forget(std::as_writable_bytes(std::span(buffer)));
  }
}

std::string path_of(const std::vector<std::string>& environment) {
  for (const std::string& variable : environment) {
    if (variable.starts_with("PATH=")) return variable.substr(5);
  }
  return "/usr/bin:/bin";
}

/// What has to be right on this host before anything is started.
Refusal check_host(HostOrders& orders, JobSetup& setup) {
  if (!orders.directory.empty() && ::chdir(orders.directory.c_str()) != 0) {
    return Refusal::unusable(
        "E-HOST-6", fmt::format("host {} has no directory {} to run the program in: {}",
                                orders.place.name, orders.directory, std::strerror(errno)));
  }
  // Programs are found by the job's own PATH.
  ::setenv("PATH", path_of(orders.environment).c_str(), 1);
  const Refusal refusal = check_program_and_kernel(orders.options, setup);
  if (!refusal.code.empty()) return refusal;
  return prepare_log_dir(orders.options, orders.job);
}

int serve(HostOrders& orders, AgentRole role) {
  JobSetup setup;
  if (const Refusal refusal = check_host(orders, setup); !refusal.code.empty())
    return refuse(refusal);
  // An agent whose launcher has lost sight of it may still be here.
  const Result<base::Fd> place = listen_at(
      fmt::format("regroup-agent/{}/{}/{}", ::getuid(), orders.job, orders.place.agent.value()));
  if (!place) return refuse(Refusal::unusable("E-SYS-2", std::string(place.error().text())));
  if (!*place) {
    return refuse(
        Refusal{kExitTryAgain, "E-HOST-9",
                fmt::format("an agent of this job is still on host {}", orders.place.name)});
  }
  setup.job = orders.job;
  setup.outer_environment = std::move(orders.environment);
  setup.master_address = orders.master_address;
  setup.master_port = orders.master_port;
  setup.place = orders.place;
  JobHosts hosts;
  hosts.role.emplace(std::move(role));
  return run_job(std::move(orders.options), std::move(setup), {}, std::move(hosts));
}

}  // namespace

int agent_on_host() {
  ::signal(SIGPIPE, SIG_IGN);
  AgentRole::Pipes pipes = take_pipes();
  if (!write_line(pipes.out.get(),
                  greeting_line({kHostProtocol, REGROUP_VERSION, own_host_name()}))) {
    return kExitUnavailable;
  }
  LineReader lines(kOrdersBytesMax);
  std::optional<std::string> line = read_orders(pipes.in.get(), lines);
  if (!line) return kExitUnavailable;
  Result<HostOrders> orders = parse_orders(*line);
  secure::forget(std::as_writable_bytes(std::span(*line)));
  if (!orders) return refuse(Refusal::unusable("E-HOST-4", std::string(orders.error().text())));
  const Result<secure::SocketAddress> coordinator =
      secure::SocketAddress::parse(orders->coordinator, orders->port);
  if (!coordinator)
    return refuse(Refusal::unusable("E-HOST-4", std::string(coordinator.error().text())));
  Result<secure::JobSecret> secret = secure::JobSecret::of(orders->secret);
  secure::forget(orders->secret);
  if (!secret) return refuse(Refusal::unusable("E-SYS-2", std::string(secret.error().text())));
  Result<TcpControl> control =
      TcpControl::join(std::move(*secret), orders->job, *coordinator, orders->place.agent);
  if (!control) return refuse(Refusal::unusable("E-SYS-2", std::string(control.error().text())));
  return serve(*orders, {std::move(*control), std::move(pipes), lines.rest(), orders->age_ns});
}

}  // namespace regroup::launcher
