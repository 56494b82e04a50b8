#include "backend.hpp"

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>

#include "errors.hpp"

namespace regroup::torch_binding {
namespace {

using c10d::OpType;

std::mutex backends_mutex;
std::set<BackendRegroup*>& backends() {
  static auto* const all = new std::set<BackendRegroup*>;  // outlives every thread
  return *all;
}

thread_local bool results_are_healed_later = false;

std::vector<int> ranks_of(const std::vector<std::int64_t>& given, int size) {
  std::vector<int> ranks(given.begin(), given.end());
  if (!ranks.empty()) return ranks;
  ranks.resize(static_cast<std::size_t>(size));
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

ProcessGroup open_group(Attachment& attachment, const std::string& group_id,
                        const std::vector<int>& ranks) {
  auto& job = attachment.job;
  const auto in_order = std::ranges::is_sorted(ranks);
  if (in_order && static_cast<int>(ranks.size()) == job.size()) return job.world();
  auto group = job.group(name_of_group(group_id, ranks), ranks);
  check(group.error(), "new_group", group_id);
  return *group;
}

Status no_longer_whole(int now, int size) {
  return {Code::RankLost,
          c10::str("the group has ", now, " of its ", size,
                   " ranks left, and torch cannot change the size of a group; run under --on-loss "
                   "replay or replace, which fill a lost rank's seat")};
}

}  // namespace

BackendRegroup::BackendRegroup(int rank, int size, std::string group_id,
                               const std::vector<std::int64_t>& ranks, Millis timeout)
    : Backend(rank, size),
      options_(c10::make_intrusive<Options>("regroup", timeout)),
      group_id_(std::move(group_id)),
      timeout_(timeout) {
  const auto members = ranks_of(ranks, size);
  options_->global_ranks_in_group.assign(members.begin(), members.end());
  options_->group_name = group_id_;
  if (size > 1) {
    TORCH_CHECK(is_launched() || attachment() != nullptr, "regroup: a group of ", size,
                " ranks needs Regroup's launcher, which this process "
                "was not started by. Start the script with `regroup run -n ",
                size,
                " -- python script.py`, or put `regroup exec --` in front of python under mpirun, "
                "srun or torchrun");
    attachment_ = attach(timeout);
    TORCH_CHECK(static_cast<int>(members.size()) == size, "regroup: group '", group_id_, "' has ",
                size, " ranks, but ", members.size(), " were named");
    TORCH_CHECK(members[static_cast<std::size_t>(rank)] == attachment_->job.rank(),
                "regroup: this process holds seat ", attachment_->job.rank(),
                " of the job, but torch was told that it is rank ",
                members[static_cast<std::size_t>(rank)],
                "; leave rank and world_size out of init_process_group");
    group_ = open_group(*attachment_, group_id_, members);
  }
  const std::lock_guard lock(backends_mutex);
  backends().insert(this);
}

BackendRegroup::~BackendRegroup() {
  {
    const std::lock_guard lock(backends_mutex);
    backends().erase(this);
  }
  std::optional<py::gil_scoped_release> released;
  if (PyGILState_Check() != 0) released.emplace();
  queue_.finish();
}

void BackendRegroup::shutdown() {
  aborted_.store(true);
  queue_.wait_idle();
  queue_.finish();
}

void BackendRegroup::setTimeout(Millis timeout) {
  options_->timeout = timeout;
  timeout_.store(timeout);
}

BackendRegroup::Millis BackendRegroup::timeout_of(Millis wanted) const {
  return wanted == c10d::kUnsetTimeout ? timeout_.load() : wanted;
}

std::string BackendRegroup::label() const {
  return pg_desc_.empty() || pg_desc_ == "undefined" ? group_id_ : group_id_ + " " + pg_desc_;
}

// ---- running -----------------------------------------------------------------------------------

BackendRegroup::WorkPtr BackendRegroup::begin(Call call) {
  call.healed_later = results_are_healed_later;
  {
    const std::lock_guard lock(batch_mutex_);
    if (batch_) {
      // Its own Work is that of the whole batch, which endCoalescing() returns.
      batch_->push_back(std::move(call));
      return {};
    }
  }
  return launch(std::move(call));
}

BackendRegroup::WorkPtr BackendRegroup::launch(Call call) {
  auto work =
      c10::make_intrusive<RegroupWork>(getRank(), call.type, call.name, call.inputs, call.outputs,
                                       sequence_.fetch_add(1) + 1, call.source);
  const bool in_background = call.in_background;
  auto task = [this, call = std::move(call), work] { run(call, *work); };
  if (in_background) {
    queue_.submit(std::move(task));
  } else {
    queue_.run_or_submit(std::move(task));
  }
  return work;
}

void BackendRegroup::run(const Call& call, RegroupWork& work) {
  const at::NoGradGuard no_grad;
  std::exception_ptr failure;
  bool timed_out = false;
  try {
    const auto status = perform(call);
    if (!status) {
      timed_out = status.code() == Code::DeadlineExceeded;
      error_.store(timed_out ? c10d::ErrorType::TIMEOUT : c10d::ErrorType::COMM_ERROR);
      failure = to_exception(status, call.name, label());
    }
  } catch (...) {
    failure = std::current_exception();
  }
  work.end(failure, timed_out);
}

Status BackendRegroup::perform(const Call& call) {
  if (aborted_.load())
    return {Code::Cancelled, "the group was aborted or shut down before this call began"};
  OpOptions options;
  options.timeout = call.timeout;
  options.healed_later = call.healed_later;
  if (attachment_ != nullptr && group_.size() != getSize())
    return no_longer_whole(group_.size(), getSize());
  return call.body(group_, options);
}

void BackendRegroup::startCoalescing() {
  const std::lock_guard lock(batch_mutex_);
  TORCH_CHECK(!batch_, "regroup: startCoalescing: a batch is open already");
  batch_.emplace();
}

// All members run the messages of a batch in one order of all pairs of ranks, so that whoever is
// first in it can go on, whatever the order in which each rank names them.
BackendRegroup::WorkPtr BackendRegroup::endCoalescing() {
  std::vector<Call> calls;
  {
    const std::lock_guard lock(batch_mutex_);
    TORCH_CHECK(batch_, "regroup: endCoalescing: no batch is open");
    calls = std::move(*batch_);
    batch_.reset();
  }
  if (calls.empty()) return {};
  if (std::ranges::all_of(calls, [](const Call& call) { return call.edge.has_value(); }))
    std::ranges::stable_sort(calls, {}, [](const Call& call) { return *call.edge; });
  Call whole{.type = OpType::COALESCED, .name = "coalesced", .timeout = calls.front().timeout};
  for (const auto& call : calls) {
    whole.inputs.insert(whole.inputs.end(), call.inputs.begin(), call.inputs.end());
    whole.outputs.insert(whole.outputs.end(), call.outputs.begin(), call.outputs.end());
  }
  whole.body = [calls = std::move(calls)](ProcessGroup& group, const OpOptions& options) {
    for (const auto& call : calls) {
      if (auto status = call.body(group, options); !status) return status;
    }
    return Status();
  };
  return launch(std::move(whole));
}

// ---- all of them -------------------------------------------------------------------------------

bool set_healed_later(bool healed_later) {
  return std::exchange(results_are_healed_later, healed_later);
}

void wait_for_all_calls() {
  const std::lock_guard lock(backends_mutex);
  for (auto* const backend : backends()) backend->wait_idle();
}

bool shut_down_all() {
  const std::lock_guard lock(backends_mutex);
  if (!std::ranges::all_of(backends(), [](BackendRegroup* backend) { return backend->idle(); }))
    return false;
  for (auto* const backend : backends()) backend->shutdown();
  return true;
}

}  // namespace regroup::torch_binding
