// The Python module regroup.torch._C.
#include <pybind11/chrono.h>

#include "backend.hpp"
#include "errors.hpp"
#include "reconfigure.hpp"
#include "reducer.hpp"
#include "reducer_header.hpp"
#include "store.hpp"
#include "training.hpp"

namespace regroup::torch_binding {
namespace {

using Millis = std::chrono::milliseconds;

c10::intrusive_ptr<c10d::Backend> make_backend(int rank, int size, const std::string& group_id,
                                               const std::vector<std::int64_t>& ranks,
                                               double timeout_s, bool reconfigurable) {
  const py::gil_scoped_release released;
  const auto timeout = std::chrono::duration<double>(timeout_s);
  return c10::make_intrusive<BackendRegroup>(
      rank, size, group_id, ranks, std::chrono::duration_cast<Millis>(timeout), reconfigurable);
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
      .def_property_readonly("goes_on_with_fewer",
                             [](const Attachment& self) { return goes_on_with_fewer(self.job); })
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

/// One membership after another on any torch: each is a backend of its own.
c10::intrusive_ptr<c10d::Backend> join(Memberships& memberships, const std::string& group_id,
                                       std::int64_t uuid, std::vector<std::string> handles,
                                       double timeout_s, bool epoch_is_over) {
  const py::gil_scoped_release released;
  const auto timeout = std::chrono::duration_cast<Millis>(std::chrono::duration<double>(timeout_s));
  auto joined = memberships.join(uuid, std::move(handles), true, timeout, epoch_is_over);
  return c10::make_intrusive<BackendRegroup>(joined.rank, std::move(joined.members), group_id,
                                             std::move(joined.group), attachment(), timeout);
}

void bind_memberships(py::module_& module) {
  py::class_<Memberships>(module, "Memberships")
      .def(py::init([](const std::string& group_id) {
        return std::make_unique<Memberships>(group_id, attachment());
      }))
      .def_property_readonly("handle", &Memberships::handle)
      .def("join", &join);
  module.def("contributors_of_work", [](const c10::intrusive_ptr<c10d::Work>& work) {
    const auto* const ours = dynamic_cast<const RegroupWork*>(work.get());
    TORCH_CHECK_TYPE(ours != nullptr, "not the Work of an operation of the backend regroup");
    return ours->contributors() == nullptr ? std::vector<int>() : *ours->contributors();
  });
  module.def("contributors_of_group", [](const c10::intrusive_ptr<c10d::Backend>& backend) {
    auto* const ours = dynamic_cast<BackendRegroup*>(backend.get());
    TORCH_CHECK_TYPE(ours != nullptr, "not a group of the backend regroup");
    return ours->contributors();
  });
  module.def("is_broken", [](const c10::intrusive_ptr<c10d::Backend>& backend) {
    return dynamic_cast<const BackendRegroup&>(*backend).broken();
  });
  module.def(
      "let_go",
      [](const c10::intrusive_ptr<c10d::Backend>& backend) {
        return dynamic_cast<BackendRegroup&>(*backend).let_go();
      },
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.def("set_error_types", [](const py::object& rank_lost, const py::object& revoked,
                                   const py::object& comm, const py::object& timeout) {
    error_types() = {rank_lost.inc_ref().ptr(), revoked.inc_ref().ptr(), comm.inc_ref().ptr(),
                     timeout.inc_ref().ptr()};
  });
  module.def("last_loss", &loss_as_dict);
  module.def("losses_told", &losses_told);
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
  bind_memberships(module);
}

}  // namespace regroup::torch_binding
