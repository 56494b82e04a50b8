#include "secure/frame_reader.hpp"

#include <gtest/gtest.h>

#include <random>

namespace regroup::secure {
namespace {

control::Bytes bytes_of(std::size_t count, unsigned seed) {
  control::Bytes out(count);
  for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<std::byte>(seed + i);
  return out;
}

TEST(FrameReader, GivesMessagesBackHoweverTheStreamIsCut) {
  const std::vector<std::size_t> sizes = {1, 3, 70'000, 2, control::kMessageBytesMax, 5};
  control::Bytes stream;
  for (std::size_t i = 0; i < sizes.size(); ++i)
    append_frame(stream, bytes_of(sizes[i], static_cast<unsigned>(i)));
  std::mt19937 random(7);
  for (const std::size_t most : {3U, 1000U, 3'000'000U}) {
    FrameReader reader;
    std::size_t got = 0;
    for (std::size_t at = 0; at < stream.size();) {
      const std::size_t part = std::min<std::size_t>(stream.size() - at, 1 + random() % most);
      ASSERT_TRUE(reader.feed(std::span(stream).subspan(at, part)));
      at += part;
      while (std::optional<control::Bytes> message = reader.next()) {
        ASSERT_EQ(*message, bytes_of(sizes[got], static_cast<unsigned>(got)));
        got += 1;
      }
    }
    EXPECT_EQ(got, sizes.size());
    EXPECT_FALSE(reader.whole());
  }
}

TEST(FrameReader, RefusesALengthAboveTheLimitBeforeAnyOfItArrives) {
  FrameReader reader;
  const control::Bytes header = {std::byte{1}, std::byte{0}, std::byte{0x10}, std::byte{0}};
  EXPECT_EQ(reader.feed(header).code(), Code::ResourceExhausted);
  EXPECT_FALSE(reader.next());
}

TEST(FrameReader, RefusesAnEmptyMessageAlsoBehindAGoodOne) {
  FrameReader reader;
  control::Bytes stream;
  append_frame(stream, bytes_of(4, 1));
  stream.resize(stream.size() + kFrameHeaderBytes);
  EXPECT_EQ(reader.feed(stream).code(), Code::InvalidArgument);
}

}  // namespace
}  // namespace regroup::secure
