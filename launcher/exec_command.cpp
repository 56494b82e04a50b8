/// `regroup exec`: the supervisor of one place that another launcher started.
#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <filesystem>

#include "launcher/command_line.hpp"
#include "launcher/commands.hpp"
#include "launcher/descendants.hpp"
#include "launcher/environment.hpp"
#include "launcher/exec_options.hpp"
#include "launcher/exit_codes.hpp"
#include "launcher/job_host.hpp"
#include "launcher/launch_environment.hpp"
#include "launcher/rendezvous.hpp"
#include "launcher/run_options.hpp"
#include "launcher/shim.hpp"
#include "launcher/waiting.hpp"

namespace regroup::launcher {
namespace {

constexpr std::chrono::milliseconds kAgain{20};

/// Which place of how many; refuses what cannot meet on one host.
Refusal read_place(const std::vector<std::string>& environment, LaunchEnvironment& place) {
  Result<LaunchEnvironment> read = read_launch_environment(environment);
  if (!read) return Refusal::unusable("E-RDZV-4", std::string(read.error().text()));
  place = std::move(*read);
  if (!place.rank || !place.size) {
    return Refusal::unusable(
        "E-RDZV-4", fmt::format("{} ({}) does not say which rank of how many this is; on one host "
                                "use regroup run",
                                title(place.system), place.why));
  }
  const bool several =
      place.hosts.value_or(1) > 1 || place.local_size.value_or(*place.size) < *place.size;
  if (several) {
    return Refusal::unusable(
        "E-RDZV-1",
        fmt::format("{} started {} of its {} ranks on this host; regroup exec joins the ranks of "
                    "one host only: start them all here, or use regroup mpirun --hosts",
                    title(place.system), place.local_size.value_or(1), *place.size));
  }
  for (const std::string& conflict : place.conflicts) {
    fmt::print(stderr, "regroup: {}; going by {} ({})\n", conflict, title(place.system),
               place.source);
  }
  return Refusal::none();
}

struct Meeting {
  std::string place;
  pid_t launcher = 0;                    ///< of this place
  std::optional<std::uint64_t> started;  ///< when the launcher did
  bool together = true;                  ///< it is the launcher of all places
  bool there = false;                    ///< the agent is, already
};

Refusal find_meeting(const LaunchEnvironment& environment, const ExecOptions& options,
                     Meeting& meeting) {
  meeting.launcher = launcher_of(environment.source);
  meeting.started = start_time_of(meeting.launcher);
  if (!options.agent.empty()) {
    meeting.place = options.agent;
    meeting.there = true;
    return Refusal::none();
  }
  if (const char* given = std::getenv("REGROUP_RDZV"); given != nullptr && *given != '\0') {
    const Result<std::string> place = place_of(given);
    if (!place) return Refusal::unusable("E-RDZV-4", std::string(place.error().text()));
    meeting.place = *place;
    meeting.together = false;
    return Refusal::none();
  }
  const Result<std::string> place = meeting_place(meeting.launcher);
  if (!place) return Refusal::unusable("E-RDZV-4", std::string(place.error().text()));
  meeting.place = *place;
  return Refusal::none();
}

/// Connects to the agent; starts it if this is the first shim to come.
Result<base::Fd> meet(const Meeting& meeting, const std::vector<std::string>& words) {
  Result<base::Fd> connected = connect_to(meeting.place);
  if (!connected || *connected || meeting.there) return connected;
  const Result<base::Fd> listener = listen_at(meeting.place);
  if (!listener) return listener.error();
  if (!*listener) return base::Fd();  // another shim was faster: it is starting the agent
  const pid_t launcher = meeting.together ? meeting.launcher : 0;
  if (Status started = start_agent(listener->get(), launcher, words); !started) return started;
  return connect_to(meeting.place);
}

int serve(Shim& shim, bool& busy) {
  switch (shim.run()) {
    case Shim::Outcome::Ended: return shim.exit_code();
    case Shim::Outcome::Busy: busy = true; return kExitDone;
    case Shim::Outcome::AgentGone:
      return refuse(
          Refusal::unusable("E-AGENT-1",
                            "the job's agent is gone (killed?), so the job has ended here and in "
                            "its other places"));
    case Shim::Outcome::LauncherGone:
      return refuse(
          Refusal::unusable("E-AGENT-2", "the launcher is gone and the agent did not answer"));
  }
  return kExitFault;
}

/// Meets the others and serves the agent until the job is over.
int join(const Meeting& meeting, const ShimSetup& setup, const ExecOptions& options,
         const std::vector<std::string>& words) {
  const TimePoint began = Clock::now();
  TimePoint told = began;
  std::string waits_for = "the job's agent";
  while (true) {
    Result<base::Fd> agent = meet(meeting, words);
    if (!agent) return refuse(Refusal::unusable("E-RDZV-2", std::string(agent.error().text())));
    if (*agent) {
      Result<std::unique_ptr<Shim>> shim = Shim::create(setup, std::move(*agent));
      if (!shim) return refuse(Refusal::unusable("E-SYS-2", std::string(shim.error().text())));
      bool busy = false;
      const int code = serve(**shim, busy);
      if (!busy) return code;
      waits_for = "the end of an earlier job of the same launcher";
    }
    if (!runs(meeting.launcher) || start_time_of(meeting.launcher) != meeting.started)
      return refuse(Refusal::unusable("E-RDZV-3", "the launcher ended before the job began"));
    const TimePoint now = Clock::now();
    const auto waited = whole_seconds(now - began);
    if (now - began >= options.start_timeout)
      return refuse(
          Refusal::unusable("E-RDZV-3", fmt::format("waited {} s for {}", waited, waits_for)));
    if (now - told >= kWaitToldAfter) {
      told = now;
      fmt::print(stderr, "regroup: E-WAIT-1 waiting {} s for {}\n", waited, waits_for);
    }
    ::poll(nullptr, 0, static_cast<int>(kAgain.count()));
  }
}

}  // namespace

Refusal parse_exec(const std::vector<std::string>& words, ExecOptions& options) {
  Typed typed;
  CLI::App app(
      "regroup exec [options] -- program arguments...\n"
      "In front of a program under mpirun, srun or torchrun, all on one host: the ranks that\n"
      "the launcher starts become a job, and the ranks that are lost are replaced.",
      "regroup exec");
  describe_job_options(app, options.run, typed);
  describe_start_timeout(app, typed);
  app.add_option("--agent", options.agent, "meet the agent that listens there; start none");
  if (only_described(app)) {
    options.help = true;
    return Refusal::none();
  }
  Split split = split_arguments(words, [&](const std::string& word) {
    const CLI::Option* option = app.get_option_no_throw(word);
    return option != nullptr && option->get_items_expected_max() > 0;
  });
  try {
    app.parse(std::vector<std::string>(split.ours.rbegin(), split.ours.rend()));
  } catch (const CLI::CallForHelp&) {
    fmt::print("{}", app.help());
    options.help = true;
    return Refusal::none();
  } catch (const CLI::ParseError& error) {
    return {kExitBadUsage, "E-USE-1",
            fmt::format("{}; regroup exec --help lists the options", error.what())};
  }
  options.run.program = std::move(split.program);
  if (Refusal refusal = read_start_timeout(typed, options.start_timeout); !refusal.code.empty())
    return refusal;
  // How many ranks there are is known once the launcher's variables are read.
  const int min = std::exchange(options.run.ranks_min, 0);
  Refusal refusal = read_typed(typed, options.run);
  options.run.ranks_min = min;
  options.run.ranks = 0;
  return refusal;
}

int exec_command(const Arguments& arguments) {
  ExecOptions options;
  const Refusal parsed = parse_exec(arguments, options);
  if (!parsed.code.empty()) return refuse(parsed);
  if (options.help) return kExitDone;
  const std::vector<std::string> environment = own_environment();
  LaunchEnvironment place;
  if (const Refusal refusal = read_place(environment, place); !refusal.code.empty())
    return refuse(refusal);
  JobSetup checked;
  RunOptions one = options.run;
  one.ranks = 1;
  if (const Refusal refusal = check_program_and_kernel(one, checked); !refusal.code.empty())
    return refuse(refusal);
  Meeting meeting;
  if (const Refusal refusal = find_meeting(place, options, meeting); !refusal.code.empty())
    return refuse(refusal);
  std::error_code error;
  ShimSetup setup;
  setup.launcher_pid = meeting.launcher;
  setup.hello.place = static_cast<std::uint32_t>(*place.rank);
  setup.hello.places = static_cast<std::uint32_t>(*place.size);
  setup.hello.pid = ::getpid();
  setup.hello.descriptors_soft = checked.descriptors_soft;
  setup.hello.program = {checked.program_path, options.run.program, environment,
                         std::filesystem::current_path(error).string()};
  return join(meeting, setup, options, arguments);
}

}  // namespace regroup::launcher
