// What a request says: whether it can be carried out, what it moves, how it is recorded.
#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "base/check.hpp"
#include "engine/group.hpp"
#include "engine/job.hpp"

namespace regroup::engine {
namespace {

using spi::OpKind;

Status undefined(ReduceOp op, DType type) {
  const char* instead = "this operation combines bits; use an integer type or bool";
  if (op == ReduceOp::Avg) instead = "use sum and divide, or a float type";
  if (op == ReduceOp::PremulSum) instead = "use sum of what you multiplied, or a float type";
  return {Code::InvalidArgument,
          fmt::format("{} of {} is not defined: {}", spi::name(op), spi::name(type), instead)};
}

/// Their bytes, also of every rank together, still fit into 64 bits.
constexpr std::uint64_t kElementsMax = std::uint64_t{1} << 52;

Status no_type(DType type) {
  return {Code::InvalidArgument, fmt::format("{} is no element type", static_cast<int>(type))};
}

Status too_many(std::uint64_t count) {
  return {Code::InvalidArgument, fmt::format("{} elements are more than memory can hold", count)};
}

std::string in_place_rule(OpKind kind) {
  if (kind == OpKind::AllToAllV)
    return "input and output overlap; all_to_all_v cannot work in place";
  if (spi::has_counts(kind)) {
    return "input and output overlap; they must be apart, or this rank's share must lie at its own "
           "place in the buffer of all shares";
  }
  return "input and output overlap in part; they must be equal (in place) or apart";
}

/// All ranks that get anything get the same.
bool is_shared(OpKind kind) {
  return spi::is_in(spi::kinds(OpKind::AllReduce, OpKind::Broadcast, OpKind::AllGather,
                               OpKind::AllGatherV, OpKind::Barrier),
                    kind);
}

bool overlaps(const void* a, std::size_t a_bytes, const void* b, std::size_t b_bytes) {
  const std::less<const std::byte*> below;
  const auto* const a0 = static_cast<const std::byte*>(a);
  const auto* const b0 = static_cast<const std::byte*>(b);
  return below(a0, b0 + b_bytes) && below(b0, a0 + a_bytes);
}

}  // namespace

Status GroupImpl::validate_counts(const collective::OpSpec& spec) const {
  if (spec.counts.ranks < 0) {
    return {Code::InvalidArgument,
            "there are more counts of one direction than of the other; give one for each rank"};
  }
  if (spec.counts.ranks != public_size()) {
    return {Code::InvalidArgument,
            fmt::format("{} counts were given, and group \"{}\" has {} ranks; give one for each",
                        spec.counts.ranks, name_, public_size())};
  }
  std::uint64_t left = kElementsMax;
  for (const auto* counts : {spec.counts.shares, spec.counts.recv}) {
    for (int rank = 0; counts != nullptr && rank < spec.counts.ranks; ++rank) {
      if (counts[rank] > left) return too_many(counts[rank]);
      left -= counts[rank];
    }
  }
  return {};
}

Status GroupImpl::validate_collective(const collective::OpSpec& spec) const {
  if (size_of(spec.dtype) == 0) return no_type(spec.dtype);
  if (spec.count > kElementsMax) return too_many(spec.count);
  if (spec.root < 0 || spec.root >= public_size()) {
    return {Code::InvalidArgument, fmt::format("root {} is not in group \"{}\" of {} ranks",
                                               spec.root, name_, public_size())};
  }
  if (spi::reduces(spec.kind) && !is_defined(spec.op, spec.dtype))
    return undefined(spec.op, spec.dtype);
  if (spi::has_counts(spec.kind)) [[unlikely]] {
    if (auto status = validate_counts(spec); !status) return status;
  }
  const auto bytes = spec.count * size_of(spec.dtype);
  const auto extent =
      spec.kind == OpKind::AllReduce ? collective::OpExtent{bytes, bytes} : extent_of(spec);
  const bool no_input = extent.in_bytes > 0 && spec.in == nullptr;
  if (no_input || (extent.out_bytes > 0 && spec.out == nullptr)) {
    return {Code::InvalidArgument,
            fmt::format("the {} buffer is null", no_input ? "input" : "output")};
  }
  if (extent.in_bytes == 0 || extent.out_bytes == 0) return {};
  if (!overlaps(spec.in, extent.in_bytes, spec.out, extent.out_bytes) || is_in_place(spec))
    return {};
  return {Code::InvalidArgument, in_place_rule(spec.kind)};
}

collective::OpExtent GroupImpl::extent_of(const collective::OpSpec& spec) const {
  return collective::extent_of(collective::describe_call(spec), spec.counts, public_size(),
                               public_rank());
}

/// Equal buffers where the shares are equal, too; or each rank's share at its own place.
bool GroupImpl::is_in_place(const collective::OpSpec& spec) const {
  const bool counts = spi::has_counts(spec.kind);
  if (spec.in == spec.out && !counts) return true;
  const bool scatters = spi::scatters(spec.kind);
  if (scatters == spi::gathers(spec.kind)) return false;
  const auto offset =
      collective::share_offset(collective::describe_call(spec), spec.counts.shares, public_rank());
  const auto* const whole = static_cast<const std::byte*>(scatters ? spec.in : spec.out);
  return (scatters ? spec.out : spec.in) == whole + offset;
}

Status GroupImpl::validate(const Request& request) const {
  if (closed_.load()) {
    return {Code::FailedPrecondition,
            fmt::format("group \"{}\" belongs to a Job that was destroyed; keep the Job while its "
                        "groups are in use",
                        name_)};
  }
  if (auto status = job_.usable(); !status) return status;
  if (request.kind == Request::Kind::Collective) {
    const OpKind kind = request.spec.kind;
    if (kind == OpKind::Coalesced) [[unlikely]]
      return validate_parts(*request.parts);
    return validate_collective(request.spec);
  }
  if (size_of(request.spec.dtype) == 0) return no_type(request.spec.dtype);
  if (request.kind == Request::Kind::Find) {
    if (public_size() == 1)
      return {Code::InvalidArgument,
              fmt::format("group \"{}\" has one rank: nobody else can send", name_)};
  } else if (request.other < 0 || request.other >= public_size() ||
             request.other == public_rank()) {
    return {Code::InvalidArgument,
            fmt::format("rank {} of group \"{}\" cannot exchange messages with rank {} of {}",
                        public_rank(), name_, request.other, public_size())};
  }
  const auto* const data = request.kind == Request::Kind::Send ? request.spec.in : request.spec.out;
  if (request.spec.count > 0 && data == nullptr)
    return {Code::InvalidArgument, "the buffer is null"};
  return {};
}

PrologueCall GroupImpl::call_of(const Request& request) const {
  const auto& spec = request.spec;
  const bool message = request.kind != Request::Kind::Collective;
  auto descriptor = collective::describe_call(spec);
  if (spec.kind == OpKind::AllToAllV && !message) {
    descriptor.detail = collective::hash_of(spec.counts.shares, spec.counts.ranks) ^
                        ~collective::hash_of(spec.counts.recv, spec.counts.ranks);
  }
  return {.kind = static_cast<std::uint32_t>(request.operation),
          .dtype = spec.dtype,
          .op = spec.op,
          .root = message ? request.other : spec.root,
          .count = message ? spec.count : descriptor.count,
          .detail = message ? 0 : descriptor.detail,
          .group = name_,
          .members = static_cast<std::uint32_t>(public_size()),
          .message = message,
          .shared = !message && is_shared(spec.kind)};
}

/// The result, and of a root that only gives what it gave.
std::span<const std::byte> GroupImpl::recorded_of(const Request& request) const {
  const auto& spec = request.spec;
  if (spec.kind != OpKind::Broadcast || spec.root != public_rank()) return result_of(request);
  return {static_cast<const std::byte*>(spec.in), spec.count * size_of(spec.dtype)};
}

std::span<std::byte> GroupImpl::result_of(const Request& request) const {
  const auto& spec = request.spec;
  auto* const out = static_cast<std::byte*>(spec.out);
  switch (request.kind) {
    case Request::Kind::Send: return {};
    case Request::Kind::Recv: return {out, spec.count * size_of(spec.dtype)};
    case Request::Kind::Find:
      return {reinterpret_cast<std::byte*>(request.found), sizeof *request.found};
    case Request::Kind::Collective: return {out, extent_of(spec).out_bytes};
  }
  REGROUP_UNREACHABLE("kind of request");
}

/// The counts are the caller's until the call returns: from here on the request has its own.
std::shared_ptr<const std::vector<std::size_t>> GroupImpl::keep_counts(collective::OpSpec& spec) {
  if (!spi::has_counts(spec.kind)) return nullptr;
  auto& counts = spec.counts;
  const auto ranks = static_cast<std::size_t>(counts.ranks);
  auto kept = std::make_shared<std::vector<std::size_t>>(counts.shares, counts.shares + ranks);
  if (counts.recv != nullptr) kept->insert(kept->end(), counts.recv, counts.recv + ranks);
  counts.shares = kept->data();
  if (counts.recv != nullptr) counts.recv = kept->data() + ranks;
  return kept;
}

std::size_t GroupImpl::bytes_of(const Request& request) const {
  const auto& spec = request.spec;
  if (request.parts != nullptr) {
    std::size_t bytes = 0;
    for (const Request& part : request.parts->requests) bytes += bytes_of(part);
    return bytes;
  }
  if (!spi::has_counts(spec.kind)) return spec.count * size_of(spec.dtype);
  const auto extent = extent_of(spec);
  return std::max(extent.in_bytes, extent.out_bytes);
}

}  // namespace regroup::engine
