/// `regroup mpirun`: agent of a job whose places mpirun starts as this process's child.
#include <fmt/format.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <csignal>
#include <cstdlib>
#include <filesystem>

#include "launcher/command_line.hpp"
#include "launcher/commands.hpp"
#include "launcher/environment.hpp"
#include "launcher/exit_codes.hpp"
#include "launcher/host_options.hpp"
#include "launcher/job_host.hpp"
#include "launcher/mpi_launcher.hpp"
#include "launcher/preflight.hpp"
#include "launcher/rendezvous.hpp"
#include "launcher/run_options.hpp"
#include "launcher/run_shell.hpp"

namespace regroup::launcher {
namespace {

constexpr std::chrono::seconds kVersionMax{10};

struct MpirunOptions {
  RunOptions run;
  HostWords hosts;
  std::chrono::milliseconds start_timeout{};
  std::string mpirun = "mpirun";
  std::vector<std::string> theirs;  ///< mpirun's own flags
  bool help = false;                ///< it was asked for and printed
};

Refusal parse(const Arguments& words, MpirunOptions& options) {
  Typed typed;
  CLI::App app(
      "regroup mpirun -n N [options] [mpirun's own flags] -- program arguments...\n"
      "Has mpirun (Open MPI, MPICH) start ranks and spares on this host, or an agent on each of\n"
      "several, replaces the ranks that are lost, and ends with the job's exit code. What stands\n"
      "in front of -- and is not listed here goes to mpirun.",
      "regroup mpirun");
  app.add_option("-n,--ranks", options.run.ranks, "number of ranks")->required();
  describe_host_list(app, options.hosts);
  describe_job_options(app, options.run, typed);
  describe_start_timeout(app, typed);
  app.add_option("--mpirun", options.mpirun, "which mpirun (default: the one in PATH)");
  if (only_described(app)) {
    options.help = true;
    return Refusal::none();
  }
  const auto option = [&](const std::string& word) { return app.get_option_no_throw(word); };
  MpirunWords split = split_mpirun_words(
      words, [&](const std::string& word) { return option(word) != nullptr; },
      [&](const std::string& word) { return option(word)->get_items_expected_max() > 0; });
  try {
    app.parse(std::vector<std::string>(split.ours.rbegin(), split.ours.rend()));
  } catch (const CLI::CallForHelp&) {
    fmt::print("{}", app.help());
    options.help = true;
    return Refusal::none();
  } catch (const CLI::ParseError& error) {
    return {kExitBadUsage, "E-USE-1",
            fmt::format("{}; regroup mpirun --help lists the options", error.what())};
  }
  if (split.program.empty()) {
    return {kExitBadUsage, "E-USE-7",
            "no program given; it stands behind --: regroup mpirun -n 4 --spares 1 -- ./train"};
  }
  if (std::find(split.program.begin(), split.program.end(), ":") != split.program.end()) {
    return {kExitBadUsage, "E-USE-11",
            "a ':' of its own begins another program for mpirun; all places of a job run one"};
  }
  options.theirs = std::move(split.theirs);
  options.run.program = std::move(split.program);
  options.hosts.start_timeout = typed.start_timeout;
  if (Refusal refusal = read_start_timeout(typed, options.start_timeout); !refusal.code.empty())
    return refusal;
  return read_typed(typed, options.run);
}

Refusal find_mpirun(const std::string& wanted, MpiLauncher& launcher) {
  const char* search = std::getenv("PATH");
  const Result<std::string> path =
      find_program(wanted, search != nullptr ? search : "/usr/bin:/bin");
  if (!path) {
    return {kExitNoProgram, "E-MPI-1",
            fmt::format("no mpirun: {}; install Open MPI or MPICH, name it with --mpirun, or use "
                        "regroup run",
                        path.error().text())};
  }
  SpawnRequest request;
  request.path = *path;
  request.arguments = {*path, "--version"};
  request.environment = own_environment();
  const Result<std::string> text = output_of(std::move(request), Clock::now() + kVersionMax);
  Result<MpiLauncher> read = text ? read_mpi_version(*text) : text.error();
  if (!read) {
    return {kExitUnavailable, "E-MPI-2",
            fmt::format("{} is no mpirun that is known here ({}); put regroup exec -- in front of "
                        "the program instead: {} ... regroup exec -- {}",
                        *path, read.error().text(), *path, "./train")};
  }
  launcher = std::move(*read);
  launcher.path = *path;
  return Refusal::none();
}

/// What mpirun and its places find: nothing that says that another launcher started them, and the
/// job's name, by which the guardian ends what is left if this process is killed.
std::vector<std::string> environment_of_mpirun(const std::string& job) {
  constexpr std::array<std::string_view, 8> kOthers = {
      "REGROUP_RANK",        "REGROUP_RDZV", "REGROUP_LAUNCH", "REGROUP_JOB_ID",
      "TORCHELASTIC_RUN_ID", "RANK",         "PMI_RANK",       "OMPI_COMM_WORLD_RANK"};
  std::vector<std::string> out = own_environment();
  std::erase_if(out, [&](const std::string& variable) {
    const std::string_view key = std::string_view(variable).substr(0, variable.find('='));
    return std::find(kOthers.begin(), kOthers.end(), key) != kOthers.end();
  });
  out.push_back("REGROUP_JOB_ID=" + job);
  return out;
}

void say_what_starts(const RunOptions& options, const MpiLauncher& launcher,
                     const std::vector<std::string>& words) {
  if (options.verbosity == 0) return;
  fmt::print(stderr, "regroup: {} ({}) starts {} place{} on this host\n", launcher.title(),
             launcher.path, options.ranks + options.spares,
             options.ranks + options.spares == 1 ? "" : "s");
  if (options.verbosity > 1) fmt::print(stderr, "regroup: {}\n", shell_line(words));
}

/// Starts mpirun in a process group of its own: what a terminal sends to ours is for this process
/// to handle, and what is typed there for it to hand on.
Refusal start_mpirun(const std::vector<std::string>& words, HostedJob& job) {
  Result<std::optional<TerminalInput>> terminal = TerminalInput::open();
  if (!terminal) return {kExitUnavailable, "E-SYS-2", std::string(terminal.error().text())};
  job.terminal = std::move(*terminal);
  Result<base::Fd> signals = open_end_signals();
  if (!signals) return {kExitUnavailable, "E-SYS-2", std::string(signals.error().text())};
  job.signals = std::move(*signals);
  SpawnRequest request;
  request.path = words.front();
  request.arguments = words;
  request.environment = environment_of_mpirun(job.job);
  request.in = job.terminal ? job.terminal->fd() : STDIN_FILENO;
  Result<Spawned> spawned = spawn(request);
  if (!spawned) return {kExitUnavailable, "E-SYS-2", std::string(spawned.error().text())};
  job.launcher.reset(::dup(spawned->pidfd.get()));
  job.child = std::move(*spawned);
  return Refusal::none();
}

/// The job has other hosts, too: mpirun starts an agent on each of them, once a host, and ranks are
/// the agents' to start. What becomes of an mpirun concerns its host only.
int run_on_hosts(MpirunOptions options, const MpiLauncher& launcher, FleetPlan fleet,
                 JobSetup setup) {
  fleet.starter.words = mpirun_starter(launcher, options.theirs);
  if (options.run.verbosity > 0) {
    fmt::print(stderr, "regroup: {} ({}) starts an agent on each of {} other hosts\n",
               launcher.title(), launcher.path, fleet.others.size());
  }
  if (options.run.verbosity > 1) {
    for (const auto& [id, host] : fleet.others)
      fmt::print(stderr, "regroup: {}\n", shell_line(starter_words(fleet.starter, host)));
  }
  setup.place = fleet.places.front();
  JobHosts hosts;
  hosts.fleet = std::move(fleet);
  return run_job(std::move(options.run), std::move(setup), {}, std::move(hosts));
}

}  // namespace

int mpirun_command(const Arguments& arguments) {
  MpirunOptions options;
  Refusal refusal = parse(arguments, options);
  if (!refusal.code.empty()) return refuse(refusal);
  if (options.help) return kExitDone;
  std::optional<FleetPlan> fleet;
  refusal = plan_hosts(options.hosts, options.run, fleet);
  if (!refusal.code.empty()) return refuse(refusal);
  JobSetup setup;
  setup.job = make_job_id();
  refusal = check_program_and_kernel(options.run, setup);
  if (!refusal.code.empty()) return refuse(refusal);
  MpiLauncher launcher;
  refusal = find_mpirun(options.mpirun, launcher);
  if (!refusal.code.empty()) return refuse(refusal);
  refusal = prepare_log_dir(options.run, setup.job);
  if (!refusal.code.empty()) return refuse(refusal);
  if (fleet) return run_on_hosts(std::move(options), launcher, std::move(*fleet), std::move(setup));
  HostedJob job;
  job.job = setup.job;

  open_standard_descriptors();
  const std::string place = fmt::format("regroup-mpirun/{}/{}", ::getuid(), job.job);
  Result<base::Fd> listener = listen_at(place);
  if (!listener || !*listener) {
    return refuse({kExitUnavailable, "E-RDZV-2",
                   listener ? "the meeting place is taken" : std::string(listener.error().text())});
  }
  job.listener = std::move(*listener);
  job.places = static_cast<std::uint32_t>(options.run.ranks + options.run.spares);
  std::error_code error;
  const std::vector<std::string> words = mpirun_command_line(
      launcher, {options.run.ranks, options.run.spares, std::move(options.theirs),
                 std::filesystem::read_symlink("/proc/self/exe", error).string(), place,
                 options.run.program});
  say_what_starts(options.run, launcher, words);
  job.options = std::move(options.run);
  job.start_timeout = options.start_timeout;
  refusal = start_mpirun(words, job);
  if (!refusal.code.empty()) return refuse(refusal);
  return host_job(std::move(job));
}

}  // namespace regroup::launcher
