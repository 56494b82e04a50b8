/// Puts messages together from a stream of authenticated bytes. Pure.
///
/// A frame is the message's length, four bytes, the lowest first, and the message.
#pragma once

#include <cstddef>
#include <optional>
#include <span>

#include <regroup/status.hpp>

#include "control/codec.hpp"

namespace regroup::secure {

inline constexpr std::size_t kFrameHeaderBytes = 4;

/// Thread safety: one thread.
class FrameReader {
 public:
  /// Takes bytes as they come. Memory: never more than has arrived; the bytes are not needed
  /// afterwards. Errors: ResourceExhausted (announces more than kMessageBytesMax), InvalidArgument
  /// (an empty message); the reader is of no further use then.
  Status feed(std::span<const std::byte> bytes);
  /// The next whole message, if there is one.
  [[nodiscard]] std::optional<control::Bytes> next();
  /// next() has a message.
  [[nodiscard]] bool whole() const;

 private:
  [[nodiscard]] std::optional<std::size_t> announced(std::size_t at) const;
  Status check();

  control::Bytes buffer_;
  std::size_t begin_ = 0;    ///< of the first message not handed out
  std::size_t checked_ = 0;  ///< where the first length stands that was not looked at
};

/// Appends one frame to `out`.
void append_frame(control::Bytes& out, std::span<const std::byte> message);

}  // namespace regroup::secure
