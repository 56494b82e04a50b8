#include "secure/frame_reader.hpp"

#include <fmt/format.h>

namespace regroup::secure {

std::optional<std::size_t> FrameReader::announced(std::size_t at) const {
  if (buffer_.size() < at || buffer_.size() - at < kFrameHeaderBytes) return std::nullopt;
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < kFrameHeaderBytes; ++i)
    bytes |= std::to_integer<std::size_t>(buffer_[at + i]) << (8 * i);
  return bytes;
}

Status FrameReader::check() {
  while (const std::optional<std::size_t> bytes = announced(checked_)) {
    if (*bytes == 0) return {Code::InvalidArgument, "control channel: an empty message"};
    if (*bytes > control::kMessageBytesMax) {
      return {Code::ResourceExhausted,
              fmt::format("control channel: a message of {} bytes is announced; the limit is {}",
                          *bytes, control::kMessageBytesMax)};
    }
    checked_ += kFrameHeaderBytes + *bytes;
  }
  return {};
}

Status FrameReader::feed(std::span<const std::byte> bytes) {
  buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
  return check();
}

bool FrameReader::whole() const {
  const std::optional<std::size_t> bytes = announced(begin_);
  return bytes && *bytes != 0 && *bytes <= control::kMessageBytesMax &&
         buffer_.size() - begin_ >= kFrameHeaderBytes + *bytes;
}

std::optional<control::Bytes> FrameReader::next() {
  if (!whole()) return std::nullopt;
  const std::optional<std::size_t> bytes = announced(begin_);
  const auto from = buffer_.begin() + static_cast<std::ptrdiff_t>(begin_ + kFrameHeaderBytes);
  control::Bytes message(from, from + static_cast<std::ptrdiff_t>(*bytes));
  begin_ += kFrameHeaderBytes + *bytes;
  if (begin_ == buffer_.size()) {
    // A large message must not keep its memory for the channel's life.
    buffer_ = {};
    checked_ -= begin_;
    begin_ = 0;
  } else if (begin_ >= buffer_.size() / 2) {
    buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<std::ptrdiff_t>(begin_));
    checked_ -= begin_;
    begin_ = 0;
  }
  return message;
}

void append_frame(control::Bytes& out, std::span<const std::byte> message) {
  for (std::size_t i = 0; i < kFrameHeaderBytes; ++i)
    out.push_back(static_cast<std::byte>(message.size() >> (8 * i) & 0xff));
  out.insert(out.end(), message.begin(), message.end());
}

}  // namespace regroup::secure
