/// Messages to bytes and back. FlatBuffers, verified before use; a pure function of its input.
///
/// Every message carries the protocol version. Decoding never crashes, whatever the bytes, and
/// allocates only what the verified bytes hold. No descriptors here: they travel beside the bytes
/// (control/channel.hpp).
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "control/messages.hpp"
#include "control/shim_messages.hpp"
#include "membership/types.hpp"

namespace regroup::control {

/// No message is larger; a view of 100,000 seats (8 bytes each) still fits, and 240 members'
/// addresses of 4 KiB each.
inline constexpr std::size_t kMessageBytesMax = std::size_t{1} << 20;

using Bytes = std::vector<std::byte>;

/// Errors: ResourceExhausted when the message is larger than kMessageBytesMax.
[[nodiscard]] Result<Bytes> encode(const RankMessage& message);
[[nodiscard]] Result<Bytes> encode(const AgentToRank& message);
[[nodiscard]] Result<Bytes> encode(const ShimMessage& message);
[[nodiscard]] Result<Bytes> encode(const AgentToShim& message);
[[nodiscard]] Result<Bytes> encode(const membership::AgentMessage& message);
[[nodiscard]] Result<Bytes> encode(const membership::CoordinatorMessage& message);
[[nodiscard]] Result<Bytes> encode(const membership::DurableState& state);

/// Reads one message of type M: RankMessage, AgentToRank, ShimMessage, AgentToShim,
/// membership::AgentMessage, membership::CoordinatorMessage or membership::DurableState. Memory:
/// the bytes are not needed afterwards; any alignment. Errors: InvalidArgument (not such a message,
/// damaged, a number out of range), Unsupported (another protocol version, or a kind of message
/// that this build does not know), ResourceExhausted (above kMessageBytesMax).
template <class M>
[[nodiscard]] Result<M> decode(std::span<const std::byte> bytes);

template <>
Result<RankMessage> decode<RankMessage>(std::span<const std::byte> bytes);
template <>
Result<AgentToRank> decode<AgentToRank>(std::span<const std::byte> bytes);
template <>
Result<ShimMessage> decode<ShimMessage>(std::span<const std::byte> bytes);
template <>
Result<AgentToShim> decode<AgentToShim>(std::span<const std::byte> bytes);
template <>
Result<membership::AgentMessage> decode<membership::AgentMessage>(std::span<const std::byte> bytes);
template <>
Result<membership::CoordinatorMessage> decode<membership::CoordinatorMessage>(
    std::span<const std::byte> bytes);
template <>
Result<membership::DurableState> decode<membership::DurableState>(std::span<const std::byte> bytes);

}  // namespace regroup::control
