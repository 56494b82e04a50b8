#include "launcher/coordinator_host.hpp"

#include <csignal>
#include <deque>
#include <map>
#include <set>

#include <poll.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "control/channel.hpp"
#include "launcher/wal.hpp"
#include "membership/host_agent.hpp"

namespace regroup::launcher {
namespace {

namespace ms = membership;
namespace host = membership::host;
using namespace std::chrono_literals;

/// A job of three ranks and a spare on one host, without processes: the agent's real machine talks
/// to a real coordinator process. Rank 1 is lost in the first epoch, then all finish.
class PretendedJob {
 public:
  PretendedJob(std::filesystem::path state, CoordinatorHost::Probe probe)
      : state_(std::move(state)), first_probe_(std::move(probe)), agent_(kLocalAgent) {}
  PretendedJob(const PretendedJob&) = delete;
  PretendedJob& operator=(const PretendedJob&) = delete;
  ~PretendedJob() { stop_coordinator(); }

  /// False when the job did not end within ten seconds.
  bool run() {
    start_coordinator(first_probe_);
    const TimePoint deadline = Clock::now() + 10s;
    while (!end && Clock::now() < deadline) {
      while (!due_.empty() && !end) {
        const host::Event event = std::move(due_.front());
        due_.pop_front();
        handle(event);
      }
      if (end) break;
      pollfd ready{channel_->fd(), POLLIN, 0};
      if (::poll(&ready, 1, 100) > 0) receive();
    }
    stop_coordinator();
    return end.has_value();
  }

  std::optional<ms::EndJob> end;
  std::vector<ms::View> views;
  std::set<Incarnation> started;
  int restarts = 0;
  int last_exit = -1;
  bool incarnation_reused = false;

 private:
  void start_coordinator(const CoordinatorHost::Probe& probe) {
    auto [mine, its] = control::Channel::pair().value();
    pid_ = ::fork();
    if (pid_ == 0) {
      mine.release().reset();  // or the coordinator would hold its own channel open
      CoordinatorOptions options{.fd = its.release().release(), .state = state_};
      options.config = {.ranks = 3, .ranks_min = 3, .spares = 1};
      auto coordinator = CoordinatorHost::open(options, probe);
      const Status status = coordinator ? coordinator->run() : coordinator.error();
      if (!status) fmt::print(stderr, "{}\n", status.to_string());
      ::_exit(status ? 0 : 9);
    }
    channel_.emplace(std::move(mine));
    due_.emplace_back(host::ChannelUp{});
  }

  void stop_coordinator() {
    if (pid_ <= 0) return;
    channel_.reset();  // closing it is how the agent says goodbye
    last_exit = await_exit();
  }

  int await_exit() {
    int status = 0;
    (void)::waitpid(std::exchange(pid_, -1), &status, 0);
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  }

  void receive() {
    while (true) {
      auto received = channel_->try_recv_as<ms::CoordinatorMessage>();
      if (!received) {
        EXPECT_EQ(received.error().code(), Code::Cancelled) << received.error().to_string();
        EXPECT_EQ(await_exit(), 128 + SIGKILL);
        ++restarts;
        handle(host::ChannelDown{});
        start_coordinator({});
        return;
      }
      if (!received->has_value()) return;
      handle(host::FromCoordinator{std::move((*received)->message)});
    }
  }

  void handle(const host::Event& event) {
    for (const host::Effect& effect : agent_.step(event, Clock::now())) {
      std::visit([this](const auto& e) { perform(e); }, effect);
    }
  }

  void perform(const host::Spawn& e) {
    incarnation_reused |= !started.insert(e.process.incarnation).second;
    due_.emplace_back(host::Joined{e.process.incarnation});
  }
  void perform(const host::MakeView& e) {
    views.push_back(e.view);
    due_.emplace_back(host::ViewMade{e.view.epoch});
    for (const Member& member : e.local) due_.emplace_back(host::Healed{member.incarnation});
    if (views.size() == 1) {
      due_.emplace_back(host::Lost{e.view.seats[1],
                                   {ms::EvidenceKind::Reaped, "killed by SIGKILL", -1, SIGKILL}});
    } else {
      for (const Member& member : e.local) due_.emplace_back(host::Finished{member.incarnation});
    }
  }
  void perform(const host::WedgeWords& e) {
    due_.emplace_back(host::WordsWedged{{.epoch = e.epoch, .groups = {{0, 17}}, .prepared = 6}});
  }
  void perform(const host::WriteDecision& e) { due_.emplace_back(host::DecisionWritten{e.epoch}); }
  // A coordinator that was killed meanwhile shows in receive(): what was sent to it is said again
  // by the hello.
  void perform(const host::SendCoordinator& e) { (void)channel_->send(e.message); }
  void perform(const host::EndAll& e) { end = e.end; }
  void perform(const host::Kill&) {}
  void perform(const host::TellRanks&) {}
  void perform(const host::Log&) {}
  void perform(const host::SetTimer&) {}
  void perform(const host::AskPark&) {}
  void perform(const host::Release&) {}
  void perform(const host::Answered&) {}

