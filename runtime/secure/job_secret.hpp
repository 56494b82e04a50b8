/// The secret of one job: 256 random bits that every agent and the coordinator hold, and nobody
/// else.
#pragma once

#include <cstddef>
#include <span>

#include <regroup/status.hpp>

#include "base/fd.hpp"

namespace regroup::secure {

/// Lies in a sealed memory file without a name, which is handed down by descriptor: never in an
/// argument, the environment or a file. Thread safety: immutable once made.
class JobSecret {
 public:
  static constexpr std::size_t kBytes = 32;

  /// A new one, from the kernel's random source. Errors: ResourceExhausted, Internal.
  static Result<JobSecret> make();
  /// One that came over a starter's pipe. Errors: ResourceExhausted, Internal.
  static Result<JobSecret> of(std::span<const std::byte, kBytes> bytes);
  /// One that was inherited. Errors: InvalidArgument (not such a memory file, or not sealed).
  static Result<JobSecret> open(base::Fd fd);
  JobSecret(JobSecret&& other) noexcept;
  JobSecret& operator=(JobSecret&& other) noexcept;
  JobSecret(const JobSecret&) = delete;
  JobSecret& operator=(const JobSecret&) = delete;
  ~JobSecret();

  /// Close-on-exec; a child that is to hold the secret inherits it.
  [[nodiscard]] int fd() const { return fd_.get(); }
  /// Memory: of this object; not part of a core dump, not inherited by a fork.
  [[nodiscard]] std::span<const std::byte, kBytes> bytes() const {
    return std::span<const std::byte, kBytes>(at_, kBytes);
  }

 private:
  JobSecret(base::Fd fd, const std::byte* at) : fd_(std::move(fd)), at_(at) {}

  base::Fd fd_;
  const std::byte* at_ = nullptr;
};

/// Overwrites what held a secret, so that no compiler leaves it out.
void forget(std::span<std::byte> bytes);

}  // namespace regroup::secure
