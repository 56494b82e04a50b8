/// This process's place in its job.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include <regroup/regroup.hpp>

namespace regroup::torch_binding {

/// Shared by the groups, stores and steps of the process. Thread safety: any.
struct Attachment {
  Job job;
};

/// True when a launcher of Regroup started this process.
[[nodiscard]] bool is_launched();

/// Attaches at the first call; a spare blocks until it has a seat. Throws CommError.
std::shared_ptr<Attachment> attach(std::chrono::milliseconds timeout);
/// Null before attach().
std::shared_ptr<Attachment> attachment();
/// Detaches in order once nobody uses it any more.
void detach();

/// Whether a step may end, or be done again, with the ranks that are left: --on-loss carry_on and
/// shrink.
[[nodiscard]] bool goes_on_with_fewer(const Job& job);

/// A name for the group of these ranks that never means other ranks.
[[nodiscard]] std::string name_of_group(const std::string& group_id, const std::vector<int>& ranks);

}  // namespace regroup::torch_binding
