#include "engine/result_check.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string_view>

#include "collective/schedule.hpp"
#include "state/digest.hpp"

namespace regroup::engine {
namespace {

std::uint64_t digest_of(std::span<const std::byte> bytes) { return state::digest(bytes).low; }

}  // namespace

InputCopy::InputCopy(const Request& request, int members, int me) {
  const auto& spec = request.spec;
  if (request.kind != Request::Kind::Collective || spec.in == nullptr || spec.out == nullptr)
    return;
  const auto extent =
      collective::extent_of(collective::describe_call(spec), spec.counts, members, me);
  if (extent.in_bytes == 0 || extent.out_bytes == 0) return;
  const auto* const in = static_cast<const std::byte*>(spec.in);
  auto* const out = static_cast<std::byte*>(spec.out);
  const std::less<const std::byte*> below;
  if (!below(in, out + extent.out_bytes) || !below(out, in + extent.in_bytes)) return;
  // An output that covers an input lies in the same object, which may be written.
  at_ = out + (in - out);
  bytes_.assign(in, in + extent.in_bytes);
}

void InputCopy::restore() const {
  if (!bytes_.empty()) std::memcpy(at_, bytes_.data(), bytes_.size());
}

bool ResultCheck::wanted() {
  const char* const text = std::getenv("REGROUP_VERIFY");
  return text != nullptr && std::string_view(text) != "0";
}

bool ResultCheck::covers(const Request& request) {
  if (request.kind != Request::Kind::Collective) return false;
  switch (request.spec.kind) {
    case spi::OpKind::AllReduce:
    case spi::OpKind::Broadcast:
    case spi::OpKind::AllGather:
    case spi::OpKind::AllGatherV: return true;
    case spi::OpKind::Reduce:
    case spi::OpKind::ReduceScatter:
    case spi::OpKind::ReduceScatterV:
    case spi::OpKind::AllToAll:
    case spi::OpKind::AllToAllV:
    case spi::OpKind::Gather:
    case spi::OpKind::GatherV:
    case spi::OpKind::Scatter:
    case spi::OpKind::ScatterV:
    case spi::OpKind::Coalesced:
    case spi::OpKind::Barrier: return false;
  }
  return false;
}

ResultCheck::ResultCheck(const Request& request, int members, int me) : me_(me) {
  const auto& spec = request.spec;
  const auto descriptor = collective::describe_call(spec);
  const auto extent = collective::extent_of(descriptor, spec.counts, members, me);
  const bool gathers = spi::gathers(spec.kind);
  // The root of a broadcast has its result from the beginning.
  if (extent.out_bytes == 0) {
    result_ = {static_cast<const std::byte*>(spec.in), extent.in_bytes};
  } else {
    result_ = {static_cast<const std::byte*>(spec.out), extent.out_bytes};
  }
  if (!gathers || extent.in_bytes == 0) return;
  own_part_ = result_.subspan(collective::share_offset(descriptor, spec.counts.shares, me),
                              extent.in_bytes);
  own_input_ = digest_of({static_cast<const std::byte*>(spec.in), extent.in_bytes});
}

std::uint64_t ResultCheck::digest(Epoch epoch, std::uint64_t sequence) const {
  const std::uint64_t parts[] = {epoch.value(), sequence, digest_of(result_)};
  const std::uint64_t all = digest_of(std::as_bytes(std::span(parts)));
  const bool own_part_stands = own_part_.empty() || digest_of(own_part_) == own_input_;
  // One for each rank: they differ also when what every rank gave was written over.
  return own_part_stands ? all : ~all - static_cast<std::uint64_t>(me_);
}

std::string ResultCheck::compare(std::span<const std::uint64_t> digests,
                                 std::span<const Rank> seats) {
  const auto other = std::ranges::find_if(
      digests, [&](std::uint64_t digest) { return digest != digests.front(); });
  if (other == digests.end()) return {};
  return fmt::format("rank {} has digest {:016x}, rank {} has {:016x}", seats.front().value(),
                     digests.front(),
                     seats[static_cast<std::size_t>(other - digests.begin())].value(), *other);
}

}  // namespace regroup::engine
