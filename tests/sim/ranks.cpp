#include "tests/sim/ranks.hpp"

#include <algorithm>

#include "base/check.hpp"
#include "base/mutant.hpp"
#include "membership/failure_detector.hpp"
#include "tests/sim/heal.hpp"

namespace regroup::sim {
namespace {

std::uint64_t bit(std::int32_t seat) { return std::uint64_t{1} << seat; }

/// What a rank puts into an operation: a function of its state, so that a wrong state shows in
/// every later result.
std::uint64_t input_of(std::uint64_t state, const Operation& operation, std::int32_t seat) {
  return combine(combine(state, operation.step * 1024 + operation.index),
                 static_cast<std::uint64_t>(seat));
}

}  // namespace

Process& Ranks::create(Incarnation incarnation, std::uint32_t host, std::optional<Rank> seat) {
  auto process = std::make_unique<Process>();
  process->index = static_cast<std::uint32_t>(processes_.size());
  process->incarnation = incarnation;
  process->host = host;
  process->seat = seat;
  processes_.push_back(std::move(process));
  core_.record(record_of(*processes_.back(), What::Spawn));
  return *processes_.back();
}

Process* Ranks::find(Incarnation incarnation) {
  for (auto& process : processes_) {
    if (process->incarnation == incarnation) return process.get();
  }
  return nullptr;
}

std::shared_ptr<EpochMemory> Ranks::memory(Epoch epoch) {
  for (auto it = memories_.rbegin(); it != memories_.rend(); ++it) {
    if ((*it)->view.epoch == epoch) return *it;
  }
  return nullptr;
}

std::shared_ptr<EpochMemory> Ranks::memory(const membership::View& view) {
  if (auto known = memory(view.epoch); known && known->view == view) return known;
  auto made = std::make_shared<EpochMemory>();
  made->view = view;
  made->blocks = std::make_unique<Block[]>(view.seats.size());
  for (std::size_t i = 0; i < view.seats.size(); ++i) {
    const auto seat = static_cast<std::int32_t>(i);
    made->blocks[i].step.store(view.resume_step - 1);
    if (view.seats[i].value() == 0) continue;
    made->members[0].push_back(seat);
    made->seat_set[0] |= bit(seat);
    if ((core_.swarm.second_group & bit(seat)) == 0) continue;
    made->members[1].push_back(seat);
    made->seat_set[1] |= bit(seat);
  }
  if (REGROUP_MUTANT(SLOTS_CARRIED_OVER) && !memories_.empty()) {
    for (std::size_t i = 0; i < view.seats.size(); ++i) {
      for (std::uint32_t g = 0; g < kGroupsMax; ++g) {
        made->blocks[i].lanes[g].slots = memories_.back()->blocks[i].lanes[g].slots;
        made->blocks[i].lanes[g].arrived = memories_.back()->blocks[i].lanes[g].arrived;
      }
    }
  }
  // Under carry_on the members' join is an operation like any other: nobody knows of it alone.
  if (carries_on()) made->operations[0].push_back({.number = 1});
  memories_.push_back(made);
  return made;
}

void Ranks::install(Process& process, const std::shared_ptr<EpochMemory>& memory) {
  if (!process.alive || process.deaf) return;
  // The agent's messages to one rank keep their order.
  if (process.installed && process.installed->view.epoch >= memory->view.epoch) return;
  process.installed = memory;
  wake(process);
}

void Ranks::release(Process& process) {
  process.released = true;
  wake(process);
}

void Ranks::crash(Process& process) {
  if (!process.alive) return;
  process.alive = false;
  core_.record(record_of(process, What::Crash));
}

void Ranks::finish(Process& process) {
  process.exited = true;
  core_.record(record_of(process, What::Finish));
}

void Ranks::pause(Process& process, Nanos length) {
  if (!process.alive || process.paused_until > core_.now()) return;
  process.paused_until = core_.now() + length;
  ++(std::chrono::nanoseconds(length) > membership::kPauseTolerated ? pauses_long_ : pauses_short_);
  process.beat_offset += length;
  Record record = record_of(process, What::Pause);
  record.other = static_cast<std::uint64_t>(length);
  core_.record(record);
  wake(process);
}

void Ranks::wake(Process& process) { wake(process, core_.swarm.micro); }

void Ranks::wake(Process& process, Nanos mean) {
  if (process.queued || !process.alive || process.exited) return;
  process.queued = true;
  const Nanos delay = core_.random.delay(mean);
  core_.after(std::max(delay, process.paused_until - core_.now()),
              [this, index = process.index] { run(*processes_[index]); });
}

void Ranks::changed(EpochMemory& memory, std::int32_t seat) {
  Block& block = memory.blocks[static_cast<std::size_t>(seat)];
  for (const std::uint32_t watcher : block.watchers) wake(*processes_[watcher]);
  block.watchers.clear();
  if (Process* owner = find(memory.view.seats[static_cast<std::size_t>(seat)])) wake(*owner);
}

void Ranks::watch(EpochMemory& memory, std::int32_t seat, Process& p) {
  memory.blocks[static_cast<std::size_t>(seat)].watchers.push_back(p.index);
}

Record Ranks::record_of(const Process& p, What what) const {
  Record record;
  record.what = what;
  record.incarnation = p.incarnation;
  record.host = p.host + 1;
  if (p.seat) record.rank = *p.seat;
  if (p.mine) record.epoch = p.mine->view.epoch;
  return record;
}

bool Ranks::fate(Process& p) {
  const bool is_poisoned = p.seat && p.seat->value() == core_.swarm.poisoned_seat &&
                           p.step == core_.swarm.poisoned_step && p.at == At::Reduce;
  if (is_poisoned && core_.fault(1.0)) {
    news_->dies(p);
    if (!p.alive) return true;
  }
  if (!p.deaf && core_.fault(core_.swarm.channel_closed)) news_->goes_deaf(p);
  if (core_.fault(core_.swarm.crash_in_step)) {
    news_->dies(p);
    return !p.alive;
  }
  if (!core_.fault(core_.swarm.pause)) return false;
  const bool is_long = core_.random.chance(core_.swarm.long_pause);
  pause(p, is_long ? core_.random.between(kSecond, 6 * kSecond)
                   : core_.random.between(kMillisecond, 200 * kMillisecond));
  return true;
}

void Ranks::go(Process& p, At at) {
  p.at = at;
  wake(p);
}

void Ranks::run(Process& p) {
  p.queued = false;
  if (!p.alive || p.exited) return;
  if (p.paused_until > core_.now()) return wake(p);
  if (fate(p)) return;
  switch (p.at) {
    case At::Next: return next(p);
    case At::Meet: return meet(p);
    case At::Share: return share_map(p);
    case At::Plan: return plan_heal(p);
    case At::Take: return take_chunk(p);
    case At::Verify: return verify(p);
    case At::Judge: return judge_heal(p);
    case At::Enter: return enter_operation(p);
    case At::Publish: return publish(p);
    case At::Await: return await_arrivals(p);
    case At::Reduce: return reduce(p);
    case At::Complete: return complete(p);
    case At::Decide: return decide(p);
    case At::Prepare: return prepare(p);
    case At::AwaitPrepared: return await_prepared(p);
    case At::StepVerdict: return step_verdict(p);
    case At::Over: return over(p);
    case At::Leave: return leave(p);
  }
}

// ---- entering an epoch ----------------------------------------------------------------------

void Ranks::next(Process& p) {
  if (p.released) return go(p, At::Over);
  if (!p.installed || (p.mine && p.installed->view.epoch <= p.mine->view.epoch)) return;
  p.mine = p.installed;
  p.numbers = {};
  p.step = p.mine->view.resume_step;
  Record record = record_of(p, What::Enter);
  record.number = p.step;
  record.digest = p.has_state ? p.state : 0;
  record.other = p.has_state ? p.applied + 1 : 0;  // where its own state would go on
  record.view = &p.mine->view;
  core_.record(record);
  Block& block = p.mine->blocks[static_cast<std::size_t>(p.seat->value())];
  block.holding = p.has_state ? Holding::State : Holding::Nothing;
  if (carries_on()) {
    block.in_step = p.has_state && p.interrupted;
    block.lanes[0].arrived = p.numbers[0] = 1;
  }
  changed(*p.mine, p.seat->value());
  go(p, At::Meet);
}

/// A loss ended what it was doing; under carry_on it does it again in the next epoch.
void Ranks::interrupt(Process& p, bool in_commit) {
  if (carries_on()) {
    p.interrupted = true;
    p.in_commit = in_commit;
    if (!in_commit && !REGROUP_MUTANT(CARRY_ON_BEHIND_THE_LOST))
      p.index_in_step = p.operation.index;
  }
  go(p, At::Next);
}

void Ranks::go_on(Process& p) {
  p.interrupted = false;
  ++carried_on_;
  news_->entered(p);
  const bool operates = !p.in_commit && choose_operation(p);
  go(p, operates ? At::Enter : At::Prepare);
}

/// Whether some member announced the step just committed as the last one of this epoch.
bool Ranks::is_last_step(Process& p) {
  const auto& seats = p.mine->members[0];
  return p.applied != 0 && std::any_of(seats.begin(), seats.end(), [&p](std::int32_t seat) {
           return p.mine->blocks[static_cast<std::size_t>(seat)].last_step == p.applied;
         });
}

void Ranks::begin_step(Process& p) {
  p.index_in_step = 0;
  p.step_digest = 0;
  if (p.step > steps_) {
    highest_step_ = std::max(highest_step_, p.step);
    return go(p, At::Over);
  }
  if (is_last_step(p)) {
    Record record = record_of(p, What::Park);
    record.number = p.applied;
    core_.record(record);
    news_->parked(p);
    return go(p, At::Next);
  }
  highest_step_ = std::max(highest_step_, p.step);
  p.at = choose_operation(p) ? At::Enter : At::Prepare;
  wake(p, core_.swarm.compute);
}

// ---- operations -----------------------------------------------------------------------------

EpochMemory& Ranks::bound(Process& p) {
  return REGROUP_MUTANT(BIND_TO_INSTALLED) ? *p.installed : *p.mine;
}

Block::Lane& Ranks::lane(Process& p) {
  return bound(p).blocks[static_cast<std::size_t>(p.seat->value())].lanes[p.operation.group];
}

std::uint32_t Ranks::operations_of(std::uint64_t step) const {
  return 1 + static_cast<std::uint32_t>(spread(step * 31 + core_.swarm.second_group) %
                                        core_.swarm.operations_max);
}

Operation Ranks::plan(const EpochMemory& memory, std::uint64_t step, std::uint32_t index) const {
  const std::uint64_t dice = combine(core_.swarm.second_group * 7 + step, index);
  Operation operation{.step = step, .index = index};
  // Under carry_on the seats of a group may become fewer within a step, and no call changes for it.
  const bool is_there = carries_on() || !memory.members[1].empty();
  if (core_.swarm.groups == 2 && (dice & 1) != 0 && is_there) operation.group = 1;
  const auto& seats = memory.members[operation.group];
  if (carries_on()) return operation;
  operation.root = seats[(dice >> 1) % seats.size()];
  const double share = static_cast<double>((dice >> 16) & 0xffff) / 65536.0;
  if (share >= core_.swarm.rooted || seats.size() == 1) return operation;
  operation.kind = ((dice >> 40) & 1) != 0 ? Kind::Broadcast : Kind::Reduce;
  return operation;
}

bool Ranks::choose_operation(Process& p) {
  EpochMemory& memory = *p.mine;
  const std::int32_t me = p.seat->value();
  for (; p.index_in_step < operations_of(p.step); ++p.index_in_step) {
    Operation operation = plan(memory, p.step, p.index_in_step);
    if ((memory.seat_set[operation.group] & bit(me)) == 0) continue;
    operation.number = ++p.numbers[operation.group];
    auto& known = memory.operations[operation.group];
    if (known.size() < operation.number) known.push_back(operation);
    REGROUP_ASSERT(known.size() >= operation.number);
    REGROUP_ASSERT(known[operation.number - 1].step == operation.step &&
                   known[operation.number - 1].index == operation.index);
    p.operation = operation;
    p.input = input_of(p.state, operation, me);
    p.buffer = p.input;
    p.kept = p.input;
    ++p.index_in_step;
    return true;
  }
  return false;
}

/// A reader of the operation whose slot is about to be reused that may still need it (rule
/// RETAIN=2).
std::optional<std::int32_t> Ranks::reader_behind(Process& p) {
  if (REGROUP_MUTANT(REUSE_SLOT_AT_ONCE)) return std::nullopt;
  EpochMemory& memory = bound(p);
  const Slot& slot = lane(p).slots[p.operation.number & 1];
  const std::uint64_t old = slot.number;
  if (old == 0 || slot.epoch != memory.view.epoch) return std::nullopt;
  const Operation& before = memory.operations[p.operation.group][old - 1];
  for (const std::int32_t seat : memory.members[p.operation.group]) {
    if (seat == p.seat->value() || !before.receives(seat)) continue;
    const auto& word = memory.blocks[static_cast<std::size_t>(seat)].lanes[p.operation.group].word;
    const spi::WordState state = spi::read(word);
    if (state.wedged || state.number < old) return seat;
  }
  return std::nullopt;
}

std::optional<std::int32_t> Ranks::not_arrived(Process& p) {
  EpochMemory& memory = bound(p);
  for (const std::int32_t seat : memory.members[p.operation.group]) {
    if (!p.operation.sends(seat)) continue;
    const Block& block = memory.blocks[static_cast<std::size_t>(seat)];
    if (block.lanes[p.operation.group].arrived < p.operation.number) return seat;
  }
  return std::nullopt;
}

/// A member whose contribution to an earlier operation is not published yet (rule HAND=2).
std::optional<std::int32_t> Ranks::not_published(Process& p) {
  EpochMemory& memory = bound(p);
  const auto& operations = memory.operations[p.operation.group];
  for (const std::int32_t seat : memory.members[p.operation.group]) {
    const Block& block = memory.blocks[static_cast<std::size_t>(seat)];
    const std::uint64_t arrived = block.lanes[p.operation.group].arrived;
    for (std::uint64_t number = p.operation.number - 1; number > arrived; --number) {
      if (operations[number - 1].sends(seat)) return seat;
    }
  }
  return std::nullopt;
}

void Ranks::enter_operation(Process& p) {
  const bool late = p.installed->view.epoch > p.mine->view.epoch;
  if (REGROUP_MUTANT(LATE_IS_LOST) && late) return revoked(p);
  if (spi::read(lane(p).word).wedged) return go(p, At::Decide);
  if (p.operation.sends(p.seat->value())) {
    if (const auto behind = reader_behind(p)) return watch(bound(p), *behind, p);
  }
  go(p, At::Publish);
}

void Ranks::publish(Process& p) {
  const std::int32_t me = p.seat->value();
  const bool receives = p.operation.receives(me);
  if (p.operation.sends(me)) {
    Block::Lane& mine = lane(p);
    mine.slots[p.operation.number & 1] = {*p.seat, p.incarnation, p.mine->view.epoch,
                                          p.operation.number, p.input};
    mine.arrived = p.operation.number;
    Record record = record_of(p, receives ? What::Publish : What::HandedOver);
    record.epoch = bound(p).view.epoch;
    record.group = p.operation.group;
    record.number = p.operation.number;
    record.other = p.step;
    core_.record(record);
    changed(bound(p), me);
  }
  if (receives) return go(p, At::Await);
  if (REGROUP_MUTANT(HANDOVER_MOVES_WORD)) (void)spi::try_advance(lane(p).word, p.operation.number);
  next_operation(p);
}

void Ranks::await_arrivals(Process& p) {
  if (spi::read(lane(p).word).wedged) return go(p, At::Decide);
  if (core_.fault(core_.swarm.self_wedge)) {
    // A deadline passed: the rank wedges its own word and tells its agent at once.
    spi::wedge(lane(p).word);
    changed(bound(p), p.seat->value());
    news_->wedged_itself(p);
    return go(p, At::Decide);
  }
  if (const auto late = not_arrived(p)) return watch(bound(p), *late, p);
  go(p, At::Reduce);
}

void Ranks::compute(Process& p, What what) {
  EpochMemory& memory = bound(p);
  Record record = record_of(p, what);
  record.group = p.operation.group;
  record.number = p.operation.number;
  for (const std::int32_t seat : memory.members[p.operation.group]) {
    if (!p.operation.sends(seat)) continue;
    const Slot& slot = memory.blocks[static_cast<std::size_t>(seat)]
                           .lanes[p.operation.group]
                           .slots[p.operation.number & 1];
    const bool is_theirs = slot.rank.value() == seat && slot.number == p.operation.number &&
                           slot.incarnation == p.mine->view.seats[static_cast<std::size_t>(seat)] &&
                           slot.epoch == p.mine->view.epoch;
    const bool is_right = slot.value == input_of(p.state, p.operation, seat);
    if (!is_theirs) record.other |= kForeign;
    if (!is_right) record.other |= kWrongValue;
    const std::uint64_t contributor = slot.rank.value() < 0 ? 0 : bit(slot.rank.value());
    if ((record.seats & contributor) != 0) record.other |= kTwice;
    record.seats |= contributor;
    record.digest = combine(record.digest, combine(slot.value, static_cast<std::uint64_t>(seat)));
  }
  std::uint64_t senders = 0;
  for (const std::int32_t seat : memory.members[p.operation.group]) {
    if (p.operation.sends(seat)) senders |= bit(seat);
  }
  if (record.seats != senders) record.other |= kNotAll;
  core_.record(record);
  p.buffer = record.digest;
  p.out_seats = record.seats;
}

void Ranks::reduce(Process& p) {
  compute(p, What::Reduce);
  go(p, At::Complete);
}

void Ranks::complete(Process& p) {
  if (const auto missing = not_published(p)) {
    if (spi::read(lane(p).word).wedged) return go(p, At::Decide);
    return watch(bound(p), *missing, p);
  }
  if (!spi::try_advance(lane(p).word, p.operation.number)) return go(p, At::Decide);
  done(p);
}

void Ranks::decide(Process& p) {
  const auto outcome = spi::verdict(lane(p).word, p.operation.number);
  if (!outcome) return;  // the agent's decision changes this block, and that wakes its owner
  if (!*outcome) return revoked(p);
  if (!p.operation.receives(p.seat->value())) return next_operation(p);
  compute(p, What::Reduce);  // flush: from retained data
  done(p);
}

void Ranks::revoked(Process& p) {
  if (p.operation.receives(p.seat->value())) {
    if (!REGROUP_MUTANT(INPUT_NOT_RESTORED)) p.buffer = p.kept;
    Record record = record_of(p, What::Lost);
    record.group = p.operation.group;
    record.number = p.operation.number;
    record.digest = p.buffer;
    record.other = p.input;
    core_.record(record);
  }
  interrupt(p, false);
}

void Ranks::done(Process& p) {
  ++operations_done_;
  Record record = record_of(p, What::Done);
  record.group = p.operation.group;
  record.number = p.operation.number;
  record.digest = p.buffer;
  record.seats = p.out_seats;
  record.other = p.operation.step * 1024 + p.operation.index;
  core_.record(record);
  changed(bound(p), p.seat->value());
  next_operation(p);
}

void Ranks::next_operation(Process& p) {
  // What every member of the job knows goes into the state; a broadcast's root knows what it sent.
  if (p.operation.group == 0 && p.operation.kind != Kind::Reduce) {
    const bool is_root = p.operation.kind == Kind::Broadcast && p.seat->value() == p.operation.root;
    const std::uint64_t result =
        is_root ? combine(0, combine(p.input, static_cast<std::uint64_t>(p.operation.root)))
                : p.buffer;
    p.step_digest = combine(p.step_digest, result);
  }
  go(p, choose_operation(p) ? At::Enter : At::Prepare);
}

// ---- commit ---------------------------------------------------------------------------------

/// The last step of an epoch that a planned change ends: this one, if this host was asked to stop.
void Ranks::announce_planned_end(Process& p) {
  if ((bound(p).end_wanted & (std::uint64_t{1} << p.host)) == 0) return;
  bound(p).blocks[static_cast<std::size_t>(p.seat->value())].last_step = p.step;
}

void Ranks::prepare(Process& p) {
  Block& block = bound(p).blocks[static_cast<std::size_t>(p.seat->value())];
  if (!REGROUP_MUTANT(PLANNED_END_ANNOUNCED_LATE)) announce_planned_end(p);
  if (REGROUP_MUTANT(PREPARE_PLAIN_STORE)) {
    block.step.store((block.step.load() & ~spi::kNumberMask) | p.step);
  } else if (!spi::try_advance(block.step, p.step)) {
    return go(p, At::StepVerdict);
  }
  Record record = record_of(p, What::Prepare);
  record.number = p.step;
  core_.record(record);
  changed(bound(p), p.seat->value());
  go(p, At::AwaitPrepared);
}

void Ranks::await_prepared(Process& p) {
  if (REGROUP_MUTANT(PLANNED_END_ANNOUNCED_LATE)) announce_planned_end(p);
  EpochMemory& memory = bound(p);
  for (const std::int32_t seat : memory.members[0]) {
    if (spi::read(memory.blocks[static_cast<std::size_t>(seat)].step).number >= p.step) continue;
    const Block& mine = memory.blocks[static_cast<std::size_t>(p.seat->value())];
    if (spi::read(mine.step).wedged) return go(p, At::StepVerdict);
    return watch(memory, seat, p);
  }
  committed(p);
}

void Ranks::step_verdict(Process& p) {
  const Block& block = bound(p).blocks[static_cast<std::size_t>(p.seat->value())];
  const auto outcome = spi::verdict(block.step, p.step);
  if (!outcome) return;
  if (*outcome) return committed(p);
  Record record = record_of(p, What::StepAborted);
  record.number = p.step;
  core_.record(record);
  interrupt(p, true);
}

void Ranks::committed(Process& p) {
  p.applied = p.step;
  p.state = combine(p.state, combine(p.step, p.step_digest));
  Record record = record_of(p, What::Committed);
  record.number = p.step;
  record.digest = p.state;
  core_.record(record);
  ++p.step;
  begin_step(p);
}

void Ranks::over(Process& p) {
  news_->leaves(p);
  go(p, At::Leave);
}

void Ranks::leave(Process& p) { news_->exits(p); }

}  // namespace regroup::sim
