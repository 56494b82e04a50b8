/// Handle of one call, as torch knows it.
#pragma once

#include <exception>
#include <memory>
#include <vector>

#include "torch_headers.hpp"

namespace regroup::torch_binding {

/// Keeps the tensors of its call alive. Ends exactly once, by itself, and its futures with it.
/// Thread safety: any.
class RegroupWork : public c10d::Work {
 public:
  RegroupWork(int rank, c10d::OpType type, const char* title, std::vector<at::Tensor> inputs,
              std::vector<at::Tensor> outputs, std::uint64_t sequence, int source = -1);

  /// Null: done. `timed_out`: which kind of failure it is.
  void end(std::exception_ptr failure, bool timed_out = false);

  using Ranks = std::shared_ptr<const std::vector<int>>;
  /// Before end(): whose contributions the result holds, ranks of the job.
  void set_contributors(Ranks ranks) { contributors_ = std::move(ranks); }
  /// Before end(): whose message was received.
  void set_source(int rank) { source_ = rank; }
  /// Null unless the operation came to a good end.
  [[nodiscard]] const Ranks& contributors() const { return contributors_; }

  std::vector<at::Tensor> result() override { return outputs_; }
  int sourceRank() const override { return source_; }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return future_; }
  c10::intrusive_ptr<c10::ivalue::Future> getFutureResult() override { return future_result_; }
  std::uint64_t getSequencenumber() const override { return sequence_; }
  /// An operation that has begun ends with its epoch or its deadline only.
  void abort() override {}

 private:
  std::vector<at::Tensor> inputs_;
  std::vector<at::Tensor> outputs_;
  Ranks contributors_;
  std::uint64_t sequence_;
  int source_;
  c10::intrusive_ptr<c10::ivalue::Future> future_;
  c10::intrusive_ptr<c10::ivalue::Future> future_result_;
};

}  // namespace regroup::torch_binding
