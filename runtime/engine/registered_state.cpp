#include "engine/registered_state.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <functional>

#include "base/hash.hpp"

namespace regroup::engine {

void RegisteredState::insert(std::vector<Tensor>& list, std::string_view name, void* data,
                             std::size_t bytes) {
  if (!error_) return;
  if (sealed_) {
    error_ = Status(
        Code::FailedPrecondition,
        fmt::format(
            "state \"{}\" was registered after the first next(); register all state before it",
            name));
    return;
  }
  const auto same_name = [&](const Tensor& tensor) { return tensor.name == name; };
  if (name.empty() || std::ranges::any_of(tensors_, same_name) ||
      std::ranges::any_of(volatiles_, same_name)) {
    error_ =
        Status(Code::InvalidArgument,
               fmt::format(
                   "state name \"{}\" is empty or used twice; every registered state needs its own",
                   name));
    return;
  }
  if (data == nullptr && bytes > 0) {
    error_ = Status(Code::InvalidArgument,
                    fmt::format("state \"{}\" has no memory behind its {} bytes", name, bytes));
    return;
  }
  list.push_back({std::string(name), static_cast<std::byte*>(data), bytes});
}

Status RegisteredState::seal() {
  sealed_ = true;
  return error_;
}

std::size_t RegisteredState::volatile_bytes() const {
  std::size_t sum = 0;
  for (const auto& tensor : volatiles_) sum += tensor.bytes;
  return sum;
}

std::uint64_t RegisteredState::layout_digest() const {
  std::uint64_t digest = base::kFnvStart;
  for (const auto* list : {&tensors_, &volatiles_}) {
    for (const auto& tensor : *list) {
      digest = base::fnv1a(fmt::format("{}:{};", tensor.name, tensor.bytes), digest);
    }
    digest = base::fnv1a("|", digest);
  }
  return digest;
}

bool RegisteredState::covers(const void* data, std::size_t bytes) const {
  const std::less_equal<const void*> not_above;
  return std::ranges::any_of(tensors_, [&](const Tensor& tensor) {
    return bytes <= tensor.bytes && not_above(tensor.data, data) &&
           not_above(static_cast<const std::byte*>(data) + bytes, tensor.data + tensor.bytes);
  });
}

void RegisteredState::save_volatile(std::byte* to) const {
  for (const auto& tensor : volatiles_) {
    if (tensor.bytes > 0) std::memcpy(to, tensor.data, tensor.bytes);
    to += tensor.bytes;
  }
}

void RegisteredState::restore_volatile(const std::byte* from) const {
  for (const auto& tensor : volatiles_) {
    if (tensor.bytes > 0) std::memcpy(tensor.data, from, tensor.bytes);
    from += tensor.bytes;
  }
}

}  // namespace regroup::engine
