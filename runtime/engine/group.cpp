#include "engine/group.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "base/check.hpp"
#include "engine/job.hpp"
#include "engine/result_check.hpp"

namespace regroup::engine {
namespace {

using collective::Outcome;
using collective::OutcomeKind;
using metrics::Category;
using spi::OpKind;

/// How long a lost operation waits for the words about who was lost; the agent sends them before it
/// decides.
constexpr std::chrono::seconds kVerdictTimeout{2};

/// Who was late is asked only after operations that took longer: below it the question (one line of
/// each other member's memory) would cost more than the wait it explains.
constexpr std::uint64_t kStragglerFloorNs = 10'000;

/// What begins at each instant.
constexpr std::array<std::uint8_t, collective::kInstants> kPhaseFrom = [] {
  using enum metrics::Phase;
  constexpr std::array phases = {
      Idle,         // Enter
      CopyIn,       // BeforeCopyIn
      Publish,      // AfterCopyIn
      AwaitOthers,  // AfterPublish
      Reduce,       // AfterAwait
      CopyOut,      // AfterReduce
      AwaitExit,    // BeforeComplete
      Idle,         // AfterComplete
      Publish,      // BeforePrepare
      AwaitOthers,  // AfterPrepare
  };
  std::array<std::uint8_t, phases.size()> numbers{};
  std::ranges::transform(phases, numbers.begin(),
                         [](metrics::Phase phase) { return static_cast<std::uint8_t>(phase); });
  return numbers;
}();

}  // namespace

void WorkImpl::finish(Status status, Contributors contributors) {
  const std::lock_guard lock(mutex_);
  status_ = std::move(status);
  contributors_ = std::move(contributors);
  changed_.notify_all();
}

bool WorkImpl::done() const {
  const std::lock_guard lock(mutex_);
  return status_.has_value();
}

Status WorkImpl::wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return status_.has_value() || collecting_; });
  if (status_) return *status_;
  return {Code::FailedPrecondition,
          "this operation is only collected so far; end_coalescing() starts it"};
}

void WorkImpl::collecting(bool yes) {
  const std::lock_guard lock(mutex_);
  collecting_ = yes;
}

Contributors WorkImpl::contributors() const {
  const std::lock_guard lock(mutex_);
  return contributors_;
}

/// Tells beacon page and ledger about one operation, from construction to end().
class GroupImpl::Scope {
 public:
  Scope(GroupImpl& group, const Request& request, std::size_t bytes, bool timed)
      : group_(group), timed_(timed) {
    auto& job = group.job_;
    const std::lock_guard lock(job.ledger_lock());
    const auto now = job.now_ns();
    const bool collective = request.kind == Request::Kind::Collective;
    group.called_ns_ = now;
    // The page is for whoever examines this process after its death.
    if constexpr (spi::kFaultTolerance) {
      metrics::begin_operation(job.link().page(),
                               {.operation = request.operation,
                                .phase = metrics::Phase::CopyIn,
                                .group = group.group_->id,
                                .epoch = group.epoch_.value(),
                                .sequence = collective ? group.runner_->sequence() + 1 : 0,
                                .step = job.current_index(),
                                .attempt = static_cast<std::uint64_t>(job.attempt()),
                                .bytes = bytes,
                                .started_ns = now});
    }
    if (timed_) job.ledger().enter(Category::CommExposed, now);
  }
  void end(const Outcome& outcome, std::size_t bytes) {
    auto& job = group_.job_;
    const std::lock_guard lock(job.ledger_lock());
    const auto now = job.now_ns();
    std::uint64_t straggler_ns = 0;
    if (timed_) {
      if (outcome.kind == OutcomeKind::Lost) {
        job.ledger().enter(Category::Compute, now);
      } else {
        const bool asked = now - group_.called_ns_ >= kStragglerFloorNs;
        straggler_ns = job.ledger().end_blocked(asked ? slowest_arrival(outcome) : 0, now);
        job.ledger().count_operation(bytes);
      }
    }
    if constexpr (!spi::kFaultTolerance) return;
    metrics::end_operation(job.link().page(),
                           outcome.kind == OutcomeKind::Done         ? metrics::Outcome::Done
                           : outcome.kind == OutcomeKind::HandedOver ? metrics::Outcome::HandedOver
                           : outcome.kind == OutcomeKind::Lost       ? metrics::Outcome::Revoked
                                                                     : metrics::Outcome::Failed,
                           now, straggler_ns);
  }

