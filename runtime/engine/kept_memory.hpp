/// A memfd and its mapping: memory that the agent keeps beyond this process.
#pragma once

#include <cstddef>
#include <span>

#include <regroup/status.hpp>

#include "base/fd.hpp"
#include "transports/shm/arena.hpp"

namespace regroup::engine {

/// Owns both. Thread safety: as plain memory.
class KeptMemory {
 public:
  /// Zeroed; pages are taken as they are written. Errors: ResourceExhausted.
  static Result<KeptMemory> create(const char* name, std::size_t bytes);
  /// Maps all of an inherited memfd. Errors: ResourceExhausted, InvalidArgument (empty).
  static Result<KeptMemory> open(base::Fd fd);

  [[nodiscard]] std::span<std::byte> bytes() const {
    return {static_cast<std::byte*>(mapping_.data()), mapping_.bytes()};
  }
  [[nodiscard]] int fd() const { return fd_.get(); }

 private:
  static Result<KeptMemory> map(base::Fd fd, std::size_t bytes);
  base::Fd fd_;
  shm::Mapping mapping_;
};

}  // namespace regroup::engine
