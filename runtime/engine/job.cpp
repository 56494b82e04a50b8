#include "engine/job.hpp"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <cstdlib>

#include "engine/group.hpp"
#include "engine/live_links.hpp"
#include "engine/result_check.hpp"
#include "membership/policy.hpp"

namespace regroup::engine {
namespace {

using metrics::Category;

constexpr const char* kPrologue = "prologue";
constexpr std::chrono::seconds kCauseTimeout{1};
constexpr int kDamagedAttemptsMax = 3;

int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return ::sched_getaffinity(0, sizeof set, &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
}

/// The control descriptor that the launcher left, taken out of the environment so that no child
/// finds it.
base::Fd take_control_fd() {
  const char* const text = std::getenv("REGROUP_CONTROL_FD");
  if (text == nullptr) return {};
  const int fd = std::atoi(text);
  ::unsetenv("REGROUP_CONTROL_FD");
  return base::Fd(fd);
}

}  // namespace

JobImpl::JobImpl(std::unique_ptr<AgentLink> link)
    : link_(std::move(link)), fork_count_(LiveLinks::fork_count()), cores_(usable_cores()) {}

Result<std::shared_ptr<JobImpl>> JobImpl::attach(const AttachOptions& options) {
  const TimePoint until = Clock::now() + options.timeout;
  auto control = take_control_fd();
  auto link = control ? AgentLink::connect(std::move(control), until) : AgentLink::alone();
  if (!link) return link.error();
  std::shared_ptr<JobImpl> job(new JobImpl(std::move(*link)));
  if (auto status = job->start(until); !status) return status;
  return job;
}

Status JobImpl::start(TimePoint until) {
  ledger_.emplace(link_->page(), Category::Rendezvous, metrics::monotonic_ns());
  if (const char* const text = std::getenv("REGROUP_FAULTS"); text != nullptr) {
    auto faults = FaultScript::parse(text, seat().rank, seat().life);
    if (!faults) return faults.error();
    faults_ = std::move(*faults);
  }
  if (const char* const text = std::getenv("REGROUP_ALGO"); text != nullptr) {
    auto rules = collective::AlgorithmRules::parse(text);
    if (!rules) return rules.error();
    algorithms_ = std::move(*rules);
  }
  if (const char* const text = std::getenv("REGROUP_TUNING"); text != nullptr) {
    auto cost = collective::parse_tuning(text);
    if (!cost) return cost.error();
    messages_tuning_.cost = *cost;
  }
  holds_state_ = !seat().replacement;
  if (StateCheck::wanted()) state_check_.emplace();
  verifies_ = ResultCheck::wanted();
  meets_ = membership::fills_seats(seat().on_loss) && seat().ranks > 1;
  carries_on_ = meets_ && seat().on_loss == OnLoss::CarryOn;
  if (auto status = prologue_.inherit(link_->take_kept(kPrologue)); !status) return status;
  auto view = link_->await_view(Epoch(0), until);
  if (!view) return view.error();
  if (seat().replacement && (*view)->view.epoch > Epoch(1)) prologue_.begin_unresolved();
  book(Category::Connect);
  if (auto status = bind(std::move(*view)); !status) return status;
  book(Category::Compute);
  return {};
}

JobImpl::~JobImpl() {
  // A forked child holds copies of objects whose threads and memory stayed with its parent: it lets
  // them be.
  if (LiveLinks::fork_count() != fork_count_) {
    for (auto& [name, group] : groups_) group->abandon_in_child();
    (void)link_.release();
    return;
  }
  closed_.store(true);
  for (auto& [name, group] : groups_) group->close();
  for (auto& [name, group] : groups_) group->finish_async();
  for (auto& [name, group] : groups_) group->leave();
}

Status JobImpl::usable() const {
  if (LiveLinks::fork_count() != fork_count_) {
    return {Code::FailedPrecondition,
            fmt::format("this process was forked from rank {}, whose memory and threads it does "
                        "not have; a child may "
                        "exec, but must not use the job",
                        seat().rank.value())};
  }
  if (closed_.load()) return {Code::FailedPrecondition, "the Job was destroyed"};
  return link_->running();
}

Status JobImpl::bind(std::shared_ptr<OpenView> view) {
  // Another thread may have done it.
  if (bound_ != nullptr && view->view.epoch <= epoch()) return {};
  bound_ = std::move(view);
  if (const auto messages = link_->messages()) (*messages)->begin_epoch(epoch());
  return bind_groups();
}

Result<std::unique_ptr<collective::GroupRunner>> JobImpl::runner(
    const OpenGroup& group, int me, const collective::RunnerOptions& options) {
  std::unique_ptr<collective::GroupRunner> made;
  if (on_one_host(group.seats, *bound_)) {
    made = std::make_unique<collective::SlotRunner>(group.arena.slots, me, options);
    return made;
  }
  const auto messages = link_->messages();
  if (!messages) return messages.error();
  auto members = (*messages)->reach(group, *bound_, me);
  if (!members) return members.error();
  made = std::make_unique<collective::MessageRunner>(
      group.arena.slots, me, (*messages)->hub(), std::move(*members), options, messages_tuning_);
  return made;
}

Status JobImpl::bind_groups() {
  const std::lock_guard lock(groups_mutex_);
  for (const auto& open : bound_->groups) {
    if (std::ranges::find(open->seats, seat().rank) == open->seats.end()) continue;
    auto& group = groups_[open->name];
    if (group == nullptr) group = std::make_shared<GroupImpl>(*this, open->name);
    if (auto status = group->bind(open, bound_->view.epoch); !status) return status;
  }
  if (world_ == nullptr) world_ = groups_[bound_->groups.front()->name];
  return {};
}

Result<std::shared_ptr<GroupImpl>> JobImpl::group(const std::string& name,
                                                  const std::vector<Rank>& seats) {
  if (!guides_calls()) return find_or_attach(name, seats);
  for (Epoch than{};;) {
    auto share = share_epoch(than, spi::kNoDeadline);
    if (!share) return share.error();
    if (auto status = given_up(); !status) return status;
    auto found = find_or_attach(name, seats);
    if (found || found.error().code() != Code::RankLost) return found;
    than = epoch();
  }
}

Result<std::shared_ptr<GroupImpl>> JobImpl::find_or_attach(const std::string& name,
                                                           const std::vector<Rank>& seats) {
  {
    const std::lock_guard lock(groups_mutex_);
    if (const auto found = groups_.find(name); found != groups_.end()) {
      if (found->second->public_seats() == seats) return found->second;
      if (carries_on_ && found->second->present_seats() == present(seats, bound_->view)) {
        // Made by the others, and bound here after a rank of it was lost.
        found->second->number_as(seats);
        return found->second;
      }
      return Status(Code::InvalidArgument,
                    fmt::format("group \"{}\" exists already with other ranks", name));
    }
  }
  auto open = link_->attach_group(epoch(), name, seats, spi::kNoDeadline);
  if (!open) return open.error();
  const std::lock_guard lock(groups_mutex_);
  auto group = std::make_shared<GroupImpl>(*this, name);
  if (auto status = group->bind(std::move(*open), epoch()); !status) return status;
  groups_[name] = group;
  return group;
}

Status JobImpl::lost(Epoch epoch, const std::string& group, std::uint64_t sequence) {
  const auto notice = link_->loss_of(epoch, Clock::now() + kCauseTimeout);
  Where where{.epoch = epoch, .group = group, .sequence = Sequence(sequence)};
  if (!notice || notice->lost.empty()) {
    return {
        Code::Revoked,
        fmt::format("epoch {} of group \"{}\" is over{}{}; enter the next one by step.next() or "
                    "job.reform()",
                    epoch.value(), group, notice ? ": " : "", notice ? notice->text : ""),
        std::move(where)};
  }
  where.rank = notice->lost.front().rank;
  where.incarnation = notice->lost.front().incarnation;
  return {Code::RankLost, notice->text, std::move(where)};
}

void JobImpl::book(Category category) {
  // Asynchronous operations run beside the program, whose time this is.
  if (AsyncQueue::is_this_thread()) return;
  const std::lock_guard lock(ledger_lock_);
  ledger_->enter(category, now_ns());
}

// ---- prologue ----------------------------------------------------------------------------------

Status JobImpl::keep_prologue(void* job, int fd, std::uint64_t bytes) {
  return static_cast<JobImpl*>(job)->link_->keep_memory(kPrologue, fd, bytes);
}

Status JobImpl::record(const PrologueCall& call, std::span<const std::byte> result,
                       bool healed_later) {
  const bool healed = healed_later || state_.covers(result.data(), result.size());
  return prologue_.append(call, result, healed, &keep_prologue, this);
}

Result<JobImpl::EpochShare> JobImpl::share_epoch(Epoch than, TimePoint until) {
  for (;;) {
    {
      EpochShare share(epoch_mutex_);
      if (epoch() > than && met_ >= epoch()) return share;
    }
    const std::unique_lock alone(epoch_mutex_);
    if (auto status = catch_up(than, until); !status) return status;
  }
}

Status JobImpl::catch_up(Epoch than, TimePoint until) {
  while (epoch() <= than || met_ < epoch()) {
    Status status;
    if (epoch() <= than || world_->wedged()) {
      const auto before = bound_->view.seats;
      const bool called_in_it = epoch() == than && !entered_once_;
      status = await_next_view(until);
      if (status && called_in_it && bound_->view.seats == before) return lost(than, "", 0);
    } else {
      status = meet(false, until);
    }
    if (!status && status.code() != Code::RankLost && status.code() != Code::Revoked) {
      book(Category::Compute);
      return status;
    }
  }
  book(Category::Compute);
  return {};
}

// ---- epochs ------------------------------------------------------------------------------------

bool JobImpl::must_enter() const {
  const auto share = hold_epoch();
  return entered_ != epoch() || world_->wedged();
}

Status JobImpl::prepare_first_entry() {
  if (entered_once_) return {};
  if (auto status = state_.seal(); !status) return status;
  prologue_.close();
  saved_volatile_.resize(state_.volatile_bytes());
  return {};
}

bool JobImpl::at_planned_end() const { return entered_ == epoch() && world_->ends_after(applied_); }

Status JobImpl::enter(bool goes_on) {
  if (auto status = usable(); !status) return status;
  if (auto status = too_often_damaged(); !status) return give_up(std::move(status));
  if (auto status = prepare_first_entry(); !status) return status;
  // Behind its last step a rank has nothing to do with those that are left in a later epoch.
  if (carries_on_ && entered_once_ && !goes_on) return {};
  if (carries_on_ && in_step_)
    (void)give_up_step({Code::Revoked, "the program began its step again without a commit"});
  for (Standing now = standing(goes_on); now != Standing::Inside; now = standing(goes_on)) {
    auto status = move_on(now);
    if (!status && link_->released()) {
      book(Category::Drain);
      return status;
    }
    if (!status && status.code() != Code::RankLost && status.code() != Code::Revoked) {
      book(Category::Compute);
      return give_up(std::move(status));
    }
  }
  book(Category::Compute);
  return {};
}

JobImpl::Standing JobImpl::standing(bool goes_on) const {
  const auto share = hold_epoch();
  if (world_->wedged()) return Standing::Over;
  if (entered_ != epoch()) return Standing::Outside;
  if (!given_up()) return Standing::GivenUp;
  return goes_on && at_planned_end() ? Standing::PlannedEnd : Standing::Inside;
}

Status JobImpl::move_on(Standing from) {
  if (from == Standing::Outside) {
    const std::unique_lock alone(epoch_mutex_);
    return enter_bound();
  }
  Epoch left;
  {
    const auto share = hold_epoch();
    left = epoch();
    if (from == Standing::GivenUp) world_->end_epoch_for("a step is begun again");
  }
  if (from == Standing::PlannedEnd) {
    if (auto status = link_->parked(left); !status) return status;
  } else {
    tell_of_wedge(left);
  }
  // Other threads of the program may bring their calls to an end meanwhile.
  auto view = next_view(left, spi::kNoDeadline);
  if (!view) return view.error();
  const std::unique_lock alone(epoch_mutex_);
  return bind(std::move(*view));
}

Status JobImpl::end_epoch(std::string_view why) {
  if (auto status = usable(); !status) return status;
  const auto share = hold_epoch();
  world_->end_epoch_for(why);
  return {};
}

// Whoever wrote over a word may have wedged it: then the agent knows of nothing. If it does know,
// it drops this.
void JobImpl::tell_of_wedge(Epoch wedged) {
  if (!link_->has_newer(wedged))
    (void)link_->send_end_epoch(wedged, "this rank found the words of its epoch wedged");
}

Result<std::shared_ptr<OpenView>> JobImpl::next_view(Epoch than, TimePoint until) {
  book(Category::Reform);
  auto view = link_->await_view(than, until);
  if (view) book(Category::Connect);
  return view;
}

Status JobImpl::await_next_view(TimePoint until) {
  tell_of_wedge(epoch());
  auto view = next_view(epoch(), until);
  if (!view) return view.error();
  return bind(std::move(*view));
}

Status JobImpl::enter_bound() {
  if (meets_ && met_ < epoch()) {
    if (auto status = meet(true, spi::kNoDeadline); !status) return status;
    if (entered_ == epoch()) return {};  // the members go on where they are
  }
  control::Entered report{.epoch = epoch()};
  if (auto status = exchange_and_heal(report); !status) return status;
  entered_ = epoch();
  entered_once_ = true;
  begin_anew();
  return link_->entered(std::move(report));
}

/// Shows a heal in the beacon page for as long as it lasts.
class JobImpl::HealRecord {
 public:
  explicit HealRecord(JobImpl& job) : job_(job) {
    metrics::begin_operation(job_.link_->page(), {.operation = metrics::Operation::Heal,
                                                  .phase = metrics::Phase::AwaitOthers,
                                                  .epoch = job_.epoch().value(),
                                                  .step = job_.resume_step() - 1,
                                                  .started_ns = metrics::monotonic_ns()});
  }
  HealRecord(const HealRecord&) = delete;
  HealRecord& operator=(const HealRecord&) = delete;
  ~HealRecord() {
    const bool done = job_.holds_state_ && !job_.world_->wedged();
    metrics::end_operation(job_.link_->page(),
                           done ? metrics::Outcome::Done : metrics::Outcome::Revoked,
                           metrics::monotonic_ns());
  }

