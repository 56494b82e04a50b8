/// The commands that look at a running job or act on it, as people call them.
#include <chrono>
#include <fstream>
#include <functional>

#include <poll.h>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "launcher/control_socket.hpp"
#include "launcher/report.hpp"
#include "tests/support/job.hpp"

namespace regroup::test {
namespace {

using nlohmann::json;
using namespace std::chrono_literals;

class Commands : public ::testing::Test {
 protected:
  Commands() { start({"run", "-n", "2", "--spares", "1"}); }

  void start(std::vector<std::string> words) {
    for (const std::string& word : {std::string("--log-dir"), logs(), std::string("--"),
                                    std::string(COUNTING_RANK), stop()}) {
      words.push_back(word);
    }
    job_.emplace(words);
  }
  std::string logs() const { return (dir_.path() / "logs").string(); }
  std::string stop() const { return (dir_.path() / "stop").string(); }

  /// Asks until the answer satisfies `good`; the job's own state is all there is to wait for.
  json status_when(const std::function<bool(const json&)>& good) {
    const TimePoint deadline = Clock::now() + JobOptions{}.patience;
    json last;
    while (Clock::now() < deadline) {
      const Ended asked = run({"status", job_->id(), "--json"});
      last = json::parse(asked.out, nullptr, false);
      if (asked.exit_code == 0 && last.is_object() && good(last)) return last;
      (void)::poll(nullptr, 0, 20);
    }
    ADD_FAILURE() << "never so: " << last.dump(1) << job_->err();
    return last;
  }
  static const json& seat(const json& status, int rank) {
    static const json none = json::object();
    for (const json& process : status["processes"]) {
      if (process.value("rank", -1) == rank) return process;
    }
    return none;
  }
  static bool runs_in(const json& status, int epoch) {
    return status["epoch"] == epoch && seat(status, 0).value("step", 0) > 2 &&
           seat(status, 1).value("step", 0) > 2;
  }
  json end() {
    std::ofstream(stop()).flush();
    EXPECT_EQ(job_->wait(), 0) << job_->err();
    EXPECT_EQ(job_->out().find("wrong"), std::string::npos) << job_->out();
    const Ended shown = run({"report", logs(), "--json"});
    EXPECT_EQ(shown.exit_code, 0) << shown.err;
    return json::parse(shown.out, nullptr, false);
  }
  Ended inject(std::vector<std::string> words) {
    words.insert(words.begin(), "inject");
    words.insert(words.end(), {"--job", job_->id()});
    return run(words);
  }

