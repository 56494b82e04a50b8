/// torch's Store over the one that the launcher keeps for the job.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "attachment.hpp"
#include "torch_headers.hpp"

namespace regroup::torch_binding {

/// Outlives every rank of the job; see regroup::Store for its limits. Thread safety: any.
class RegroupStore : public c10d::Store {
 public:
  using c10d::Store::compareSet;
  using c10d::Store::set;
  using Bytes = std::vector<std::uint8_t>;

  explicit RegroupStore(std::shared_ptr<Attachment> attachment)
      : attachment_(std::move(attachment)) {}

  c10::intrusive_ptr<c10d::Store> clone() override;
  void set(const std::string& key, const Bytes& value) override;
  Bytes compareSet(const std::string& key, const Bytes& expected, const Bytes& desired) override;
  Bytes get(const std::string& key) override;
  std::int64_t add(const std::string& key, std::int64_t value) override;
  bool deleteKey(const std::string& key) override;
  bool check(const std::vector<std::string>& keys) override;
  std::int64_t getNumKeys() override;
  void wait(const std::vector<std::string>& keys) override { wait(keys, timeout_); }
  void wait(const std::vector<std::string>& keys,
            const std::chrono::milliseconds& timeout) override;

 private:
  std::shared_ptr<Attachment> attachment_;
};

}  // namespace regroup::torch_binding
