/// The copy of a seat's volatile state that outlives its process: two generations, in memory that
/// the agent keeps.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include <regroup/status.hpp>

#include "engine/registered_state.hpp"

namespace regroup::engine {

/// A view of kept memory (not owned; page-aligned). The generation of step s lies in half s & 1,
/// so that the one that a survivor may be told to resume from is intact while the next is written.
/// Thread safety: one writer, no reader while it lives.
class Mirror {
 public:
  [[nodiscard]] static std::size_t bytes_needed(std::size_t volatile_bytes);
  /// Prepares fresh zeroed memory.
  static Mirror format(std::span<std::byte> memory, std::size_t volatile_bytes);
  /// Errors: FailedPrecondition when the memory does not hold a mirror of this size.
  static Result<Mirror> open(std::span<std::byte> memory, std::size_t volatile_bytes);

  /// Before `prepared(step)` is published: what a newcomer of this seat needs to begin step + 1.
  void write(std::uint64_t step, const RegisteredState& state);
  /// Errors: FailedPrecondition when that step's generation is not there.
  Status read(std::uint64_t step, const RegisteredState& state) const;
  /// The same into other memory.
  Status copy(std::uint64_t step, std::byte* to) const;
  /// The newest generation: of a seat that was vacant since, whose own state stood still. Nothing
  /// is read of one that never committed a step: its successor begins as it did.
  Status read_newest(const RegisteredState& state) const;

 private:
  struct Header {
    std::uint64_t magic;
    std::uint64_t volatile_bytes;
    std::atomic<std::uint64_t> steps[2];
  };
  Mirror(std::span<std::byte> memory, std::size_t volatile_bytes)
      : memory_(memory), bytes_(volatile_bytes) {}
  [[nodiscard]] Header& header() const;
  [[nodiscard]] std::byte* half(std::uint64_t step) const;
  [[nodiscard]] Status has(std::uint64_t step) const;

  std::span<std::byte> memory_;
  std::size_t bytes_;
};

}  // namespace regroup::engine