 private:
  [[nodiscard]] std::uint64_t slowest_arrival(const Outcome& outcome) const {
    std::uint64_t slowest = 0;
    for (int rank = 0; rank < group_.size(); ++rank) {
      slowest = std::max(slowest, group_.runner_->arrival_ns(rank, outcome.number).value_or(0));
    }
    return slowest;
  }
  GroupImpl& group_;
  bool timed_;
};

GroupImpl::GroupImpl(JobImpl& job, std::string name) : job_(job), name_(std::move(name)) {}

GroupImpl::~GroupImpl() = default;

void GroupImpl::on_instant(collective::Instant instant, std::uint64_t number, std::int64_t chunk) {
  job_.hit_fault({.op = operation_name_,
                  .phase = collective::name(instant),
                  .sequence = number,
                  .step = job_.current_index(),
                  .chunk = static_cast<std::uint64_t>(std::max<std::int64_t>(chunk, 0))});
}

Status GroupImpl::bind(std::shared_ptr<OpenGroup> group, Epoch epoch) {
  const auto mine = std::ranges::find(group->seats, job_.seat().rank);
  if (mine == group->seats.end()) {
    return {Code::Internal, fmt::format("rank {} is not among the seats of group \"{}\"",
                                        job_.seat().rank.value(), name_)};
  }
  me_ = static_cast<int>(mine - group->seats.begin());
  collective::RunnerOptions options{
      .cores = job_.cores(),
      .epoch = {&GroupImpl::epoch_is_over, &GroupImpl::tell_of_wedge, this},
      .mark = {&job_.link().page().activity.phase, kPhaseFrom},
      .arrival_ns = &called_ns_,
      .own_from_input = job_.verifies(),
      .rules = job_.algorithms()};
  if (job_.has_faults()) {
    options.fault = {
        [](void* context, collective::Instant instant, std::uint64_t number, std::int64_t chunk) {
          static_cast<GroupImpl*>(context)->on_instant(instant, number, chunk);
        },
        this};
  }
  if (std::exchange(result_is_current_, false)) last_result_ = contributors_now();
  runner_.reset();  // of the epoch before, whose messages are stale by now
  auto runner = job_.runner(*group, me_, options);
  if (!runner) return runner.error();
  runner_ = std::move(*runner);
  group_ = std::move(group);
  epoch_ = epoch;
  if (job_.repeats_prologue()) {
    // As its predecessor did, whoever is missing by now; until its first step.
    if (public_seats().empty()) group_->id == 0 ? number_as(job_.all_seats()) : renumber();
  } else if (public_seats().empty() || !job_.carries_on() || job_.keeps_prologue()) {
    renumber();
  }
  return {};
}

Epoch GroupImpl::epoch() const {
  const auto share = job_.hold_epoch();
  return epoch_;
}

Contributors GroupImpl::contributors_now() const {
  Contributors here{.epoch = epoch_};
  for (const Rank seat : group_->seats) here.ranks.push_back(seat.value());
  return here;
}

Contributors GroupImpl::contributors() const {
  const auto share = job_.hold_epoch();
  return result_is_current_ ? contributors_now() : last_result_;
}

void GroupImpl::note_result(Contributors* result) {
  if (result == nullptr) {
    result_is_current_ = true;
  } else {
    *result = contributors_now();
  }
}

bool GroupImpl::wedged() const {
  return spi::read(group_->arena.slots.group_word(me_)).wedged || job_.link().has_newer(epoch_);
}

bool GroupImpl::epoch_is_over(void* group) {
  const auto& self = *static_cast<const GroupImpl*>(group);
  return self.job_.link().has_newer(self.epoch_);
}

void GroupImpl::tell_of_wedge(void* group) {
  const auto& self = *static_cast<const GroupImpl*>(group);
  (void)self.end_epoch("its words are wedged and no decision comes");
}

