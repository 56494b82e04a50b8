#include "launcher/control_socket.hpp"

#include <csignal>
#include <map>
#include <thread>

#include <poll.h>
#include <unistd.h>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "base/fd.hpp"
#include "launcher/control_address.hpp"

namespace regroup::launcher {
namespace {

using metrics::Doing;
using metrics::Operation;
using metrics::Phase;
using nlohmann::json;
using namespace std::chrono_literals;

/// A job of four ranks that only remembers what was done to it.
class FakeJob : public JobControl {
 public:
  JobStatus status() override {
    JobStatus out{.job = "fake", .state = "steady", .pid = 7, .ranks = 4, .epoch = Epoch(5)};
    out.now_ns = 1000;
    out.processes.push_back({Rank(2), Incarnation(9), 11, "healed", "here", doing_});
    out.processes.push_back({std::nullopt, Incarnation(10), 12, "joined", "here", {}});
    return out;
  }
  Status signal(Rank rank, int signal) override {
    if (vacant_ == rank) return {Code::FailedPrecondition, "seat 3 is vacant"};
    done.push_back(fmt::format("signal {} to {}", signal, rank.value()));
    return {};
  }
  Status evict(Rank rank, const std::string&) override {
    done.push_back(fmt::format("evict {}", rank.value()));
    return {};
  }
  Result<std::uint64_t> drain(const std::vector<Rank>& ranks, bool now) override {
    if (vacant_ == ranks.front()) return Status(Code::FailedPrecondition, "seat 3 is vacant");
    for (const Rank rank : ranks)
      done.push_back(fmt::format("drain {}{}", rank.value(), now ? " now" : ""));
    return std::uint64_t{5};
  }
  std::uint64_t scale(std::uint32_t seats, bool now) override {
    done.push_back(fmt::format("scale {}{}", seats, now ? " now" : ""));
    return 6;
  }
  std::optional<Wish> wish(std::uint64_t id) override {
    if (id != 5) return std::nullopt;
    return Wish{.answered = true, .accepted = true, .text = "rank 2 leaves"};
  }
  Status kill_coordinator() override {
    done.emplace_back("coordinator");
    return {};
  }
  std::optional<Doing> doing(Rank rank) override {
    ++looks;
    return rank == Rank(2) ? std::optional(doing_) : std::nullopt;
  }
  Result<json> flight(Rank rank) override {
    if (vacant_ == rank) return Status(Code::FailedPrecondition, "seat 3 is vacant");
    return json{{"v", 1}, {"rank", rank.value()}, {"records", json::array()}};
  }
  void refused_other_user() override { ++refused; }

  int refused = 0;
  Doing doing_{.operation = Operation::AllReduce,
               .phase = Phase::CopyIn,
               .sequence = 17,
               .step = 3,
               .started_ns = 400};
  Rank vacant_{3};
  std::vector<std::string> done;
  int looks = 0;
};

class ControlSocketTest : public ::testing::Test {
 protected:
  ControlSocketTest() : job_{::getuid(), fmt::format("test-{}", ::getpid())} {}

  /// Turns the socket whenever its descriptor says so, until `until` is true; fails after ten
  /// seconds.
  template <class Done>
  void turn_until(Done&& until) {
    const TimePoint deadline = Clock::now() + 10s;
    while (!until()) {
      ASSERT_LT(Clock::now(), deadline) << "nothing happened";
      pollfd ready{socket_.fd(), POLLIN, 0};
      if (::poll(&ready, 1, 20) > 0) socket_.turn();
    }
  }
  Result<json> request(const json& what) {
    std::optional<Result<json>> answer;
    std::atomic<bool> done = false;
    std::thread asking([&] {
      answer.emplace(ask(job_, what, Clock::now() + 5s));
      done = true;
    });
    turn_until([&] { return done.load(); });
    asking.join();
    return *answer;
  }

