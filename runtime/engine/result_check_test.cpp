#include "engine/result_check.hpp"

#include <gtest/gtest.h>

#include <array>

namespace regroup::engine {
namespace {

using Values = std::array<std::int64_t, 3>;

Request request_of(spi::OpKind kind, const void* in, void* out, std::size_t count) {
  Request request;
  request.spec = {.kind = kind, .dtype = DType::I64, .count = count, .in = in, .out = out};
  return request;
}

TEST(ResultCheck, OneBitOfAResultIsAnotherDigest) {
  Values in{1, 2, 3};
  Values out{3, 6, 9};
  const auto request = request_of(spi::OpKind::AllReduce, in.data(), out.data(), in.size());
  const ResultCheck check(request, 3, 0);
  const auto right = check.digest(Epoch(1), 7);
  EXPECT_EQ(right, check.digest(Epoch(1), 7));
  EXPECT_NE(right, check.digest(Epoch(1), 9)) << "a result of an earlier operation is not this one";
  EXPECT_NE(right, check.digest(Epoch(2), 7));
  out[2] ^= 1;
  EXPECT_NE(right, check.digest(Epoch(1), 7));
}

TEST(ResultCheck, WhatARankGaveMustComeBackToIt) {
  const std::int64_t mine = 5;
  Values out{4, 5, 6};
  const auto request = request_of(spi::OpKind::AllGather, &mine, out.data(), 1);
  const ResultCheck giver(request, 3, 1);
  const ResultCheck other(request_of(spi::OpKind::AllGather, out.data(), out.data(), 1), 3, 0);
  EXPECT_EQ(giver.digest(Epoch(1), 1), other.digest(Epoch(1), 1));
  out[1] = 7;  // on both alike
  EXPECT_NE(giver.digest(Epoch(1), 1), other.digest(Epoch(1), 1));
}

TEST(ResultCheck, WhatEveryRankGaveWasWrittenOver) {
  const std::int64_t first = 4;
  const std::int64_t second = 5;
  std::array<std::int64_t, 2> out{4, 5};
  const ResultCheck one(request_of(spi::OpKind::AllGather, &first, out.data(), 1), 2, 0);
  const ResultCheck other(request_of(spi::OpKind::AllGather, &second, out.data(), 1), 2, 1);
  EXPECT_EQ(one.digest(Epoch(1), 1), other.digest(Epoch(1), 1));
  out = {6, 7};
  EXPECT_NE(one.digest(Epoch(1), 1), other.digest(Epoch(1), 1));
}

TEST(ResultCheck, TheRootOfABroadcastHasTheResultInItsInput) {
  Values root{1, 2, 3};
  Values leaf{1, 2, 3};
  const auto at_root = request_of(spi::OpKind::Broadcast, root.data(), root.data(), 3);
  const auto at_leaf = request_of(spi::OpKind::Broadcast, leaf.data(), leaf.data(), 3);
  EXPECT_EQ(ResultCheck(at_root, 2, 0).digest(Epoch(1), 1),
            ResultCheck(at_leaf, 2, 1).digest(Epoch(1), 1));
}

TEST(ResultCheck, NamesTheFirstTwoThatDiffer) {
  const std::array<std::uint64_t, 3> digests{1, 1, 2};
  const std::array<Rank, 3> seats{Rank(0), Rank(4), Rank(5)};
  EXPECT_EQ(ResultCheck::compare(std::span(digests).first(2), seats), "");
  EXPECT_EQ(ResultCheck::compare(digests, seats),
            "rank 0 has digest 0000000000000001, rank 5 has 0000000000000002");
}

TEST(InputCopy, KeepsWhatTheOutputCovers) {
  Values both{1, 2, 3};
  Values apart{7, 8, 9};
  const InputCopy covered(request_of(spi::OpKind::AllReduce, both.data(), both.data(), 3), 2, 0);
  const InputCopy free(request_of(spi::OpKind::AllReduce, both.data(), apart.data(), 3), 2, 0);
  both = {0, 0, 0};
  free.restore();
  EXPECT_EQ(both, (Values{0, 0, 0}));
  covered.restore();
  EXPECT_EQ(both, (Values{1, 2, 3}));
}

}  // namespace
}  // namespace regroup::engine