Status GroupImpl::end_epoch(std::string_view why) const {
  return job_.link().send_end_epoch(
      epoch_, fmt::format("rank {}: group \"{}\": {}", job_.seat().rank.value(), name_, why));
}

void GroupImpl::end_epoch_for(std::string_view why) {
  runner_->wedge();
  (void)end_epoch(why);
}

void GroupImpl::leave() {
  if (!runner_) return;
  if (const auto damage = runner_->look_for_damage()) (void)end_epoch(*damage);
  runner_.reset();  // the program may keep its handle of this group longer than the job
}

bool GroupImpl::ends_after(std::uint64_t step) const { return runner_->ends_after(step); }

Status GroupImpl::perform(const Request& request) {
  auto status = validate(request);
  if (pending_.load(std::memory_order_acquire) != 0) {
    if (collecting_) return collect(request, std::move(status));
    if (!status) return noted(std::move(status));
    const auto work = start(request);
    status = work->wait();
    const auto share = job_.hold_epoch();
    if (status) {
      last_result_ = work->contributors();
      result_is_current_ = false;
    }
    return status;
  }
  if (status) status = perform_now(request, false, nullptr);
  return noted(std::move(status));
}

Status GroupImpl::noted(Status status) {
  const bool by_a_loss = status.code() == Code::RankLost || status.code() == Code::Revoked;
  if (!status && !by_a_loss && !closed_.load()) job_.note_failure(status);
  return status;
}

std::shared_ptr<WorkImpl> GroupImpl::start(const Request& call) {
  auto status = validate(call);
  if (collecting_) {
    (void)collect(call, std::move(status));
    return collecting_->work;
  }
  if (!status) return std::make_shared<WorkImpl>(status);
  auto work = std::make_shared<WorkImpl>();
  Request request = call;
  auto counts = keep_counts(request.spec);
  enqueue(request, std::move(counts), work);
  return work;
}

/// `kept` is what the request points to.
void GroupImpl::enqueue(const Request& request, std::shared_ptr<const void> kept,
                        const std::shared_ptr<WorkImpl>& work) {
  pending_.fetch_add(1, std::memory_order_acq_rel);
  async_->submit([this, request, kept = std::move(kept), work] {
    auto status = validate(request);
    Contributors contributors;
    if (status) status = noted(perform_now(request, true, &contributors));
    pending_.fetch_sub(1, std::memory_order_acq_rel);
    work->finish(std::move(status), std::move(contributors));
  });
}

Status GroupImpl::perform_now(const Request& request, bool background, Contributors* result) {
  if (job_.guides_calls()) [[unlikely]]
    return perform_guided(request, background, result);
  const auto outcome = run(request, background, request.deadline());
  if (!outcome.ok()) return to_status(request, outcome);
  note_result(result);
  return {};
}

Status GroupImpl::perform_guided(const Request& request, bool background, Contributors* result) {
  if (request.parts != nullptr) return perform_parts(request, background, result);
  if (!job_.keeps_prologue()) return perform_carrying_on(request, background, result);
  auto status = perform_in_prologue(request, background);
  const auto share = job_.hold_epoch();
  if (status) note_result(result);
  return status;
}

bool GroupImpl::keeps_input(const Request& request) const {
  // Inside a step that is begun again the buffers are computed anew, so that no copy is kept there.
  return request.options.keep_input && (job_.carries_on() || !job_.in_step());
}

Outcome GroupImpl::run(const Request& request, bool background, spi::Deadline until) {
  return verified(request, [&](const Request& each) { return run_once(each, background, until); });
}

