#include "collective/kept_bytes.hpp"

#include <sys/mman.h>

#include "base/check.hpp"

namespace regroup::collective {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kPage = 4096;

}  // namespace

void KeptBytes::reserve(std::size_t bytes) {
  if (bytes <= bytes_) return;
  const std::size_t unit = bytes >= kHugePage ? kHugePage : kPage;
  bytes_ = (bytes + unit - 1) / unit * unit;
  memory_.reset();  // first: the two together may not fit
  memory_.reset(static_cast<std::byte*>(std::aligned_alloc(unit, bytes_)));
  REGROUP_ASSERT(memory_ != nullptr);
  // Refused it costs time only.
  if (unit == kHugePage) (void)::madvise(memory_.get(), bytes_, MADV_HUGEPAGE);
}

}  // namespace regroup::collective
