#include "transports/shm/arena.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

namespace regroup::shm {
namespace {

constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
std::atomic<int> failures_planned{0};

Status failure(const char* what, std::size_t bytes, int error) {
  const bool scarce = error == ENOMEM || error == ENOSPC || error == EMFILE || error == ENFILE ||
                      error == EDQUOT || error == EFBIG;
  std::string text = fmt::format("{} of {} bytes of shared memory: {}", what, bytes,
                                 std::strerror(error));  // NOLINT(concurrency-mt-unsafe)
  if (error == EFBIG) {
    text += "; is the limit of file sizes (ulimit -f) too low?";
  } else if (scarce) {
    text += "; is the memory limit of this container or the descriptor limit (ulimit -n) too low?";
  }
  return {scarce ? Code::ResourceExhausted : Code::Internal, std::move(text)};
}

int reserve(int fd, std::size_t bytes) {
  int left = failures_planned.load();
  while (left > 0) {
    if (failures_planned.compare_exchange_weak(left, left - 1)) return ENOSPC;
  }
  // Reserved now, so that nobody is killed by SIGBUS at the first store later.
  int error = EINTR;
  while (error == EINTR) error = ::posix_fallocate(fd, 0, static_cast<off_t>(bytes));
  return error;
}

}  // namespace

Mapping::Mapping(Mapping&& other) noexcept
    : base_(std::exchange(other.base_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  if (this != &other) {
    if (base_ != nullptr) ::munmap(base_, bytes_);
    base_ = std::exchange(other.base_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
  }
  return *this;
}

Mapping::~Mapping() {
  if (base_ != nullptr) ::munmap(base_, bytes_);
}

Result<Mapping> Mapping::map(int fd, std::size_t bytes) {
  void* base = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (base == MAP_FAILED) return failure("mapping", bytes, errno);
  Mapping mapping(base, bytes);
  // A forked child must not take part by accident. Huge pages are a wish: older kernels say no.
  if (::madvise(base, bytes, MADV_DONTFORK) != 0) return failure("protecting", bytes, errno);
  (void)::madvise(base, bytes, MADV_HUGEPAGE);
  return mapping;
}

Result<Memory> make_memory(const char* label, std::size_t bytes) {
  // The label shows in /proc/PID/maps only; there is no name to leave behind.
  base::Fd fd(::memfd_create(label, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) return failure("creation", bytes, errno);
  if (const int error = reserve(fd.get(), bytes); error != 0) {
    return failure("reservation", bytes, error);
  }
  // Nobody can truncate it under a rank that maps it.
  if (::fcntl(fd.get(), F_ADD_SEALS, kSeals) != 0) return failure("sealing", bytes, errno);
  auto mapping = Mapping::map(fd.get(), bytes);
  if (!mapping) return mapping.error();
  return Memory{std::move(fd), *std::move(mapping)};
}

Result<Arena> make_arena(Epoch epoch, std::uint32_t group, std::uint32_t members,
                         spi::ArenaOptions options) {
  if (members == 0 || members > spi::kMembersMax) {
    return Status(Code::InvalidArgument, fmt::format("an arena for {} members; 1..{} are possible",
                                                     members, spi::kMembersMax));
  }
  const std::size_t bytes = spi::arena_bytes(members, options);
  auto memory = make_memory("regroup-arena", bytes);
  if (!memory) return memory.error();
  auto slots = spi::format_arena(memory->mapping.data(), bytes, epoch, group, members, options);
  if (!slots) return slots.error();
  return Arena{std::move(memory->fd), std::move(memory->mapping), *slots};
}

Result<Arena> open_arena(int fd, Epoch epoch, std::uint32_t group) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) return failure("inspection", 0, errno);
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & kSeals) != kSeals) {
    return Status(Code::InvalidArgument, "arena: the descriptor's size is not sealed");
  }
  const auto bytes = static_cast<std::size_t>(status.st_size);
  if (bytes < sizeof(spi::Header)) {
    return Status(Code::InvalidArgument, fmt::format("arena: {} bytes hold no header", bytes));
  }
  auto mapping = Mapping::map(fd, bytes);
  if (!mapping) return mapping.error();
  auto slots = spi::SharedSlots::open(mapping->data(), bytes, epoch, group);
  if (!slots) return slots.error();
  return Arena{base::Fd(), *std::move(mapping), *slots};
}

void fail_next_reservations(int count) { failures_planned.store(count); }

}  // namespace regroup::shm
