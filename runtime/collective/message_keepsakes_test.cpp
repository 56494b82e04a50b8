#include "collective/message_keepsakes.hpp"

#include <gtest/gtest.h>

#include "spi/message_port.hpp"

namespace regroup::collective {
namespace {

constexpr std::size_t kPart = spi::kPostedBytesMax;

TEST(MessageKeepsakes, ComeInAnyOrderAndAreTakenOnce) {
  MessageKeepsakes keepsakes;
  std::vector<std::byte> sent(kPart + 3, std::byte{1});
  sent.back() = std::byte{9};
  const std::span<const std::byte> bytes(sent);
  EXPECT_TRUE(keepsakes.arrived({2, 5}, 1, sent.size(), bytes.subspan(kPart)));
  EXPECT_FALSE(keepsakes.has(2, 5));
  EXPECT_FALSE(keepsakes.arrived({2, 5}, 1, sent.size(), bytes.subspan(kPart))) << "twice";
  EXPECT_TRUE(keepsakes.arrived({2, 5}, 0, sent.size(), bytes.first(kPart)));
  EXPECT_TRUE(keepsakes.has(2, 5));
  EXPECT_FALSE(keepsakes.has(2, 6));
  std::vector<std::byte> place(sent.size());
  keepsakes.take(2, 5, place);
  EXPECT_EQ(place, sent);
  EXPECT_FALSE(keepsakes.has(2, 5));
}

TEST(MessageKeepsakes, WhatDoesNotFitIsRefused) {
  MessageKeepsakes keepsakes;
  const std::vector<std::byte> bytes(kPart);
  EXPECT_FALSE(keepsakes.arrived({0, 1}, 0, 0, bytes));
  EXPECT_FALSE(keepsakes.arrived({0, 1}, 0, MessageKeepsakes::kBytesMax + 1, bytes));
  EXPECT_FALSE(keepsakes.arrived({0, 1}, 1, kPart, bytes)) << "there is no such part";
  EXPECT_FALSE(keepsakes.arrived({0, 1}, 0, kPart + 1, std::span(bytes).first(1)));
  EXPECT_TRUE(keepsakes.arrived({0, 1}, 0, 2 * kPart, bytes));
  EXPECT_FALSE(keepsakes.arrived({0, 1}, 1, 3 * kPart, bytes)) << "of another size";
  EXPECT_TRUE(keepsakes.arrived({0, 2}, 0, kPart, bytes));
  EXPECT_FALSE(keepsakes.arrived({0, 3}, 0, kPart, bytes)) << "a third step at once";
}

}  // namespace
}  // namespace regroup::collective
