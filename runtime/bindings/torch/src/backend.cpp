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

constexpr std::chrono::seconds kPatienceAtExit{5};

thread_local bool results_are_healed_later = false;

/// Whoever waits for a group's thread must not hold what that thread may ask for: the last
/// reference to a tensor that Python has seen.
class NoGil {
 public:
  NoGil() {
    if (PyGILState_Check() != 0) released_.emplace();
  }

 private:
  std::optional<py::gil_scoped_release> released_;
};

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
  // No loss of this moment: the step must not be tried again as after one.
  return {Code::FailedPrecondition,
          c10::str("the group has ", now, " of its ", size,
                   " ranks left, and this operation needs all of them; only all_reduce and barrier "
                   "can do with fewer. Under --on-loss replay or replace the lost seats are filled "
                   "first")};
}

}  // namespace

BackendRegroup::BackendRegroup(int rank, int size, std::string group_id,
                               const std::vector<std::int64_t>& ranks, Millis timeout,
                               bool reconfigurable)
    : Backend(rank, size),
      options_(c10::make_intrusive<Options>("regroup", timeout)),
      group_id_(std::move(group_id)),
      timeout_(timeout) {
  const auto members = ranks_of(ranks, size);
  options_->global_ranks_in_group.assign(members.begin(), members.end());
  options_->group_name = group_id_;
  if (size > 1 || (reconfigurable && is_launched())) {
    TORCH_CHECK(is_launched() || attachment() != nullptr, "regroup: a group of ", size,
                " ranks needs Regroup's launcher, which this process "
                "was not started by. Start the script with `regroup run -n ",
                size,
                " -- python script.py`, or put `regroup exec --` in front of python under mpirun, "
                "srun or torchrun");
    attachment_ = attach(timeout);
  }
  members_ = std::make_shared<const std::vector<int>>(members);
  fewer_do_ = attachment_ != nullptr && !reconfigurable && goes_on_with_fewer(attachment_->job);
  if (reconfigurable) {
    memberships_ = std::make_unique<Memberships>(group_id_, attachment_);
    ends_epoch_ = true;
    configured_.store(false);
  } else if (size > 1) {
    open_members(rank, size, members);
  }
  const std::lock_guard lock(backends_mutex);
  backends().insert(this);
}

BackendRegroup::BackendRegroup(int rank, std::vector<int> members, std::string group_id,
                               ProcessGroup group, std::shared_ptr<Attachment> attachment,
                               Millis timeout)
    : Backend(rank, static_cast<int>(members.size())),
      options_(c10::make_intrusive<Options>("regroup", timeout)),
      group_id_(std::move(group_id)),
      attachment_(std::move(attachment)),
      group_(std::move(group)),
      timeout_(timeout),
      ends_epoch_(true) {
  options_->group_name = group_id_;
  members_ = std::make_shared<const std::vector<int>>(std::move(members));
  const std::lock_guard lock(backends_mutex);
  backends().insert(this);
}

void BackendRegroup::open_members(int rank, int size, const std::vector<int>& members) {
  TORCH_CHECK(static_cast<int>(members.size()) == size, "regroup: group '", group_id_, "' has ",
              size, " ranks, but ", members.size(), " were named");
  TORCH_CHECK(members[static_cast<std::size_t>(rank)] == attachment_->job.rank(),
              "regroup: this process holds seat ", attachment_->job.rank(),
              " of the job, but torch was told that it is rank ",
              members[static_cast<std::size_t>(rank)],
              "; leave rank and world_size out of init_process_group");
  group_ = open_group(*attachment_, group_id_, members);
}

BackendRegroup::~BackendRegroup() {
  {
    const std::lock_guard lock(backends_mutex);
    backends().erase(this);
  }
  const NoGil released;
  queue_.finish();
}

void BackendRegroup::shutdown() {
  const NoGil released;
  // Others may be in a call that this rank has made and not begun.
  queue_.wait_idle();
  aborted_.store(true);
  queue_.finish();
}

void BackendRegroup::setTimeout(Millis timeout) {
  options_->timeout = timeout;
  timeout_.store(timeout);
}

void BackendRegroup::abort() {
  run_abort_hooks();
  aborted_.store(true);
  if (ends_epoch_ && attachment_ != nullptr)
    (void)attachment_->job.end_epoch("group '" + label() + "' was aborted");
}

bool BackendRegroup::let_go() {
  if (!queue_.idle()) abort();
  queue_.wait_idle();
  return broken();
}

RegroupWork::Ranks BackendRegroup::who_took_part() {
  if (!fewer_do_ || getSize() == 1) return members_;
  auto now = group_.contributors().ranks;
  auto ranks = now == *members_ ? members_ : std::make_shared<const std::vector<int>>(now);
  const std::lock_guard lock(last_mutex_);
  last_ = ranks;
  return ranks;
}

