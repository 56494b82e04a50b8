#include "membership/types.hpp"

#include <algorithm>

namespace regroup::membership {

bool is_over(ProcessState state) {
  return state == ProcessState::Gone || state == ProcessState::Finished ||
         state == ProcessState::Released;
}

bool contains(const std::vector<Member>& members, Incarnation incarnation) {
  return std::any_of(members.begin(), members.end(),
                     [incarnation](const Member& m) { return m.incarnation == incarnation; });
}

std::uint64_t digest(const View& view) {
  // FNV-1a over fixed-width little-endian fields: the same on every machine, and no field can run
  // into the next.
  std::uint64_t hash = 0xcbf29ce484222325U;
  const auto mix = [&hash](std::uint64_t value) {
    for (int byte = 0; byte < 8; ++byte) {
      hash = (hash ^ ((value >> (8 * byte)) & 0xff)) * 0x100000001b3U;
    }
  };
  mix(view.epoch.value());
  mix(view.seats.size());
  for (const Incarnation seat : view.seats) mix(seat.value());
  mix(view.resume_step);
  mix(view.parent);
  return hash;
}

const char* name(EvidenceKind kind) {
  switch (kind) {
    case EvidenceKind::Beacon: return "Beacon";
    case EvidenceKind::Reaped: return "Reaped";
    case EvidenceKind::ChannelClosed: return "ChannelClosed";
    case EvidenceKind::Silence: return "Silence";
    case EvidenceKind::Requested: return "Requested";
    case EvidenceKind::AgentLost: return "AgentLost";
  }
  return "?";
}

}  // namespace regroup::membership
