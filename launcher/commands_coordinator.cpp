#include <algorithm>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdio>

#include <sys/prctl.h>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include "launcher/commands.hpp"
#include "launcher/coordinator_host.hpp"
#include "launcher/options.hpp"
#include "launcher/priority.hpp"

namespace regroup::launcher {
namespace {

constexpr int kExitUsage = 64;
constexpr int kExitState = 69;

/// "2,0,-"
std::string plan_text(const std::vector<membership::HostPlan>& hosts) {
  std::string out;
  for (const membership::HostPlan& host : hosts) {
    if (!out.empty()) out += ',';
    out += host.used ? std::to_string(host.seats) : "-";
  }
  return out;
}

Result<std::vector<membership::HostPlan>> parse_plan(std::string_view text) {
  std::vector<membership::HostPlan> out;
  while (!text.empty()) {
    const std::string_view word = text.substr(0, text.find(','));
    text.remove_prefix(std::min(text.size(), word.size() + 1));
    membership::HostPlan host{.seats = 0, .used = word != "-"};
    const char* const end = word.data() + word.size();
    if (host.used && (std::from_chars(word.data(), end, host.seats).ptr != end || word.empty()))
      return Status(Code::InvalidArgument, fmt::format("E-USE-1 --plan: '{}' is no number", word));
    out.push_back(host);
  }
  return out;
}

}  // namespace

std::vector<std::string> coordinator_arguments(const CoordinatorOptions& options) {
  const membership::JobConfig& config = options.config;
  std::vector<std::string> out = {"coordinator",
                                  "--fd",
                                  std::to_string(options.fd),
                                  "--state",
                                  options.state.string(),
                                  "--ranks",
                                  std::to_string(config.ranks),
                                  "--min",
                                  std::to_string(config.ranks_min),
                                  "--spares",
                                  std::to_string(config.spares),
                                  "--on-loss",
                                  std::string(name(config.on_loss)),
                                  "--max-replacements",
                                  std::to_string(config.replacements_max),
                                  "--detect-budget-ms",
                                  std::to_string(options.detect_budget.count())};
  if (options.beat >= 0) {
    out.emplace_back("--beat-fd");
    out.push_back(std::to_string(options.beat));
  }
  if (config.restart_unattached) out.emplace_back("--restart");
  if (options.agents > 1) out.insert(out.end(), {"--agents", std::to_string(options.agents)});
  if (!config.hosts.empty()) out.insert(out.end(), {"--plan", plan_text(config.hosts)});
  if (options.tcp) {
    out.insert(out.end(), {"--listen", std::to_string(options.tcp->listening), "--secret",
                           std::to_string(options.tcp->secret), "--refusals",
                           std::to_string(options.tcp->refusals), "--job", options.tcp->job});
  }
  return out;
}

Result<CoordinatorOptions> parse_coordinator(const std::vector<std::string>& arguments) {
  CoordinatorOptions options;
  membership::JobConfig& config = options.config;
  std::string state;
  std::string on_loss(name(config.on_loss));
  std::int64_t detect_budget_ms = options.detect_budget.count();
  CLI::App app("Hosts the membership machine of one job. The launcher starts it; people need not.",
               "regroup coordinator");
  app.add_option("--fd", options.fd, "descriptor of the channel to the agent")
      ->required()
      ->check(CLI::NonNegativeNumber);
  app.add_option("--beat-fd", options.beat, "page in which it shows that it moves")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--state", state, "the write-ahead state file")->required();
  app.add_option("--ranks", config.ranks)->check(CLI::PositiveNumber);
  app.add_option("--min", config.ranks_min);
  app.add_option("--spares", config.spares);
  app.add_option("--on-loss", on_loss);
  app.add_option("--max-replacements", config.replacements_max);
  app.add_option("--detect-budget-ms", detect_budget_ms)->check(CLI::PositiveNumber);
  app.add_flag("--restart", config.restart_unattached);
  std::string plan;
  CLI::Option* const agents =
      app.add_option("--agents", options.agents, "hosts of the job")->check(CLI::PositiveNumber);
  app.add_option("--plan", plan, "seats of each host, - for one that runs nothing: 2,2,-");
  CoordinatorOptions::Tcp tcp;
  CLI::Option* const listen =
      app.add_option("--listen", tcp.listening, "descriptor of the port that agents come to")
          ->check(CLI::NonNegativeNumber);
  CLI::Option* const secret =
      app.add_option("--secret", tcp.secret, "descriptor of the job's secret")
          ->check(CLI::NonNegativeNumber);
  CLI::Option* const refusals =
      app.add_option("--refusals", tcp.refusals, "descriptor of the counters of refusals")
          ->check(CLI::NonNegativeNumber);
  CLI::Option* const job = app.add_option("--job", tcp.job, "the job that agents must name");
  // A port without a secret is never opened.
  listen->needs(secret)->needs(refusals)->needs(job);
  agents->needs(listen);
  try {
    app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
  } catch (const CLI::CallForHelp&) {
    return Status(Code::InvalidArgument, app.help());
  } catch (const CLI::ParseError& error) {
    return Status(Code::InvalidArgument,
                  fmt::format("E-USE-1 regroup coordinator: {}", error.what()));
  }
  Result<OnLoss> policy = parse_on_loss(on_loss);
  if (!policy) return policy.error();
  config.on_loss = *policy;
  Result<std::vector<membership::HostPlan>> plans = parse_plan(plan);
  if (!plans) return plans.error();
  config.hosts = std::move(*plans);
  if (tcp.listening >= 0) options.tcp = tcp;
  options.state = state;
  options.detect_budget = std::chrono::milliseconds(detect_budget_ms);
  return options;
}

int coordinator_command(const Arguments& arguments) {
  Result<CoordinatorOptions> options = parse_coordinator(arguments);
  if (!options) {
    fmt::print(stderr, "{}\n", options.error().text());
    return kExitUsage;
  }
  // It ends with its agent and with nothing else: a terminal's Ctrl-C is the agent's business. The
  // channel closes too when the agent dies, so a death before this call is noticed all the same.
  (void)::prctl(PR_SET_PDEATHSIG, SIGKILL);
  go_first();
  for (const int ignored :
       {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGPIPE, SIGTSTP, SIGXFSZ}) {
    (void)std::signal(ignored, SIG_IGN);
  }
  Result<CoordinatorHost> host = CoordinatorHost::open(std::move(*options));
  const Status ended = host ? host->run() : host.error();
  if (ended) return 0;
  fmt::print(stderr, "regroup: coordinator: {}\n", ended.text());
  return kExitState;
}

}  // namespace regroup::launcher
