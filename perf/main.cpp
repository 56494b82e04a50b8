// regroup-perf: measures collectives and losses on the ranks of a job. It is a program like any
// other: it runs under `regroup run`, or alone as a job of one rank.
#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <regroup/regroup.hpp>

#include "collective/algorithm_rules.hpp"
#include "perf/kills.hpp"
#include "perf/measure.hpp"
#include "perf/options.hpp"
#include "perf/rivals.hpp"
#include "perf/sweep.hpp"
#include "perf/tune.hpp"

namespace regroup::perf {
namespace {

/// A single name stands for "always".
std::string as_rules(const std::string& algorithm) {
  return algorithm.find(':') == std::string::npos ? "0-:" + algorithm : algorithm;
}

int main_of(const std::vector<std::string>& arguments) {
  const Parsed parsed = parse_options(arguments);
  if (parsed.exit_code) {
    fmt::print(*parsed.exit_code == 0 ? stdout : stderr, "{}", parsed.text);
    return *parsed.exit_code;
  }
  const Options& options = parsed.options;
  if (!options.algorithm.empty()) {
    const std::string rules = as_rules(options.algorithm);
    if (auto read = collective::AlgorithmRules::parse(rules); !read) {
      fmt::print(stderr, "regroup-perf: --algo: {}\n", read.error().text());
      return kExitBadUsage;
    }
    ::setenv("REGROUP_ALGO", rules.c_str(), 1);
  }
  // Before attach: a spare that waits for a seat is as large as whoever held it.
  const Resident resident(options.kill ? options.resident_bytes : 0);
  auto job = Job::attach();
  if (!job) {
    fmt::print(stderr, "regroup-perf: {}\n", job.error().to_string());
    return 1;
  }
  if (has_root(options.collective) && options.root >= job->size()) {
    fmt::print(stderr, "regroup-perf: --root {} is none of the {} ranks\n", options.root,
               job->size());
    return kExitBadUsage;
  }
  if (options.collective == Collective::SendRecv && job->size() < 2) {
    fmt::print(stderr, "regroup-perf: sendrecv needs 2 ranks: regroup run -n 2 -- regroup-perf\n");
    return kExitBadUsage;
  }
  // What precedes the first entry is recorded for newcomers; a loop's operations are not.
  if (auto status = options.kill ? Status() : job->reform(); !status) {
    fmt::print(stderr, "regroup-perf: {}\n", status.to_string());
    return 1;
  }
  if (!options.tune_file.empty()) return run_tune(*job, options.tune_file);
  if (!options.serve_dir.empty()) {
    if (options.bind) bind_to_core(job->rank(), job->size());
    const auto code = serve(job->world(), options.serve_dir, job->rank() == 0);
    if (!code) fmt::print(stderr, "regroup-perf: {}\n", code.error().to_string());
    return code ? *code : 1;
  }
  if (options.kill) return run_kills(*job, options, arguments);
  return run_sweep(*job, options, arguments);
}

}  // namespace
}  // namespace regroup::perf

int main(int argc, char** argv) {
  return regroup::perf::main_of(std::vector<std::string>(argv, argv + argc));
}
