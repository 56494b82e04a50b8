// Several operations as one: collected, then carried out with one outcome for all of them.
#include <fmt/format.h>

#include <utility>

#include "engine/group.hpp"
#include "engine/job.hpp"

namespace regroup::engine {

using spi::OpKind;

Status GroupImpl::begin_coalescing() {
  if (collecting_) {
    return {Code::FailedPrecondition,
            fmt::format("group \"{}\" is coalescing already; end_coalescing() comes first", name_)};
  }
  collecting_ = std::make_unique<Coalesced>();
  collecting_->work->collecting(true);
  // Nobody else looks whether operations are collected, so that it costs the others nothing.
  pending_.fetch_add(1, std::memory_order_acq_rel);
  return {};
}

Status GroupImpl::only_collected(std::string_view what) {
  return {Code::FailedPrecondition,
          fmt::format("{} cannot be called between begin_coalescing() and end_coalescing()", what)};
}

Status GroupImpl::collect(const Request& call, Status status) {
  if (status && call.operation == metrics::Operation::Stabilize) {
    status = only_collected("stabilize()");
  } else if (status && call.kind != Request::Kind::Collective) {
    status = {Code::Unsupported,
              "send and recv cannot be coalesced; call them outside begin_coalescing() and "
              "end_coalescing()"};
  }
  if (!status) {
    if (collecting_->refused) collecting_->refused = status;
    return status;
  }
  Request request = call;
  if (auto counts = keep_counts(request.spec)) collecting_->counts.push_back(std::move(counts));
  collecting_->requests.push_back(request);
  return {};
}

std::unique_ptr<Coalesced> GroupImpl::stop_collecting() {
  if (!collecting_) return nullptr;
  pending_.fetch_sub(1, std::memory_order_acq_rel);
  collecting_->work->collecting(false);
  return std::move(collecting_);
}

namespace {

Status not_begun() {
  return {Code::FailedPrecondition, "end_coalescing() without begin_coalescing()"};
}

Request request_of(const Coalesced& parts, const OpOptions& options) {
  Request request;
  request.operation = metrics::Operation::Coalesced;
  request.options = options;
  request.spec.kind = OpKind::Coalesced;
  request.spec.count = parts.requests.size();
  request.parts = &parts;
  return request;
}

}  // namespace

Status GroupImpl::end_coalescing(const OpOptions& options) {
  const auto parts = stop_collecting();
  if (!parts) return not_begun();
  Status status = parts->refused;
  if (status && !parts->requests.empty()) status = perform(request_of(*parts, options));
  parts->work->finish(status, contributors());
  return status;
}

std::shared_ptr<WorkImpl> GroupImpl::end_coalescing_async(const OpOptions& options) {
  const std::shared_ptr<Coalesced> parts = stop_collecting();
  if (!parts) return std::make_shared<WorkImpl>(not_begun());
  if (!parts->refused || parts->requests.empty()) {
    parts->work->finish(parts->refused);
  } else {
    enqueue(request_of(*parts, options), parts, parts->work);
  }
  return parts->work;
}

Status GroupImpl::validate_parts(const Coalesced& parts) const {
  for (const Request& part : parts.requests) {
    if (auto status = validate(part); !status) return status;
  }
  return {};
}

const collective::OpSpec* GroupImpl::specs_of(const Coalesced& parts) {
  part_specs_.clear();
  for (const Request& part : parts.requests) {
    part_specs_.push_back(part.spec);
    part_specs_.back().keep_input = keeps_input(part);
  }
  return part_specs_.data();
}

// Where calls outlive losses by themselves, each part does.
Status GroupImpl::perform_parts(const Request& request, bool background, Contributors* result) {
  for (Request part : request.parts->requests) {
    part.options.timeout = request.options.timeout;
    if (auto status = perform_guided(part, background, result); !status) return status;
  }
  return {};
}

}  // namespace regroup::engine
