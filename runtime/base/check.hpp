/// Assertions for our own defects; they stay on in release builds.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace regroup::base {
[[noreturn]] inline void assertion_failed(const char* text, const char* file, int line) {
  std::fprintf(stderr,
               "regroup: internal error: %s (%s:%d). Please report this with the run directory.\n",
               text, file, line);
  std::abort();
}
}  // namespace regroup::base

#define REGROUP_ASSERT(condition) \
  (static_cast<bool>(condition)   \
       ? void()                   \
       : ::regroup::base::assertion_failed(#condition, __FILE__, __LINE__))
#define REGROUP_UNREACHABLE(why) \
  ::regroup::base::assertion_failed("unreachable: " why, __FILE__, __LINE__)
