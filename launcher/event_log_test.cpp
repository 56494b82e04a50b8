#include "launcher/event_log.hpp"

#include <fstream>

#include <stdlib.h>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace regroup::launcher {
namespace {

using nlohmann::json;

class EventLogTest : public ::testing::Test {
 protected:
  EventLogTest() {
    std::string pattern = ::testing::TempDir() + "/event_log_XXXXXX";
    dir_ = ::mkdtemp(pattern.data());
  }
  EventLogTest(const EventLogTest&) = delete;
  EventLogTest& operator=(const EventLogTest&) = delete;
  ~EventLogTest() override { std::filesystem::remove_all(dir_); }

  std::vector<std::string> lines(const std::string& file = std::string(kEventFile)) {
    std::ifstream in(dir_ / file);
    std::vector<std::string> out;
    for (std::string line; std::getline(in, line);) out.push_back(line);
    return out;
  }
  EventLog open() {
    return EventLog::open(dir_, {.clock = [this] { return now_; }}).value();
  }

  std::filesystem::path dir_;
  Stamp now_{1'769'904'000'000'000'007, 42};
};

TEST_F(EventLogTest, OneObjectALineWithVersionTimesAndKind) {
  EventLog log = open();
  log.write(events::Replaced{Rank(2), Incarnation(5), Incarnation(3), true});
  ASSERT_EQ(lines().size(), 1u);
  EXPECT_EQ(lines()[0],
            R"({"v":1,"time":"2026-02-01T00:00:00.000000007Z","offset_ns":42,"kind":"replaced",)"
            R"("how":"spare","incarnation":5,"previous":3,"rank":2})");
}

TEST_F(EventLogTest, LeavesOutWhatIsNotKnown) {
  EventLog log = open();
  events::Lost lost;
  lost.incarnation = Incarnation(4);
  lost.evidence = {membership::EvidenceKind::Reaped, "killed by SIGKILL", -1, 9};
  log.write(lost);
  lost.rank = Rank(0);
  lost.evidence.signal = 0;
  lost.evidence.exit_code = 0;
  lost.operation = "all_reduce";
  lost.seq = 17;
  lost.detect_ns = 900;
  log.write(lost);
  const json spare = json::parse(lines()[0]);
  EXPECT_FALSE(spare.contains("rank"));
  EXPECT_FALSE(spare.contains("exit_code"));
  EXPECT_FALSE(spare.contains("operation"));
  EXPECT_EQ(spare["signal"], 9);
  const json seated = json::parse(lines()[1]);
  EXPECT_EQ(seated["rank"], 0);
  EXPECT_EQ(seated["exit_code"], 0);
  EXPECT_FALSE(seated.contains("signal"));
  EXPECT_EQ(seated["seq"], 17);
  EXPECT_EQ(seated["detect_ns"], 900);
}

TEST_F(EventLogTest, EveryKindHasANameOfItsOwnAndComesBack) {
  EventLog log = open();
  log.write(events::JobStarted{.job = "j", .ranks = 4, .program = {"./a", "b"}});
  log.write(events::ProcessStarted{});
  log.write(events::Attached{});
  log.write(events::ViewInstalled{Epoch(1), {Incarnation(1), Incarnation(0)}, 3});
  log.write(events::Lost{});
  log.write(events::Wedged{Epoch(1), 2, {{Rank(1), Incarnation(1)}}});
  log.write(events::Decided{Epoch(1), 2, 6, {{0, 17}}});
  log.write(events::Flushed{});
  log.write(events::Replaced{});
  log.write(events::Entered{Rank(1), Incarnation(4), Epoch(2), 77, {{Rank(0), 1024}}});
  log.write(events::FirstOperation{});
  log.write(events::CoordinatorLost{});
  log.write(events::CoordinatorRestarted{});
  log.write(events::Finished{});
  log.write(events::Ledger{Rank(1), Incarnation(4), {}});
  log.write(events::Flight{Rank(1), Incarnation(4), "flight/4.json", 17, 5});
  log.write(events::Injected{"kill", Rank(1), "step=3"});
  log.write(events::Refused{{{"wrong_key", 2}}, 5});
  log.write(events::Warning{"E-WAIT-1", "waiting"});
  log.write(events::Note{"policy", "why"});
  log.write(events::Drained{Rank(1), Incarnation(4), 7});
  log.write(events::JobEnded{0, "app", "done", 4, 1});
  const auto written = lines();
  ASSERT_EQ(written.size(), static_cast<std::size_t>(kEventKindCount));
  for (int i = 0; i < kEventKindCount; ++i) {
    const auto parsed = parse_event(written[static_cast<std::size_t>(i)]);
    ASSERT_TRUE(parsed) << parsed.error().to_string();
    EXPECT_EQ(event_kind(parsed->kind), static_cast<EventKind>(i));
  }
  EXPECT_FALSE(event_kind("no_such_kind"));
}

TEST_F(EventLogTest, TextThatIsNotUtf8OrNamedLikeAFieldOfTheLineDoesNoHarm) {
  EventLog log = open();
  log.write(events::Note{"program", "\xff\xfe bad"});
  log.write(EventKind::Note, {{"kind", "forged"}, {"v", 9}, {"text", "x"}});
  EXPECT_TRUE(parse_event(lines()[0]));
  const json line = json::parse(lines()[1]);
  EXPECT_EQ(line["kind"], "note");
  EXPECT_EQ(line["v"], 1);
}

TEST_F(EventLogTest, KeepsTheLogOfAnEarlierJob) {
  open().write(events::Note{"a", "first job"});
  open().write(events::Note{"a", "second job"});
  open().write(events::Note{"a", "third job"});
  EXPECT_EQ(lines("events.1.jsonl").size(), 1u);
  EXPECT_NE(lines("events.2.jsonl").at(0).find("second job"), std::string::npos);
  EXPECT_NE(lines().at(0).find("third job"), std::string::npos);
}

TEST_F(EventLogTest, AFullDiskCostsOneWarningAndNotTheJob) {
  std::filesystem::create_symlink("/dev/full", dir_ / kEventFile);
  int heard = 0;
  auto log =
      EventLog::open(dir_, {.listener = [&](const Stamp&, EventKind, const json&) { ++heard; }})
          .value();
  ::testing::internal::CaptureStderr();
  for (int i = 0; i < 3; ++i) log.write(events::Note{"a", "b"});
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(log.dropped(), 3u);
  EXPECT_EQ(heard, 3);
  EXPECT_NE(said.find("E-LOG-2"), std::string::npos);
  EXPECT_EQ(said.find("E-LOG-2"), said.rfind("E-LOG-2"));
}

TEST_F(EventLogTest, ADirectoryThatCannotBeWrittenIsNamed) {
  const auto log = EventLog::open("/proc/no_such_place");
  ASSERT_FALSE(log);
  EXPECT_NE(log.error().text().find("/proc/no_such_place/events.jsonl"), std::string::npos);
}

TEST(ParseEvent, RefusesWhatIsNotAnEventOrIsNewer) {
  EXPECT_FALSE(parse_event("not json"));
  EXPECT_FALSE(parse_event("[]"));
  EXPECT_FALSE(parse_event(R"({"v":1})"));
  const auto newer = parse_event(R"({"v":2,"kind":"note"})");
  ASSERT_FALSE(newer);
  EXPECT_NE(newer.error().text().find("schema 2"), std::string::npos);
}

}  // namespace
}  // namespace regroup::launcher
