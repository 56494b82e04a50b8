/// Fields of what was written by another version of this program, or by somebody else.
/// Thread safety: free functions without state of their own.
#pragma once

#include <cstdint>
#include <string>

#include <nlohmann/json_fwd.hpp>

namespace regroup::launcher {

// Each returns null, zero or nothing where `object` is no object, or has no such field of that
// type.

[[nodiscard]] const nlohmann::json& member(const nlohmann::json& object, const char* key);
[[nodiscard]] std::int64_t integer(const nlohmann::json& object, const char* key);
[[nodiscard]] double real(const nlohmann::json& object, const char* key);
[[nodiscard]] std::string word(const nlohmann::json& object, const char* key);

}  // namespace regroup::launcher
