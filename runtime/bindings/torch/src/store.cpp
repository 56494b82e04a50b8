#include "store.hpp"

#include "errors.hpp"

namespace regroup::torch_binding {
namespace {

std::string text_of(const RegroupStore::Bytes& bytes) { return {bytes.begin(), bytes.end()}; }

/// torch's own stores throw this type with these words when a wait takes too long.
template <class T>
void require(const Result<T>& result, const char* what, const std::string& key,
             std::chrono::milliseconds timeout) {
  if (result) return;
  const auto error = result.error();
  if (error.code() == Code::DeadlineExceeded) {
    C10_THROW_ERROR(DistStoreError,
                    c10::str("regroup: wait timeout after ", timeout.count(), "ms, keys: ", key));
  }
  C10_THROW_ERROR(DistStoreError,
                  c10::str("regroup: store ", what, " '", key, "': ", error.to_string()));
}

constexpr std::chrono::milliseconds kNow{0};

}  // namespace

c10::intrusive_ptr<c10d::Store> RegroupStore::clone() {
  auto copy = c10::make_intrusive<RegroupStore>(attachment_);
  copy->setTimeout(timeout_);
  return copy;
}

void RegroupStore::set(const std::string& key, const Bytes& value) {
  const auto status = attachment_->job.store().set(key, text_of(value));
  require(status ? Result<bool>(true) : Result<bool>(status), "set", key, kNow);
}

RegroupStore::Bytes RegroupStore::compareSet(const std::string& key, const Bytes& expected,
                                             const Bytes& desired) {
  const auto now = attachment_->job.store().compare_set(key, text_of(expected), text_of(desired));
  require(now, "compare_set", key, kNow);
  // What torch's stores answer for a key that is not there.
  if (now->empty()) return expected;
  return {now->begin(), now->end()};
}

RegroupStore::Bytes RegroupStore::get(const std::string& key) {
  const auto value = attachment_->job.store().get(key, timeout_);
  require(value, "get", key, timeout_);
  return {value->begin(), value->end()};
}

std::int64_t RegroupStore::add(const std::string& key, std::int64_t value) {
  const auto sum = attachment_->job.store().add(key, value);
  require(sum, "add", key, kNow);
  return *sum;
}

bool RegroupStore::deleteKey(const std::string& key) {
  const auto erased = attachment_->job.store().erase(key);
  require(erased, "delete_key", key, kNow);
  return *erased;
}

bool RegroupStore::check(const std::vector<std::string>& keys) {
  const auto there = attachment_->job.store().has(keys);
  require(there, "check", keys.empty() ? "" : keys.front(), kNow);
  return *there;
}

std::int64_t RegroupStore::getNumKeys() {
  const auto keys = attachment_->job.store().size();
  require(keys, "num_keys", "", kNow);
  return *keys;
}

void RegroupStore::wait(const std::vector<std::string>& keys,
                        const std::chrono::milliseconds& timeout) {
  std::string names;
  for (const auto& key : keys) names += (names.empty() ? "" : ", ") + key;
  const auto status = attachment_->job.store().wait(keys, timeout);
  require(status ? Result<bool>(true) : Result<bool>(status), "wait", names, timeout);
}

}  // namespace regroup::torch_binding
