#include "engine/group.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
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
constexpr std::chrono::seconds kCauseTimeout{2};

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

bool overlaps(const void* a, std::size_t a_bytes, const void* b, std::size_t b_bytes) {
  const std::less<const std::byte*> below;
  const auto* const a0 = static_cast<const std::byte*>(a);
  const auto* const b0 = static_cast<const std::byte*>(b);
  return below(a0, b0 + b_bytes) && below(b0, a0 + a_bytes);
}

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
  changed_.wait(lock, [&] { return status_.has_value(); });
  return *status_;
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

Status GroupImpl::validate_collective(const collective::OpSpec& spec) const {
  const auto bytes = spec.count * size_of(spec.dtype);
  const bool gathers = spec.kind == OpKind::AllGather;
  const bool scatters = spec.kind == OpKind::ReduceScatter;
  if (spec.count > 0 && bytes / spec.count != size_of(spec.dtype)) {
    return {Code::InvalidArgument,
            fmt::format("{} elements are more than memory can hold", spec.count)};
  }
  if (spec.root < 0 || spec.root >= public_size()) {
    return {Code::InvalidArgument, fmt::format("root {} is not in group \"{}\" of {} ranks",
                                               spec.root, name_, public_size())};
  }
  const bool reduces = spec.kind == OpKind::AllReduce || spec.kind == OpKind::Reduce || scatters;
  const bool integer =
      spec.dtype == DType::I32 || spec.dtype == DType::I64 || spec.dtype == DType::U8;
  if (reduces && spec.op == ReduceOp::Avg && integer) {
    return {Code::InvalidArgument,
            "the average of integers is not defined; use Sum and divide, or a float type"};
  }
  const int me = public_rank();
  const bool sends = spi::sends(spec.kind, spec.root, me) && spec.kind != OpKind::Barrier;
  const bool receives = spi::receives(spec.kind, spec.root, me) && spec.kind != OpKind::Barrier;
  if (bytes > 0 && ((sends && spec.in == nullptr) || (receives && spec.out == nullptr))) {
    return {Code::InvalidArgument,
            fmt::format("the {} buffer is null", sends && spec.in == nullptr ? "input" : "output")};
  }
  if (!sends || !receives || bytes == 0) return {};
  const auto world = static_cast<std::size_t>(public_size());
  const auto in_bytes = scatters ? bytes * world : bytes;
  const auto out_bytes = gathers ? bytes * world : bytes;
  if (overlaps(spec.in, in_bytes, spec.out, out_bytes) && spec.in != spec.out) {
    return {Code::InvalidArgument,
            "input and output overlap in part; they must be equal (in place) or apart"};
  }
  return {};
}

Status GroupImpl::validate(const Request& request) const {
  if (closed_.load()) {
    return {Code::FailedPrecondition,
            fmt::format("group \"{}\" belongs to a Job that was destroyed; keep the Job while its "
                        "groups are in use",
                        name_)};
  }
  if (auto status = job_.usable(); !status) return status;
  if (request.kind == Request::Kind::Collective) return validate_collective(request.spec);
  if (request.other < 0 || request.other >= public_size() || request.other == public_rank()) {
    return {Code::InvalidArgument,
            fmt::format("rank {} of group \"{}\" cannot exchange messages with rank {} of {}",
                        public_rank(), name_, request.other, public_size())};
  }
  const auto* const data = request.kind == Request::Kind::Send ? request.spec.in : request.spec.out;
  if (request.spec.count > 0 && data == nullptr)
    return {Code::InvalidArgument, "the buffer is null"};
  return {};
}

PrologueCall GroupImpl::call_of(const Request& request) const {
  const auto kind = static_cast<std::uint32_t>(request.operation);
  const auto root = request.kind == Request::Kind::Collective ? request.spec.root : request.other;
  return {.kind = kind,
          .dtype = request.spec.dtype,
          .op = request.spec.op,
          .root = root,
          .count = request.spec.count,
          .group = name_,
          .members = static_cast<std::uint32_t>(public_size()),
          .message = request.kind != Request::Kind::Collective};
}

std::span<std::byte> GroupImpl::result_of(const Request& request) const {
  const auto& spec = request.spec;
  if (request.kind == Request::Kind::Send) return {};
  if (request.kind == Request::Kind::Collective) {
    if (spec.kind == OpKind::Barrier || !spi::receives(spec.kind, spec.root, public_rank()))
      return {};
  }
  const auto copies = spec.kind == OpKind::AllGather && request.kind == Request::Kind::Collective
                          ? static_cast<std::size_t>(public_size())
                          : 1;
  return {static_cast<std::byte*>(spec.out), copies * spec.count * size_of(spec.dtype)};
}

Status GroupImpl::perform(const Request& request) {
  auto status = validate(request);
  if (status && pending_.load(std::memory_order_acquire) != 0) {
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

std::shared_ptr<WorkImpl> GroupImpl::start(const Request& request) {
  if (auto status = validate(request); !status) return std::make_shared<WorkImpl>(status);
  auto work = std::make_shared<WorkImpl>();
  pending_.fetch_add(1, std::memory_order_acq_rel);
  async_->submit([this, request, work] {
    auto status = validate(request);
    Contributors contributors;
    if (status) status = noted(perform_now(request, true, &contributors));
    pending_.fetch_sub(1, std::memory_order_acq_rel);
    work->finish(std::move(status), std::move(contributors));
  });
  return work;
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
  const auto bytes = request.spec.count * size_of(request.spec.dtype);
  operation_name_ =
      request.label != nullptr ? request.label : metrics::name(request.operation).data();
  auto spec = request.spec;
  spec.keep_input = keeps_input(request);
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
  return runner_->settle(Clock::now() + kCauseTimeout);
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
      Status status(
          Code::Revoked,
          fmt::format("the shared memory of group \"{}\" is damaged: {}", name_, outcome.text),
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
  }
  REGROUP_UNREACHABLE("kind of request");
}

Status GroupImpl::commit(std::uint64_t step) {
  if (pending_.load(std::memory_order_acquire) == 0) return commit_here(step, false);
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
  auto outcome = runner_->commit(step, spi::kNoDeadline);
  if (outcome.kind == OutcomeKind::Damaged && end_epoch(outcome.text)) {
    auto settled = runner_->commit(step, Clock::now() + kCauseTimeout);
    if (settled.kind != OutcomeKind::Expired) outcome = std::move(settled);
  }
  scope.end(outcome, 0);
  return to_status(request, outcome);
}

Result<std::shared_ptr<GroupImpl>> GroupImpl::split(int color, int key, std::string_view name) {
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