  std::filesystem::path state_;
  CoordinatorHost::Probe first_probe_;
  ms::HostAgent agent_;
  std::optional<control::Channel> channel_;
  std::deque<host::Event> due_;
  pid_t pid_ = -1;
};

class CoordinatorHostTest : public ::testing::Test {
 protected:
  CoordinatorHostTest() {
    std::string pattern = ::testing::TempDir() + "/coordinator_XXXXXX";
    dir_ = ::mkdtemp(pattern.data());
  }
  CoordinatorHostTest(const CoordinatorHostTest&) = delete;
  CoordinatorHostTest& operator=(const CoordinatorHostTest&) = delete;
  ~CoordinatorHostTest() override { std::filesystem::remove_all(dir_); }

  /// What holds whatever happened to the coordinator.
  static void expect_good(const PretendedJob& job) {
    ASSERT_TRUE(job.end);
    EXPECT_EQ(job.end->exit_code, 0) << job.end->reason;
    EXPECT_FALSE(job.incarnation_reused);
    EXPECT_EQ(job.last_exit, 0);
    ASSERT_GE(job.views.size(), 2u);
    for (std::size_t i = 1; i < job.views.size(); ++i)
      EXPECT_GT(job.views[i].epoch, job.views[i - 1].epoch);
    EXPECT_EQ(job.views[1].resume_step, 7u);
    EXPECT_EQ(job.views[1].seats[0], job.views[0].seats[0]);
    EXPECT_NE(job.views[1].seats[1], job.views[0].seats[1]);
    EXPECT_EQ(job.views[1].seats[2], job.views[0].seats[2]);
  }

  std::filesystem::path dir_;
};

TEST_F(CoordinatorHostTest, HostsAJobThroughALoss) {
  PretendedJob job(dir_ / "state", {});
  ASSERT_TRUE(job.run());
  expect_good(job);
  EXPECT_EQ(job.restarts, 0);
  EXPECT_EQ(job.views.size(), 2u);
}

TEST_F(CoordinatorHostTest, MayBeKilledAtEveryRecord) {
  std::uint64_t records = 0;
  {
    PretendedJob job(dir_ / "undisturbed", {});
    ASSERT_TRUE(job.run());
    records = Wal::open(dir_ / "undisturbed")->sequence();
  }
  ASSERT_GE(records, 3u);
  for (std::uint64_t record = 1; record <= records; ++record) {
    for (const bool durable : {false, true}) {
      SCOPED_TRACE(
          fmt::format("killed {} record {} of {}", durable ? "after" : "before", record, records));
      const auto die = [record](std::uint64_t at) {
        if (at == record) (void)::kill(::getpid(), SIGKILL);
      };
      CoordinatorHost::Probe probe;
      (durable ? probe.after_persist : probe.before_persist) = die;
      PretendedJob job(dir_ / fmt::format("state-{}-{}", record, durable), probe);
      ASSERT_TRUE(job.run());
      expect_good(job);
      // The last record says that the job is over: the agent may have heard it before the death
      // could be noticed.
      if (record < records) {
        EXPECT_EQ(job.restarts, 1);
      }
    }
  }
}

TEST_F(CoordinatorHostTest, RefusesAStateFileOfSomethingElse) {
  {
    Wal wal = Wal::open(dir_ / "state").value();
    ASSERT_TRUE(wal.append(std::as_bytes(std::span("not a durable state"))));
  }
  auto [mine, its] = control::Channel::pair().value();
  auto coordinator =
      CoordinatorHost::open({.fd = its.release().release(), .state = dir_ / "state"}).value();
  const Status status = coordinator.run();
  EXPECT_FALSE(status);
  EXPECT_NE(status.text().find("E-STATE-2"), std::string::npos);
}

TEST_F(CoordinatorHostTest, EndsWhenItsChannelCloses) {
  auto [mine, its] = control::Channel::pair().value();
  auto coordinator =
      CoordinatorHost::open({.fd = its.release().release(), .state = dir_ / "state"}).value();
  mine.release().reset();
  EXPECT_TRUE(coordinator.run());
}

TEST(CoordinatorArguments, ComeBackAsTheyWere) {
  CoordinatorOptions options{.fd = 7, .state = "runs/a/state"};
  options.config = {.ranks = 8,
                    .ranks_min = 5,
                    .spares = 2,
                    .on_loss = OnLoss::Shrink,
                    .replacements_max = 3,
                    .restart_unattached = true};
  options.detect_budget = 900ms;
  std::vector<std::string> words = coordinator_arguments(options);
  ASSERT_EQ(words.front(), "coordinator");
  words.erase(words.begin());
  const auto parsed = parse_coordinator(words);
  ASSERT_TRUE(parsed) << parsed.error().to_string();
  EXPECT_EQ(parsed->fd, 7);
  EXPECT_EQ(parsed->state, options.state);
  EXPECT_EQ(parsed->config, options.config);
  EXPECT_EQ(parsed->detect_budget, options.detect_budget);
  EXPECT_FALSE(parse_coordinator({"--fd", "3"}));
  EXPECT_FALSE(parse_coordinator({"--fd", "-1", "--state", "x"}));
}

}  // namespace
}  // namespace regroup::launcher
