#include "state/digest.hpp"

#include <fmt/format.h>

// Compiled in: the library that programs load gains no further shared library by it.
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace regroup::state {

Digest digest(std::span<const std::byte> bytes) {
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return {.low = hash.low64, .high = hash.high64};
}

std::string to_string(const Digest& digest) {
  return fmt::format("{:016x}{:016x}", digest.high, digest.low);
}

struct Digester::Stream {
  XXH3_state_t state;
};

Digester::Digester() : stream_(std::make_unique<Stream>()) { XXH3_128bits_reset(&stream_->state); }
Digester::Digester(Digester&&) noexcept = default;
Digester& Digester::operator=(Digester&&) noexcept = default;
Digester::~Digester() = default;

void Digester::update(std::span<const std::byte> bytes) {
  XXH3_128bits_update(&stream_->state, bytes.data(), bytes.size());
}

Digest Digester::digest() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(&stream_->state);
  return {.low = hash.low64, .high = hash.high64};
}

}  // namespace regroup::state
