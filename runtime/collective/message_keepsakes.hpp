/// What other members give this one to keep, while it arrives.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

namespace regroup::collective {

/// It comes in posted parts, before the keeper has called for it or after. Thread safety: one
/// thread at a time. Pure.
class MessageKeepsakes {
 public:
  /// More is not kept on other hosts.
  static constexpr std::size_t kBytesMax = std::size_t{16} << 20;
  /// Steps whose parts may be on their way from one member: it waits for the others in each.
  static constexpr std::size_t kStepsMax = 2;

  struct Id {
    int source = 0;
    std::uint64_t step = 0;
    auto operator<=>(const Id&) const = default;
  };
  /// `bytes_all`: of all parts together. False: it does not fit to what has come so far.
  bool arrived(Id id, std::uint32_t part, std::uint64_t bytes_all, std::span<const std::byte> data);
  [[nodiscard]] bool has(int source, std::uint64_t step) const;
  /// After has(). Of another size than the place: nothing is written.
  void take(int source, std::uint64_t step, std::span<std::byte> place);

 private:
  struct Coming {
    std::vector<std::byte> bytes;
    std::vector<bool> parts;
    std::size_t missing = 0;
  };
  std::map<Id, Coming> coming_;
};

}  // namespace regroup::collective
