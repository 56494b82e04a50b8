/// Which plan carries an operation over messages. Pure; the answer is the same on all ranks.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "collective/schedule_messages.hpp"

namespace regroup::collective {

/// What `forced` says where that can carry the operation, else what is expected to take the least
/// time. OneShot: everybody sends to everybody concerned, as it is; of all_reduce, TwoShot:
/// everybody folds a slice and sends it to all. Up to MessageShape::direct_bytes all_reduce goes by
/// OneShot or Doubling.
[[nodiscard]] Algorithm choose(const spi::OpDescriptor& descriptor, const MessageShape& shape);
[[nodiscard]] bool can_carry(Algorithm algorithm, const spi::OpDescriptor& descriptor,
                             const MessageShape& shape);
/// What choose() expects, for tests and tools.
[[nodiscard]] double expected_us(Algorithm algorithm, const spi::OpDescriptor& descriptor,
                                 const MessageShape& shape);

[[nodiscard]] std::vector<Run> runs_of(std::span<const int> hosts);
[[nodiscard]] std::size_t rails_chunk_bytes(std::size_t bytes, const std::vector<Run>& runs,
                                            std::size_t chunk_bytes_max);
[[nodiscard]] std::size_t chain_chunk_bytes(std::size_t bytes, std::size_t chunk_bytes_max);

}  // namespace regroup::collective
