#include "secure/socket_address.hpp"

#include <gtest/gtest.h>

namespace regroup::secure {
namespace {

TEST(SocketAddress, ReadsBothFamiliesAndWritesThemBack) {
  const SocketAddress four = SocketAddress::parse("10.0.0.4", 4711).value();
  EXPECT_EQ(four.family(), AF_INET);
  EXPECT_EQ(four.text(), "10.0.0.4:4711");
  EXPECT_FALSE(four.is_loopback());
  const SocketAddress six = SocketAddress::parse("fd00::1", 4711).value();
  EXPECT_EQ(six.family(), AF_INET6);
  EXPECT_EQ(six.text(), "[fd00::1]:4711");
  EXPECT_EQ(six.with_port(80).port(), 80);
  EXPECT_EQ(six.with_port(80).host(), "fd00::1");
}

TEST(SocketAddress, KnowsTheLoopback) {
  EXPECT_TRUE(SocketAddress::loopback().is_loopback());
  EXPECT_TRUE(SocketAddress::parse("::1", 1).value().is_loopback());
  EXPECT_TRUE(SocketAddress::parse("127.8.0.1", 1).value().is_loopback());
}

TEST(SocketAddress, NamesAndRubbishAreNoAddresses) {
  const std::string with_nul("10.0.0.4\0x", 10);
  for (const std::string& text : {std::string(), std::string("localhost"), std::string("10.0.0"),
                                  std::string("10.0.0.256"), std::string("fd00:::1"), with_nul}) {
    EXPECT_EQ(SocketAddress::parse(text, 1).error().code(), Code::InvalidArgument) << text;
  }
}

}  // namespace
}  // namespace regroup::secure
