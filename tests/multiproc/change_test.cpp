/// `regroup drain` and `regroup scale` on real jobs: no step is lost or begun twice, no operation
/// fails, whoever leaves ends with 0, and whoever comes has the seat's own state.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "tests/multiproc/rank_job.hpp"

namespace regroup::test {
namespace {

using testing::HasSubstr;
using testing::Not;
using Words = std::vector<std::string>;

class Change : public testing::Test {
 protected:
  /// Starts a job that makes steps until stop() and waits until it does.
  void start(const Words& flags, const std::string& stop_file = "stop") {
    stop_file_ = (temp_.path() / stop_file).string();
    Words words{"run", "--log-dir", (temp_.path() / "logs").string()};
    words.insert(words.end(), flags.begin(), flags.end());
    words.insert(words.end(), {"--", REGROUP_RANK_PROGRAM, "changing", stop_file_});
    job_ = std::make_unique<Job>(words);
    ASSERT_TRUE(job_->wait_for("rank 0 reached")) << job_->out() << job_->err();
  }
  [[nodiscard]] Ended ask(Words words) const {
    words.insert(words.end(), {"--job", job_->id()});
    return run(words);
  }
  void ask_and_wait(Words words) const {
    words.emplace_back("--wait");
    const Ended done = ask(words);
    EXPECT_EQ(done.exit_code, 0) << done.out << done.err << job_->out() << job_->err();
    EXPECT_THAT(done.out, HasSubstr("done\n"));
  }
  /// Lets the job end, and checks what every rank says of it.
  void stop(std::size_t ranks) {
    std::ofstream(stop_file_).put('\n');
    EXPECT_EQ(job_->wait(), 0) << job_->out() << job_->err();
    const Ended all{.out = job_->out(), .err = job_->err()};
    const auto ended = all.lines_with(" ended steps=");
    EXPECT_EQ(ended.size(), ranks) << story(all);
    for (const auto& line : ended) {
      EXPECT_THAT(line, HasSubstr("wrong=0"));
      EXPECT_THAT(line, HasSubstr(fmt::format("size={} Ok", ranks)));
    }
    for (const auto& line : all.lines_with(" drained steps=")) {
      EXPECT_THAT(line, HasSubstr("wrong=0"));
      EXPECT_THAT(line, HasSubstr("then Cancelled: "));
      EXPECT_THAT(line, HasSubstr("was drained")) << line;
    }
    EXPECT_THAT(job_->left_behind(), testing::IsEmpty());
  }
  void expect_undisturbed() const {
    const Ended all{.out = job_->out(), .err = job_->err()};
    for (const auto& line : all.lines_with("steps=")) {
      EXPECT_THAT(line, HasSubstr("repeats=0 errors=0")) << story(all);
    }
    EXPECT_THAT(job_->err(), Not(HasSubstr(" lost: ")));
    EXPECT_THAT(events(), Not(HasSubstr("\"kind\":\"lost\"")));
  }
  [[nodiscard]] std::size_t drained() const {
    return Ended{.out = job_->out()}.lines_with(" drained steps=").size();
  }
  [[nodiscard]] std::string events() const {
    return read_file(temp_.path() / "logs" / "events.jsonl");
  }

