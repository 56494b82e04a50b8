#include "control/codec.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "control/codec_samples.hpp"
#include "control_generated.h"

namespace regroup::control {
namespace {

template <class M>
void expect_round_trips(const std::vector<M>& messages) {
  std::set<std::size_t> kinds;
  for (const M& message : messages) {
    const Bytes bytes = encode(message).value();
    const Result<M> decoded = decode<M>(bytes);
    ASSERT_TRUE(decoded) << decoded.error().to_string();
    EXPECT_EQ(*decoded, message);
    if constexpr (requires { message.index(); }) kinds.insert(message.index());
  }
  if constexpr (requires { std::variant_size<M>::value; }) {
    EXPECT_EQ(kinds.size(), std::variant_size_v<M>);
  }
}

TEST(Codec, EveryMessageComesBackAsItWas) {
  expect_round_trips(samples::rank_messages());
  expect_round_trips(samples::agent_to_rank());
  expect_round_trips(samples::shim_messages());
  expect_round_trips(samples::agent_to_shim());
  expect_round_trips(samples::agent_messages());
  expect_round_trips(samples::coordinator_messages());
  expect_round_trips(samples::durable_states());
}

TEST(Codec, EveryEnumeratorComesBack) {
  for (int i = 0; i <= static_cast<int>(Code::Internal); ++i) {
    expect_round_trips<AgentToRank>({Refused{.code = static_cast<Code>(i)}, Welcome{}, Assign{},
                                     ViewInstalled{}, GroupReady{}, LossNotice{}, Stop{},
                                     Released{}, StoreReply{}});
  }
  for (int i = 0; i <= static_cast<int>(OnLoss::Abort); ++i) {
    membership::DurableState state;
    state.config.on_loss = static_cast<OnLoss>(i);
    expect_round_trips<membership::DurableState>({state});
  }
}

TEST(Codec, AnyAlignmentWillDo) {
  const RankMessage message =
      Entered{.epoch = Epoch(3), .bytes_from = {{Rank(1), 10}}, .heal_ns = 99};
  const Bytes bytes = encode(message).value();
  for (std::size_t shift = 0; shift < 16; ++shift) {
    Bytes shifted(shift);
    shifted.insert(shifted.end(), bytes.begin(), bytes.end());
    const Result<RankMessage> decoded = decode<RankMessage>(std::span(shifted).subspan(shift));
    ASSERT_TRUE(decoded) << decoded.error().to_string();
    EXPECT_EQ(*decoded, message);
  }
}

TEST(Codec, OneChannelsMessageIsNoOthers) {
  const Bytes bytes = encode(RankMessage(Detach{})).value();
  EXPECT_EQ(decode<AgentToRank>(bytes).error().code(), Code::InvalidArgument);
  EXPECT_EQ(decode<ShimMessage>(bytes).error().code(), Code::InvalidArgument);
  EXPECT_EQ(decode<AgentToShim>(bytes).error().code(), Code::InvalidArgument);
  EXPECT_EQ(decode<membership::AgentMessage>(bytes).error().code(), Code::InvalidArgument);
  EXPECT_EQ(decode<membership::CoordinatorMessage>(bytes).error().code(), Code::InvalidArgument);
  EXPECT_EQ(decode<membership::DurableState>(bytes).error().code(), Code::InvalidArgument);
}

TEST(Codec, LimitsAreKeptOnBothSides) {
  membership::View view;
  view.seats.assign(100'000, Incarnation(1));
  expect_round_trips<membership::DurableState>({{.view = view}});
  view.seats.assign(140'000, Incarnation(1));
  EXPECT_EQ(encode(membership::DurableState{.view = view}).error().code(), Code::ResourceExhausted);
  EXPECT_EQ(decode<RankMessage>(Bytes(kMessageBytesMax + 1)).error().code(),
            Code::ResourceExhausted);
  EXPECT_EQ(decode<RankMessage>(Bytes()).error().code(), Code::InvalidArgument);
  EXPECT_EQ(decode<RankMessage>(Bytes(7)).error().code(), Code::InvalidArgument);
}

Bytes finish(flatbuffers::FlatBufferBuilder& builder,
             flatbuffers::Offset<wire::RankEnvelope> root) {
  builder.Finish(root, "RGRA");
  const auto* const begin = reinterpret_cast<const std::byte*>(builder.GetBufferPointer());
  return Bytes(begin, begin + builder.GetSize());
}

TEST(Codec, OtherProtocolsAndUnknownKindsSayWhatToDo) {
  flatbuffers::FlatBufferBuilder newer;
  const Bytes other_version =
      finish(newer, wire::CreateRankEnvelope(newer, kProtocolVersion + 1, wire::RankBody::Detach,
                                             wire::CreateDetach(newer).Union()));
  const Status refused = decode<RankMessage>(other_version).error();
  EXPECT_EQ(refused.code(), Code::Unsupported);
  EXPECT_THAT(std::string(refused.text()), testing::HasSubstr("use one version of regroup"));

  for (const int kind : {0, static_cast<int>(wire::RankBody::MAX) + 1, 255}) {
    flatbuffers::FlatBufferBuilder builder;
    const Bytes unknown =
        finish(builder, wire::CreateRankEnvelope(builder, kProtocolVersion,
                                                 static_cast<wire::RankBody>(kind),
                                                 wire::CreateDetach(builder).Union()));
    const Status status = decode<RankMessage>(unknown).error();
    EXPECT_FALSE(status) << kind;
    EXPECT_TRUE(status.code() == Code::Unsupported || status.code() == Code::InvalidArgument)
        << status.to_string();
  }
}

TEST(Codec, NumbersBeyondTheEnumAreRefused) {
  flatbuffers::FlatBufferBuilder builder;
  const auto body = wire::CreateRefused(builder, 12, builder.CreateString("x"));
  builder.Finish(wire::CreateAgentToRankEnvelope(builder, kProtocolVersion,
                                                 wire::AgentToRankBody::Refused, body.Union()),
                 "RGAR");
  const std::span<const std::byte> bytes(
      reinterpret_cast<const std::byte*>(builder.GetBufferPointer()), builder.GetSize());
  const Status status = decode<AgentToRank>(bytes).error();
  EXPECT_EQ(status.code(), Code::InvalidArgument);
  EXPECT_THAT(std::string(status.text()), testing::HasSubstr("12 is no error code"));
}

// Valid bytes may name one text a hundred thousand times; what comes out must stay small all the
// same.
TEST(Codec, RepeatedReferencesDoNotMultiplyMemory) {
  flatbuffers::FlatBufferBuilder builder;
  const auto text = builder.CreateString(std::string(200'000, 'x'));
  const std::vector<flatbuffers::Offset<flatbuffers::String>> many(100'000, text);
  const auto body = wire::CreateAssign(builder, 1, builder.CreateVector(many));
  builder.Finish(wire::CreateAgentToRankEnvelope(builder, kProtocolVersion,
                                                 wire::AgentToRankBody::Assign, body.Union()),
                 "RGAR");
  const std::span<const std::byte> bytes(
      reinterpret_cast<const std::byte*>(builder.GetBufferPointer()), builder.GetSize());
  ASSERT_LE(bytes.size(), kMessageBytesMax);
  const Status status = decode<AgentToRank>(bytes).error();
  EXPECT_EQ(status.code(), Code::InvalidArgument);
  EXPECT_THAT(std::string(status.text()), testing::HasSubstr("larger than"));
}

}  // namespace
}  // namespace regroup::control
