// The Python module regroup.torch._C.
#include <pybind11/chrono.h>

#include "backend.hpp"
#include "errors.hpp"
#include "reducer.hpp"
#include "reducer_header.hpp"
#include "store.hpp"
#include "training.hpp"

namespace regroup::torch_binding {
namespace {

using Millis = std::chrono::milliseconds;

c10::intrusive_ptr<c10d::Backend> make_backend(int rank, int size, const std::string& group_id,
                                               const std::vector<std::int64_t>& ranks,
                                               double timeout_s) {
  const py::gil_scoped_release released;
  const auto timeout = std::chrono::duration<double>(timeout_s);
  return c10::make_intrusive<BackendRegroup>(rank, size, group_id, ranks,
                                             std::chrono::duration_cast<Millis>(timeout));
}

c10::intrusive_ptr<c10d::Store> make_store() {
  auto attached = attachment();
  TORCH_CHECK(attached != nullptr, "regroup: this process is not attached to a job");
  return c10::make_intrusive<RegroupStore>(std::move(attached));
}

py::object loss_as_dict() {
  const Where where = last_loss();
  py::dict loss;
  if (where.rank) loss["rank"] = where.rank->value();
  if (where.incarnation) loss["incarnation"] = where.incarnation->value();
  if (where.epoch) loss["epoch"] = where.epoch->value();
  return loss;
}

void bind_job(py::module_& module) {
  py::class_<Attachment, std::shared_ptr<Attachment>>(module, "Job")
      .def_property_readonly("rank", [](const Attachment& self) { return self.job.rank(); })
      .def_property_readonly("size", [](const Attachment& self) { return self.job.size(); })
      .def_property_readonly("incarnation",
                             [](const Attachment& self) { return self.job.incarnation().value(); })
      .def_property_readonly("is_replacement",
                             [](const Attachment& self) { return self.job.is_replacement(); })
      .def_property_readonly("drained", [](const Attachment& self) { return self.job.drained(); });
  py::class_<Training>(module, "Training")
      .def(py::init<std::shared_ptr<Attachment>>())
      .def("add", &Training::add)
      .def("begin", &Training::begin)
      .def("next", &Training::next)
      .def_property_readonly("index", &Training::index)
      .def_property_readonly("attempt", &Training::attempt)
      .def("commit", &Training::commit)
      .def("reform", &Training::reform);
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.def("set_error_types", [](const py::object& rank_lost, const py::object& revoked,
                                   const py::object& comm, const py::object& timeout) {
    error_types() = {rank_lost.inc_ref().ptr(), revoked.inc_ref().ptr(), comm.inc_ref().ptr(),
                     timeout.inc_ref().ptr()};
  });
  module.def("last_loss", &loss_as_dict);
  module.def("is_launched", &is_launched);
  module.def(
      "attach",
      [](double timeout_s) {
        const py::gil_scoped_release released;
        return attach(std::chrono::duration_cast<Millis>(std::chrono::duration<double>(timeout_s)));
      },
      py::arg("timeout_s") = 0.0);
  module.def("attachment", &attachment);
  module.def("make_backend", &make_backend);
  module.def("make_store", &make_store);
  module.def("set_healed_later", &set_healed_later);
  module.def("wait_for_all_calls", &wait_for_all_calls, py::call_guard<py::gil_scoped_release>());
  module.def(
      "shut_down",
      [] {
        if (shut_down_all()) detach();
      },
      py::call_guard<py::gil_scoped_release>());
  module.def("order_buckets", &order_buckets);
  bind_job(module);
}

}  // namespace regroup::torch_binding
