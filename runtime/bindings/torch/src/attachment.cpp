#include "attachment.hpp"

#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <mutex>

#include "errors.hpp"

namespace regroup::torch_binding {
namespace {

constexpr std::size_t kNameBytesKept = 200;

std::mutex attachment_mutex;
std::shared_ptr<Attachment> the_attachment;
/// The variable is taken out of the environment when the process attaches.
const bool launched = std::getenv("REGROUP_CONTROL_FD") != nullptr;

}  // namespace

bool is_launched() { return launched; }

std::shared_ptr<Attachment> attach(std::chrono::milliseconds timeout) {
  const std::lock_guard lock(attachment_mutex);
  if (the_attachment != nullptr) return the_attachment;
  AttachOptions options;
  if (timeout.count() > 0) options.timeout = timeout;
  auto job = Job::attach(options);
  check(job.error(), "attach");
  the_attachment = std::make_shared<Attachment>(Attachment{std::move(*job)});
  return the_attachment;
}

std::shared_ptr<Attachment> attachment() {
  const std::lock_guard lock(attachment_mutex);
  return the_attachment;
}

void detach() {
  const std::lock_guard lock(attachment_mutex);
  the_attachment.reset();
}

bool goes_on_with_fewer(const Job& job) {
  return job.on_loss() == OnLoss::CarryOn || job.on_loss() == OnLoss::Shrink;
}

std::string name_of_group(const std::string& group_id, const std::vector<int>& ranks) {
  std::uint64_t digest = 14695981039346656037ULL;  // FNV-1a
  const auto add = [&](std::uint64_t value) { digest = (digest ^ value) * 1099511628211ULL; };
  for (const char letter : group_id) add(static_cast<unsigned char>(letter));
  for (const int rank : ranks) add(static_cast<std::uint64_t>(rank) + 1);
  char text[20];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(digest));
  return "torch:" + group_id.substr(0, kNameBytesKept) + ":" + text;
}

}  // namespace regroup::torch_binding
