/// `regroup drain` and `regroup scale`: planned changes of a running job's members.
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include <poll.h>

#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "launcher/command_line.hpp"
#include "launcher/commands.hpp"
#include "launcher/control_socket.hpp"
#include "launcher/exit_codes.hpp"

namespace regroup::launcher {
namespace {

using nlohmann::json;

/// A coordinator that has to be restarted first answers within this.
constexpr std::chrono::seconds kDecisionTime{20};
/// The launcher's socket has one answer a connection, so what became of a wish is asked for.
constexpr int kAskEveryMs = 20;

struct Flags {
  bool now = false;
  bool wait = false;
  std::string job;
};

void add_flags(CLI::App& app, Flags& flags) {
  app.add_flag("--now", flags.now,
               "do not wait for the end of a step: the step in progress is begun again, and "
               "operations in flight return RankLost or Revoked");
  app.add_flag("--wait", flags.wait, "return when it is done, not when it is accepted");
  app.add_option("--job", flags.job, "which job, when several of yours run");
}

/// Refused or given up, in the words of whoever refused.
int refused(const std::string& text) {
  fmt::print(stderr, "regroup: {}\n", text);
  return kExitUnavailable;
}

bool is(const json& answer, const char* key) { return answer.value(key, false); }

int follow(const RunningJob& job, std::uint64_t wish, bool to_the_end) {
  const TimePoint until = Clock::now() + kDecisionTime;
  bool told = false;
  while (true) {
    const Result<json> answer = ask(job, {{"v", kStatusSchema}, {"do", "wish"}, {"wish", wish}},
                                    Clock::now() + kAnswerTime);
    if (!answer) return say_failure(answer.error());
    const std::string text = answer->value("text", std::string());
    if (is(*answer, "answered") && !is(*answer, "accepted")) return refused("E-PLAN-1 " + text);
    if (is(*answer, "dropped")) return refused("E-PLAN-4 " + text);
    if (is(*answer, "accepted") && !told) {
      fmt::print("{}\n", text);
      std::fflush(stdout);
      told = true;
    }
    if (told && !to_the_end) return kExitDone;
    if (is(*answer, "done")) {
      fmt::print("done\n");
      return kExitDone;
    }
    if (!told && Clock::now() >= until) {
      return refused(
          "E-PLAN-3 the coordinator has not answered yet; the wish stands, and \"regroup events\" "
          "tells what becomes of it");
    }
    (void)::poll(nullptr, 0, kAskEveryMs);
  }
}

int change(json request, const Flags& flags) {
  const Result<RunningJob> job = only_job(flags.job);
  if (!job) return say_no_job(job.error());
  request["v"] = kStatusSchema;
  request["now"] = flags.now;
  const Result<json> answer = ask(*job, request, Clock::now() + kAnswerTime);
  if (!answer) return say_failure(answer.error());
  return follow(*job, answer->value("wish", std::uint64_t{0}), flags.wait);
}

}  // namespace

int drain_command(const Arguments& arguments) {
  CLI::App app(
      "Takes healthy ranks out of their seats. At the end of a step they leave, spares (or fresh "
      "processes, which are started first) take the seats over and heal; no step is lost or begun "
      "again. Under --on-loss replace operations in flight return RankLost or Revoked instead; "
      "under shrink the seats stay vacant. In the drained process next() returns false, and "
      "Job::drained() tells why.",
      "regroup drain");
  Flags flags;
  std::vector<std::uint32_t> ranks;
  app.add_option("RANK", ranks, "the ranks that leave")->required();
  add_flags(app, flags);
  if (const std::optional<int> done = parse_command_line(app, "drain", arguments)) return *done;
  return change({{"do", "drain"}, {"ranks", ranks}}, flags);
}

int scale_command(const Arguments& arguments) {
  CLI::App app(
      "Gives a running job fewer or more ranks, between --min and -n of its start. Fewer: at the "
      "end of a step the highest ranks leave, and their seats stay vacant. More: fresh processes "
      "take the lowest vacant seats and heal. Ranks keep their numbers; a group's size() is that "
      "of the seats in use, as after --on-loss shrink.",
      "regroup scale");
  Flags flags;
  std::uint32_t seats = 0;
  app.add_option("N", seats, "how many ranks the job is to have")->required();
  add_flags(app, flags);
  if (const std::optional<int> done = parse_command_line(app, "scale", arguments)) return *done;
  return change({{"do", "scale"}, {"seats", seats}}, flags);
}

}  // namespace regroup::launcher
