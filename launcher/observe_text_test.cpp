#include "launcher/observe_text.hpp"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "launcher/control_socket.hpp"

namespace regroup::launcher {
namespace {

using nlohmann::json;

std::string text(const Event& event) {
  return event_text({0, 12'400'000'000}, name(kind_of(event)), fields_of(event));
}

TEST(EventText, TellsALossInOneLine) {
  events::Lost lost;
  lost.rank = Rank(2);
  lost.incarnation = Incarnation(3);
  lost.evidence = {membership::EvidenceKind::Beacon, "killed by SIGKILL", -1, 9};
  lost.operation = "all_reduce";
  lost.seq = 911;
  lost.step = 118;
  lost.phase = "reduce";
  lost.detect_ns = 1'100'000;
  EXPECT_EQ(text(lost),
            "[12.400s] lost rank 2 (incarnation 3): killed by SIGKILL; in all_reduce seq 911 of "
            "step 118, phase "
            "reduce; detected in 1.10 ms (beacon)");
}

TEST(EventText, HidesNothing) {
  EXPECT_EQ(text(events::CoordinatorLost{7, "killed"}),
            R"([12.400s] coordinator_lost pid=7 text="killed")");
  EXPECT_EQ(event_text({}, "of_a_later_version", {{"a", 1}}), "[0.000s] of_a_later_version  a=1");
  EXPECT_EQ(text(events::Replaced{Rank(2), Incarnation(9), Incarnation(3), true}),
            "[12.400s] replaced rank 2: incarnation 9 takes over from 3, a spare");
}

TEST(EventText, NamesTheCategoriesThatGotTime) {
  events::Ledger ledger{Rank(1), Incarnation(4), {}};
  EXPECT_EQ(text(ledger), "[12.400s] ledger rank 1 (incarnation 4): kept none");
  ledger.time[metrics::Category::Compute] = 2'000'000;
  EXPECT_EQ(text(ledger), "[12.400s] ledger rank 1 (incarnation 4): compute 2.00 ms");
}

TEST(StatusText, ShowsSeatsSparesAndWhatIsArmed) {
  JobStatus status{.job = "7f3a", .state = "steady", .log_dir = "runs/7f3a", .pid = 5, .ranks = 2};
  status.spares_wanted = 1;
  status.epoch = Epoch(5);
  status.now_ns = 3'000'000;
  status.processes.push_back({Rank(0),
                              Incarnation(1),
                              11,
                              "healed",
                              "h",
                              {.operation = metrics::Operation::AllReduce,
                               .phase = metrics::Phase::Reduce,
                               .sequence = 17,
                               .step = 4,
                               .started_ns = 1'000'000}});
  status.processes.push_back({Rank(1), Incarnation(4), 12, "healed", "h", {}});
  status.processes.push_back({std::nullopt, Incarnation(5), 13, "joined", "h", {}});
  json answer = to_json(status);
  answer["armed"] = {{{"action", "kill"}, {"rank", 1}, {"at", "step=9"}}};
  const std::string shown = status_text(answer);
  for (const char* part :
       {"job 7f3a  steady  epoch 5  2/2 ranks, 1 of 1 spares", "all_reduce#17 reduce", "2.00 ms",
        "spare     5", "coordinator being restarted", "armed: kill rank 1 when step=9"}) {
    EXPECT_NE(shown.find(part), std::string::npos) << part << " is missing in\n" << shown;
  }
}

TEST(StatusText, AnswersOfSomethingElseAreNoCrash) {
  for (const char* other : {"{}", "[]", R"({"processes":[1,{}],"coordinator":3,"armed":[2]})"}) {
    EXPECT_FALSE(status_text(json::parse(other)).empty()) << other;
  }
}

}  // namespace
}  // namespace regroup::launcher
