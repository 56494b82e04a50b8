#include "collective/message_runner.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.hpp"
#include "collective/message_runner_impl.hpp"
#include "spi/planned_end.hpp"

namespace regroup::collective {
namespace {

std::size_t index(int member) { return static_cast<std::size_t>(member); }

}  // namespace

class MessageRunner::Impl::Holding {
 public:
  explicit Holding(Impl& impl) : impl_(impl) { impl_.held_ = impl_.hub_.lock(); }
  ~Holding() {
    if (impl_.held_.owns_lock()) impl_.held_.unlock();
  }
  Holding(const Holding&) = delete;
  Holding& operator=(const Holding&) = delete;

 private:
  Impl& impl_;
};

MessageRunner::Impl::Impl(spi::SharedSlots words, int me, MessageHub& hub, MessageMembers members,
                          const RunnerOptions& options, const MessageTuning& tuning)
    : words_(words),
      me_(me),
      own_(words, me),
      members_(words.members()),
      hub_(hub),
      reach_(std::move(members)),
      options_(options),
      tuning_(tuning),
      calls_(members_, me),
      letters_(hub, *this, words_, reach_, me),
      have_(index(members_)),
      need_(index(members_)),
      behind_(index(members_)),
      prepared_(index(members_)),
      last_step_(index(members_)),
      sources_(index(members_)),
      sending_(index(members_)) {
  REGROUP_ASSERT(me >= 0 && me < members_ && reach_.channels.size() == index(members_) &&
                 reach_.incarnations.size() == index(members_));
  std::ranges::fill(prepared_, own_.prepared());
  const Holding holding(*this);
  hub_.attach(words_.epoch(), words_.group(), *this);
}

MessageRunner::Impl::~Impl() {
  const Holding holding(*this);
  if (!over_) quiesce();
  hub_.detach(words_.epoch(), words_.group());
  hub_.abandon(*this);
}

Outcome MessageRunner::Impl::run(const OpSpec& spec, Deadline until) {
  const Holding holding(*this);
  begin(spec);
  hook(Instant::Enter);
  if (!calls_.poison().empty()) return stop(Progress::Mismatched, until);
  if (spi::read(own_.group()).wedged) return decide(until);
  return drive(until);
}

void MessageRunner::Impl::begin(const OpSpec& spec) {
  if (!over_) quiesce();
  ++sequence_;
  spec_ = spec;
  descriptor_ = describe_call(spec);
  make_message_plan(descriptor_,
                    {.members = members_,
                     .me = me_,
                     .direct_bytes = tuning_.direct_bytes,
                     .chunk_bytes = tuning_.chunk_bytes,
                     .window = tuning_.window},
                    plan_);
  if (scratch_.size() < plan_.scratch_bytes) scratch_.resize(plan_.scratch_bytes);
  next_step_ = 0;
  begun_ = Clock::now();
  entered_ = over_ = said_held_ = output_touched_ = unsettled_ = false;
  damage_.clear();
  keep_input();
  for (int member = 0; member < members_; ++member) {
    if (!spi::receives(descriptor_.kind, descriptor_.root, member)) continue;
    need_[index(member)] = sequence_;
    if (member != me_) behind_[index(member)].push_back(sequence_);
  }
  calls_.called(sequence_, descriptor_);
  tell_calls();
}

// A copy is kept where the output lies over the input: to undo a lost operation, and where parts of
// the input are sent that others' parts are written over.
void MessageRunner::Impl::keep_input() {
  input_ = static_cast<const std::byte*>(spec_.in);
  kept_at_ = nullptr;
  const OpExtent extent = extent_of(descriptor_, {}, members_, me_);
  if (extent.in_bytes == 0 || extent.out_bytes == 0) return;
  const auto in = reinterpret_cast<std::uintptr_t>(spec_.in);
  const auto out = reinterpret_cast<std::uintptr_t>(spec_.out);
  const std::uintptr_t begin = std::max(in, out);
  const std::uintptr_t end = std::min(in + extent.in_bytes, out + extent.out_bytes);
  if (begin >= end) return;
  const bool gathers = descriptor_.kind == OpKind::AllGather;
  if (gathers && in == out + index(me_) * extent.in_bytes) return;  // overwritten by itself
  const bool read_late = gathers || descriptor_.kind == OpKind::ReduceScatter;
  if (!read_late && (!spi::kFaultTolerance || !spec_.keep_input)) return;
  if (kept_.size() < extent.in_bytes) kept_.resize(extent.in_bytes);
  std::memcpy(kept_.data(), spec_.in, extent.in_bytes);
  kept_at_ = static_cast<std::byte*>(spec_.out) + (begin - out);
  kept_bytes_ = end - begin;
  if (read_late) input_ = kept_.data();
}

void MessageRunner::Impl::restore_input() {
  if (kept_at_ == nullptr || !output_touched_) return;
  const auto skipped = kept_at_ - static_cast<const std::byte*>(spec_.in);
  std::memcpy(kept_at_, kept_.data() + skipped, kept_bytes_);
}

Outcome MessageRunner::Impl::drive(Deadline until) {
  const Progress progress = execute(until);
  return progress == Progress::Finished ? complete(until) : stop(progress, until);
}

// The word passes an operation only when all who receive in it, or in one before, hold what they
// need: then nothing that dies later can keep them from finishing it.
Outcome MessageRunner::Impl::complete(Deadline until) {
  if (!i_receive()) {
    hook(Instant::BeforeComplete);
    quiesce();
    return answer(OutcomeKind::HandedOver);
  }
  const Progress progress = await_held(until);
  if (progress != Progress::Finished) return stop(progress, until);
  if (calls_.differ(sequence_)) return stop(Progress::Mismatched, until);
  hook(Instant::BeforeComplete);
  if (!own_.complete(sequence_)) return decide(until);
  hook(Instant::AfterComplete);
  quiesce();
  return answer(OutcomeKind::Done);
}

Outcome MessageRunner::Impl::stop(Progress why, Deadline until) {
  switch (why) {
    case Progress::Finished: return complete(until);
    case Progress::Wedged: return decide(until);
    case Progress::Mismatched: {
      quiesce();
      restore_input();
      const std::string* differs = calls_.mismatch(sequence_);
      return answer(OutcomeKind::Mismatch, differs != nullptr ? *differs : calls_.poison());
    }
    case Progress::Expired:
      spi::wedge(own_.group());
      unsettled_ = true;
      return answer(OutcomeKind::Expired,
                    name_call(descriptor_, sequence_) + " did not end before its deadline");
    case Progress::Damaged:
      own_.restore();
      unsettled_ = true;
      return answer(OutcomeKind::Damaged, damage_);
  }
  REGROUP_UNREACHABLE("progress");
}

// Wedged: nothing is returned before the decision stands in the own word, which alone is asked.
Outcome MessageRunner::Impl::decide(Deadline until) {
  std::optional<bool> done;
  const auto decided = [&] {
    done = spi::verdict(own_.group(), sequence_);
    return done.has_value();
  };
  const spi::WaitEnd end = await_decision(options_.epoch, decided, own_wait(until));
  unsettled_ = end != spi::WaitEnd::Ready;
  if (unsettled_) return without_decision(end, sequence_, name_call(descriptor_, sequence_));
  quiesce();
  if (!*done) {
    restore_input();
    return answer(OutcomeKind::Lost);
  }
  if (!i_receive()) return answer(OutcomeKind::HandedOver);
  if (said_held_) return answer(OutcomeKind::Done);
  // Whoever completed it had heard that this rank holds it.
  restore_input();
  return answer(
      OutcomeKind::Damaged,
      fmt::format("operation {} is decided as done, and this rank never held it", sequence_));
}

Outcome MessageRunner::Impl::settle(Deadline until) {
  const Holding holding(*this);
  if (!unsettled_) return answer(i_receive() ? OutcomeKind::Done : OutcomeKind::HandedOver);
  return decide(until);
}

Outcome MessageRunner::Impl::commit(std::uint64_t step, Deadline until) {
  const Holding holding(*this);
  hook(Instant::BeforePrepare, step, -1);
  spi::announce_last_step(words_, me_, step);
  if (!own_.prepare(step)) return verdict_of(step, until);
  last_step_[index(me_)] = words_.member(me_).last_step.load(std::memory_order_relaxed);
  post_to_all(spi::MessageKind::Prepared, step, last_step_[index(me_)]);
  hook(Instant::AfterPrepare, step, -1);
  prepared_[index(me_)] = step;
  const auto prepared = [&] {
    return std::ranges::all_of(prepared_, [step](std::uint64_t theirs) { return theirs >= step; });
  };
  const auto damaged = [this] {
    damage_ = own_.find_damage();
    if (damage_.empty()) damage_ = find_broken();
    return !damage_.empty();
  };
  switch (hub_.wait(held_, &own_.step(), until, prepared, damaged)) {
    case spi::WaitEnd::Ready: break;
    case spi::WaitEnd::Wedged: return verdict_of(step, until);
    case spi::WaitEnd::Interrupted: own_.restore(); return {OutcomeKind::Damaged, step, damage_};
    case spi::WaitEnd::Expired: {
      spi::wedge(own_.step());
      const auto late =
          std::ranges::find_if(prepared_, [step](auto number) { return number < step; });
      return not_prepared(step, static_cast<int>(late - prepared_.begin()));
    }
  }
  return {OutcomeKind::Done, step, {}};
}

Outcome MessageRunner::Impl::verdict_of(std::uint64_t step, Deadline until) {
  return step_verdict(own_, options_.epoch, step, own_wait(until));
}

bool MessageRunner::Impl::ends_after(std::uint64_t step) {
  const Holding holding(*this);
  return step != 0 && std::ranges::find(last_step_, step) != last_step_.end();
}

Outcome MessageRunner::Impl::send(const void* data, std::size_t count, DType dtype, int destination,
                                  std::uint32_t tag, Deadline until) {
  const Holding holding(*this);
  return letters_.send(held_, {data, count, dtype, destination, tag}, until);
}

Outcome MessageRunner::Impl::recv(void* data, std::size_t count, DType dtype, int source,
                                  std::uint32_t tag, Deadline until) {
  const Holding holding(*this);
  return letters_.recv(held_, data, {nullptr, count, dtype, source, tag}, until);
}

std::optional<std::string> MessageRunner::Impl::look_for_damage() {
  std::string found = own_.find_damage();
  if (found.empty()) return std::nullopt;
  own_.restore();
  return found;
}

// ---- the face

MessageRunner::MessageRunner(spi::SharedSlots words, int me, MessageHub& hub,
                             MessageMembers members, const RunnerOptions& options,
                             const MessageTuning& tuning)
    : impl_(std::make_unique<Impl>(words, me, hub, std::move(members), options, tuning)) {}
MessageRunner::~MessageRunner() = default;
Outcome MessageRunner::run(const OpSpec& spec, Deadline until) { return impl_->run(spec, until); }
Outcome MessageRunner::settle(Deadline until) { return impl_->settle(until); }
Outcome MessageRunner::commit(std::uint64_t step, Deadline until) {
  return impl_->commit(step, until);
}
Outcome MessageRunner::send(const void* data, std::size_t count, DType dtype, int destination,
                            std::uint32_t tag, Deadline until) {
  return impl_->send(data, count, dtype, destination, tag, until);
}
Outcome MessageRunner::recv(void* data, std::size_t count, DType dtype, int source,
                            std::uint32_t tag, Deadline until) {
  return impl_->recv(data, count, dtype, source, tag, until);
}
std::optional<std::string> MessageRunner::look_for_damage() { return impl_->look_for_damage(); }
void MessageRunner::wedge() {
  spi::wedge(impl_->slots().group_word(impl_->me()));
  spi::wedge(impl_->slots().step_word(impl_->me()));
}
bool MessageRunner::ends_after(std::uint64_t step) const { return impl_->ends_after(step); }
std::uint64_t MessageRunner::sequence() const { return impl_->sequence(); }
const spi::SharedSlots& MessageRunner::slots() const { return impl_->slots(); }
std::optional<std::uint64_t> MessageRunner::arrival_ns(int /*rank*/,
                                                       std::uint64_t /*sequence*/) const {
  return std::nullopt;
}

}  // namespace regroup::collective
