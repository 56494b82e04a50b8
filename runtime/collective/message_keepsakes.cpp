#include "collective/message_keepsakes.hpp"

#include <algorithm>
#include <cstring>

#include "spi/message_port.hpp"

namespace regroup::collective {

bool MessageKeepsakes::arrived(Id id, std::uint32_t part, std::uint64_t bytes_all,
                               std::span<const std::byte> data) {
  const std::uint64_t begin = part * std::uint64_t{spi::kPostedBytesMax};
  if (bytes_all > kBytesMax || begin >= bytes_all) return false;
  if (data.size() != std::min<std::uint64_t>(spi::kPostedBytesMax, bytes_all - begin)) return false;
  auto found = coming_.find(id);
  if (found == coming_.end()) {
    const auto of_source = std::ranges::count_if(
        coming_, [&](const auto& each) { return each.first.source == id.source; });
    if (of_source >= static_cast<std::ptrdiff_t>(kStepsMax)) return false;
    const std::size_t parts = (bytes_all + spi::kPostedBytesMax - 1) / spi::kPostedBytesMax;
    found =
        coming_
            .emplace(id, Coming{std::vector<std::byte>(bytes_all), std::vector<bool>(parts), parts})
            .first;
  }
  Coming& coming = found->second;
  if (coming.bytes.size() != bytes_all || coming.parts[part]) return false;
  std::memcpy(coming.bytes.data() + begin, data.data(), data.size());
  coming.parts[part] = true;
  --coming.missing;
  return true;
}

bool MessageKeepsakes::has(int source, std::uint64_t step) const {
  const auto found = coming_.find({source, step});
  return found != coming_.end() && found->second.missing == 0;
}

void MessageKeepsakes::take(int source, std::uint64_t step, std::span<std::byte> place) {
  const auto found = coming_.find({source, step});
  if (found == coming_.end()) return;
  if (found->second.bytes.size() == place.size())
    std::memcpy(place.data(), found->second.bytes.data(), place.size());
  coming_.erase(found);
}

}  // namespace regroup::collective
