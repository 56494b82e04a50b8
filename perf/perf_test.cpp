#include <gmock/gmock.h>

#include "perf/kills.hpp"
#include "perf/options.hpp"
#include "perf/results.hpp"
#include "perf/rivals.hpp"
#include "perf/statistics.hpp"
#include "perf/workload.hpp"

namespace regroup::perf {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

Parsed parse(std::vector<std::string> words) {
  words.insert(words.begin(), "regroup-perf");
  return parse_options(std::move(words));
}

TEST(Options, SizesGrowByFactorAndEndAtTheLast) {
  const auto parsed = parse({"all_reduce", "-b", "8", "-e", "4K", "-f", "8"});
  ASSERT_FALSE(parsed.exit_code) << parsed.text;
  EXPECT_THAT(parsed.options.sizes, ElementsAre(8, 64, 512, 4096));
}

TEST(Options, SizesGrowByStep) {
  const auto parsed = parse({"broadcast", "-b", "1K", "-e", "3K", "-i", "1K"});
  EXPECT_THAT(parsed.options.sizes, ElementsAre(1024, 2048, 3072));
}

TEST(Options, SizesMayBeListed) {
  EXPECT_THAT(parse({"reduce", "--sizes", "8,1M"}).options.sizes, ElementsAre(8, 1 << 20));
}

TEST(Options, NcclsWordsAreUnderstood) {
  const auto parsed =
      parse({"all-reduce", "-d", "bfloat16", "-o", "max", "-n", "7", "-w", "2", "-c", "3"});
  ASSERT_FALSE(parsed.exit_code) << parsed.text;
  EXPECT_THAT(parsed.options.dtypes, ElementsAre(DType::BF16));
  EXPECT_THAT(parsed.options.ops, ElementsAre(ReduceOp::Max));
  EXPECT_EQ(parsed.options.iterations, 7U);
  EXPECT_EQ(parsed.options.warmups, 2U);
  EXPECT_EQ(parsed.options.checks, 3U);
}

TEST(Options, AllMeansEveryTypeAndOperation) {
  const auto parsed = parse({"reduce_scatter", "-d", "all", "-o", "all"});
  EXPECT_EQ(parsed.options.dtypes.size(), static_cast<std::size_t>(kDTypeCount));
  EXPECT_EQ(parsed.options.ops.size(), static_cast<std::size_t>(kReduceOpCount));
}

TEST(Options, KillNamesRankAndOperation) {
  const auto parsed = parse({"all_reduce", "--kill", "2@17"});
  ASSERT_TRUE(parsed.options.kill);
  EXPECT_EQ(parsed.options.kill->rank, 2);
  EXPECT_EQ(parsed.options.kill->op, 17U);
}

TEST(Options, WhatIsWrongIsNamedAndEndsWith64) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"allreduce2"}, "allreduce2"},
      {{}, "collective"},
      {{"all_reduce", "--tune", "F"}, "--tune measures the network, not all_reduce"},
      {{"all_reduce", "-b", "8X"}, "8X"},
      {{"all_reduce", "-b", "-8"}, "-8"},
      {{"all_reduce", "-b", "8", "-e", "4"}, "-e 4"},
      {{"all_reduce", "-f", "1"}, "-f 1"},
      {{"all_reduce", "-i", "0"}, "-i 0"},
      {{"all_reduce", "-d", "fp4"}, "fp4"},
      {{"all_reduce", "-o", "xor"}, "xor"},
      {{"all_reduce", "--mode", "fast"}, "fast"},
      {{"all_reduce", "--kill", "2"}, "--kill 2"},
      {{"all_reduce", "--kill", "2@0"}, "--kill 2@0"},
      {{"broadcast", "--kill", "2@1"}, "all_reduce"},
      {{"all_reduce", "--frobnicate"}, "frobnicate"},
      {{"all_reduce", "--blocks", "0"}, "blocks"}};
  for (const auto& [words, named] : cases) {
    const auto parsed = parse(words);
    EXPECT_EQ(parsed.exit_code, kExitBadUsage) << testing::PrintToString(words);
    EXPECT_THAT(parsed.text, HasSubstr(named));
  }
}

TEST(Options, HelpIsNoError) {
  const auto parsed = parse({"--help"});
  EXPECT_EQ(parsed.exit_code, 0);
  EXPECT_THAT(parsed.text, HasSubstr("--minbytes"));
}

