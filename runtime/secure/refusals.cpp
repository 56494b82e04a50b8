#include "secure/refusals.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

namespace regroup::secure {
namespace {

constexpr std::array<std::string_view, kRefusalCount> kNames = {
    "not_tls", "no_key",    "wrong_key",  "version",   "unknown_agent", "slow",      "left",
    "crowded", "oversized", "bad_record", "truncated", "bad_message",   "other_user"};

constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

Status failed(const char* what) {
  return {Code::ResourceExhausted,
          fmt::format("counters of refusals: {}: {}", what, std::strerror(errno))};
}

}  // namespace

struct RefusalCounters::Page {
  std::array<std::atomic<std::uint64_t>, kRefusalCount> counts{};
};

std::string_view name(Refusal cause) { return kNames.at(static_cast<std::size_t>(cause)); }

Result<RefusalCounters> RefusalCounters::make() {
  base::Fd fd(::memfd_create("regroup-refusals", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) return failed("memfd_create");
  if (::ftruncate(fd.get(), sizeof(Page)) != 0) return failed("ftruncate");
  if (::fcntl(fd.get(), F_ADD_SEALS, kSeals) != 0) return failed("seal");
  return open(std::move(fd));
}

Result<RefusalCounters> RefusalCounters::open(base::Fd fd) {
  struct stat facts {};
  const int seals = ::fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0 || (seals & kSeals) != kSeals || ::fstat(fd.get(), &facts) != 0 ||
      facts.st_size != static_cast<off_t>(sizeof(Page))) {
    return Status(Code::InvalidArgument,
                  fmt::format("descriptor {} does not hold the counters of refusals", fd.get()));
  }
  (void)::fcntl(fd.get(), F_SETFD, FD_CLOEXEC);
  void* const at = ::mmap(nullptr, sizeof(Page), PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (at == MAP_FAILED) return failed("mmap");
  return RefusalCounters(std::move(fd), static_cast<Page*>(at));
}

RefusalCounters::RefusalCounters(RefusalCounters&& other) noexcept
    : fd_(std::move(other.fd_)), page_(std::exchange(other.page_, nullptr)) {}

RefusalCounters& RefusalCounters::operator=(RefusalCounters&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(page_, other.page_);
  return *this;
}

RefusalCounters::~RefusalCounters() {
  if (page_ != nullptr) ::munmap(page_, sizeof(Page));
}

void RefusalCounters::count(Refusal cause) const {
  page_->counts.at(static_cast<std::size_t>(cause)).fetch_add(1, std::memory_order_relaxed);
}

RefusalCounts RefusalCounters::read() const {
  RefusalCounts out{};
  for (std::size_t i = 0; i < kRefusalCount; ++i)
    out[i] = page_->counts[i].load(std::memory_order_relaxed);
  return out;
}

}  // namespace regroup::secure
