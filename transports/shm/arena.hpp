/// Arenas in sealed memory that has no name: created by an agent, passed as a descriptor, mapped by
/// ranks.
#pragma once

#include <cstddef>
#include <cstdint>

#include <regroup/status.hpp>

#include "base/fd.hpp"
#include "spi/shared_slots.hpp"

namespace regroup::shm {

/// A mapping that unmaps itself. Thread safety: immutable once made.
class Mapping {
 public:
  Mapping() = default;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();
  /// Maps the first `bytes` of `fd`, shared and writable; not inherited by fork.
  /// Errors: ResourceExhausted, Internal.
  static Result<Mapping> map(int fd, std::size_t bytes);

  [[nodiscard]] void* data() const { return base_; }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }

 private:
  Mapping(void* base, std::size_t bytes) : base_(base), bytes_(bytes) {}
  void* base_ = nullptr;
  std::size_t bytes_ = 0;
};

/// An arena and what keeps it alive. The memory lives until the last descriptor and mapping of it
/// are gone.
struct Arena {
  base::Fd fd;  ///< empty in open_arena's answer
  Mapping mapping;
  spi::SharedSlots slots;
};

/// Makes the arena of one (group, epoch): memfd, space reserved at once, size sealed, mapped,
/// formatted. Blocks while the kernel clears the pages. Errors: InvalidArgument, ResourceExhausted
/// (memory, descriptors).
Result<Arena> make_arena(Epoch epoch, std::uint32_t group, std::uint32_t members,
                         spi::ArenaOptions options = {});

/// Maps an arena that was received as a descriptor; keeps no descriptor. Checks seals, size, magic
/// and identity. Errors: InvalidArgument (not such an arena, or of another epoch or group),
/// ResourceExhausted.
Result<Arena> open_arena(int fd, Epoch epoch, std::uint32_t group);

/// The same bytes with the same guarantees, from a descriptor with no arena in it: sealed,
/// reserved, mapped.
struct Memory {
  base::Fd fd;
  Mapping mapping;
};
Result<Memory> make_memory(const char* label, std::size_t bytes);

/// Tests only: the next `count` reservations fail as if memory were exhausted.
void fail_next_reservations(int count);

}  // namespace regroup::shm
