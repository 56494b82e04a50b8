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
  position_ = 0;
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

std::span<const OpSpec> MessageRunner::Impl::parts() const {
  if (spec_.kind != OpKind::Coalesced) return {&spec_, 1};
  return {spec_.parts, spec_.count};
}

std::optional<Algorithm> MessageRunner::Impl::forced_algorithm() const {
  if (options_.algorithm || options_.rules.empty()) return options_.algorithm;
  return options_.rules.pick(part_.kind, part_.count * size_of(part_.dtype));
}

void MessageRunner::Impl::begin_part() {
  part_ = parts()[position_];
  const spi::OpDescriptor descriptor = describe_call(part_);
  // Nothing else that a plan depends on changes in an epoch, where there are no counts.
  if (descriptor != planned_ || spi::has_counts(descriptor.kind)) {
    make_message_plan(descriptor,
                      {.members = members_,
                       .me = me_,
                       .direct_bytes = tuning_.direct_bytes,
                       .chunk_bytes = tuning_.chunk_bytes,
                       .window = tuning_.window,
                       .counts = part_.counts,
                       .hosts = reach_.hosts,
                       .forced = forced_algorithm(),
                       .cost = tuning_.cost},
                      plan_);
    planned_ = descriptor;
  }
  if (scratch_.size() < plan_.scratch_bytes) scratch_.resize(plan_.scratch_bytes);
  if (part_.kind == OpKind::AllToAllV) make_counts();
  keep_what_is_sent_late();
}

MessageRunner::Impl::Overlap MessageRunner::Impl::overlap_of(const OpSpec& part) const {
  const spi::OpDescriptor d = describe_call(part);
  const OpExtent extent = extent_of(d, part.counts, members_, me_);
  const auto in = reinterpret_cast<std::uintptr_t>(part.in);
  const auto out = reinterpret_cast<std::uintptr_t>(part.out);
  const std::uintptr_t begin = std::max(in, out);
  const std::uintptr_t end = std::min(in + extent.in_bytes, out + extent.out_bytes);
  if (extent.in_bytes == 0 || extent.out_bytes == 0 || begin >= end) return {};
  const bool scatters = spi::scatters(d.kind);
  Overlap overlap{{static_cast<std::byte*>(part.out) + (begin - out), end - begin}};
  if (scatters == spi::gathers(d.kind)) return overlap;
  const std::size_t offset = share_offset(d, part.counts.shares, me_);
  overlap.own_place = scatters ? out == in + offset : in == out + offset;
  if (!spi::reduces(d.kind) && overlap.own_place) overlap.kept.bytes = 0;  // by itself
  return overlap;
}

// What output is written over is put back if the operation is lost.
void MessageRunner::Impl::keep_input() {
  kept_ranges_.clear();
  if (!spi::kFaultTolerance) return;
  std::size_t bytes = 0;
  for (const OpSpec& part : parts()) {
    if (!part.keep_input) continue;
    Kept kept = overlap_of(part).kept;
    if (kept.bytes == 0) continue;
    kept.copy_offset = bytes;
    bytes += kept.bytes;
    kept_ranges_.push_back(kept);
  }
  if (kept_.size() < bytes) kept_.resize(bytes);
  for (const Kept& kept : kept_ranges_)
    std::memcpy(kept_.data() + kept.copy_offset, kept.at, kept.bytes);
}

void MessageRunner::Impl::restore_input() {
  if (!output_touched_) return;
  for (const Kept& kept : kept_ranges_)
    std::memcpy(kept.at, kept_.data() + kept.copy_offset, kept.bytes);
}

void MessageRunner::Impl::keep_what_is_sent_late() {
  input_ = static_cast<const std::byte*>(part_.in);
  const Overlap overlap = overlap_of(part_);
  if (overlap.kept.bytes == 0 || !sends_late(part_.kind, overlap.own_place)) return;
  const std::size_t bytes = extent_of(describe_call(part_), part_.counts, members_, me_).in_bytes;
  if (late_.size() < bytes) late_.resize(bytes);
  std::memcpy(late_.data(), part_.in, bytes);
  input_ = late_.data();
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
  switch (hub_.wait(held_, &own_.step(), until, prepared, [this] { return notice_damage(); })) {
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

bool MessageRunner::Impl::notice_damage() {
  damage_ = own_.find_damage();
  if (damage_.empty()) damage_ = find_broken();
  return !damage_.empty();
}

Outcome MessageRunner::Impl::entrust(std::uint64_t step, const Entrusted& what, Deadline until) {
  const Holding holding(*this);
  for (std::size_t at = 0; what.keeper >= 0 && at < what.mine.size(); at += spi::kPostedBytesMax) {
    const auto part = what.mine.subspan(at, std::min(spi::kPostedBytesMax, what.mine.size() - at));
    post(what.keeper, spi::MessageKind::Keepsake, step, at / spi::kPostedBytesMax, what.mine.size(),
         part.data(), part.size());
  }
  const auto all_here = [&] {
    return std::ranges::all_of(what.wards, [&](int ward) { return keepsakes_.has(ward, step); });
  };
  switch (hub_.wait(held_, &own_.step(), until, all_here, [this] { return notice_damage(); })) {
    case spi::WaitEnd::Ready: break;
    case spi::WaitEnd::Wedged: return {OutcomeKind::Lost, step, {}};
    case spi::WaitEnd::Interrupted: own_.restore(); return {OutcomeKind::Damaged, step, damage_};
    case spi::WaitEnd::Expired:
      return {OutcomeKind::Expired, step, "what is to be kept for others did not come"};
  }
  for (std::size_t i = 0; i < what.wards.size(); ++i)
    keepsakes_.take(what.wards[i], step, {what.places[i], what.mine.size()});
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

Outcome MessageRunner::Impl::find_sender(std::uint32_t tag, int& source, Deadline until) {
  const Holding holding(*this);
  return letters_.find_sender(held_, tag, source, until);
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
Outcome MessageRunner::entrust(std::uint64_t step, const Entrusted& what, Deadline until) {
  return impl_->entrust(step, what, until);
}
Outcome MessageRunner::send(const void* data, std::size_t count, DType dtype, int destination,
                            std::uint32_t tag, Deadline until) {
  return impl_->send(data, count, dtype, destination, tag, until);
}
Outcome MessageRunner::recv(void* data, std::size_t count, DType dtype, int source,
                            std::uint32_t tag, Deadline until) {
  return impl_->recv(data, count, dtype, source, tag, until);
}
Outcome MessageRunner::find_sender(std::uint32_t tag, int& source, Deadline until) {
  return impl_->find_sender(tag, source, until);
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
