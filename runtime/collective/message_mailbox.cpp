#include "collective/message_mailbox.hpp"

#include <algorithm>
#include <cstring>

namespace regroup::collective {

bool Mailbox::want(const Part& part, std::byte* place, std::size_t bytes) {
  const auto [found, fresh] = entries_.try_emplace(part);
  Entry& entry = found->second;
  if (fresh) {
    entry.place = place;
    entry.bytes = bytes;
    return true;
  }
  if (entry.state != State::Here || entry.kept.size() != bytes) return false;
  if (bytes != 0) std::memcpy(place, entry.kept.data(), bytes);
  entry.place = place;
  return true;
}

bool Mailbox::has(const Part& part) const {
  const auto found = entries_.find(part);
  return found != entries_.end() && found->second.state == State::Here;
}

bool Mailbox::arrived(const Part& part, const std::byte* data, std::size_t bytes) {
  const auto [found, fresh] = entries_.try_emplace(part);
  Entry& entry = found->second;
  if (fresh) {
    entry.kept.assign(data, data + bytes);
  } else {
    if (entry.state != State::Wanted || entry.bytes != bytes) return false;
    if (bytes != 0) std::memcpy(entry.place, data, bytes);
  }
  entry.state = State::Here;
  return true;
}

std::byte* Mailbox::place_for(const Part& part, std::size_t bytes) {
  const auto found = entries_.find(part);
  if (found == entries_.end()) return nullptr;
  Entry& entry = found->second;
  if (entry.state != State::Wanted || entry.bytes != bytes) return nullptr;
  entry.state = State::Placing;
  ++placing_;
  return entry.place;
}

void Mailbox::placed(const Part& part, bool whole) {
  const auto found = entries_.find(part);
  if (found == entries_.end() || found->second.state != State::Placing) return;
  found->second.state = whole ? State::Here : State::Wanted;
  --placing_;
}

const std::byte* Mailbox::next_to_withdraw() {
  if (placing_ == 0) return nullptr;
  const auto found = std::ranges::find_if(
      entries_, [](const auto& each) { return each.second.state == State::Placing; });
  found->second.state = State::Wanted;
  --placing_;
  return found->second.place;
}

void Mailbox::forget(std::uint64_t sequence) {
  std::erase_if(entries_, [sequence](const auto& each) { return each.first.sequence <= sequence; });
}

}  // namespace regroup::collective
