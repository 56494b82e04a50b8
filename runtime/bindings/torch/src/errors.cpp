#include "errors.hpp"

#include <atomic>
#include <mutex>
#include <string>

namespace regroup::torch_binding {
namespace {

std::mutex loss_mutex;
Where newest_loss;
std::atomic<std::uint64_t> told = 0;

PyObject* type_of(Code code) {
  const auto& types = error_types();
  switch (code) {
    case Code::RankLost: return types.rank_lost;
    case Code::Revoked: return types.revoked;
    case Code::DeadlineExceeded: return types.timeout;
    default: return types.comm;
  }
}

/// Words that other fault-tolerant trainers and torch's own tests look for.
const char* convention(Code code) {
  if (code == Code::RankLost) return " (Connection closed by peer)";
  return code == Code::DeadlineExceeded
             ? " (timed out after its deadline, the timeout of this call)"
             : "";
}

}  // namespace

ErrorTypes& error_types() {
  static ErrorTypes types;
  return types;
}

std::exception_ptr to_exception(const Status& status, std::string_view operation,
                                std::string_view group) {
  if (status.code() == Code::RankLost) {
    const std::lock_guard lock(loss_mutex);
    newest_loss = status.where();
  }
  if (status.code() == Code::RankLost || status.code() == Code::Revoked) ++told;
  std::string text("regroup: ");
  text.append(operation);
  if (!group.empty()) text.append(" of group '").append(group).append("'");
  text.append(": ").append(status.to_string()).append(convention(status.code()));
  return std::make_exception_ptr(CommError(type_of(status.code()), std::move(text)));
}

void check(const Status& status, std::string_view operation, std::string_view group) {
  if (!status) std::rethrow_exception(to_exception(status, operation, group));
}

std::uint64_t losses_told() { return told.load(); }

Where last_loss() {
  const std::lock_guard lock(loss_mutex);
  return newest_loss;
}

}  // namespace regroup::torch_binding