  TempDir dir_;
  std::optional<Job> job_;
};

TEST_F(Commands, StatusShowsSeatsStepsAndTheSpare) {
  ASSERT_TRUE(job_->wait_for("job "));
  const json status =
      status_when([](const json& s) { return runs_in(s, 1) && s["processes"].size() == 3; });
  EXPECT_EQ(status["ranks"], 2);
  EXPECT_EQ(status["pid"], job_->pid());
  EXPECT_GT(status["coordinator"]["pid"], 0);
  EXPECT_FALSE(status["processes"][2].contains("rank"));
  const Ended shown = run({"status", job_->id()});
  EXPECT_NE(shown.out.find("2/2 ranks, 1 of 1 spares"), std::string::npos) << shown.out;
  end();
  const Ended after = run({"status", job_->id()});
  EXPECT_EQ(after.exit_code, 69);
  EXPECT_NE(after.err.find("E-CTL-2"), std::string::npos);
}

TEST_F(Commands, AKillThatWasInjectedIsInEventsAndReport) {
  ASSERT_TRUE(job_->wait_for("job "));
  const json before = status_when([](const json& s) { return runs_in(s, 1); });
  const std::int64_t at = seat(before, 1).value("step", 0) + 5;
  const Ended injected = inject({"kill", "--rank", "1", "--at", "step=" + std::to_string(at)});
  ASSERT_EQ(injected.exit_code, 0) << injected.err;
  EXPECT_NE(injected.out.find("armed"), std::string::npos);
  status_when([](const json& s) { return runs_in(s, 2); });
  const json report = end();
  ASSERT_EQ(report["losses"].size(), 1u) << report.dump(1);
  EXPECT_EQ(report["losses"][0]["rank"], 1);
  EXPECT_GT(report["losses"][0]["detect_ns"], 0);
  EXPECT_GE(report["losses"][0]["step"], at);
  EXPECT_EQ(report["losses"][0]["replaced_by"]["how"], "spare");
  EXPECT_EQ(report["injected"], 1);
  ASSERT_EQ(report["recoveries"].size(), 1u);
  EXPECT_TRUE(report["recoveries"][0]["complete"]);
  EXPECT_GT(report["recovery_percentiles"]["total"]["p50_ns"], 0);
  EXPECT_LT(std::abs(report["ledger"]["residual"].get<double>()), 0.001);
  EXPECT_GT(report["ledger"]["ett_progress"], 0.0);
  const Ended events = run({"events", logs()});
  EXPECT_NE(events.out.find("lost rank 1"), std::string::npos) << events.out;
  EXPECT_NE(events.out.find("job_ended exit 0"), std::string::npos);
  const Ended text = run({"report", logs()});
  EXPECT_NE(text.out.find("1 lost, 1 replaced"), std::string::npos) << text.out;
}

TEST_F(Commands, TheCoordinatorMayBeKilledUnderARunningJob) {
  ASSERT_TRUE(job_->wait_for("job "));
  const json before = status_when([](const json& s) { return runs_in(s, 1); });
  ASSERT_EQ(inject({"coordinator-kill"}).exit_code, 0);
  const json after = status_when([](const json& s) { return s["coordinator"]["restarts"] == 1; });
  EXPECT_NE(after["coordinator"]["pid"], before["coordinator"]["pid"]);
  ASSERT_EQ(inject({"kill", "--rank", "0"}).exit_code, 0);
  status_when([](const json& s) { return runs_in(s, 2); });
  const json report = end();
  EXPECT_EQ(report["coordinator_losses"], 1);
  EXPECT_EQ(report["losses"].size(), 1u);
}

TEST_F(Commands, AStoppedCoordinatorDelaysARecoveryAndChangesNoResult) {
  ASSERT_TRUE(job_->wait_for("job "));
  const json before = status_when([](const json& s) { return runs_in(s, 1); });
  ASSERT_EQ(::kill(before["coordinator"]["pid"].get<pid_t>(), SIGSTOP), 0);
  ASSERT_EQ(inject({"kill", "--rank", "1"}).exit_code, 0);
  const json after = status_when([](const json& s) { return runs_in(s, 2); });
  EXPECT_EQ(after["coordinator"]["restarts"], 1);
  const json report = end();
  EXPECT_EQ(report["losses"].size(), 1u);
  EXPECT_EQ(report["coordinator_losses"], 1);
}

class TenSeconds : public Commands {};

TEST_F(TenSeconds, ANewcomerThatIsAwaitedIsNamed) {
  end();
  std::filesystem::remove(stop());
  const std::string go = (dir_.path() / "go").string();
  job_.emplace(std::vector<std::string>{"run", "-n", "2", "--log-dir", logs() + "2", "--",
                                        COUNTING_RANK, stop(), go});
  ASSERT_TRUE(job_->wait_for("job "));
  status_when([](const json& s) { return runs_in(s, 1); });
  ASSERT_EQ(inject({"kill", "--rank", "1"}).exit_code, 0);
  EXPECT_TRUE(job_->wait_for("E-STALL-1 epoch 2: 1 of 2 ranks entered")) << job_->err();
  EXPECT_TRUE(job_->wait_for("not: rank 1 (pid")) << job_->err();
  std::ofstream(go).flush();
  status_when([](const json& s) { return runs_in(s, 2); });
  std::ofstream(stop()).flush();
  EXPECT_EQ(job_->wait(), 0) << job_->err();
  EXPECT_EQ(job_->out().find("wrong"), std::string::npos) << job_->out();
}

TEST_F(Commands, EventsFollowUntilTheJobEnds) {
  ASSERT_TRUE(job_->wait_for("job "));
  status_when([](const json& s) { return runs_in(s, 1); });
  Job following({"events", "-f", logs()});
  EXPECT_TRUE(following.wait_for("view_installed epoch 1"));
  end();
  EXPECT_EQ(following.wait(), 0);
  EXPECT_NE(following.out().find("job_ended exit 0"), std::string::npos);
}

TEST_F(Commands, WhatMakesNoSenseIsRefusedWithACode) {
  ASSERT_TRUE(job_->wait_for("job "));
  status_when([](const json& s) { return runs_in(s, 1); });
  EXPECT_EQ(inject({"tickle"}).exit_code, 64);
  EXPECT_EQ(inject({"kill", "--rank", "1", "--at", "noon"}).exit_code, 64);
  EXPECT_NE(inject({"kill", "--rank", "7"}).err.find("E-INJ-3"), std::string::npos);
  EXPECT_EQ(run({"inject", "kill", "--rank", "0", "--job", "no-such-job"}).exit_code, 69);
  EXPECT_NE(run({"report", "/no/such/place"}).err.find("E-REP-1"), std::string::npos);
  EXPECT_NE(run({"events", "/no/such/place"}).err.find("E-REP-1"), std::string::npos);
  EXPECT_TRUE(end()["losses"].empty());
}

}  // namespace
}  // namespace regroup::test
