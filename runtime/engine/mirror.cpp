#include "engine/mirror.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "base/check.hpp"

namespace regroup::engine {
namespace {
constexpr std::uint64_t kMirrorMagic = 0x726f727269'6d6772ULL;
}

std::size_t Mirror::bytes_needed(std::size_t volatile_bytes) {
  return sizeof(Header) + 2 * volatile_bytes;
}

Mirror::Header& Mirror::header() const {
  return *std::launder(reinterpret_cast<Header*>(memory_.data()));
}

std::byte* Mirror::half(std::uint64_t step) const {
  return memory_.data() + sizeof(Header) + (step & 1) * bytes_;
}

Mirror Mirror::format(std::span<std::byte> memory, std::size_t volatile_bytes) {
  REGROUP_ASSERT(memory.size() >= bytes_needed(volatile_bytes));
  new (memory.data()) Header{kMirrorMagic, volatile_bytes, {}};
  return {memory, volatile_bytes};
}

Result<Mirror> Mirror::open(std::span<std::byte> memory, std::size_t volatile_bytes) {
  if (memory.size() < bytes_needed(volatile_bytes)) {
    return Status(Code::FailedPrecondition,
                  fmt::format("the predecessor mirrored fewer than {} bytes of volatile "
                              "state; all lives of a seat must register the same state",
                              volatile_bytes));
  }
  Mirror mirror(memory, volatile_bytes);
  if (mirror.header().magic != kMirrorMagic || mirror.header().volatile_bytes != volatile_bytes) {
    return Status(Code::FailedPrecondition,
                  fmt::format("the predecessor's mirror holds {} bytes of volatile state, this "
                              "process registered {}; "
                              "all lives of a seat must register the same state",
                              mirror.header().volatile_bytes, volatile_bytes));
  }
  return mirror;
}

void Mirror::write(std::uint64_t step, const RegisteredState& state) {
  header().steps[step & 1].store(0, std::memory_order_release);
  state.save_volatile(half(step));
  header().steps[step & 1].store(step, std::memory_order_release);
}

Status Mirror::has(std::uint64_t step) const {
  if (header().steps[step & 1].load(std::memory_order_acquire) != step) {
    return {Code::FailedPrecondition,
            fmt::format("the mirror of this seat's volatile state has no generation for "
                        "step {}",
                        step)};
  }
  return {};
}

Status Mirror::read(std::uint64_t step, const RegisteredState& state) const {
  auto status = has(step);
  if (status) state.restore_volatile(half(step));
  return status;
}

Status Mirror::copy(std::uint64_t step, std::byte* to) const {
  auto status = has(step);
  if (status) std::memcpy(to, half(step), bytes_);
  return status;
}

Status Mirror::read_newest(const RegisteredState& state) const {
  const auto& steps = header().steps;
  const std::uint64_t newest =
      std::max(steps[0].load(std::memory_order_acquire), steps[1].load(std::memory_order_acquire));
  return newest == 0 ? Status() : read(newest, state);
}

}  // namespace regroup::engine
