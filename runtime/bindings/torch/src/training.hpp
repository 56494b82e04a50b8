/// The job's steps and registered state, for Python.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "attachment.hpp"
#include "torch_headers.hpp"

namespace regroup::torch_binding {

/// Thread safety: the thread that made it; blocking calls release the GIL.
class Training {
 public:
  explicit Training(std::shared_ptr<Attachment> attachment) : attachment_(std::move(attachment)) {}

  /// Keeps the tensor, which must stay at its address. Throws ValueError unless its elements lie
  /// densely in host memory.
  void add(const std::string& name, const at::Tensor& tensor, bool is_volatile);
  void begin(std::uint64_t total);
  /// As regroup::Steps::next(), after all calls of this process have ended. Throws CommError
  /// unless all steps are committed.
  bool next();
  [[nodiscard]] std::uint64_t index() const;
  [[nodiscard]] int attempt() const;
  /// Throws CommError when the step is lost.
  void commit();
  /// As regroup::Job::reform(), likewise.
  void reform();

 private:
  [[nodiscard]] Steps& steps() const;

  std::shared_ptr<Attachment> attachment_;
  std::vector<at::Tensor> kept_;
  mutable std::optional<Steps> steps_;
};

}  // namespace regroup::torch_binding
