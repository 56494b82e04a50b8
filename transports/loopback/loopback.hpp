/// Arenas in this process's own memory, for ranks that are threads.
#pragma once

#include <cstdint>
#include <memory>

#include <regroup/status.hpp>

#include "spi/shared_slots.hpp"

namespace regroup::loopback {

/// Owns an arena in anonymous memory. Thread safety: immutable; the arena is shared by design.
class Arena {
 public:
  /// Errors: InvalidArgument, ResourceExhausted.
  static Result<Arena> create(Epoch epoch, std::uint32_t group, std::uint32_t members,
                              spi::ArenaOptions options = {});
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  Arena(Arena&&) noexcept = default;
  Arena& operator=(Arena&&) noexcept = default;
  ~Arena() = default;
  [[nodiscard]] const spi::SharedSlots& slots() const { return slots_; }

 private:
  struct Unmap {
    std::size_t bytes = 0;
    void operator()(void* base) const;
  };
  Arena(std::unique_ptr<void, Unmap> memory, spi::SharedSlots slots)
      : memory_(std::move(memory)), slots_(slots) {}
  std::unique_ptr<void, Unmap> memory_;
  spi::SharedSlots slots_;
};

}  // namespace regroup::loopback
