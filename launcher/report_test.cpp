#include "launcher/report.hpp"

#include <fstream>

#include <stdlib.h>

#include <gtest/gtest.h>

namespace regroup::launcher {
namespace {

using nlohmann::json;

constexpr std::int64_t kMs = 1'000'000;

/// A story of one job, told with the instant of each event in milliseconds.
class Story {
 public:
  Story& at(std::int64_t ms, const Event& event) {
    report_.observe({0, ms * kMs}, kind_of(event), fields_of(event));
    return *this;
  }
  [[nodiscard]] json report() const { return report_.to_json(); }
  [[nodiscard]] const Report& fold() const { return report_; }

 private:
  Report report_;
};

metrics::Snapshot time_of(std::uint64_t compute_ms, std::uint64_t comm_ms,
                          std::uint64_t spare_ms = 0) {
  metrics::Snapshot out;
  out[metrics::Category::Compute] = compute_ms * kMs;
  out[metrics::Category::CommExposed] = comm_ms * kMs;
  out[metrics::Category::Spare] = spare_ms * kMs;
  out.wall_ns = out.sum();
  return out;
}

events::Lost lost(int rank, std::uint64_t incarnation, std::uint64_t epoch,
                  std::int64_t detect_ms) {
  events::Lost out;
  out.rank = Rank(rank);
  out.incarnation = Incarnation(incarnation);
  out.epoch = Epoch(epoch);
  out.evidence = {membership::EvidenceKind::Beacon, "killed by SIGKILL", -1, 9};
  out.detect_ns = detect_ms * kMs;
  return out;
}

/// Two ranks and a spare; rank 1 dies at 1000 ms and is replaced by the spare; all ends at 3000 ms.
Story one_loss() {
  Story story;
  story.at(0,
           events::JobStarted{
               .job = "j", .ranks = 2, .spares = 1, .on_loss = "replay", .program = {"./train"}});
  for (std::uint64_t i = 1; i <= 3; ++i) {
    events::ProcessStarted started{.incarnation = Incarnation(i), .pid = 100};
    if (i < 3) started.rank = Rank(static_cast<int>(i) - 1);
    story.at(10, started);
  }
  story.at(50, events::Attached{std::nullopt, Incarnation(3), 100, 40 * kMs});
  story.at(100, events::ViewInstalled{Epoch(1), {Incarnation(1), Incarnation(2)}, 1});
  story.at(1000, lost(1, 2, 1, 4));
  story.at(1001, events::Wedged{Epoch(1), 1, {{Rank(1), Incarnation(2)}}});
  story.at(1003, events::Decided{Epoch(1), 1, 7, {{0, 40}}});
  story.at(1004, events::Flushed{Epoch(1), 1});
  story.at(1005, events::Ledger{Rank(1), Incarnation(2), time_of(900, 46)});
  story.at(1009, events::Replaced{Rank(1), Incarnation(3), Incarnation(2), true});
  story.at(1015, events::ViewInstalled{Epoch(2), {Incarnation(1), Incarnation(3)}, 8});
  story.at(1020, events::Entered{Rank(0), Incarnation(1), Epoch(2), 0, {}});
  story.at(1045, events::Entered{Rank(1), Incarnation(3), Epoch(2), 20 * kMs, {{Rank(0), 4096}}});
  story.at(1050, events::FirstOperation{Epoch(2), Rank(0)});
  story.at(2900, events::Finished{Rank(0), Incarnation(1), 0});
  story.at(2900, events::Ledger{Rank(0), Incarnation(1), time_of(2000, 850)});
  story.at(2950, events::Finished{Rank(1), Incarnation(3), 0});
  story.at(2951, events::Ledger{Rank(1), Incarnation(3), time_of(1500, 430, 950)});
  story.at(3000, events::JobEnded{0, "app", "all ranks finished", 2, 1});
  return story;
}

TEST(Report, SplitsARecoveryIntoPhasesThatAddUp) {
  const json report = one_loss().report();
  ASSERT_EQ(report["recoveries"].size(), 1u);
  const json& recovery = report["recoveries"][0];
  EXPECT_EQ(recovery["from_epoch"], 1);
  EXPECT_EQ(recovery["to_epoch"], 2);
  EXPECT_EQ(recovery["committed_step"], 7);
  EXPECT_TRUE(recovery["complete"]);
  const json& phases = recovery["phases"];
  EXPECT_EQ(phases["detect_ns"], 4 * kMs);
  EXPECT_EQ(phases["wedge_ns"], 1 * kMs);
  EXPECT_EQ(phases["decide_ns"], 3 * kMs);
  EXPECT_EQ(phases["replace_wait_ns"], 0);
  EXPECT_EQ(phases["install_ns"], 11 * kMs);
  EXPECT_EQ(phases["enter_ns"], 10 * kMs);
  EXPECT_EQ(phases["heal_ns"], 20 * kMs);
  EXPECT_EQ(phases["first_operation_ns"], 5 * kMs);
  EXPECT_EQ(phases["total_ns"], 54 * kMs);
  EXPECT_EQ(recovery["bytes_from"][0], json({{"donor", 0}, {"bytes", 4096}, {"rank", 1}}));
}

TEST(Report, AColdNewcomerIsWaitedForUntilItAttached) {
  Story story;
  story.at(0, events::JobStarted{.job = "j", .ranks = 1});
  story.at(10, events::ViewInstalled{Epoch(1), {Incarnation(1)}, 1});
  story.at(100, lost(0, 1, 1, 1));
  story.at(102, events::Flushed{Epoch(1), 1});
  story.at(103, events::ProcessStarted{Rank(0), Incarnation(2), 7});
  story.at(190, events::Attached{Rank(0), Incarnation(2), 7, 87 * kMs});
  story.at(200, events::ViewInstalled{Epoch(2), {Incarnation(2)}, 1});
  story.at(200, events::Replaced{Rank(0), Incarnation(2), Incarnation(1), false});
  const json phases = story.report()["recoveries"][0]["phases"];
  EXPECT_EQ(phases["replace_wait_ns"], 88 * kMs);
  EXPECT_EQ(phases["install_ns"], 10 * kMs);
}

TEST(Report, LinksALossToItsReplacement) {
  const json report = one_loss().report();
  const json& loss = report["losses"][0];
  EXPECT_EQ(loss["recovery"], 0);
  EXPECT_EQ(loss["replaced_by"], json({{"how", "spare"}, {"incarnation", 3}}));
  EXPECT_EQ(report["exit"]["code"], 0);
  EXPECT_FALSE(report["exit"].contains("first_cause"));
}

TEST(Report, EverySeatIsBookedForTheWholeJob) {
  const json ledger = one_loss().report()["ledger"];
  EXPECT_TRUE(ledger["measured"]);
  EXPECT_NEAR(ledger["residual"].get<double>(), 0.0, 0.001);
  for (const json& seat : ledger["ranks"]) {
    std::int64_t sum = 0;
    for (const auto& [category, ns] : seat["category_ns"].items()) sum += ns.get<std::int64_t>();
    EXPECT_EQ(sum, 3000 * kMs) << seat;
  }
  const json& healed = ledger["ranks"][1]["category_ns"];
  EXPECT_EQ(healed["fail.detect"], 4 * kMs);
  EXPECT_EQ(healed["fail.reform"], 3 * kMs);
  EXPECT_EQ(healed["compute"], (900 + 1500) * kMs);
  EXPECT_EQ(ledger["spare_ns"], 950 * kMs);
  EXPECT_NEAR(ledger["ett_strict"].get<double>(), (900.0 + 1500 + 2000) / 6000, 1e-9);
}

TEST(Report, ALossDuringARecoveryBelongsToIt) {
  Story story;
  story.at(0, events::JobStarted{.job = "j", .ranks = 3});
  story.at(100,
           events::ViewInstalled{Epoch(1), {Incarnation(1), Incarnation(2), Incarnation(3)}, 1});
  story.at(200, lost(1, 2, 1, 1));
  story.at(201, events::Wedged{Epoch(1), 1, {}});
  story.at(203, events::Decided{Epoch(1), 1, 2, {}});
  story.at(204, lost(2, 3, 1, 1));
  story.at(205, events::Wedged{Epoch(1), 2, {}});
  story.at(207, events::Decided{Epoch(1), 2, 2, {}});
  story.at(220,
           events::ViewInstalled{Epoch(2), {Incarnation(1), Incarnation(4), Incarnation(5)}, 3});
  story.at(230, events::Entered{Rank(1), Incarnation(4), Epoch(2), 0, {}});
  // Another one in the next epoch is a recovery of its own.
  story.at(300, lost(0, 1, 2, 1));
  const json report = story.report();
  ASSERT_EQ(report["recoveries"].size(), 2u);
  EXPECT_EQ(report["recoveries"][0]["losses"], json({0, 1}));
  EXPECT_EQ(report["recoveries"][0]["rounds"], 2);
  EXPECT_EQ(report["recoveries"][0]["phases"]["decide_ns"], 6 * kMs);
  EXPECT_FALSE(report["recoveries"][1]["complete"]);
  EXPECT_EQ(report["recovery_percentiles"]["total"]["n"], 1);
}

TEST(Report, NamesTheFirstCauseOfAFailedJob) {
  Story story = one_loss();
  events::Lost cause = lost(0, 1, 2, 1);
  cause.evidence.text = "exit code 3";
  story.at(3100, cause);
  story.at(3101, lost(1, 3, 2, 1));
  story.at(3200, events::JobEnded{3, "app", "rank 0 ended with code 3", 0, 1});
  const json exit = story.report()["exit"];
  EXPECT_EQ(exit["code"], 3);
  EXPECT_EQ(exit["first_cause"]["text"], "exit code 3");
  EXPECT_EQ(exit["first_cause"]["rank"], 0);
}

/// Lost at 200 ms after 190 of work; a view without it stands at 210.
void go_on_without_rank_1(Story& story) {
  story.at(0, events::ProcessStarted{Rank(1), Incarnation(2), 5});
  story.at(100, events::ViewInstalled{Epoch(1), {Incarnation(1), Incarnation(2)}, 1});
  story.at(200, lost(1, 2, 1, 10));
  story.at(201, events::Ledger{Rank(1), Incarnation(2), time_of(190, 0)});
  story.at(205, events::Decided{Epoch(1), 1, 1, {}});
  story.at(210, events::ViewInstalled{Epoch(2), {Incarnation(1), Incarnation(0)}, 2});
}

TEST(Report, AVacantSeatIsDegradedFromTheViewWithoutIt) {
  Story story;
  story.at(0, events::JobStarted{.job = "j", .ranks = 2});
  go_on_without_rank_1(story);
  story.at(1000, events::JobEnded{0, "app", "", 1, 0});
  const json ledger = story.report()["ledger"]["ranks"][1]["category_ns"];
  EXPECT_EQ(ledger["compute"], 190 * kMs);
  EXPECT_EQ(ledger["fail.detect"], 10 * kMs);
  EXPECT_EQ(ledger["fail.reform"], 5 * kMs);
  EXPECT_EQ(ledger["degraded"], 790 * kMs);
}

TEST(Report, ASeatThatIsFilledLaterWasDegradedMeanwhile) {
  Story story;
  story.at(0, events::JobStarted{.job = "j", .ranks = 2, .on_loss = "carry_on"});
  go_on_without_rank_1(story);
  story.at(220, events::ProcessStarted{std::nullopt, Incarnation(3), 6});
  story.at(700, events::ViewInstalled{Epoch(3), {Incarnation(1), Incarnation(3)}, 9});
  story.at(1000, events::Ledger{Rank(1), Incarnation(3), time_of(300, 0, 480)});
  story.at(1000, events::Finished{Rank(1), Incarnation(3), 0});
  story.at(1000, events::JobEnded{0, "app", "", 2, 1});
  const json ledger = story.report()["ledger"]["ranks"][1]["category_ns"];
  EXPECT_EQ(ledger["compute"], 490 * kMs);
  EXPECT_EQ(ledger["fail.detect"], 10 * kMs);
  EXPECT_EQ(ledger["fail.reform"], 5 * kMs);
  EXPECT_EQ(ledger["degraded"], 490 * kMs);
}

TEST(Report, AProgramThatNeverAttachedIsNotMeasured) {
  Story story;
  story.at(0, events::JobStarted{.job = "j", .ranks = 1});
  story.at(5, events::ProcessStarted{Rank(0), Incarnation(1), 5});
  story.at(50, events::Finished{Rank(0), Incarnation(1), 0});
  story.at(60, events::JobEnded{0, "app", "all ranks finished", 1, 0});
  const json ledger = story.report()["ledger"];
  EXPECT_FALSE(ledger["measured"]);
  EXPECT_EQ(ledger["total_ns"]["init.launch"], 5 * kMs);
  EXPECT_EQ(ledger["total_ns"]["unknown"], 55 * kMs);
  EXPECT_NE(report_text(story.report()).find("never attached"), std::string::npos);
}

TEST(Report, PercentilesAreMeasuredFigures) {
  Story story;
  story.at(0, events::JobStarted{.job = "j", .ranks = 1});
  std::uint64_t epoch = 1;
  for (const int ms : {10, 30, 20, 400}) {
    const auto start = static_cast<std::int64_t>(epoch) * 1000;
    story.at(start, lost(0, epoch, epoch, 0));
    story.at(start + ms, events::ViewInstalled{Epoch(epoch + 1), {Incarnation(epoch + 1)}, 1});
    story.at(start + ms, events::Entered{Rank(0), Incarnation(epoch + 1), Epoch(epoch + 1), 0, {}});
    ++epoch;
  }
  const json total = story.report()["recovery_percentiles"]["total"];
  EXPECT_EQ(total["n"], 4);
  EXPECT_EQ(total["p50_ns"], 20 * kMs);
  EXPECT_EQ(total["p99_ns"], 400 * kMs);
  EXPECT_EQ(total["max_ns"], 400 * kMs);
  EXPECT_EQ(total["mean_ns"], 115 * kMs);
}

TEST(Report, TextNamesCauseTimesAndShares) {
  const std::string text = report_text(one_loss().report());
  for (const char* part : {"exit 0 (app): all ranks finished", "ETT 73.33 % strict",
                           "compute 73.33", "1 lost, 1 replaced", "killed by SIGKILL", "54.0 ms",
                           "replace_wait", "4.00 KiB from rank 0 to rank 1"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " is missing in\n" << text;
  }
}

TEST(Report, TextOfSomethingElseIsNoCrash) {
  for (const char* other :
       {"{}", "[]", "3", R"({"losses":[1,"x",{}],"exit":[],"ledger":3,"recoveries":{"a":1}})",
        R"({"ledger":{"measured":true,"total_ns":[1]},"warnings":"x"})"}) {
    EXPECT_FALSE(report_text(json::parse(other)).empty()) << other;
  }
}

class ReportFiles : public ::testing::Test {
 protected:
  ReportFiles() {
    std::string pattern = ::testing::TempDir() + "/report_XXXXXX";
    dir_ = ::mkdtemp(pattern.data());
  }
  ReportFiles(const ReportFiles&) = delete;
  ReportFiles& operator=(const ReportFiles&) = delete;
  ~ReportFiles() override { std::filesystem::remove_all(dir_); }
  std::filesystem::path dir_;
};

TEST_F(ReportFiles, TheLogAloneGivesTheSameReport) {
  Report live;
  {
    std::int64_t ms = 0;
    auto log =
        EventLog::open(dir_,
                       {.clock =
                            [&] {
                              return Stamp{(ms + 1) * kMs, ms * kMs};
                            },
                        .listener = [&](const Stamp& stamp, EventKind kind,
                                        const json& fields) { live.observe(stamp, kind, fields); }})
            .value();
    log.write(events::JobStarted{.job = "j", .ranks = 1});
    ms = 10;
    log.write(events::ViewInstalled{Epoch(1), {Incarnation(1)}, 1});
    ms = 20;
    log.write(lost(0, 1, 1, 3));
    log.write(EventKind::Note, {{"rank", "not a number"}});
    ms = 30;
    log.write(events::JobEnded{137, "app", "killed", 0, 0});
  }
  std::ofstream(dir_ / kEventFile, std::ios::app) << R"({"v":1,"kind":"no)";
  const auto folded = Report::from_events(dir_ / kEventFile);
  ASSERT_TRUE(folded) << folded.error().to_string();
  EXPECT_EQ(folded->to_json(), live.to_json());
  ASSERT_TRUE(live.write(dir_));
  EXPECT_EQ(json::parse(std::ifstream(dir_ / kReportFile)), live.to_json());
  EXPECT_FALSE(std::filesystem::exists(dir_ / "report.json.new"));
}

TEST_F(ReportFiles, TheLogWritesItWhenTheJobEnds) {
  auto log = EventLog::open(dir_).value();
  log.write(events::JobStarted{.job = "j", .ranks = 1});
  EXPECT_FALSE(std::filesystem::exists(dir_ / kReportFile));
  log.write(events::JobEnded{3, "app", "rank 0 ended with code 3", 0, 0});
  const json report = json::parse(std::ifstream(dir_ / kReportFile));
  EXPECT_EQ(report["exit"]["code"], 3);
  EXPECT_EQ(report["job"], "j");
}

TEST_F(ReportFiles, SaysWhichLineOfTheLogIsWrong) {
  std::ofstream(dir_ / kEventFile) << R"({"v":1,"kind":"note"})"
                                   << "\n"
                                   << R"({"v":7,"kind":"note"})"
                                   << "\n";
  const auto report = Report::from_events(dir_ / kEventFile);
  ASSERT_FALSE(report);
  EXPECT_NE(report.error().text().find("line 2"), std::string::npos);
  EXPECT_FALSE(Report::from_events(dir_ / "missing"));
  EXPECT_FALSE(Report().write(dir_ / "missing"));
}

TEST(Texts, ThreeDigitsThatMatter) {
  EXPECT_EQ(duration_text(0), "0 ns");
  EXPECT_EQ(duration_text(1'234), "1.23 us");
  EXPECT_EQ(duration_text(45'600'000), "45.6 ms");
  EXPECT_EQ(duration_text(119'000'000'000), "119 s");
  EXPECT_EQ(duration_text(125'000'000'000), "2m05s");
  EXPECT_EQ(duration_text(7'500'000'000'000), "2h05m");
  EXPECT_EQ(bytes_text(1023), "1023 B");
  EXPECT_EQ(bytes_text(1536), "1.50 KiB");
}

}  // namespace
}  // namespace regroup::launcher
