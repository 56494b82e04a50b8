#include "collective/message_calls.hpp"

#include <fmt/format.h>

#include "base/check.hpp"

namespace regroup::collective {
namespace {

std::uint64_t digest_of(const spi::OpDescriptor& d) {
  std::uint64_t digest = (0x9e3779b97f4a7c15 ^ spi::pack_meta(d)) * 0xff51afd7ed558ccd;
  digest = (digest ^ (digest >> 32) ^ d.count) * 0xc4ceb9fe1a85ec53;
  digest = (digest ^ (digest >> 29) ^ d.detail) * 0xff51afd7ed558ccd;
  return digest ^ (digest >> 29);
}

}  // namespace

CalledOperations::CalledOperations(int members, int me) : members_(members), me_(me) {}

const CalledOperations::Own* CalledOperations::own(std::uint64_t sequence) const {
  const Own& entry = own_[sequence % kRemembered];
  return entry.sequence == sequence && sequence != 0 ? &entry : nullptr;
}

void CalledOperations::called(std::uint64_t sequence, const spi::OpDescriptor& descriptor) {
  const Own mine{sequence, digest_of(descriptor), descriptor};
  own_[sequence % kRemembered] = mine;
  const auto ahead = ahead_.find(sequence);
  if (ahead != ahead_.end()) {
    for (const std::uint64_t theirs : ahead->second) {
      if (theirs != mine.digest) (void)dispute(sequence);
    }
    ahead_.erase(ahead);
  }
  const auto disputed = disputes_.find(sequence);
  if (disputed == disputes_.end()) return;
  disputed->second.calls[static_cast<std::size_t>(me_)] = descriptor;
  judge(sequence, disputed->second);
}

std::uint64_t CalledOperations::digest(std::uint64_t sequence) const {
  const Own* mine = own(sequence);
  REGROUP_ASSERT(mine != nullptr);
  return mine->digest;
}

bool CalledOperations::fits(int /*source*/, std::uint64_t sequence, std::uint64_t digest) {
  const Own* mine = own(sequence);
  if (mine == nullptr) {
    const bool past = own_[sequence % kRemembered].sequence > sequence;
    if (!past) ahead_[sequence].push_back(digest);
    return true;
  }
  if (mine->digest == digest) return true;
  (void)dispute(sequence);
  return false;
}

CalledOperations::Dispute& CalledOperations::dispute(std::uint64_t sequence) {
  const auto [entry, made] = disputes_.try_emplace(sequence);
  Dispute& d = entry->second;
  if (!made) return d;
  d.calls.resize(static_cast<std::size_t>(members_));
  if (const Own* mine = own(sequence)) d.calls[static_cast<std::size_t>(me_)] = mine->descriptor;
  return d;
}

void CalledOperations::heard(int source, std::uint64_t sequence,
                             const spi::OpDescriptor& descriptor) {
  Dispute& d = dispute(sequence);
  d.calls[static_cast<std::size_t>(source)] = descriptor;
  judge(sequence, d);
}

std::optional<std::pair<std::uint64_t, spi::OpDescriptor>> CalledOperations::next_to_tell() {
  for (auto& [sequence, d] : disputes_) {
    const auto& mine = d.calls[static_cast<std::size_t>(me_)];
    if (d.told || !mine) continue;
    d.told = true;
    return std::pair{sequence, *mine};
  }
  return std::nullopt;
}

void CalledOperations::judge(std::uint64_t sequence, const Dispute& d) {
  std::optional<std::size_t> other;
  bool all_symmetric = true;
  for (std::size_t member = 0; member < d.calls.size(); ++member) {
    if (!d.calls[member]) return;
    all_symmetric = all_symmetric && spi::is_symmetric(d.calls[member]->kind);
    if (!other && *d.calls[member] != *d.calls[0]) other = member;
  }
  if (!other) return;
  std::string text =
      fmt::format("operation {} of the group differs: rank {} called {}, rank {} called {}",
                  sequence, 0, spi::describe(*d.calls[0]), *other, spi::describe(*d.calls[*other]));
  if (all_symmetric) {
    mismatches_[sequence] = std::move(text);
  } else if (poison_.empty() || sequence < poisoned_at_) {
    poisoned_at_ = sequence;
    poison_ = std::move(text);
  }
}

const std::string* CalledOperations::mismatch(std::uint64_t sequence) const {
  const auto found = mismatches_.find(sequence);
  return found == mismatches_.end() ? nullptr : &found->second;
}

}  // namespace regroup::collective