TEST(Workload, SizesCountAsInNcclTests) {
  const auto of = [](Collective c) {
    return make_workload(c, 1024, DType::F32, ReduceOp::Sum, 0, 4);
  };
  EXPECT_EQ(of(Collective::AllReduce).count, 256U);
  EXPECT_EQ(of(Collective::AllGather).count, 64U);
  EXPECT_EQ(of(Collective::AllGather).bytes(), 1024U);
  EXPECT_EQ(of(Collective::ReduceScatter).in_count(0), 256U);
  EXPECT_DOUBLE_EQ(of(Collective::AllReduce).bus_factor(), 1.5);
  EXPECT_DOUBLE_EQ(of(Collective::AllGather).bus_factor(), 0.75);
  EXPECT_DOUBLE_EQ(of(Collective::Broadcast).bus_factor(), 1);
}

TEST(Workload, ValuesRoundOnceToNearestEven) {
  EXPECT_EQ(encode(DType::F16, 1.0), 0x3c00U);
  EXPECT_EQ(encode(DType::F16, 1.0 / 3), 0x3555U);
  EXPECT_EQ(encode(DType::F16, 2049), 0x6800U);  // between 2048 and 2050: the even one
  EXPECT_EQ(encode(DType::F16, 2051), 0x6802U);
  EXPECT_EQ(encode(DType::BF16, 1.0), 0x3f80U);
  EXPECT_EQ(encode(DType::BF16, 257), 0x4380U);
  EXPECT_EQ(encode(DType::BF16, 259), 0x4382U);
  EXPECT_EQ(encode(DType::F32, 1.0), 0x3f800000U);
  EXPECT_EQ(encode(DType::I64, 5), 5U);
  EXPECT_EQ(encode(DType::F8E4M3, 1.0), 0x38U);
  EXPECT_EQ(encode(DType::F8E4M3, 17), 0x58U);  // between 16 and 18: the even one
  EXPECT_EQ(encode(DType::F8E4M3, 19), 0x5aU);
  EXPECT_EQ(encode(DType::F8E5M2, 1.0), 0x3cU);
  EXPECT_EQ(encode(DType::F8E5M2, 9), 0x48U);  // between 8 and 10
  EXPECT_EQ(encode(DType::Bool, 6), 0U);
}

/// The result that all ranks together must give, made from what each of them contributes.
TEST(Workload, CheckAcceptsTheRightResultAndCountsEachWrongElement) {
  const Workload w = make_workload(Collective::AllReduce, 5000, DType::F32, ReduceOp::Sum, 0, 3);
  Buffers mine(w, 1);
  mine.fill(4);
  EXPECT_EQ(mine.count_wrong(4), w.count);  // nothing was written yet
  std::vector<Buffers> all;
  for (int rank = 0; rank < 3; ++rank) all.emplace_back(w, rank).fill(4);
  auto* const out = static_cast<float*>(mine.out());
  for (std::size_t i = 0; i < w.count; ++i) {
    out[i] = 0;
    for (const Buffers& b : all) out[i] += static_cast<const float*>(b.in())[i];
  }
  EXPECT_EQ(mine.count_wrong(4), 0U);
  EXPECT_GT(mine.count_wrong(5), 0U);  // of another operation
  out[1234] += 1;
  out[0] += 1;
  EXPECT_EQ(mine.count_wrong(4), 2U);
}

TEST(Workload, SharesGrowAndAddUpToTheWhole) {
  const Workload w = make_workload(Collective::AllToAllV, 4000, DType::F32, ReduceOp::Sum, 0, 3);
  EXPECT_EQ(w.bytes(), 4000U);
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(w.in_count(rank), 1000U);
    EXPECT_EQ(w.out_count(rank), 1000U);
    for (int other = 0; other < 3; ++other) {
      EXPECT_EQ(w.counts(rank)[static_cast<std::size_t>(other)],
                w.received(other)[static_cast<std::size_t>(rank)]);
    }
  }
  EXPECT_THAT(w.counts(0), ElementsAre(166, 333, 501));
}

// What each rank gives to each other, moved by hand.
TEST(Workload, CheckKnowsWhereEachShareComesFrom) {
  const Workload w = make_workload(Collective::AllToAllV, 40000, DType::I32, ReduceOp::Sum, 0, 3);
  std::vector<Buffers> all;
  for (int rank = 0; rank < 3; ++rank) all.emplace_back(w, rank).fill(4);
  for (int me = 0; me < 3; ++me) {
    auto* out = static_cast<std::int32_t*>(all[static_cast<std::size_t>(me)].out());
    for (int from = 0; from < 3; ++from) {
      std::size_t at = 0;
      for (int before = 0; before < me; ++before) at += w.share(from, before);
      const auto* const in =
          static_cast<const std::int32_t*>(all[static_cast<std::size_t>(from)].in());
      out = std::copy_n(in + at, w.share(from, me), out);
    }
    EXPECT_EQ(all[static_cast<std::size_t>(me)].count_wrong(4), 0U) << me;
    out[-1] += 1;
    EXPECT_EQ(all[static_cast<std::size_t>(me)].count_wrong(4), 1U) << me;
  }
}

