/// Which build this is.
#pragma once

namespace regroup::engine {
inline constexpr const char* kBuild = REGROUP_VERSION;
}  // namespace regroup::engine
