#include "engine/kept_memory.hpp"

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace regroup::engine {

Result<KeptMemory> KeptMemory::create(const char* name, std::size_t bytes) {
  base::Fd fd(::memfd_create(name, MFD_CLOEXEC));
  if (!fd || ::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
    return Status(Code::ResourceExhausted,
                  fmt::format("cannot make {} bytes of memory for a newcomer's use: {}", bytes,
                              std::strerror(errno)));
  }
  return map(std::move(fd), bytes);
}

Result<KeptMemory> KeptMemory::open(base::Fd fd) {
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0 || info.st_size <= 0) {
    return Status(Code::InvalidArgument, "the memory that the predecessor left is empty");
  }
  return map(std::move(fd), static_cast<std::size_t>(info.st_size));
}

Result<KeptMemory> KeptMemory::map(base::Fd fd, std::size_t bytes) {
  auto mapping = shm::Mapping::map(fd.get(), bytes);
  if (!mapping) return mapping.error();
  KeptMemory memory;
  memory.fd_ = std::move(fd);
  memory.mapping_ = std::move(*mapping);
  return memory;
}

}  // namespace regroup::engine
