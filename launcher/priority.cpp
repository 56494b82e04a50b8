#include "launcher/priority.hpp"

#include <sys/resource.h>

#include <optional>

namespace regroup::launcher {
namespace {

constexpr int kFirst = -10;  // nine times the weight of an ordinary process
std::optional<int> before;

}  // namespace

void go_first() {
  const int now = ::getpriority(PRIO_PROCESS, 0);
  if (now > kFirst && ::setpriority(PRIO_PROCESS, 0, kFirst) == 0) before = now;
}

void go_as_before() {
  if (before) ::setpriority(PRIO_PROCESS, 0, *before);
}

}  // namespace regroup::launcher