// Operation and comparison are one: the outcome of the second is that of both, so it is as uniform.
template <class Once>
Outcome GroupImpl::verified(const Request& request, Once&& once) {
  if (!job_.verifies() || !ResultCheck::covers(request)) return once(request);
  std::optional<InputCopy> input;
  if (keeps_input(request)) input.emplace(request, size(), me_);
  const ResultCheck check(request, size(), me_);
  const auto outcome = once(request);
  if (!outcome.ok()) {
    if (input) input->restore();
    return outcome;
  }
  std::vector<std::uint64_t> digests(static_cast<std::size_t>(size()));
  const std::uint64_t mine = check.digest(epoch_, runner_->sequence());
  Request comparison;
  comparison.operation = request.operation;
  comparison.label = "verify";
  comparison.options = request.options;
  comparison.spec = {.kind = OpKind::AllGather,
                     .dtype = DType::I64,
                     .count = 1,
                     .in = &mine,
                     .out = digests.data()};
  auto compared = once(comparison);
  if (compared.ok()) {
    digests[static_cast<std::size_t>(me_)] = mine;
    const auto difference = ResultCheck::compare(digests, group_->seats);
    if (difference.empty()) return outcome;
    compared = differs(request, difference);
  }
  if (input) input->restore();
  return compared;
}

Outcome GroupImpl::differs(const Request& request, const std::string& difference) {
  runner_->wedge();
  Outcome outcome{
      OutcomeKind::Damaged, runner_->sequence() - 1,
      fmt::format("the ranks have different results of {} (found by REGROUP_VERIFY): {}",
                  metrics::name(request.operation), difference)};
  (void)end_epoch(outcome.text);
  return outcome;
}

Outcome GroupImpl::run_once(const Request& request, bool background, spi::Deadline until) {
  const bool lists = spi::has_lists(request.spec.kind);
  const auto bytes = lists ? bytes_of(request) : request.spec.count * size_of(request.spec.dtype);
  operation_name_ =
      request.label != nullptr ? request.label : metrics::name(request.operation).data();
  auto spec = request.spec;
  spec.keep_input = keeps_input(request);
  if (lists && request.parts != nullptr) spec.parts = specs_of(*request.parts);
  Scope scope(*this, request, bytes, !background);
  auto outcome = execute(request, spec, until);
  if (outcome.ok()) [[likely]] {
    scope.end(outcome, bytes);
    return {};
  }
  const auto expired = outcome;
  outcome = settle(request, std::move(outcome));
  scope.end(outcome, bytes);
  const bool gave_up = expired.kind == OutcomeKind::Expired || expired.kind == OutcomeKind::Damaged;
  return gave_up && !outcome.ok() ? expired : outcome;
}

Outcome GroupImpl::settle(const Request& request, Outcome outcome) {
  const bool collective = request.kind == Request::Kind::Collective;
  const bool wedged =
      outcome.kind == OutcomeKind::Damaged || (outcome.kind == OutcomeKind::Expired && collective);
  if (!wedged) return outcome;
  const auto why = fmt::format("rank {}: {} of group \"{}\": {}", job_.seat().rank.value(),
                               metrics::name(request.operation), name_, outcome.text);
  if (auto status = job_.link().send_end_epoch(epoch_, why); !status || !collective) return outcome;
  // Uniform: what the others finished is finished here too. The agent decides within milliseconds.
  return runner_->settle(Clock::now() + kVerdictTimeout);
}

Status GroupImpl::to_status(const Request& request, const Outcome& outcome) const {
  if (outcome.ok()) return {};
  const Where where{.epoch = epoch_, .group = name_, .sequence = Sequence(outcome.number)};
  switch (outcome.kind) {
    case OutcomeKind::Done:
    case OutcomeKind::HandedOver: return {};
    case OutcomeKind::Lost: return job_.lost(epoch_, name_, outcome.number);
    case OutcomeKind::Mismatch: return {Code::InvalidArgument, outcome.text, where};
    case OutcomeKind::Expired:
      return {
          Code::DeadlineExceeded,
          fmt::format("{} of group \"{}\" did not end within {} ms: {}",
                      metrics::name(request.operation), name_,
                      std::chrono::duration_cast<std::chrono::milliseconds>(request.options.timeout)
                          .count(),
                      outcome.text),
          where};
    case OutcomeKind::Damaged: {
      // A way to a rank breaks when that rank dies, and that may be noticed before the agents say
      // so.
      if (Status loss = job_.lost(epoch_, name_, outcome.number); loss.code() == Code::RankLost)
        return loss;
      Status status(Code::Revoked,
                    fmt::format("group \"{}\" cannot go on in this epoch: {}", name_, outcome.text),
                    where);
      job_.note_damage(status);
      return status;
    }
  }
  REGROUP_UNREACHABLE("outcome");
}

