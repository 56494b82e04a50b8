/// A hash that is equal in every build and on every machine.
#pragma once

#include <cstdint>
#include <string_view>

namespace regroup::base {

inline constexpr std::uint64_t kFnvStart = 14695981039346656037ULL;

/// FNV-1a, 64 bits; pass the last result to go on. No protection against intent.
[[nodiscard]] constexpr std::uint64_t fnv1a(std::string_view bytes,
                                            std::uint64_t from = kFnvStart) {
  for (const char c : bytes) from = (from ^ static_cast<unsigned char>(c)) * 1099511628211ULL;
  return from;
}

}  // namespace regroup::base
