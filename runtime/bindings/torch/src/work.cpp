#include "work.hpp"

#include <utility>

namespace regroup::torch_binding {

RegroupWork::RegroupWork(int rank, c10d::OpType type, const char* title,
                         std::vector<at::Tensor> inputs, std::vector<at::Tensor> outputs,
                         std::uint64_t sequence, int source)
    : Work(rank, type, title, inputs),
      inputs_(std::move(inputs)),
      outputs_(std::move(outputs)),
      sequence_(sequence),
      source_(source),
      future_(
          c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()))),
      future_result_(c10::make_intrusive<c10::ivalue::Future>(c10::IntType::get())) {}

// The future first: what hangs on it has run when wait() returns.
void RegroupWork::end(std::exception_ptr failure, bool timed_out) {
  using c10d::WorkResult;
  if (failure) {
    future_->setError(failure);
  } else {
    future_->markCompleted(at::IValue(outputs_));
  }
  const auto kind = !failure    ? WorkResult::SUCCESS
                    : timed_out ? WorkResult::TIMEOUT
                                : WorkResult::COMM_ERROR;
  future_result_->markCompleted(at::IValue(static_cast<std::int64_t>(kind)));
  finish(failure);
}

}  // namespace regroup::torch_binding