Status GroupImpl::perform_inside(const Request& request, spi::Deadline until) {
  return to_status(request, verified(request, [&](const Request& each) {
                     operation_name_ =
                         each.label != nullptr ? each.label : metrics::name(each.operation).data();
                     return settle(each, execute(each, each.spec, until));
                   }));
}

Outcome GroupImpl::execute(const Request& request, const collective::OpSpec& spec,
                           spi::Deadline until) {
  switch (request.kind) {
    case Request::Kind::Collective: return runner_->run(spec, until);
    case Request::Kind::Send:
      return runner_->send(spec.in, spec.count, spec.dtype, request.other, request.tag, until);
    case Request::Kind::Recv:
      return runner_->recv(spec.out, spec.count, spec.dtype, request.other, request.tag, until);
    case Request::Kind::Find: {
      int source = -1;
      auto outcome = runner_->find_sender(request.tag, source, until);
      *request.found = source;
      return outcome;
    }
  }
  REGROUP_UNREACHABLE("kind of request");
}

Status GroupImpl::commit(std::uint64_t step) {
  if (pending_.load(std::memory_order_acquire) == 0) return commit_here(step, false);
  if (collecting_) return only_collected("commit()");
  WorkImpl work;
  async_->submit([&] { work.finish(commit_here(step, true)); });
  return work.wait();
}

Status GroupImpl::commit_here(std::uint64_t step, bool background) {
  return job_.carries_on() ? commit_carrying_on(step, background) : commit_now(step, background);
}

Status GroupImpl::commit_now(std::uint64_t step, bool background) {
  operation_name_ = "commit";
  Request request;
  request.operation = metrics::Operation::Commit;
  Scope scope(*this, request, 0, !background);
  Outcome outcome{.kind = OutcomeKind::Done, .number = step, .text = {}};
  if (const auto* const what = job_.to_entrust(step)) {
    outcome = runner_->entrust(step, *what, spi::kNoDeadline);
    if (outcome.ok()) job_.note_entrusted(step);
  }
  // If the epoch ended meanwhile, its decision is the answer.
  if (outcome.kind != OutcomeKind::Damaged) outcome = runner_->commit(step, spi::kNoDeadline);
  if (outcome.kind == OutcomeKind::Damaged && end_epoch(outcome.text)) {
    auto settled = runner_->commit(step, Clock::now() + kVerdictTimeout);
    if (settled.kind != OutcomeKind::Expired) outcome = std::move(settled);
  }
  scope.end(outcome, 0);
  return to_status(request, outcome);
}

Result<std::shared_ptr<GroupImpl>> GroupImpl::split(int color, int key, std::string_view name) {
  if (collecting_) return only_collected("split()");
  struct Choice {
    std::int64_t color;
    std::int64_t key;
  };
  const Choice mine{color, key};
  std::vector<Choice> all(static_cast<std::size_t>(public_size()));
  Request request;
  request.operation = metrics::Operation::Split;
  request.spec = {.kind = OpKind::AllGather,
                  .dtype = DType::I64,
                  .count = sizeof(Choice) / sizeof(std::int64_t),
                  .in = &mine,
                  .out = all.data()};
  if (auto status = perform(request); !status) return status;
  if (color < 0) {
    return Status(
        Code::FailedPrecondition,
        fmt::format("rank {} joins no group \"{}\": its color is negative", public_rank(), name));
  }
  std::vector<std::size_t> chosen;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (all[i].color == color) chosen.push_back(i);
  }
  std::ranges::stable_sort(chosen, {}, [&](std::size_t i) { return all[i].key; });
  std::vector<Rank> seats;
  seats.reserve(chosen.size());
  for (const auto i : chosen) seats.push_back(public_seats()[i]);
  return job_.group(fmt::format("{}/{}", name, color), seats);
}

}  // namespace regroup::engine
