/// The registered state of simulated ranks as bytes: what a heal by the shipped planner moves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "state/planner.hpp"

namespace regroup::sim {

/// The bytes of one state, and the digest of each tensor in them.
struct StateImage {
  std::uint64_t state = 0;
  std::vector<std::uint64_t> words;
  std::vector<state::Digest> digests;
};

/// The layout of a job's state, and the images made last.
struct StateImages {
  explicit StateImages(const std::vector<std::uint64_t>& tensor_bytes);
  [[nodiscard]] std::size_t words() const;
  /// Each tensor's part of these bytes.
  [[nodiscard]] std::vector<std::span<const std::byte>> tensors(
      const std::vector<std::uint64_t>& words) const;
  /// Valid until the next call.
  const StateImage& of(std::uint64_t state);
  /// The state that these bytes are; one that nobody ever had when they are not of one piece.
  [[nodiscard]] std::uint64_t decode(const std::vector<std::uint64_t>& words) const;

  state::Layout layout;
  std::vector<StateImage> recent;
};

/// What a newcomer has so far; it counts as long as the step to resume at stays the same.
struct Healing {
  std::uint64_t resume = 0;
  std::optional<state::HealProgress> progress;
  std::vector<std::uint64_t> words;   ///< its own buffers
  std::vector<state::Transfer> mine;  ///< its part of the plan
  std::size_t next = 0;
  std::vector<Rank> donors;
  bool damaged = false;  ///< by a fault, since the digests were compared last
};

}  // namespace regroup::sim