  TempDir temp_;
  std::string stop_file_;
  std::unique_ptr<Job> job_;
};

TEST_F(Change, ADrainedRankLeavesAtTheEndOfAStepAndASpareTakesItsSeat) {
  start({"-n", "3", "--spares", "1"});
  ask_and_wait({"drain", "1"});
  stop(3);
  expect_undisturbed();
  EXPECT_EQ(drained(), 1U) << job_->out();
  EXPECT_THAT(events(), HasSubstr("\"kind\":\"drained\""));
  EXPECT_THAT(events(), HasSubstr("\"how\":\"spare\""));
  EXPECT_THAT(events(), HasSubstr("which was drained, ended with code 0"));
  EXPECT_THAT(job_->err(), HasSubstr("rank 1 (pid "));
  EXPECT_THAT(job_->err(), HasSubstr("drained: it has left its seat"));
}

TEST_F(Change, WithoutASpareAProcessIsStartedFirst) {
  start({"-n", "2"});
  ask_and_wait({"drain", "0"});
  ask_and_wait({"drain", "1"});
  stop(2);
  expect_undisturbed();
  EXPECT_EQ(drained(), 2U) << job_->out();
}

TEST_F(Change, SeveralRanksLeaveAtOnce) {
  start({"-n", "4", "--spares", "1"});
  ask_and_wait({"drain", "0", "2", "3"});
  stop(4);
  expect_undisturbed();
  EXPECT_EQ(drained(), 3U) << job_->out();
}

TEST_F(Change, AnAcceptedDrainOutlivesTheCoordinator) {
  start({"-n", "3"});
  const Ended accepted = ask({"drain", "2"});
  EXPECT_EQ(accepted.exit_code, 0) << accepted.err;
  EXPECT_THAT(accepted.out, HasSubstr("rank 2 (incarnation 3) leaves at the end of a step"));
  EXPECT_EQ(ask({"inject", "coordinator-kill"}).exit_code, 0);
  EXPECT_TRUE(job_->wait_for("rank 2 drained")) << job_->out() << job_->err();
  stop(3);
  expect_undisturbed();
}

TEST_F(Change, ALossWhileARankIsDrained) {
  start({"-n", "3", "--spares", "2"});
  EXPECT_EQ(ask({"drain", "1"}).exit_code, 0);
  EXPECT_EQ(ask({"inject", "kill", "--rank", "2"}).exit_code, 0);
  EXPECT_TRUE(job_->wait_for("rank 1 drained")) << job_->out() << job_->err();
  stop(3);
}

TEST_F(Change, NowEndsTheEpochInMidStep) {
  start({"-n", "3", "--spares", "1"});
  ask_and_wait({"drain", "1", "--now"});
  stop(3);
  EXPECT_EQ(drained(), 1U) << job_->out();
}

TEST_F(Change, UnderCarryOnTheyLeaveAndComeAsWell) {
  start({"-n", "4", "--spares", "1", "--on-loss", "carry_on"});
  ask_and_wait({"drain", "1"});
  ask_and_wait({"scale", "3"});
  ask_and_wait({"scale", "4"});
  stop(4);
  expect_undisturbed();
  EXPECT_EQ(drained(), 2U) << job_->out();
}

TEST_F(Change, ScaledDownAndUpAgain) {
  start({"-n", "4", "--min", "2"});
  ask_and_wait({"scale", "2"});
  // The view is there before those who left have said what they saw.
  EXPECT_TRUE(job_->wait_for("rank 2 drained")) << job_->out() << job_->err();
  EXPECT_TRUE(job_->wait_for("rank 3 drained")) << job_->out() << job_->err();
  const Ended again = ask({"scale", "2"});
  EXPECT_THAT(again.out, HasSubstr("nothing to do"));
  ask_and_wait({"scale", "3"});
  ask_and_wait({"scale", "4"});
  stop(4);
  expect_undisturbed();
  EXPECT_EQ(drained(), 2U) << job_->out();
}

TEST_F(Change, EveryRefusalSaysWhy) {
  start({"-n", "2", "--min", "2"});
  const auto refused = [this](const Words& words, const std::string& why) {
    const Ended answer = ask(words);
    EXPECT_EQ(answer.exit_code, 69) << answer.out << answer.err;
    EXPECT_THAT(answer.err, HasSubstr(why));
  };
  refused({"drain", "7"}, "E-PLAN-2 there is no rank 7");
  refused({"drain", "1", "1"}, "E-PLAN-2");
  refused({"drain", "0", "1"}, "E-PLAN-1 rank 0 (incarnation 1) is among the last ranks");
  refused({"scale", "1"}, "E-PLAN-1 1 ranks are fewer than --min 2");
  refused({"scale", "3"}, "E-PLAN-2 scale needs a number of ranks, at most 2");
  stop(2);
  expect_undisturbed();
}

TEST_F(Change, UnderShrinkTheSeatStaysVacant) {
  start({"-n", "3", "--on-loss", "shrink"});
  ask_and_wait({"drain", "0"});
  EXPECT_THAT(ask({"drain", "0"}).err, HasSubstr("E-PLAN-2 seat 0 is vacant"));
  EXPECT_THAT(ask({"scale", "3"}).err, HasSubstr("--on-loss shrink leaves a seat vacant"));
  stop(2);
  expect_undisturbed();
}

TEST_F(Change, UnderAbortTheMembersStay) {
  start({"-n", "2", "--on-loss", "abort"});
  EXPECT_THAT(ask({"drain", "1"}).err, HasSubstr("--on-loss abort keeps the members"));
  stop(2);
}

TEST_F(Change, WhatADrainedProgramReturnsIsNoLoss) {
  start({"-n", "2", "--spares", "1"}, "code3");
  ask_and_wait({"drain", "1"});
  EXPECT_TRUE(job_->wait_for("rank 1 drained"));
  stop(2);
  expect_undisturbed();
  EXPECT_THAT(events(), HasSubstr("which was drained, exited with code 3"));
}

}  // namespace
}  // namespace regroup::test
