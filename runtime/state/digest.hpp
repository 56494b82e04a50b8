/// Digests of registered state: what a newcomer compares before it counts as healed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace regroup::state {

/// XXH3, 128 bits: finds damage and divergence, no protection against intent.
struct Digest {
  std::uint64_t low = 0;
  std::uint64_t high = 0;
  bool operator==(const Digest&) const = default;
};

/// Digest of one piece of memory; the same on every machine. Speed: near that of reading memory.
[[nodiscard]] Digest digest(std::span<const std::byte> bytes);

/// 32 hexadecimal digits, as xxhsum -H2 prints them.
[[nodiscard]] std::string to_string(const Digest& digest);

/// Digest of memory that comes in pieces: equal to digest() of all of them in a row.
/// Thread safety: none.
class Digester {
 public:
  Digester();
  Digester(const Digester&) = delete;
  Digester& operator=(const Digester&) = delete;
  Digester(Digester&&) noexcept;
  Digester& operator=(Digester&&) noexcept;
  ~Digester();
  void update(std::span<const std::byte> bytes);
  /// Of all that was given so far; more may follow.
  [[nodiscard]] Digest digest() const;

 private:
  struct Stream;
  std::unique_ptr<Stream> stream_;
};

}  // namespace regroup::state
