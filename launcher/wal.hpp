/// The coordinator's write-ahead state: one file that holds the newest record durably. Only the
/// newest matters, since every record is the whole state.
///
/// Layout: a header page, then two slots written in turn, each with sequence number, length and
/// checksum. A write that is cut short damages the slot of the record before last, never the last.
/// All space is taken when the file is made, so that a disk that fills up later cannot stop a
/// recovery.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <vector>

#include <regroup/status.hpp>

#include "base/fd.hpp"

namespace regroup::launcher {

/// Thread safety: one thread. At most one process has a file open: another one's open() is refused.
class Wal {
 public:
  static constexpr std::uint32_t kVersion = 1;
  static constexpr std::size_t kRecordBytesMax = std::size_t{1} << 20;

  /// Opens the file, or makes it. Blocks for the file system.
  /// Errors: FailedPrecondition (E-STATE-1: the system's reason; E-STATE-4: in use by another
  /// process), InvalidArgument (E-STATE-2: a file of something else, or damaged), Unsupported
  /// (E-STATE-3: of a newer version). A file that is refused is left as it was.
  static Result<Wal> open(const std::filesystem::path& path);

  /// The newest whole record; none in a new file.
  [[nodiscard]] const std::optional<std::vector<std::byte>>& newest() const { return newest_; }
  /// How many records were ever written.
  [[nodiscard]] std::uint64_t sequence() const { return sequence_; }

  /// Durable when Ok is returned. After an error the record may or may not be there, and nothing
  /// may be done that relies on it. Blocks for the disk. Errors: InvalidArgument (too long),
  /// ResourceExhausted (E-STATE-1).
  Status append(std::span<const std::byte> record);

 private:
  Wal() = default;
  Status read(const std::filesystem::path& path);

  base::Fd fd_;
  std::string path_;
  std::optional<std::vector<std::byte>> newest_;
  std::uint64_t sequence_ = 0;
};

}  // namespace regroup::launcher