std::vector<int> BackendRegroup::contributors() {
  const std::lock_guard lock(last_mutex_);
  return last_ != nullptr ? *last_ : *members_;
}

void BackendRegroup::run_abort_hooks() {
  std::map<std::int64_t, std::function<void()>> hooks;
  {
    const std::lock_guard lock(hooks_mutex_);
    hooks = abort_hooks_;
  }
  for (const auto& [id, hook] : hooks) hook();
}

BackendRegroup::Millis BackendRegroup::timeout_of(Millis wanted) const {
  return wanted == c10d::kUnsetTimeout ? timeout_.load() : wanted;
}

std::string BackendRegroup::label() const {
  return pg_desc_.empty() || pg_desc_ == "undefined" ? group_id_ : group_id_ + " " + pg_desc_;
}

// ---- running -----------------------------------------------------------------------------------

BackendRegroup::WorkPtr BackendRegroup::begin(Call call) {
  require_members(call.name);
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

void BackendRegroup::require_members(const char* name) {
  if (memberships_ == nullptr) return;
  if (!configured_.load())
    check({Code::FailedPrecondition, "the group has no members yet; call reconfigure first"}, name,
          label());
  if (error_.load() == c10d::ErrorType::TIMEOUT)
    check({Code::DeadlineExceeded, "an earlier call timed out; only reconfigure mends the group"},
          name, label());
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
      run_abort_hooks();
      error_.store(timed_out ? c10d::ErrorType::TIMEOUT : c10d::ErrorType::COMM_ERROR);
      failure = to_exception(status, call.name, label());
    } else {
      work.set_contributors(who_took_part());
      if (call.found_source) work.set_source(*call.found_source);
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
  if (getSize() > 1 && !(fewer_do_ && call.fewer_do) && group_.size() != getSize())
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

// ---- torch 2.14 and later ----------------------------------------------------------------------

#ifdef C10D_BACKEND_HAS_RECONFIGURE
c10d::ReconfigureHandle BackendRegroup::get_reconfigure_handle() const {
  TORCH_CHECK(memberships_ != nullptr, "regroup: the group was made without enable_reconfigure");
  return memberships_->handle();
}

BackendRegroup::WorkPtr BackendRegroup::reconfigure(const c10d::ReconfigureOptions& opts) {
  TORCH_CHECK(memberships_ != nullptr, "regroup: the group was made without enable_reconfigure");
  const auto* const in_order = std::get_if<std::vector<std::string>>(&opts.handles);
  std::vector<std::string> handles;
  if (in_order != nullptr) {
    handles = *in_order;
  } else {
    const auto& set = std::get<std::unordered_set<std::string>>(opts.handles);
    handles.assign(set.begin(), set.end());
  }
  const bool epoch_is_over = let_go();
  auto joined = memberships_->join(opts.uuid, handles, in_order != nullptr,
                                   opts.timeout.value_or(timeout_.load()), epoch_is_over);
  group_ = std::move(joined.group);
  rank_ = joined.rank;
  size_ = static_cast<int>(joined.members.size());
  members_ = std::make_shared<const std::vector<int>>(std::move(joined.members));
  sequence_.store(0);
  error_.store(c10d::ErrorType::SUCCESS);
  aborted_.store(false);
  configured_.store(true);
  auto work = c10::make_intrusive<RegroupWork>(rank_, OpType::UNKNOWN, "reconfigure", Tensors{},
                                               Tensors{}, 0);
  work->end(nullptr);
  return work;
}
#endif

#ifdef C10D_BACKEND_HAS_HOOKS
void BackendRegroup::registerAbortHook(std::int64_t id, c10d::AbortHook hook) {
  const std::lock_guard lock(hooks_mutex_);
  abort_hooks_[id] = std::move(hook);
}

void BackendRegroup::unregisterAbortHook(std::int64_t id) {
  const std::lock_guard lock(hooks_mutex_);
  abort_hooks_.erase(id);
}
#endif

// ---- all of them -------------------------------------------------------------------------------

bool set_healed_later(bool healed_later) {
  return std::exchange(results_are_healed_later, healed_later);
}

void wait_for_all_calls() {
  const std::lock_guard lock(backends_mutex);
  for (auto* const backend : backends()) backend->wait_idle();
}

// A thread that is about to let a tensor go must have done so before Python ends, which would end
// it in the middle of that. One that waits for other ranks is left alone.
bool shut_down_all() {
  const std::lock_guard lock(backends_mutex);
  const auto until = std::chrono::steady_clock::now() + kPatienceAtExit;
  if (!std::ranges::all_of(backends(),
                           [&](BackendRegroup* backend) { return backend->wait_idle(until); }))
    return false;
  for (auto* const backend : backends()) backend->shutdown();
  return true;
}

}  // namespace regroup::torch_binding