 private:
  JobImpl& job_;
};

struct JobImpl::MeetInfo {
  PrologueInfo prologue;
  Stand stand = Stand::Outside;
};

// The members of a new epoch tell each other how far they are in the prologue, so that newcomers
// know which calls to answer and which to make; and whether they can go on with their step.
Status JobImpl::meet(bool in_next, TimePoint until) {
  book(Category::ReplaceWait);
  const HealRecord record(*this);
  const MeetInfo mine{prologue_.info(), stand(in_next)};
  std::vector<MeetInfo> all(static_cast<std::size_t>(world_->size()));
  Request request;
  request.operation = metrics::Operation::Heal;
  request.label = "join";
  request.spec = {.kind = spi::OpKind::AllGather,
                  .dtype = DType::I64,
                  .count = sizeof(MeetInfo) / sizeof(std::int64_t),
                  .in = &mine,
                  .out = all.data()};
  if (auto status = world_->perform_inside(request, until); !status) return status;
  std::vector<PrologueInfo> prologues;
  std::vector<Stand> stands;
  for (const MeetInfo& info : all) {
    prologues.push_back(info.prologue);
    stands.push_back(info.stand);
  }
  auto agreement = agree_on_prologue(prologues);
  if (!agreement) return agreement.error();
  if (auto status = lend_prologue(prologues, until); !status) return status;
  if (auto status = prologue_.settle(*agreement); !status) return status;
  met_ = epoch();
  return carries_on_ ? settle_stands(stands, in_next) : Status();
}

Status JobImpl::pass(bool give, std::size_t other, std::span<std::byte> bytes, TimePoint until) {
  Request request;
  request.kind = give ? Request::Kind::Send : Request::Kind::Recv;
  request.operation = metrics::Operation::Heal;
  request.other = static_cast<int>(other);
  request.spec = {
      .dtype = DType::U8, .count = bytes.size(), .in = bytes.data(), .out = bytes.data()};
  return world_->perform_inside(request, until);
}

// A seat that moved to another host finds no record there: the others have the same calls in
// theirs, and of most calls the same results.
Status JobImpl::lend_prologue(std::span<const PrologueInfo> all, TimePoint until) {
  const auto me = static_cast<std::size_t>(world_->rank());
  std::vector<std::byte> borrowed;
  bool borrows = false;
  for (const PrologueLoan& loan : lend_records(all)) {
    if (loan.from != me && loan.to != me) continue;
    const bool give = loan.from == me;
    auto bytes = give ? prologue_.lend(loan.groups) : std::vector<std::byte>();
    std::uint64_t size = bytes.size();
    const std::size_t other = give ? loan.to : loan.from;
    const auto header = std::as_writable_bytes(std::span(&size, 1));
    if (auto status = pass(give, other, header, until); !status) return status;
    if (size > PrologueRecord::kBytesMax)
      return {Code::Internal, fmt::format("a record of {} bytes was announced", size)};
    bytes.resize(size);
    if (auto status = pass(give, other, bytes, until); !status) return status;
    if (give) continue;
    borrows = true;
    borrowed.insert(borrowed.end(), bytes.begin(), bytes.end());
  }
  return borrows ? prologue_.take_over(borrowed, &keep_prologue, this) : Status();
}

Status JobImpl::exchange_and_heal(control::Entered& report) {
  const std::uint64_t resume = resume_step();
  if (holds_state_ && applied_ + 1 != resume) {
    return {Code::Internal,
            fmt::format("rank {} has applied {} steps but epoch {} resumes at step {}",
                        seat().rank.value(), applied_, epoch().value(), resume)};
  }
  if (heal_book_.resume != resume) heal_book_ = {resume, std::nullopt};
  const HealRecord record(*this);
  Healer healer(*world_, state_, heal_book_, [this](const char* phase, std::uint64_t chunk) {
    const bool verifying = std::string_view(phase) == "verify";
    metrics::set_phase(link_->page(),
                       verifying ? metrics::Phase::Verify : metrics::Phase::Transfer);
    if (has_faults())
      hit_fault({.op = "heal", .phase = phase, .step = resume_step() - 1, .chunk = chunk});
  });
  book(Category::ReplaceWait);
  auto round = healer.exchange(holds_state_);
  if (!round) return round.error();
  prologue_.finish();
  if (round->newcomers.empty()) return entrust_anew(resume - 1);
  book(Category::Heal);
  const auto started_ns = metrics::monotonic_ns();
  if (auto status = healer.run(*round); !status) return status;
  if (auto status = bring_mirrors(resume - 1); !status) return status;
  if (auto status = entrust_anew(resume - 1); !status || holds_state_) return status;
  holds_state_ = true;
  applied_ = resume - 1;
  for (const auto& [donor, bytes] : heal_book_.progress->bytes_from()) {
    report.bytes_from.push_back(
        {world_->present_seats()[static_cast<std::size_t>(donor.value())], bytes});
  }
  report.heal_ns = metrics::monotonic_ns() - started_ns;
  return {};
}

// ---- steps -------------------------------------------------------------------------------------

Status JobImpl::begin_step(std::uint64_t step, bool retry) {
  if (state_check_) {
    // What a failed attempt changed would never show otherwise.
    if (auto status = retry ? state_check_->check(state_, step - 1) : Status(); !status)
      return give_up(std::move(status));
    state_check_->take(state_);
  }
  if (retry) {
    state_.restore_volatile(saved_volatile_.data());
    const std::lock_guard lock(ledger_lock_);
    ledger_->begin_replay(now_ns());
  } else {
    state_.save_volatile(saved_volatile_.data());
  }
  attempt_ = retry ? attempt_ + 1 : 1;
  current_step_ = step;
  in_step_ = true;
  {
    const std::lock_guard lock(failure_mutex_);
    step_failure_ = {};
  }
  return start_mirror(step);
}

Status JobImpl::left_open() const {
  if (!in_step_ || must_enter() || !given_up()) return {};
  const std::lock_guard lock(failure_mutex_);
  if (!step_failure_) return step_failure_;
  return {Code::FailedPrecondition,
          fmt::format("next() was called in step {}, which was not committed and has lost no rank; "
                      "end every step with commit()",
                      current_index())};
}

void JobImpl::note_failure(const Status& status) {
  const std::lock_guard lock(failure_mutex_);
  if (step_failure_) step_failure_ = status;
}

void JobImpl::note_damage(const Status& status) {
  const std::lock_guard lock(failure_mutex_);
  ++damaged_attempts_;
  last_damage_ = status;
}

Status JobImpl::too_often_damaged() {
  const std::lock_guard lock(failure_mutex_);
  if (damaged_attempts_ < kDamagedAttemptsMax) return {};
  return {Code::FailedPrecondition,
          fmt::format("{} attempts in a row were damaged, the last one so: {}", damaged_attempts_,
                      last_damage_.text())};
}

Status JobImpl::give_up(Status status) {
  note_failure(status);
  // Without this the others would wait for a rank that has given up.
  (void)link_->fault(status);
  return status;
}

Status JobImpl::commit(std::uint64_t step) {
  if (auto status = usable(); !status) return status;
  if (!in_step_ || step != current_step_) {
    return {Code::FailedPrecondition,
            "commit() belongs between a next() that returned true and the next next()"};
  }
  if (state_check_) {
    // Before the step is prepared: no rank may count it as committed.
    if (auto status = state_check_->check(state_, current_index()); !status)
      return give_up(std::move(status));
  }
  if (mirror_) mirror_->write(step, state_);
  auto status = world_->commit(step);
  in_step_ = false;
  if (!status) return status;
  applied_ = step;
  {
    const std::lock_guard lock(failure_mutex_);
    damaged_attempts_ = 0;
    messages_ = false;
  }
  const std::lock_guard lock(ledger_lock_);
  ledger_->end_replay(now_ns());
  return {};
}

}  // namespace regroup::engine
