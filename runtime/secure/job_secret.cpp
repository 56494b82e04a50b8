#include "secure/job_secret.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/crypto.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

namespace regroup::secure {
namespace {

constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL;

Status failed(Code code, const char* what) {
  return {code, fmt::format("the job's secret: {}: {}", what, std::strerror(errno))};
}

}  // namespace

Result<JobSecret> JobSecret::make() {
  std::array<std::byte, kBytes> random{};
  // Up to 256 bytes come whole or not at all.
  if (::getrandom(random.data(), random.size(), 0) != static_cast<ssize_t>(random.size()))
    return failed(Code::Internal, "getrandom");
  Result<JobSecret> out = of(random);
  OPENSSL_cleanse(random.data(), random.size());
  return out;
}

Result<JobSecret> JobSecret::of(std::span<const std::byte, kBytes> bytes) {
  base::Fd fd(::memfd_create("regroup-secret", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) return failed(Code::ResourceExhausted, "memfd_create");
  if (::pwrite(fd.get(), bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(kBytes))
    return failed(Code::ResourceExhausted, "write");
  if (::fcntl(fd.get(), F_ADD_SEALS, kSeals) != 0) return failed(Code::Internal, "seal");
  return open(std::move(fd));
}

Result<JobSecret> JobSecret::open(base::Fd fd) {
  struct stat facts {};
  const int seals = ::fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0 || (seals & kSeals) != kSeals || ::fstat(fd.get(), &facts) != 0 ||
      facts.st_size != static_cast<off_t>(kBytes)) {
    return Status(Code::InvalidArgument,
                  fmt::format("descriptor {} is not a job's secret: a sealed memory file of {} "
                              "bytes, as the launcher hands it down",
                              fd.get(), kBytes));
  }
  (void)::fcntl(fd.get(), F_SETFD, FD_CLOEXEC);
  // Private: a shared mapping of what is sealed against writing is refused by kernels before 6.7.
  void* const at = ::mmap(nullptr, kBytes, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (at == MAP_FAILED) return failed(Code::ResourceExhausted, "mmap");
  (void)::madvise(at, kBytes, MADV_DONTDUMP);
  (void)::madvise(at, kBytes, MADV_DONTFORK);
  return JobSecret(std::move(fd), static_cast<const std::byte*>(at));
}

void forget(std::span<std::byte> bytes) { OPENSSL_cleanse(bytes.data(), bytes.size()); }

JobSecret::JobSecret(JobSecret&& other) noexcept
    : fd_(std::move(other.fd_)), at_(std::exchange(other.at_, nullptr)) {}

JobSecret& JobSecret::operator=(JobSecret&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(at_, other.at_);
  return *this;
}

JobSecret::~JobSecret() {
  if (at_ != nullptr) ::munmap(const_cast<std::byte*>(at_), kBytes);
}

}  // namespace regroup::secure