TEST(Workload, AnAverageIsDividedOnce) {
  EXPECT_DOUBLE_EQ(combined(ReduceOp::Avg, 4, 10, 1), combined(ReduceOp::Sum, 4, 10, 1) / 4);
  EXPECT_LE(combined(ReduceOp::Prod, 128, 3, 1), 4);
  EXPECT_DOUBLE_EQ(combined(ReduceOp::PremulSum, 4, 10, 1),
                   combined(ReduceOp::Sum, 4, 10, 1) * kPremulFactor);
}

TEST(Rivals, ACommandSurvivesItsLine) {
  Workload w = make_workload(Collective::Reduce, 4096, DType::BF16, ReduceOp::Max, 2, 4);
  w.in_place = true;
  const BlockPlan plan{.mode = Mode::Isolated, .iterations = 12, .warmups = 3, .checks = 1};
  const auto command = parse_line(to_line(w, plan));
  ASSERT_TRUE(command);
  EXPECT_EQ(to_line(command->workload, command->plan), to_line(w, plan));
  EXPECT_FALSE(parse_line("block all_reduce f32"));
  EXPECT_FALSE(parse_line("dance"));
}

TEST(Rivals, AnUnknownOneIsRefusedWithTheWayToInstallIt) {
  const auto found = find_rivals({"openmpi9"}, "/nonexistent", {.ranks = 2});
  ASSERT_FALSE(found);
  EXPECT_THAT(std::string(found.error().text()), HasSubstr("perf/rivals/setup.sh"));
}

TEST(Statistics, PercentilesAreMeasuredValues) {
  EXPECT_DOUBLE_EQ(percentile({3, 1, 2}, 0.5), 2);
  EXPECT_DOUBLE_EQ(percentile({1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, 0.9), 9);
  EXPECT_DOUBLE_EQ(percentile({1, 2}, 0.99), 2);
  EXPECT_DOUBLE_EQ(percentile({}, 0.5), 0);
  EXPECT_DOUBLE_EQ(median({1, 2, 3, 10}), 2.5);
}

TEST(Kills, TheLaunchersTimesAreRead) {
  EXPECT_EQ(parse_utc_ns("1970-01-02T00:00:01.000000005Z"), 86'401'000'000'005);
  EXPECT_EQ(parse_utc_ns("2026-01-31T12:00:00.5Z"), 0);
  EXPECT_EQ(parse_utc_ns("yesterday"), 0);
}

TEST(Kills, ThePercentilesStandBesideTheirSamples) {
  const auto json = to_json(KillSamples{.release_us = {3, 1, 2}, .wrong = 1});
  EXPECT_DOUBLE_EQ(json.at("release_us").at("p50"), 2);
  EXPECT_DOUBLE_EQ(json.at("release_us").at("max"), 3);
  EXPECT_TRUE(json.at("detect_us").is_null());
  EXPECT_EQ(json.at("samples").at("release_us").size(), 3U);
  EXPECT_EQ(json.at("wrong"), 1);
}

TEST(Results, ARowSaysWhatTheTableAndTheFileNeed) {
  Row row{
      .implementation = "regroup",
      .algorithm = "twoshot",
      .workload = make_workload(Collective::AllReduce, 1 << 20, DType::F32, ReduceOp::Sum, 0, 4),
      .us = {100, 200, 300}};
  row.checked = 1;
  const auto json = to_json(row);
  EXPECT_DOUBLE_EQ(json.at("time_us"), 200);
  EXPECT_DOUBLE_EQ(json.at("p90_us"), 300);
  EXPECT_DOUBLE_EQ(json.at("alg_gbps"), 1048576 / 200e-6 / 1e9);
  EXPECT_DOUBLE_EQ(json.at("bus_gbps"), 1.5 * 1048576 / 200e-6 / 1e9);
  EXPECT_THAT(table_line(row, std::nullopt), HasSubstr("1048576        262144     float     sum"));
  EXPECT_THAT(table_line(row, std::nullopt), HasSubstr("N/A"));
}

}  // namespace
}  // namespace regroup::perf
