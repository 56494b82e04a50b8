#include "transports/loopback/loopback.hpp"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

namespace regroup::loopback {

void Arena::Unmap::operator()(void* base) const { ::munmap(base, bytes); }

Result<Arena> Arena::create(Epoch epoch, std::uint32_t group, std::uint32_t members,
                            spi::ArenaOptions options) {
  if (members == 0 || members > spi::kMembersMax) {
    return Status(Code::InvalidArgument, "an arena needs 1.." + std::to_string(spi::kMembersMax) +
                                             " members, not " + std::to_string(members));
  }
  const std::size_t bytes = spi::arena_bytes(members, options);
  void* base = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) {
    return Status(Code::ResourceExhausted, "no memory for an arena of " + std::to_string(bytes) +
                                               " bytes: " + std::strerror(errno));  // NOLINT
  }
  std::unique_ptr<void, Unmap> memory(base, Unmap{bytes});
  auto slots = spi::format_arena(base, bytes, epoch, group, members, options);
  if (!slots) return slots.error();
  return Arena(std::move(memory), *slots);
}

}  // namespace regroup::loopback
