/// `regroup run`: reads the command line, checks the machine, and gives the job to the shell.
#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdlib>

#include "launcher/command_line.hpp"
#include "launcher/commands.hpp"
#include "launcher/exit_codes.hpp"
#include "launcher/host_options.hpp"
#include "launcher/options.hpp"
#include "launcher/preflight.hpp"
#include "launcher/run_options.hpp"
#include "launcher/run_shell.hpp"

namespace regroup::launcher {

void describe_job_options(CLI::App& app, RunOptions& options, Typed& typed) {
  app.add_option("--min", options.ranks_min, "go on with as few as this many");
  app.add_option("--spares", options.spares, "processes kept warm to take over a lost seat");
  app.add_option("--on-loss", typed.on_loss,
                 "replay (default), carry_on, replace, shrink or abort");
  app.add_flag("--restart", options.restart, "replace programs too that never attach");
  app.add_option("--max-replacements", options.replacements_max,
                 "per seat and hour, losses without progress only (default 10)");
  app.add_option("--log-dir", options.log_dir, "events, report and logs (default runs/JOB)");
  app.add_option("--grace", typed.grace,
                 "from the first request to end until SIGKILL (default 15s)");
  app.add_option("--timeout", typed.timeout, "end the job after this long, with exit code 124");
  app.add_option("--detect-budget", typed.detect_budget,
                 "silent ranks are out within this; a bare number is in ms (default 1500)");
  app.add_option("--control", typed.control,
                 "how agent and coordinator speak: pair (default), or tcp: TLS on the loopback "
                 "interface");
  app.add_flag("-q,--quiet", typed.quiet, "only errors and losses");
  app.add_flag("-v,--verbose", typed.verbose, "decisions and their reasons too");
}

void describe_start_timeout(CLI::App& app, Typed& typed) {
  app.add_option("--start-timeout", typed.start_timeout,
                 "how long all ranks may take to get here (default 120s)");
}

Refusal read_start_timeout(const Typed& typed, std::chrono::milliseconds& value) {
  const Result<std::chrono::milliseconds> read = parse_duration(typed.start_timeout);
  if (!read)
    return {kExitBadUsage, "E-USE-8", fmt::format("--start-timeout {}", read.error().text())};
  value = *read;
  return Refusal::none();
}

Refusal read_typed(const Typed& typed, RunOptions& options) {
  struct Duration {
    const char* flag;
    const std::string& text;
    std::chrono::milliseconds bare;
    std::chrono::milliseconds& value;
  };
  using std::chrono::milliseconds;
  const Duration durations[] = {
      {"--grace", typed.grace, milliseconds(1000), options.grace},
      {"--timeout", typed.timeout, milliseconds(1000), options.timeout},
      {"--detect-budget", typed.detect_budget, milliseconds(1), options.detect_budget}};
  for (const Duration& duration : durations) {
    const Result<milliseconds> value = parse_duration(duration.text, duration.bare);
    if (!value)
      return {kExitBadUsage, "E-USE-8", fmt::format("{} {}", duration.flag, value.error().text())};
    duration.value = *value;
  }
  const Result<OnLoss> policy = parse_on_loss(typed.on_loss);
  if (!policy) return {kExitBadUsage, "E-USE-9", std::string(policy.error().text())};
  options.on_loss = *policy;
  const Result<ControlKind> control = parse_control(typed.control);
  if (!control) return {kExitBadUsage, "E-USE-10", std::string(control.error().text())};
  options.control = *control;
  options.verbosity = typed.verbose ? 2 : typed.quiet ? 0 : 1;
  return check_options(options);
}

int refuse(const Refusal& refusal) {
  fmt::print(stderr, "regroup: {} {}\n", refusal.code, refusal.text);
  return refusal.exit_code;
}

Refusal check_program_and_kernel(const RunOptions& options, JobSetup& setup) {
  const char* search = std::getenv("PATH");
  Refusal refusal = check_program(options.program[0], search != nullptr ? search : "/usr/bin:/bin",
                                  setup.program_path);
  if (!refusal.code.empty()) return refusal;
  refusal = check_kernel(probe_kernel());
  if (!refusal.code.empty()) return refusal;
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  refusal = check_descriptors(options, limit.rlim_max);
  if (!refusal.code.empty()) return refusal;
  setup.descriptors_soft = limit.rlim_cur;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
  return refusal;
}

Refusal prepare_log_dir(RunOptions& options, const std::string& job) {
  if (options.log_dir.empty()) options.log_dir = std::filesystem::path("runs") / job;
  options.log_dir = std::filesystem::absolute(options.log_dir).lexically_normal();
  return check_log_dir(options.log_dir);
}

int run_command(const Arguments& arguments) {
  RunOptions options;
  Typed typed;
  HostWords words;
  CLI::App app(
      "regroup run -n N [options] -- program arguments...\n"
      "Runs a program as the ranks of a job, here or on several hosts, and replaces the ranks "
      "that\n"
      "are lost.",
      "regroup run");
  app.add_option("-n,--ranks", options.ranks, "number of ranks")->required();
  describe_host_options(app, words);
  describe_job_options(app, options, typed);
  app.add_flag("--json", options.json,
               "events as JSON lines on stdout; program output goes to the logs only");
  if (only_described(app)) return kExitDone;
  Split split = split_arguments(arguments, [&](const std::string& word) {
    const CLI::Option* option = app.get_option_no_throw(word);
    return option != nullptr && option->get_items_expected_max() > 0;
  });
  try {
    app.parse(std::vector<std::string>(split.ours.rbegin(), split.ours.rend()));
  } catch (const CLI::CallForHelp&) {
    fmt::print("{}", app.help());
    return kExitDone;
  } catch (const CLI::ParseError& error) {
    return refuse({kExitBadUsage, "E-USE-1",
                   fmt::format("{}; regroup run --help lists the options", error.what())});
  }
  options.program = std::move(split.program);
  if (const Refusal refusal = read_typed(typed, options); !refusal.code.empty())
    return refuse(refusal);
  JobSetup setup;
  setup.job = make_job_id();
  JobHosts hosts;
  if (const Refusal refusal = plan_hosts(words, options, hosts.fleet); !refusal.code.empty())
    return refuse(refusal);
  if (hosts.fleet) setup.place = hosts.fleet->places.front();
  if (const Refusal refusal = check_program_and_kernel(options, setup); !refusal.code.empty())
    return refuse(refusal);
  if (const Refusal refusal = prepare_log_dir(options, setup.job); !refusal.code.empty())
    return refuse(refusal);
  return run_job(std::move(options), std::move(setup), {}, std::move(hosts));
}

}  // namespace regroup::launcher
