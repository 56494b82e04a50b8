#include "launcher/rank_process.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>

#include "launcher/environment.hpp"

namespace regroup::launcher {
namespace {

struct Pipe {
  base::Fd read;
  base::Fd write;
};

/// The read end does not block: a silent process must not stop the loop.
Result<Pipe> make_pipe() {
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC) != 0) {
    return Status(Code::ResourceExhausted, fmt::format("pipe: {}", std::strerror(errno)));
  }
  Pipe pipe{base::Fd(fds[0]), base::Fd(fds[1])};
  ::fcntl(pipe.read.get(), F_SETFL, O_NONBLOCK);
  return pipe;
}

ProcessIdentity identity_of(const RunOptions& options, const JobSetup& setup,
                            const RankProcess& process, int control_fd) {
  ProcessIdentity identity;
  identity.job = setup.job;
  identity.run_dir = options.log_dir.string();
  identity.seat = process.seat;
  identity.ranks = options.ranks;
  identity.local_rank = process.local_rank;
  identity.local_size = setup.ranks_here(options);
  identity.node = setup.place.node;
  identity.nodes = setup.place.nodes;
  identity.host_mark = setup.host_mark();
  identity.master_address = setup.master_address;
  identity.incarnation = process.incarnation;
  identity.life = process.life;
  identity.control_fd = control_fd;
  identity.master_port = setup.master_port;
  identity.replacements_max = options.replacements_max;
  identity.cores = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  return identity;
}

}  // namespace

std::string signal_name(int signal) {
  const char* abbreviation = ::sigabbrev_np(signal);
  return abbreviation != nullptr ? fmt::format("SIG{}", abbreviation)
                                 : fmt::format("signal {}", signal);
}

std::string ExitStatus::text() const {
  if (signal != 0)
    return fmt::format("killed by {}{}", signal_name(signal), core ? " (core dumped)" : "");
  return fmt::format("exited with code {}", exit_code);
}

std::string JobSetup::host_mark() const { return fmt::format("{}.{}", job, place.agent.value()); }

std::string RankProcess::name() const {
  return seat ? fmt::format("rank {}", seat->value())
              : fmt::format("spare {}", incarnation.value());
}

std::string RankProcess::prefix() const {
  return seat ? fmt::format("{}", seat->value()) : fmt::format("s{}", incarnation.value());
}

Result<std::unique_ptr<RankProcess>> prepare_process(Incarnation incarnation,
                                                     std::optional<Rank> seat, std::uint32_t life,
                                                     base::Fd& theirs) {
  auto process = std::make_unique<RankProcess>();
  process->incarnation = incarnation;
  process->seat = seat;
  process->born_spare = !seat.has_value();
  process->life = life;
  if (seat) process->local_rank = seat->value();
  Result<metrics::PageMapping> page = metrics::PageMapping::create(incarnation);
  if (!page) return page.error();
  process->page = std::make_shared<metrics::PageMapping>(std::move(*page));
  Result<std::pair<control::Channel, control::Channel>> channels = control::Channel::pair();
  if (!channels) return channels.error();
  theirs = channels->second.release();
  process->channel.emplace(std::move(channels->first));
  process->started_at = Clock::now();
  return process;
}

std::vector<std::string> process_environment(const RunOptions& options, const JobSetup& setup,
                                             const RankProcess& process,
                                             const std::vector<std::string>& outer,
                                             int control_fd) {
  return make_environment(outer, identity_of(options, setup, process, control_fd));
}

Result<std::unique_ptr<RankProcess>> start_process(const RunOptions& options, const JobSetup& setup,
                                                   Incarnation incarnation,
                                                   std::optional<Rank> seat, std::uint32_t life,
                                                   int local_rank, int stdin_fd) {
  base::Fd theirs;
  Result<std::unique_ptr<RankProcess>> prepared = prepare_process(incarnation, seat, life, theirs);
  if (!prepared) return prepared.error();
  std::unique_ptr<RankProcess> process = std::move(*prepared);
  process->local_rank = local_rank;
  Result<LogFiles> logs = open_logs(options.log_dir, seat, incarnation);
  if (!logs) return logs.error();
  Result<Pipe> out = make_pipe();
  if (!out) return out.error();
  Result<Pipe> err = make_pipe();
  if (!err) return err.error();

  SpawnRequest request;
  request.path = setup.program_path;
  request.arguments = options.program;
  request.environment =
      process_environment(options, setup, *process, setup.outer_environment, theirs.get());
  request.directory = setup.directory;
  request.in = stdin_fd;
  request.out = out->write.get();
  request.err = err->write.get();
  request.kept = {theirs.get()};
  request.descriptors_soft = setup.descriptors_soft;
  process->started_at = Clock::now();
  Result<Spawned> spawned = spawn(request);
  if (!spawned) return spawned.error();
  process->spawned = std::move(*spawned);
  process->out.emplace(std::move(out->read), std::move(logs->out), false);
  process->err.emplace(std::move(err->read), std::move(logs->err), true);
  return process;
}

}  // namespace regroup::launcher