  FakeJob control_;
  RunningJob job_;
  ControlSocket socket_ = ControlSocket::open(job_.job, control_, nullptr).value();
};

TEST_F(ControlSocketTest, AnswersWithTheStatus) {
  const auto answer = request({{"do", "status"}});
  ASSERT_TRUE(answer) << answer.error().to_string();
  EXPECT_EQ((*answer)["epoch"], 5);
  const json& rank = (*answer)["processes"][0];
  EXPECT_EQ(rank["rank"], 2);
  EXPECT_EQ(rank["operation"], "all_reduce");
  EXPECT_EQ(rank["age_ns"], 600);
  const json& spare = (*answer)["processes"][1];
  EXPECT_FALSE(spare.contains("rank"));
  EXPECT_FALSE(spare.contains("age_ns"));
}

TEST_F(ControlSocketTest, IsFoundByItsNameUntilItIsGone) {
  const auto has = [this] {
    const auto jobs = running_jobs();
    return std::find(jobs.begin(), jobs.end(), job_) != jobs.end();
  };
  EXPECT_TRUE(has());
  EXPECT_FALSE(ControlSocket::open(job_.job, control_, nullptr));
  socket_ = ControlSocket::open(job_.job + "-next", control_, nullptr).value();
  EXPECT_FALSE(has());
  const auto answer = ask(job_, {{"do", "status"}}, Clock::now() + 5s);
  ASSERT_FALSE(answer);
  EXPECT_NE(answer.error().text().find("E-CTL-2"), std::string::npos);
}

TEST_F(ControlSocketTest, InjectsAtOnce) {
  EXPECT_TRUE(request({{"do", "inject"}, {"action", "kill"}, {"rank", 2}}));
  EXPECT_TRUE(request({{"do", "inject"}, {"action", "stop"}, {"rank", 1}}));
  EXPECT_TRUE(request({{"do", "inject"}, {"action", "cont"}, {"rank", 1}}));
  EXPECT_TRUE(request({{"do", "inject"}, {"action", "evict"}, {"rank", 0}}));
  EXPECT_TRUE(request({{"do", "inject"}, {"action", "coordinator-kill"}}));
  const std::vector<std::string> expected = {
      fmt::format("signal {} to 2", SIGKILL), fmt::format("signal {} to 1", SIGSTOP),
      fmt::format("signal {} to 1", SIGCONT), "evict 0", "coordinator"};
  EXPECT_EQ(control_.done, expected);
}

TEST_F(ControlSocketTest, PlannedChangesArePassedOnAndAskedFor) {
  const auto drain = request({{"do", "drain"}, {"ranks", {2, 0}}, {"now", true}});
  ASSERT_TRUE(drain) << drain.error().to_string();
  EXPECT_EQ((*drain)["wish"], 5);
  const auto scale = request({{"do", "scale"}, {"seats", 3}});
  ASSERT_TRUE(scale) << scale.error().to_string();
  EXPECT_EQ((*scale)["wish"], 6);
  const std::vector<std::string> expected = {"drain 2 now", "drain 0 now", "scale 3"};
  EXPECT_EQ(control_.done, expected);
  const auto wish = request({{"do", "wish"}, {"wish", 5}});
  ASSERT_TRUE(wish) << wish.error().to_string();
  EXPECT_EQ((*wish)["accepted"], true);
  EXPECT_EQ((*wish)["done"], false);
  EXPECT_EQ((*wish)["text"], "rank 2 leaves");
}

TEST_F(ControlSocketTest, PlannedChangesOfSeatsThatAreNotThereAreRefused) {
  const std::vector<json> wrong = {{{"do", "drain"}},
                                   {{"do", "drain"}, {"ranks", {4}}},
                                   {{"do", "drain"}, {"ranks", {1, 1}}},
                                   {{"do", "drain"}, {"ranks", {-1}}},
                                   {{"do", "drain"}, {"ranks", "1"}},
                                   {{"do", "scale"}},
                                   {{"do", "scale"}, {"seats", 5}}};
  for (const json& what : wrong) {
    const auto answer = request(what);
    ASSERT_FALSE(answer) << what.dump();
    EXPECT_NE(answer.error().text().find("E-PLAN-2"), std::string::npos) << answer.error().text();
  }
  EXPECT_FALSE(request({{"do", "wish"}, {"wish", 9}}));
  EXPECT_TRUE(control_.done.empty());
}

TEST_F(ControlSocketTest, WaitsForTheInstantThatWasNamed) {
  const auto answer =
      request({{"do", "inject"}, {"action", "kill"}, {"rank", 2}, {"at", "step=4,phase=reduce"}});
  ASSERT_TRUE(answer) << answer.error().to_string();
  EXPECT_EQ((*answer)["done"], false);
  const int looks = control_.looks;
  turn_until([&] { return control_.looks > looks + 3; });
  EXPECT_TRUE(control_.done.empty());
  EXPECT_EQ((*request({{"do", "status"}}))["armed"][0]["at"], "step=4,phase=reduce");
  control_.doing_.step = 5;
  control_.doing_.phase = Phase::Reduce;
  turn_until([&] { return !control_.done.empty(); });
  EXPECT_EQ(control_.done[0], fmt::format("signal {} to 2", SIGKILL));
  EXPECT_TRUE((*request({{"do", "status"}}))["armed"].empty());
}

TEST_F(ControlSocketTest, GivesTheFlightRecordOfOneRank) {
  const auto record = request({{"do", "flight"}, {"rank", 2}});
  ASSERT_TRUE(record) << record.error().text();
  EXPECT_EQ(record->at("rank"), 2);
  EXPECT_FALSE(request({{"do", "flight"}, {"rank", 3}}));
  EXPECT_FALSE(request({{"do", "flight"}, {"rank", 4}}));
  EXPECT_FALSE(request({{"do", "flight"}}));
}

TEST_F(ControlSocketTest, RefusesWhatItCannotDoAndSaysWhy) {
  const auto text = [&](const json& what) { return std::string(request(what).error().text()); };
  EXPECT_NE(text({{"do", "dance"}}).find("dance"), std::string::npos);
  EXPECT_NE(text({{"do", "inject"}, {"action", "tickle"}, {"rank", 1}}).find("E-INJ-2"),
            std::string::npos);
  EXPECT_NE(text({{"do", "inject"}, {"action", "kill"}}).find("E-INJ-3"), std::string::npos);
  EXPECT_NE(text({{"do", "inject"}, {"action", "kill"}, {"rank", 4}}).find("0..3"),
            std::string::npos);
  EXPECT_NE(text({{"do", "inject"}, {"action", "kill"}, {"rank", -1}}).find("E-INJ-3"),
            std::string::npos);
  EXPECT_NE(text({{"do", "inject"}, {"action", "kill"}, {"rank", 3}}).find("vacant"),
            std::string::npos);
  EXPECT_NE(
      text({{"do", "inject"}, {"action", "kill"}, {"rank", 1}, {"at", "noon"}}).find("E-INJ-1"),
      std::string::npos);
  EXPECT_NE(text(json::array()).find("not a JSON object"), std::string::npos);
  EXPECT_TRUE(control_.done.empty());
}

TEST_F(ControlSocketTest, NeitherSilentNorChattyClientsKeepOthersOut) {
  const ControlAddress address = control_address(job_).value();
  std::vector<base::Fd> silent;
  for (std::size_t i = 0; i < ControlSocket::kConnectionsMax + 2; ++i) {
    silent.emplace_back(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    ASSERT_EQ(::connect(silent.back().get(), address.get(), address.bytes), 0);
  }
  const std::string flood(ControlSocket::kRequestBytesMax + 4096, 'x');
  std::thread chatty([&] {
    std::size_t sent = 0;
    while (sent < flood.size()) {
      const ssize_t n =
          ::send(silent[0].get(), flood.data() + sent, flood.size() - sent, MSG_NOSIGNAL);
      if (n <= 0) return;
      sent += static_cast<std::size_t>(n);
    }
  });
  char first = 0;
  turn_until([&] { return ::recv(silent[0].get(), &first, 1, MSG_DONTWAIT) == 1; });
  EXPECT_EQ(first, '{');
  chatty.join();
  // The silent ones are dropped when their time is over, and then there is room for this one.
  const TimePoint asked = Clock::now();
  const auto answer = request({{"do", "status"}});
  EXPECT_TRUE(answer || answer.error().code() == Code::DeadlineExceeded);
  EXPECT_LT(Clock::now() - asked, ControlSocket::kRequestTime + 3s);
  EXPECT_TRUE(request({{"do", "status"}}));
}

TEST(Trigger, ReadsAndShowsConditions) {
  const Trigger trigger = Trigger::parse("step=3,seq=17,phase=copy_in").value();
  EXPECT_EQ(trigger.text(), "step=3,seq=17,phase=copy_in");
  Doing doing{.operation = Operation::AllReduce, .phase = Phase::CopyIn, .sequence = 17, .step = 3};
  EXPECT_TRUE(trigger.holds(doing));
  doing.step = 2;
  EXPECT_FALSE(trigger.holds(doing));
  doing.step = 4;
  doing.sequence = 16;
  EXPECT_FALSE(trigger.holds(doing));
  doing.sequence = 18;
  doing.operation = Operation::None;
  EXPECT_FALSE(trigger.holds(doing));
  EXPECT_TRUE(Trigger::parse("")->immediate());
  for (const char* bad : {"step", "step=", "step=-1", "step=x", "phase=lunch", "rank=2", "step=1,,",
                          "seq=99999999999999999999"}) {
    EXPECT_FALSE(Trigger::parse(bad)) << bad;
  }
}

TEST(RunningJobs, ReadsTheKernelsTable) {
  const std::string table =
      "Num       RefCount Protocol Flags    Type St Inode Path\n"
      "0000000000000000: 00000002 00000000 00010000 0001 01 20463 @regroup/1000/b\n"
      "0000000000000000: 00000003 00000000 00000000 0001 03 20464 @regroup/1000/b\n"
      "0000000000000000: 00000002 00000000 00010000 0001 01 20465 /run/systemd/private\n"
      "0000000000000000: 00000002 00000000 00010000 0001 01 20466 @regroup/0/a\n"
      "0000000000000000: 00000002 00000000 00010000 0001 01 20467 @regroup/x/a\n"
      "0000000000000000: 00000002 00000000 00010000 0001 01 20468 @regroup/1/\n"
      "0000000000000000: 00000003 00000000 00000000 0001 03 20469\n";
  const std::vector<RunningJob> expected = {{0, "a"}, {1000, "b"}};
  EXPECT_EQ(parse_running_jobs(table), expected);
  EXPECT_TRUE(parse_running_jobs("").empty());
}

TEST(ControlAddress, TakesPlainNamesOnly) {
  EXPECT_TRUE(control_address({1000, "job-1.a"}));
  for (const char* bad : {"", "a/b", "a b", "a\nb", "@a"})
    EXPECT_FALSE(control_address({1000, bad})) << bad;
  EXPECT_FALSE(control_address({1000, std::string(200, 'x')}));
}

}  // namespace
}  // namespace regroup::launcher
