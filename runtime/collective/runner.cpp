#include "collective/runner.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <numeric>
#include <utility>

#include "base/check.hpp"
#include "collective/kernels.hpp"
#include "collective/runner_impl.hpp"
#include "spi/planned_end.hpp"

namespace regroup::collective {
namespace {

constexpr std::uint64_t kDigestSeed = 0x9e3779b97f4a7c15;

/// One more operation in the running digest of a rank's calls.
std::uint64_t fold_digest(std::uint64_t digest, std::uint64_t meta, std::uint64_t count) {
  digest = (digest ^ meta) * 0xff51afd7ed558ccd;
  digest = (digest ^ (digest >> 32) ^ count) * 0xc4ceb9fe1a85ec53;
  return digest ^ (digest >> 29);
}

/// Whether run_small() does it: the whole operation in one line of each member, awaited from all.
bool is_small(const OpDescriptor& d) {
  return d.kind == OpKind::Barrier ||
         (d.kind == OpKind::AllReduce && d.count * size_of(d.dtype) <= spi::kInlineBytes);
}

}  // namespace

std::uint64_t hash_of(const std::size_t* counts, int ranks) {
  std::uint64_t hash = kDigestSeed;
  for (int rank = 0; rank < ranks; ++rank)
    hash = fold_digest(hash, static_cast<std::uint64_t>(rank), counts[rank]);
  return hash;
}

namespace {

/// Of a single operation.
inline OpDescriptor describe_single(const OpSpec& spec) {
  OpDescriptor d;
  d.kind = spec.kind;
  if (spec.kind == OpKind::Barrier) return d;
  d.count = spec.count;
  d.dtype = spec.dtype;
  if (spi::reduces(spec.kind)) {
    d.op = spec.op;
    if (spec.op == ReduceOp::PremulSum) d.detail = std::bit_cast<std::uint64_t>(spec.factor);
    if (spec.kind == OpKind::AllReduce) return d;
  }
  if (!spi::is_symmetric(spec.kind)) d.root = spec.root;
  if (spi::has_counts(spec.kind)) [[unlikely]] {
    const Counts& counts = spec.counts;
    d.count = 0;
    // What a rank sends to each other one need not be alike; the counts themselves are compared.
    if (spec.kind == OpKind::AllToAllV) return d;
    d.count = std::accumulate(counts.shares, counts.shares + counts.ranks, std::uint64_t{0});
    d.detail = fold_digest(hash_of(counts.shares, counts.ranks), d.detail, 0);
  }
  return d;
}

OpDescriptor describe_parts(const OpSpec& spec) {
  OpDescriptor d{.kind = OpKind::Coalesced, .count = spec.count, .detail = kDigestSeed};
  for (std::size_t i = 0; i < spec.count; ++i) {
    const OpDescriptor part = describe_single(spec.parts[i]);
    d.detail = fold_digest(d.detail, spi::pack_meta(part), part.count);
    d.detail = fold_digest(d.detail, part.detail, i);
  }
  return d;
}

}  // namespace

OpDescriptor describe_call(const OpSpec& spec) {
  return spec.kind == OpKind::Coalesced ? describe_parts(spec) : describe_single(spec);
}

std::string counts_differ(std::uint64_t sequence, DType dtype, int from, int to, std::uint64_t sent,
                          std::uint64_t due) {
  return fmt::format(
      "operation {} of the group differs: in all_to_all_v rank {} sends {} {} to "
      "rank {}, which receives {} from it",
      sequence, from, sent, spi::name(dtype), to, due);
}

const char* name(OutcomeKind kind) {
  switch (kind) {
    case OutcomeKind::Done: return "Done";
    case OutcomeKind::HandedOver: return "HandedOver";
    case OutcomeKind::Lost: return "Lost";
    case OutcomeKind::Mismatch: return "Mismatch";
    case OutcomeKind::Expired: return "Expired";
    case OutcomeKind::Damaged: return "Damaged";
  }
  return "?";
}

const char* name(Instant instant) {
  switch (instant) {
    case Instant::Enter: return "enter";
    case Instant::BeforeCopyIn: return "before_copy_in";
    case Instant::AfterCopyIn: return "after_copy_in";
    case Instant::AfterPublish: return "after_publish";
    case Instant::AfterAwait: return "after_await";
    case Instant::AfterReduce: return "after_reduce";
    case Instant::BeforeComplete: return "before_complete";
    case Instant::AfterComplete: return "after_complete";
    case Instant::BeforePrepare: return "before_prepare";
    case Instant::AfterPrepare: return "after_prepare";
  }
  return "?";
}

SlotRunner::Impl::Impl(spi::SharedSlots slots, int me, const RunnerOptions& options)
    : slots_(slots),
      me_(me),
      own_(slots, me),
      members_(slots.members()),
      options_(options),
      waiter_(slots, me, options.cores, options.pump),
      point_to_point_(slots, me, options.cores, options.pump, [this] { return find_damage(); }),
      digest_(kDigestSeed),
      seen_(static_cast<std::size_t>(members_)),
      last_send_(static_cast<std::size_t>(members_)),
      sources_(static_cast<std::size_t>(members_)),
      current_{.plan = Plan({}, {.members = 1, .me = 0, .slot_bytes = slots.slot_bytes()})} {
  REGROUP_ASSERT(me >= 0 && me < members_);
}

Outcome SlotRunner::Impl::run(const OpSpec& spec, Deadline until) {
  begin(spec);
  hook(Instant::Enter);
  if (slots_.header().poisoned_by.load(std::memory_order_acquire) != 0) [[unlikely]] {
    return stop(Progress::Mismatched, until);
  }
  if (spi::kFaultTolerance && spi::read(own_.group()).wedged) [[unlikely]] {
    if (current_.small) follow(StepKind::Reclaim);
    return decide(until);
  }
  return current_.small ? run_small(until) : drive(until);
}

// What fits into the line that everybody polls anyway: latency is all that counts there. The steps
// are those of the operation's plan, without making them.
Outcome SlotRunner::Impl::run_small(Deadline until) {
  const std::uint64_t turn = current_.first_turn;
  const std::size_t bytes = current_.descriptor.count * size_of(current_.descriptor.dtype);
  const auto interrupted = [&](StepKind at, Progress why) {
    follow(at);
    return stop(why, until);
  };
  if (const auto progress = reclaim(turn, until); progress != Progress::Finished) [[unlikely]] {
    return interrupted(StepKind::Reclaim, progress);
  }
  if (bytes != 0) {
    hook(Instant::BeforeCopyIn, 0);
    std::memcpy(slots_.line(me_, turn).payload, current_.spec.in, bytes);
    hook(Instant::AfterCopyIn, 0);
  }
  publish(turn);
  hook(Instant::AfterPublish, 0);
  if (const auto progress = await_all(turn, true, until); progress != Progress::Finished)
      [[unlikely]] {
    return interrupted(StepKind::AwaitAll, progress);
  }
  hook(Instant::AfterAwait, 0);
  if (bytes != 0 && current_.mismatch.empty()) {
    for (int member = 0; member < members_; ++member) {
      sources_[static_cast<std::size_t>(member)] = slots_.line(member, turn).payload;
    }
    current_.output_touched = true;
    reduce(current_.spec.dtype, current_.spec.op, current_.spec.out, sources_.data(), members_,
           current_.spec.count, {members_, current_.spec.factor});
    hook(Instant::AfterReduce, 0);
  }
  return complete(until);
}

void SlotRunner::Impl::make_plan() {
  const OpSpec& spec = current_.spec;
  REGROUP_ASSERT(!spi::has_counts(spec.kind) || spec.counts.ranks >= members_);
  const bool part = current_.parts != nullptr;
  const OpDescriptor d = part ? describe_call(spec) : current_.descriptor;
  current_.plan = Plan(d, {.members = members_,
                           .me = me_,
                           .slot_bytes = slots_.slot_bytes(),
                           .forced = forced_algorithm(d),
                           .own_from_input = options_.own_from_input,
                           .counts = spec.counts,
                           .coalesced = part});
}

// Goes over from run_small() to the plan: its next step is the one of kind `reached`, or none.
void SlotRunner::Impl::follow(std::optional<StepKind> reached) {
  current_.small = false;
  make_plan();
  REGROUP_ASSERT(current_.plan.inline_payload() && current_.plan.turns() == 1);
  current_.pending = false;
  while (!current_.pending && current_.plan.next(current_.step)) {
    current_.pending = current_.step.kind == reached;
  }
}

std::optional<Algorithm> SlotRunner::Impl::forced_algorithm(const OpDescriptor& d) const {
  if (options_.own_from_input && d.kind == OpKind::AllReduce) return Algorithm::OneShot;
  if (options_.algorithm || options_.rules.empty()) return options_.algorithm;
  return options_.rules.pick(d.kind, d.count * size_of(d.dtype));
}

void SlotRunner::Impl::begin(const OpSpec& spec) {
  if (sequence_ != 0) record_sends();
  ++sequence_;
  const OpDescriptor descriptor =
      spec.kind == OpKind::Coalesced ? describe_parts(spec) : describe_single(spec);
  current_.descriptor = descriptor;
  current_.parts = nullptr;
  current_.small = is_small(descriptor) && !forced_algorithm(descriptor);
  if (current_.small) {
    current_.spec = spec;
    current_.first_turn = next_turn_++;
  } else if (descriptor.kind == OpKind::Coalesced) {
    begin_parts(spec);
  } else {
    start(spec);
  }
  current_.pending = current_.flushing = current_.output_touched = false;
  current_.unsettled = current_.differs = false;
  if (!current_.mismatch.empty()) current_.mismatch.clear();
  if (!current_.damage.empty()) current_.damage.clear();

  const std::uint64_t meta = spi::pack_meta(descriptor);
  digest_ = fold_digest(digest_, meta, descriptor.count);
  if (descriptor.detail != 0) [[unlikely]]
    digest_ = fold_digest(digest_, descriptor.detail, 0);
  spi::LedgerEntry& entry = slots_.ledger(me_, sequence_);
  entry.sequence.store(0, std::memory_order_relaxed);
  // Release: whoever reads one of these finds the 0 (or what follows) at its second look.
  entry.meta.store(meta, std::memory_order_release);
  entry.count.store(descriptor.count, std::memory_order_release);
  entry.detail.store(descriptor.detail, std::memory_order_release);
  entry.arrival_ns.store(options_.arrival_ns != nullptr ? *options_.arrival_ns : 0,
                         std::memory_order_release);
  entry.sequence.store(sequence_, std::memory_order_release);
  keep_input(spec);
}

void SlotRunner::Impl::start(const OpSpec& spec) {
  current_.spec = spec;
  make_plan();
  current_.first_turn = next_turn_;
  next_turn_ += current_.plan.turns();
}

// Everybody's digest is checked before anything is written, and nobody completes before everybody
// has given all: where the first or last part does not do that, a barrier does.
void SlotRunner::Impl::begin_parts(const OpSpec& spec) {
  current_.parts = spec.parts;
  current_.parts_count = spec.count;
  current_.position = spi::is_symmetric(spec.parts[0].kind) ? 1 : 0;
  start(current_.position == 0 ? OpSpec{} : spec.parts[0]);
}

bool SlotRunner::Impl::next_part() {
  if (current_.parts == nullptr || current_.position > current_.parts_count) return false;
  const std::size_t at = current_.position++;  // the part behind `position`
  if (at < current_.parts_count) {
    start(current_.parts[at]);
    return true;
  }
  if (spi::is_symmetric(current_.parts[at - 1].kind)) return false;
  start(OpSpec{});
  return true;
}

// Completing operation k needs the contributions to the operations before it, not those to k.
void SlotRunner::Impl::record_sends() {
  const OpDescriptor& d = current_.descriptor;
  // A symmetric operation that ended was awaited from everybody: everyone_at_ knows.
  if (spi::is_symmetric(d.kind)) return;
  for (int member = 0; member < members_; ++member) {
    if (const auto turn = current_.plan.last_send_turn(member)) {
      last_send_[static_cast<std::size_t>(member)] = absolute(*turn);
    }
  }
}

/// What of the input the output will cover; none where it is covered by itself.
std::optional<SlotRunner::Impl::Kept> SlotRunner::Impl::overlap_of(const OpSpec& spec) const {
  const bool part = current_.parts != nullptr;
  const OpDescriptor d = part ? describe_call(spec) : current_.descriptor;
  const OpExtent extent = extent_of(d, spec.counts, members_, me_);
  if (!spec.keep_input || extent.in_bytes == 0 || extent.out_bytes == 0) return std::nullopt;
  const auto in = reinterpret_cast<std::uintptr_t>(spec.in);
  const auto out = reinterpret_cast<std::uintptr_t>(spec.out);
  const std::uintptr_t begin = std::max(in, out);
  const std::uintptr_t end = std::min(in + extent.in_bytes, out + extent.out_bytes);
  if (begin >= end) return std::nullopt;
  const bool own_place = spi::gathers(d.kind) && !spi::scatters(d.kind) &&
                         in == out + share_offset(d, spec.counts.shares, me_);
  if (own_place) return std::nullopt;
  return Kept{static_cast<std::byte*>(spec.out) + (begin - out), end - begin};
}

void SlotRunner::Impl::keep_input(const OpSpec& spec) {
  keep_ = Keep::Nothing;
  if (!spi::kFaultTolerance) return;
  const bool in_place =
      spec.kind == OpKind::AllReduce && spec.in == spec.out && spec.keep_input && spec.count != 0;
  const bool in_one_chunk = current_.small || current_.plan.chunks() == 1;
  if (in_place) {
    // What I publish in one chunk is the whole input.
    keep_ = in_one_chunk ? Keep::InSlot : Keep::ByChunk;
    kept_up_to_ = 0;
    if (!in_one_chunk) kept_.reserve(spec.count * size_of(spec.dtype));
    return;
  }
  if (current_.small || (spec.kind == OpKind::AllReduce && in_one_chunk)) return;
  keep_copies();
}

void SlotRunner::Impl::keep_copies() {
  kept_ranges_.clear();
  std::size_t bytes = 0;
  const auto add = [&](const OpSpec& each) {
    auto kept = overlap_of(each);
    if (!kept) return;
    kept->copy_offset = bytes;
    bytes += kept->bytes;
    kept_ranges_.push_back(*kept);
  };
  if (current_.parts == nullptr) {
    add(current_.spec);
  } else {
    for (std::size_t i = 0; i < current_.parts_count; ++i) add(current_.parts[i]);
  }
  if (kept_ranges_.empty()) return;
  kept_.reserve(bytes);
  for (const Kept& kept : kept_ranges_)
    std::memcpy(kept_.data() + kept.copy_offset, kept.at, kept.bytes);
  keep_ = Keep::InCopy;
}

// The others have what they wait for, and the chunk is still in the cache: it is read from memory
// once. A chunk that is published in two turns is kept with the first one.
void SlotRunner::Impl::keep_chunk(const Step& step) {
  if (keep_ != Keep::ByChunk || current_.flushing || step.in_offset != kept_up_to_) return;
  copy_past_caches(kept_.data() + kept_up_to_,
                   static_cast<const std::byte*>(current_.spec.in) + kept_up_to_, step.bytes);
  kept_up_to_ += step.bytes;
}

void SlotRunner::Impl::restore_input() {
  if (!current_.output_touched) return;
  switch (keep_) {
    case Keep::Nothing: break;
    case Keep::InSlot:
      std::memcpy(current_.spec.out, buffer(me_, absolute(0)),
                  current_.spec.count * size_of(current_.spec.dtype));
      break;
    case Keep::InCopy:
      for (const Kept& kept : kept_ranges_)
        std::memcpy(kept.at, kept_.data() + kept.copy_offset, kept.bytes);
      break;
    case Keep::ByChunk: std::memcpy(current_.spec.out, kept_.data(), kept_up_to_); break;
  }
}

Outcome SlotRunner::Impl::answer(OutcomeKind kind, std::string text) const {
  return {kind, sequence_, std::move(text)};
}

Outcome SlotRunner::Impl::drive(Deadline until) {
  const Progress progress = execute(until);
  if (progress != Progress::Finished) [[unlikely]]
    return stop(progress, until);
  return complete(until);
}

Outcome SlotRunner::Impl::complete(Deadline until) {
  const OpDescriptor& d = current_.descriptor;
  hook(Instant::BeforeComplete);
  // Who receives nothing has no outcome, and must not move its word: others may be unable to
  // finish.
  if (!spi::receives(d.kind, d.root, me_)) return answer(OutcomeKind::HandedOver);
  if (!spi::is_symmetric(d.kind)) {
    const Progress progress = await_handed_over(until);
    if (progress != Progress::Finished) [[unlikely]]
      return stop(progress, until);
  }
  if (!own_.complete(sequence_)) [[unlikely]] {
    if (current_.small) follow(std::nullopt);
    return decide(until);
  }
  spi::ring_waiters(slots_, me_);
  hook(Instant::AfterComplete);
  return finish();
}

Outcome SlotRunner::Impl::finish() {
  const OpDescriptor& d = current_.descriptor;
  if (!current_.mismatch.empty()) [[unlikely]]
    return answer(OutcomeKind::Mismatch, current_.mismatch);
  const bool receives = spi::receives(d.kind, d.root, me_);
  return {receives ? OutcomeKind::Done : OutcomeKind::HandedOver, sequence_, {}};
}

Outcome SlotRunner::Impl::stop(Progress why, Deadline until) {
  switch (why) {
    case Progress::Finished: return complete(until);
    case Progress::Wedged: return decide(until);
    case Progress::Mismatched:
      restore_input();
      return answer(OutcomeKind::Mismatch,
                    spi::read_poison(slots_).value_or("the ranks called different operations"));
    case Progress::Expired:
      spi::wedge(own_.group());
      current_.unsettled = true;
      return answer(OutcomeKind::Expired,
                    name_call(current_.descriptor, sequence_) + " did not end before its deadline");
    case Progress::Damaged:
      own_.restore();
      current_.unsettled = true;
      return answer(OutcomeKind::Damaged, current_.damage);
  }
  return answer(OutcomeKind::Damaged, "no such progress");
}

// Wedged: nothing is returned before the decision stands in the own word, which alone is asked.
Outcome SlotRunner::Impl::decide(Deadline until) {
  std::optional<bool> done;
  const auto decided = [&] {
    done = spi::verdict(own_.group(), sequence_);
    return done.has_value();
  };
  const spi::WaitEnd end = await_decision(options_.epoch, decided, own_wait(until));
  current_.unsettled = end != spi::WaitEnd::Ready;
  if (current_.unsettled)
    return without_decision(end, sequence_, name_call(current_.descriptor, sequence_));
  if (!*done) {
    restore_input();
    return answer(OutcomeKind::Lost);
  }
  // Somebody completed this operation or a later one, so my contribution was out before the wedge.
  const OpDescriptor& d = current_.descriptor;
  if (!spi::receives(d.kind, d.root, me_)) return answer(OutcomeKind::HandedOver);
  current_.flushing = true;
  const Progress progress = execute(until);
  if (progress == Progress::Finished) return finish();
  return stop(progress, until);
}

Outcome SlotRunner::Impl::settle(Deadline until) {
  if (!current_.unsettled) return finish();
  return decide(until);
}

Outcome SlotRunner::Impl::commit(std::uint64_t step, Deadline until) {
  hook(Instant::BeforePrepare, step, -1);
  spi::announce_last_step(slots_, me_, step);
  if (!own_.prepare(step)) return verdict_of(step, until);
  spi::ring_waiters(slots_, me_);
  hook(Instant::AfterPrepare, step, -1);
  for (int member = 0; member < members_; ++member) {
    const spi::Word& word = slots_.step_word(member);
    // A wedged word still says what its member prepared.
    const auto prepared = [&] { return spi::read(word).number >= step; };
    switch (
        waiter_.wait(member, &own_.step(), until, prepared, [this] { return notice_damage(); })) {
      case spi::WaitEnd::Ready: break;
      case spi::WaitEnd::Wedged: return verdict_of(step, until);
      case spi::WaitEnd::Interrupted:
        own_.restore();
        return {OutcomeKind::Damaged, step, std::move(damage_)};
      case spi::WaitEnd::Expired: spi::wedge(own_.step()); return not_prepared(step, member);
    }
  }
  return {OutcomeKind::Done, step, {}};
}

Outcome SlotRunner::Impl::verdict_of(std::uint64_t step, Deadline until) {
  return step_verdict(own_, options_.epoch, step, own_wait(until));
}

SlotRunner::SlotRunner(spi::SharedSlots slots, int me, const RunnerOptions& options)
    : impl_(std::make_unique<Impl>(slots, me, options)) {}
SlotRunner::~SlotRunner() = default;

Outcome SlotRunner::run(const OpSpec& spec, Deadline until) { return impl_->run(spec, until); }
Outcome SlotRunner::settle(Deadline until) { return impl_->settle(until); }
Outcome SlotRunner::commit(std::uint64_t step, Deadline until) {
  return impl_->commit(step, until);
}
Outcome SlotRunner::send(const void* data, std::size_t count, DType dtype, int destination,
                         std::uint32_t tag, Deadline until) {
  return impl_->after_message(
      impl_->point_to_point().send(data, count, dtype, destination, tag, until));
}
Outcome SlotRunner::recv(void* data, std::size_t count, DType dtype, int source, std::uint32_t tag,
                         Deadline until) {
  return impl_->after_message(impl_->point_to_point().recv(data, count, dtype, source, tag, until));
}
Outcome SlotRunner::find_sender(std::uint32_t tag, int& source, Deadline until) {
  return impl_->after_message(impl_->point_to_point().find_sender(tag, source, until));
}
void SlotRunner::wedge() {
  spi::wedge(impl_->slots().group_word(impl_->me()));
  spi::wedge(impl_->slots().step_word(impl_->me()));
}
std::optional<std::string> SlotRunner::look_for_damage() { return impl_->look_for_damage(); }
bool SlotRunner::ends_after(std::uint64_t step) const {
  return spi::is_last_step(impl_->slots(), step);
}
std::uint64_t SlotRunner::sequence() const { return impl_->sequence(); }
const spi::SharedSlots& SlotRunner::slots() const { return impl_->slots(); }
std::optional<std::uint64_t> SlotRunner::arrival_ns(int rank, std::uint64_t sequence) const {
  const auto reading = spi::read_ledger(impl_->slots(), rank, sequence);
  if (!reading) return std::nullopt;
  return reading->arrival_ns;
}

}  // namespace regroup::collective
