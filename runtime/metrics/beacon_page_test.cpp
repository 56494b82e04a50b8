#include "metrics/beacon_page.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <stop_token>
#include <thread>

namespace regroup::metrics {
namespace {

Doing all_reduce(std::uint64_t sequence) {
  return {.operation = Operation::AllReduce,
          .phase = Phase::CopyIn,
          .group = 2,
          .epoch = 5,
          .sequence = sequence,
          .step = 3,
          .attempt = 1,
          .bytes = sequence * 8,
          .started_ns = sequence * 100};
}

TEST(BeaconPage, BothSidesSeeTheSameWords) {
  const PageMapping agent = PageMapping::create(Incarnation(7)).value();
  const PageMapping process = PageMapping::map(agent.fd()).value();
  EXPECT_EQ(process.page().incarnation.load(), 7U);
  begin_operation(process.page(), all_reduce(17));
  set_phase(process.page(), Phase::Reduce);
  Doing expected = all_reduce(17);
  expected.phase = Phase::Reduce;
  EXPECT_EQ(read_doing(agent.page()), expected);
  EXPECT_EQ(
      describe(read_doing(agent.page())),
      "in all_reduce seq 17 of step 3 (attempt 1, epoch 5, group 2, 136 bytes), phase reduce");
  beat(process.page(), 99);
  EXPECT_EQ(agent.page().beat.count.load(), 1U);
  EXPECT_EQ(agent.page().beat.at_ns.load(), 99U);
}

TEST(BeaconPage, CannotBeResizedByTheProcess) {
  const PageMapping agent = PageMapping::create(Incarnation(1)).value();
  EXPECT_NE(::ftruncate(agent.fd(), 0), 0);
}

TEST(BeaconPage, RefusesWhatIsNoPageOfThisVersion) {
  const base::Fd empty(::memfd_create("test", MFD_CLOEXEC));
  EXPECT_EQ(PageMapping::map(empty.get()).error().code(), Code::InvalidArgument);
  EXPECT_EQ(PageMapping::map(-1).error().code(), Code::InvalidArgument);

  const PageMapping other_version = PageMapping::create(Incarnation(1)).value();
  other_version.page().version = kPageVersion + 1;
  const Status refused = PageMapping::map(other_version.fd()).error();
  EXPECT_EQ(refused.code(), Code::Unsupported);
  EXPECT_THAT(std::string(refused.text()), testing::HasSubstr("same version"));

  const PageMapping damaged = PageMapping::create(Incarnation(1)).value();
  damaged.page().magic = 0;
  EXPECT_EQ(PageMapping::map(damaged.fd()).error().code(), Code::InvalidArgument);
}

TEST(BeaconPage, SaysWhereTheProgramIsBetweenOperations) {
  const PageMapping mapping = PageMapping::create(Incarnation(1)).value();
  EXPECT_EQ(describe(read_doing(mapping.page())), "in the program's own code");
  begin_operation(mapping.page(), all_reduce(1));
  end_operation(mapping.page(), Outcome::Done, 500);
  EXPECT_EQ(describe(read_doing(mapping.page())), "in the program's own code, last seen in step 3");
}

TEST(BeaconPage, DamagedWordsAreBounded) {
  const PageMapping mapping = PageMapping::create(Incarnation(1)).value();
  BeaconPage& page = mapping.page();
  page.activity.operation = 200;
  page.activity.phase = 200;
  page.activity.turn = 1;  // died while writing
  page.error.bytes = 0xFFFFFFFF;
  page.flight_next = ~std::uint64_t{0};
  EXPECT_EQ(read_doing(page).operation, Operation::None);
  EXPECT_EQ(read_doing(page).phase, Phase::Idle);
  EXPECT_EQ(read_error(page).size(), kErrorTextBytesMax);
  EXPECT_TRUE(read_flight(page).empty());
}

TEST(BeaconPage, KeepsTheLastErrorCutToItsLimit) {
  const PageMapping mapping = PageMapping::create(Incarnation(1)).value();
  EXPECT_EQ(read_error(mapping.page()), "");
  set_error(mapping.page(), "rank 2 lost: killed by SIGKILL");
  EXPECT_EQ(read_error(mapping.page()), "rank 2 lost: killed by SIGKILL");
  set_error(mapping.page(), std::string(5000, 'x'));
  EXPECT_EQ(read_error(mapping.page()), std::string(kErrorTextBytesMax, 'x'));
  set_error(mapping.page(), "short");
  EXPECT_EQ(read_error(mapping.page()), "short");
}

TEST(FlightRecord, KeepsTheNewestThousandInOrder) {
  const PageMapping mapping = PageMapping::create(Incarnation(1)).value();
  for (std::uint64_t i = 1; i <= kFlightRecords + 10; ++i) {
    begin_operation(mapping.page(), all_reduce(i));
    end_operation(mapping.page(), i % 2 == 0 ? Outcome::Done : Outcome::Revoked, i * 100 + 50, i);
  }
  const std::vector<Flight> flights = read_flight(mapping.page());
  ASSERT_EQ(flights.size(), kFlightRecords);
  EXPECT_EQ(flights.front().sequence, 11U);
  const Flight expected{.number = kFlightRecords + 9,
                        .operation = Operation::AllReduce,
                        .outcome = Outcome::Done,
                        .attempt = 1,
                        .group = 2,
                        .sequence = kFlightRecords + 10,
                        .step = 3,
                        .bytes = (kFlightRecords + 10) * 8,
                        .started_ns = (kFlightRecords + 10) * 100,
                        .ended_ns = (kFlightRecords + 10) * 100 + 50,
                        .straggler_ns = kFlightRecords + 10};
  EXPECT_EQ(flights.back(), expected);
}

TEST(FlightRecord, ReaderNeverSeesHalfARecord) {
  const PageMapping mapping = PageMapping::create(Incarnation(1)).value();
  const std::jthread writer([&](const std::stop_token& stop) {
    for (std::uint64_t i = 1; !stop.stop_requested(); ++i) {
      begin_operation(mapping.page(), all_reduce(i));
      end_operation(mapping.page(), Outcome::Done, i * 100 + 50, i);
    }
  });
  std::size_t read = 0;
  while (read < 100'000) {
    for (const Flight& flight : read_flight(mapping.page())) {
      ASSERT_EQ(flight.sequence, flight.number + 1);
      ASSERT_EQ(flight.bytes, flight.sequence * 8);
      ASSERT_EQ(flight.ended_ns, flight.started_ns + 50);
      ASSERT_EQ(flight.straggler_ns, flight.sequence);
      ++read;
    }
    const Doing doing = read_doing(mapping.page());
    if (doing.operation == Operation::AllReduce) {
      ASSERT_EQ(doing.bytes, doing.sequence * 8);
    }
  }
}

TEST(Names, EveryEnumeratorHasOne) {
  for (std::size_t i = 0; i < kCategories; ++i) EXPECT_NE(name(static_cast<Category>(i)), "?");
  for (std::size_t i = 0; i < kOperations; ++i) EXPECT_NE(name(static_cast<Operation>(i)), "?");
  for (std::size_t i = 0; i < kPhases; ++i) EXPECT_NE(name(static_cast<Phase>(i)), "?");
  for (std::size_t i = 0; i < kOutcomes; ++i) EXPECT_NE(name(static_cast<Outcome>(i)), "?");
  EXPECT_EQ(name(Category::Unknown), "unknown");
  EXPECT_EQ(name(Operation::Attach), "attach");
  EXPECT_EQ(name(Phase::Verify), "verify");
  EXPECT_EQ(name(Outcome::Failed), "failed");
  EXPECT_EQ(name(static_cast<Category>(77)), "?");
}

}  // namespace
}  // namespace regroup::metrics
