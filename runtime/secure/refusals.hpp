/// What was refused at the border of a job, counted by cause.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include <regroup/status.hpp>

#include "base/fd.hpp"

namespace regroup::secure {

/// Why somebody was not listened to, or not any longer.
enum class Refusal : std::uint8_t {
  NotTls,        ///< the first bytes are no hello of ours
  NoKey,         ///< no pre-shared key of this job was offered
  WrongKey,      ///< names this job, does not hold its secret
  Version,       ///< speaks another version of the protocol
  UnknownAgent,  ///< holds the secret, names an agent that the job does not have
  Slow,          ///< no proof within the time of a handshake
  Left,          ///< went away before it proved anything
  Crowded,       ///< gave way to a newer connection: the table of the unproven is full
  Oversized,     ///< announced or sent more than the limit
  BadRecord,     ///< forged, altered, replayed or reordered record
  Truncated,     ///< the stream ended without saying so
  BadMessage,    ///< authentic, but no message of ours
  OtherUser,     ///< another user's process at the socket of `regroup status`
};
inline constexpr std::size_t kRefusalCount = 13;
/// As it stands in files: "not_tls", "no_key", ...
[[nodiscard]] std::string_view name(Refusal cause);

using RefusalCounts = std::array<std::uint64_t, kRefusalCount>;

/// The counters lie in a memory file that the launcher shares with its coordinator: they outlive
/// the coordinator, and counting needs no message. Thread safety: any thread, any process.
class RefusalCounters {
 public:
  /// Errors: ResourceExhausted.
  static Result<RefusalCounters> make();
  /// Inherited. Errors: InvalidArgument (not such a memory file), ResourceExhausted.
  static Result<RefusalCounters> open(base::Fd fd);
  RefusalCounters(RefusalCounters&& other) noexcept;
  RefusalCounters& operator=(RefusalCounters&& other) noexcept;
  RefusalCounters(const RefusalCounters&) = delete;
  RefusalCounters& operator=(const RefusalCounters&) = delete;
  ~RefusalCounters();

  void count(Refusal cause) const;
  [[nodiscard]] RefusalCounts read() const;
  [[nodiscard]] int fd() const { return fd_.get(); }

 private:
  struct Page;
  RefusalCounters(base::Fd fd, Page* page) : fd_(std::move(fd)), page_(page) {}

  base::Fd fd_;
  Page* page_ = nullptr;
};

}  // namespace regroup::secure
