#include <regroup/status.hpp>

// Status and Result live in their header; this file proves that it stands alone.
namespace regroup {
static_assert(sizeof(Status) == 2 * sizeof(void*));
}  // namespace regroup
