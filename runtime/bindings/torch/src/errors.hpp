/// From Status to the exceptions that torch and its users know.
#pragma once

#include <cstdint>
#include <exception>
#include <string_view>

#include <regroup/status.hpp>

#include "torch_headers.hpp"

namespace regroup::torch_binding {

/// Python classes that failures of operations are raised as; set once, at import. Borrowed
/// references to objects that live as long as the module. Thread safety: set before any group is
/// made.
struct ErrorTypes {
  PyObject* rank_lost = nullptr;
  PyObject* revoked = nullptr;
  PyObject* comm = nullptr;
  PyObject* timeout = nullptr;
};
ErrorTypes& error_types();

/// Raised in Python as one of the classes above, whichever thread of torch lets it through.
class CommError : public torch::PyTorchError {
 public:
  CommError(PyObject* type, std::string text) : PyTorchError(std::move(text)), type_(type) {}
  PyObject* python_type() override { return type_; }

 private:
  PyObject* type_;
};

/// `status` is not Ok; `group` as torch names it. A loss or a deadline is also remembered.
[[nodiscard]] std::exception_ptr to_exception(const Status& status, std::string_view operation,
                                              std::string_view group);

/// Throws it when it is not Ok.
void check(const Status& status, std::string_view operation, std::string_view group = "");

/// How many errors so far said that an epoch is over. Thread safety: any.
[[nodiscard]] std::uint64_t losses_told();

/// What the newest RankLost said, for the attributes of the Python exception. Thread safety: any.
Where last_loss();

}  // namespace regroup::torch_binding
