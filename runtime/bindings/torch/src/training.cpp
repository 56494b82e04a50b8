#include "training.hpp"

#include "backend.hpp"
#include "errors.hpp"

namespace regroup::torch_binding {

void Training::add(const std::string& name, const at::Tensor& tensor, bool is_volatile) {
  TORCH_CHECK_VALUE(tensor.device().is_cpu(), "regroup: state '", name, "' is on ", tensor.device(),
                    "; this build of regroup.torch heals host memory only");
  TORCH_CHECK_VALUE(tensor.layout() == at::kStrided && tensor.is_non_overlapping_and_dense(),
                    "regroup: state '", name, "' does not lie densely in memory (sizes ",
                    tensor.sizes(), ", strides ", tensor.strides(), "): make it contiguous first");
  kept_.push_back(tensor);
  auto state = attachment_->job.state();
  if (is_volatile) {
    state.add_volatile(name, tensor.data_ptr(), tensor.nbytes());
  } else {
    state.add(name, tensor.data_ptr(), tensor.nbytes());
  }
}

void Training::begin(std::uint64_t total) { steps_.emplace(attachment_->job.steps(total)); }

Steps& Training::steps() const {
  TORCH_CHECK(steps_.has_value(), "regroup: steps() was not called yet");
  return *steps_;
}

bool Training::next() {
  const py::gil_scoped_release released;
  wait_for_all_calls();
  if (steps().next()) return true;
  check(steps().status(), "next step");
  return false;
}

std::uint64_t Training::index() const { return steps().index(); }
int Training::attempt() const { return steps().attempt(); }

void Training::commit() {
  const py::gil_scoped_release released;
  wait_for_all_calls();
  check(steps().commit(), "commit");
}

void Training::reform() {
  const py::gil_scoped_release released;
  wait_for_all_calls();
  check(attachment_->job.reform(), "reform");
}

}  // namespace regroup::torch_binding
