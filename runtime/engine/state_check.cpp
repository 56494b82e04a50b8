#include "engine/state_check.hpp"

#include <fmt/format.h>

#include <cstdlib>
#include <string_view>

namespace regroup::engine {
namespace {

#ifdef NDEBUG
constexpr bool kByDefault = false;
#else
constexpr bool kByDefault = true;
#endif

state::Digest digest_of(const Tensor& tensor) { return state::digest({tensor.data, tensor.bytes}); }

}  // namespace

bool StateCheck::wanted() {
  const char* const text = std::getenv("REGROUP_CHECK_STATE");
  return text == nullptr ? kByDefault : std::string_view(text) != "0";
}

void StateCheck::take(const RegisteredState& state) {
  digests_.clear();
  for (const auto& tensor : state.tensors()) digests_.push_back(digest_of(tensor));
}

Status StateCheck::check(const RegisteredState& state, std::uint64_t step) const {
  const auto tensors = state.tensors();
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (digest_of(tensors[i]) == digests_[i]) continue;
    return {Code::FailedPrecondition,
            fmt::format("registered state \"{}\" was changed in step {} before its commit() "
                        "returned Ok; after a loss the step could not be done again. Change it "
                        "after commit(), or register it with add_volatile() "
                        "(found by REGROUP_CHECK_STATE)",
                        tensors[i].name, step)};
  }
  return {};
}

}  // namespace regroup::engine
