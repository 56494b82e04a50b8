/// Whether all ranks of a group got the same bits out of an operation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <regroup/types.hpp>

#include "engine/group.hpp"

namespace regroup::engine {

/// The input of an operation whose output covers part of it: a call that has its result, but turns
/// out not to count, is made again from here. Memory: the request's buffers outlive it.
class InputCopy {
 public:
  InputCopy(const Request& request, int members, int me);
  void restore() const;
  /// The output covers the input.
  [[nodiscard]] bool covers() const { return !bytes_.empty(); }

 private:
  std::byte* at_ = nullptr;
  std::vector<std::byte> bytes_;
};

/// One operation under REGROUP_VERIFY. Results are compared by digest, and what a rank contributed
/// never comes back to it through shared memory: so damage makes at least two ranks differ.
/// Memory: as InputCopy. Thread safety: a value.
class ResultCheck {
 public:
  /// REGROUP_VERIFY says 1 or 0; unset: 0.
  [[nodiscard]] static bool wanted();
  /// After these operations every rank holds the same bits.
  [[nodiscard]] static bool covers(const Request& request);

  /// Before the operation.
  ResultCheck(const Request& request, int members, int me);
  /// After it: what every rank must have, of this operation alone.
  [[nodiscard]] std::uint64_t digest(Epoch epoch, std::uint64_t sequence) const;

  /// The first two of `digests` (by group rank) that differ, in words; empty: all are the same.
  [[nodiscard]] static std::string compare(std::span<const std::uint64_t> digests,
                                           std::span<const Rank> seats);

 private:
  int me_;
  std::span<const std::byte> result_;
  std::span<const std::byte> own_part_;  ///< of an all_gather's result
  std::uint64_t own_input_ = 0;
};

}  // namespace regroup::engine
