#include "launcher/wal.hpp"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace regroup::launcher {
namespace {

constexpr std::size_t kPage =
    4096;  // slots lie in pages of their own: tearing one leaves the other whole
constexpr std::uint64_t kMagic = 0x3154415453475247;  // "GRGSTAT1"

struct Header {
  std::uint64_t magic = kMagic;
  std::uint32_t version = Wal::kVersion;
  std::uint32_t slot_bytes = 0;
};
struct SlotHeader {
  std::uint64_t sequence = 0;  ///< 0: never written
  std::uint64_t bytes = 0;
  std::uint64_t checksum = 0;
};
constexpr std::size_t kSlotBytes =
    (Wal::kRecordBytesMax + sizeof(SlotHeader) + kPage - 1) / kPage * kPage;
constexpr std::size_t kFileBytes = kPage + 2 * kSlotBytes;

std::uint64_t checksum_of(std::uint64_t sequence, std::span<const std::byte> record) {
  return XXH3_64bits_withSeed(record.data(), record.size(), sequence);
}

off_t slot_offset(std::uint64_t sequence) {
  return static_cast<off_t>(kPage + (sequence % 2) * kSlotBytes);
}

/// Errors are errno values; a short file is EIO.
int write_at(int fd, std::span<const std::byte> bytes, off_t offset) {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd, bytes.data(), bytes.size(), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return n < 0 ? errno : EIO;
    bytes = bytes.subspan(static_cast<std::size_t>(n));
    offset += n;
  }
  return 0;
}

int read_at(int fd, std::span<std::byte> bytes, off_t offset) {
  while (!bytes.empty()) {
    const ssize_t n = ::pread(fd, bytes.data(), bytes.size(), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return n < 0 ? errno : EIO;
    bytes = bytes.subspan(static_cast<std::size_t>(n));
    offset += n;
  }
  return 0;
}

Status system_error(Code code, const std::string& path, int error) {
  return {code,
          fmt::format(
              "E-STATE-1 cannot use the coordinator's state file {}: {}. Choose another place with "
              "--log-dir or --state.",
              path, std::strerror(error))};
}

void sync_folder_of(const std::filesystem::path& path) {
  const std::filesystem::path folder = path.has_parent_path() ? path.parent_path() : ".";
  const base::Fd fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  // Some file systems cannot sync a folder; then the name is as durable as they can make it.
  if (fd) (void)::fsync(fd.get());
}

/// Makes a whole empty file beside the final name and then gives it that name: no half-made file is
/// ever found there.
int make_file(const std::filesystem::path& path) {
  const std::string fresh = path.string() + ".new";
  const base::Fd fd(::open(fresh.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!fd) return errno;
  Header header;
  header.slot_bytes = kSlotBytes;
  int error = ::posix_fallocate(fd.get(), 0, kFileBytes);
  if (error == 0) error = write_at(fd.get(), std::as_bytes(std::span(&header, 1)), 0);
  if (error == 0 && ::fsync(fd.get()) != 0) error = errno;
  if (error == 0 && ::rename(fresh.c_str(), path.c_str()) != 0) error = errno;
  if (error != 0) (void)::unlink(fresh.c_str());
  sync_folder_of(path);
  return error;
}

struct Slot {
  std::uint64_t sequence = 0;
  std::vector<std::byte> record;
};

/// None: never written, or not whole.
std::optional<Slot> read_slot(int fd, std::uint64_t which) {
  SlotHeader header;
  if (read_at(fd, std::as_writable_bytes(std::span(&header, 1)), slot_offset(which)) != 0)
    return std::nullopt;
  if (header.sequence == 0 || header.sequence % 2 != which || header.bytes > Wal::kRecordBytesMax) {
    return std::nullopt;
  }
  Slot slot{header.sequence, std::vector<std::byte>(header.bytes)};
  const off_t at = slot_offset(which) + static_cast<off_t>(sizeof header);
  if (read_at(fd, slot.record, at) != 0) return std::nullopt;
  if (checksum_of(header.sequence, slot.record) != header.checksum) return std::nullopt;
  return slot;
}

}  // namespace

Result<Wal> Wal::open(const std::filesystem::path& path) {
  Wal wal;
  wal.path_ = path.string();
  wal.fd_.reset(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!wal.fd_ && errno == ENOENT) {
    if (const int error = make_file(path); error != 0) {
      return system_error(Code::FailedPrecondition, wal.path_, error);
    }
    wal.fd_.reset(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  }
  if (!wal.fd_) return system_error(Code::FailedPrecondition, wal.path_, errno);
  if (::flock(wal.fd_.get(), LOCK_EX | LOCK_NB) != 0) {
    return Status(
        Code::FailedPrecondition,
        fmt::format(
            "E-STATE-4 the state file {} is in use by another coordinator; a job has one at a time",
            wal.path_));
  }
  if (Status status = wal.read(path); !status) return status;
  return wal;
}

Status Wal::read(const std::filesystem::path& path) {
  struct stat facts {};
  if (::fstat(fd_.get(), &facts) != 0)
    return system_error(Code::FailedPrecondition, path.string(), errno);
  Header header;
  header.magic = 0;
  const bool read = read_at(fd_.get(), std::as_writable_bytes(std::span(&header, 1)), 0) == 0;
  if (!read || header.magic != kMagic) {
    return {Code::InvalidArgument, fmt::format("E-STATE-2 {} is not a coordinator's state file; it "
                                               "was left as it is. Name another file",
                                               path_)};
  }
  if (header.version != kVersion) {
    return {Code::Unsupported,
            fmt::format(
                "E-STATE-3 {} was written by another version of regroup (layout {}, this one reads "
                "{}); it "
                "was left as it is. Use that version, or start the job anew in another --log-dir",
                path_, header.version, kVersion)};
  }
  if (header.slot_bytes != kSlotBytes || facts.st_size != static_cast<off_t>(kFileBytes)) {
    return {Code::InvalidArgument,
            fmt::format("E-STATE-2 {} is damaged ({} bytes, expected {}); it was left as it is",
                        path_, facts.st_size, kFileBytes)};
  }
  for (std::uint64_t which = 0; which < 2; ++which) {
    std::optional<Slot> slot = read_slot(fd_.get(), which);
    if (!slot || slot->sequence <= sequence_) continue;
    sequence_ = slot->sequence;
    newest_ = std::move(slot->record);
  }
  return {};
}

Status Wal::append(std::span<const std::byte> record) {
  if (record.size() > kRecordBytesMax) {
    return {Code::InvalidArgument,
            fmt::format("a state record of {} bytes is above the limit of {}", record.size(),
                        kRecordBytesMax)};
  }
  const std::uint64_t sequence = sequence_ + 1;
  const SlotHeader header{sequence, record.size(), checksum_of(sequence, record)};
  std::vector<std::byte> slot(sizeof header + record.size());
  std::memcpy(slot.data(), &header, sizeof header);
  if (!record.empty()) std::memcpy(slot.data() + sizeof header, record.data(), record.size());
  int error = write_at(fd_.get(), slot, slot_offset(sequence));
  if (error == 0 && ::fdatasync(fd_.get()) != 0) error = errno;
  if (error != 0) return system_error(Code::ResourceExhausted, path_, error);
  sequence_ = sequence;
  newest_ = std::vector<std::byte>(record.begin(), record.end());
  return {};
}

}  // namespace regroup::launcher
