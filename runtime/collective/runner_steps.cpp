// How each kind of step of a plan is performed.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.hpp"
#include "collective/kernels.hpp"
#include "collective/runner_impl.hpp"

namespace regroup::collective {
namespace {

// What a flush waits for was published before the decision: this long means that the memory is
// damaged.
constexpr std::chrono::seconds kFlushMax{2};
/// More elements than any memory holds: their bytes still fit into 64 bits.
constexpr std::uint64_t kCountMax = std::uint64_t{1} << 56;
static_assert(sizeof(std::size_t) == sizeof(std::uint64_t));

}  // namespace

template <class ReadyFn, class StopFn>
SlotRunner::Impl::Progress SlotRunner::Impl::wait_for(int member, Deadline until, ReadyFn&& ready,
                                                      StopFn&& stop) {
  const bool flushing = current_.flushing;
  if (flushing) until = std::min(until, Clock::now() + kFlushMax);
  const auto hopeless = [&] { return stop() || (!flushing && notice_damage()); };
  switch (waiter_.wait(member, flushing ? nullptr : &own_.group(), until, ready, hopeless)) {
    case spi::WaitEnd::Ready: return Progress::Finished;
    case spi::WaitEnd::Wedged: return Progress::Wedged;
    case spi::WaitEnd::Interrupted:
      return damage_.empty() ? Progress::Mismatched : damaged(std::exchange(damage_, {}));
    case spi::WaitEnd::Expired: break;
  }
  if (!flushing) return Progress::Expired;
  return damaged(fmt::format("operation {} is decided as done, but what rank {} published is gone",
                             sequence_, member));
}

SlotRunner::Impl::Progress SlotRunner::Impl::execute(Deadline until) {
  for (;;) {
    if (!current_.pending && !current_.plan.next(current_.step)) {
      if (!next_part()) return Progress::Finished;
      continue;
    }
    current_.pending = true;
    const Progress progress = perform(current_.step, until);
    if (progress != Progress::Finished) [[unlikely]]
      return progress;
    current_.pending = false;
    // Both sides are told, everybody's turn was awaited: the operation is over after its first
    // turn.
    if (!current_.mismatch.empty()) [[unlikely]] {
      next_turn_ = current_.first_turn + 1;
      current_.parts = nullptr;
      while (current_.plan.next(current_.step)) {
      }
      return Progress::Finished;
    }
  }
}

SlotRunner::Impl::Progress SlotRunner::Impl::perform(const Step& step, Deadline until) {
  const auto chunk = static_cast<std::int64_t>(step.chunk);
  const std::uint64_t turn = absolute(step.turn);
  switch (step.kind) {
    case StepKind::Reclaim: return reclaim(turn, until);
    case StepKind::CopyIn:
      hook(Instant::BeforeCopyIn, chunk);
      copy_in(step);
      hook(Instant::AfterCopyIn, chunk);
      return Progress::Finished;
    case StepKind::Publish:
      publish(turn);
      hook(Instant::AfterPublish, chunk);
      keep_chunk(step);
      return Progress::Finished;
    case StepKind::AwaitAll: {
      const Progress progress = await_all(turn, step.check, until);
      if (progress == Progress::Finished) hook(Instant::AfterAwait, chunk);
      return progress;
    }
    case StepKind::AwaitOne: {
      current_.differs = false;
      const Progress progress = await(step.member, turn, until);
      if (progress != Progress::Finished) return progress;
      if (step.check && current_.differs) return judge_mismatch();
      hook(Instant::AfterAwait, chunk);
      return progress;
    }
    case StepKind::Reduce:
      reduce_step(step);
      hook(Instant::AfterReduce, chunk);
      return Progress::Finished;
    case StepKind::CopyOut: copy_out(step); return Progress::Finished;
    case StepKind::CopyOwn: copy_own(step); return Progress::Finished;
    case StepKind::CopyCounts:
      hook(Instant::BeforeCopyIn, chunk);
      copy_counts(turn);
      hook(Instant::AfterCopyIn, chunk);
      return Progress::Finished;
    case StepKind::ReadCounts: return read_counts(turn);
    case StepKind::SaidRead:
      mine_.read_up_to = turn;
      waiter_.publish(slots_.member(me_).read_up_to, turn);
      return Progress::Finished;
  }
  REGROUP_UNREACHABLE("kind of step");
}

bool SlotRunner::Impl::has_published(int member, std::uint64_t turn) const {
  return slots_.line(member, turn).turn.load(std::memory_order_acquire) >= turn ||
         slots_.line(member, turn + 1).turn.load(std::memory_order_acquire) >= turn;
}

// A buffer may be stored into again once each reader of its last use has gone on (schedule.hpp,
// I1): it published a later turn, said so, or completed that operation in a word that is not
// wedged. A wedged word says nothing: its number may be the verdict already, and its member may
// still have to finish from this buffer.
SlotRunner::Impl::Progress SlotRunner::Impl::reclaim(std::uint64_t turn, Deadline until) {
  Use& use = uses_[turn & 1];
  const OpSpec& spec = current_.spec;
  const bool to_root = spi::flow_of(spec.kind) == spi::Flow::ToRoot;
  const Use mine{turn, sequence_, to_root ? spec.root : spi::kAnyMember};
  const Use old = use;
  if (old.turn != 0 && everyone_at_ <= old.turn && !current_.flushing) {
    for (int member = 0; member < members_; ++member) {
      if (member == me_ || (old.reader != spi::kAnyMember && old.reader != member)) continue;
      const auto gone_on = [&] {
        if (seen_[static_cast<std::size_t>(member)] > old.turn) return true;
        if (has_published(member, old.turn + 1)) return true;
        const auto& block = slots_.member(member);
        if (block.read_up_to.load(std::memory_order_acquire) >= old.turn) return true;
        const spi::WordState word = spi::read(block.group_word);
        return !word.wedged && word.number >= old.sequence;
      };
      const Progress progress =
          wait_for(member, until, gone_on, [&] { return called_differently(member); });
      if (progress == Progress::Mismatched) return judge_anomaly(member, old.turn, turn);
      if (progress != Progress::Finished) return progress;
    }
  }
  use = mine;
  return Progress::Finished;
}

SlotRunner::Impl::Progress SlotRunner::Impl::await(int member, std::uint64_t turn, Deadline until) {
  const spi::Line& line = slots_.line(member, turn);
  std::uint64_t found = 0;
  const auto published = [&] {
    found = line.turn.load(std::memory_order_acquire);
    return found >= turn;
  };
  const Progress progress =
      wait_for(member, until, published, [&] { return called_differently(member); });
  if (progress != Progress::Finished) [[unlikely]] {
    return progress == Progress::Mismatched ? judge_anomaly(member, found, turn) : progress;
  }
  if (found != turn) [[unlikely]]
    return judge_anomaly(member, found, turn);
  seen_[static_cast<std::size_t>(member)] = turn;
  if (line.digest.load(std::memory_order_relaxed) != digest_) current_.differs = true;
  return Progress::Finished;
}

SlotRunner::Impl::Progress SlotRunner::Impl::await_all(std::uint64_t turn, bool check,
                                                       Deadline until) {
  current_.differs = false;
  for (int member = 0; member < members_; ++member) {
    if (member == me_) continue;
    const Progress progress = await(member, turn, until);
    if (progress != Progress::Finished) [[unlikely]]
      return progress;
  }
  everyone_at_ = turn;
  if (check && current_.differs) [[unlikely]]
    return judge_mismatch();
  return Progress::Finished;
}

// A rank that receives nothing leaves its word where it is; so before mine passes its operations, I
// make sure that whoever flushes up to my number will find its contributions.
SlotRunner::Impl::Progress SlotRunner::Impl::await_handed_over(Deadline until) {
  for (int member = 0; member < members_; ++member) {
    const std::uint64_t turn = last_send_[static_cast<std::size_t>(member)];
    if (member == me_ || turn <= everyone_at_ || turn <= seen_[static_cast<std::size_t>(member)]) {
      continue;
    }
    const Progress progress = wait_for(
        member, until, [&] { return has_published(member, turn); },
        [&] { return called_differently(member); });
    if (progress == Progress::Mismatched) return judge_anomaly(member, 0, turn);
    if (progress != Progress::Finished) return progress;
    seen_[static_cast<std::size_t>(member)] = turn;
  }
  return Progress::Finished;
}

void SlotRunner::Impl::copy_in(const Step& step) {
  const auto* in = static_cast<const std::byte*>(current_.spec.in) + step.in_offset;
  collective::copy(buffer(me_, absolute(step.turn)) + step.slot_offset, in, step.bytes);
}

void SlotRunner::Impl::copy_out(const Step& step) {
  if (step.bytes == 0) return;
  current_.output_touched = true;
  auto* out = static_cast<std::byte*>(current_.spec.out) + step.out_offset;
  collective::copy(out, buffer(step.member, absolute(step.turn)) + step.slot_offset, step.bytes);
}

void SlotRunner::Impl::copy_own(const Step& step) {
  current_.output_touched = true;
  auto* out = static_cast<std::byte*>(current_.spec.out) + step.out_offset;
  collective::copy(out, static_cast<const std::byte*>(current_.spec.in) + step.in_offset,
                   step.bytes);
}

// A row of what I send to each member, and one of what I receive from each.
void SlotRunner::Impl::copy_counts(std::uint64_t turn) {
  const Counts& counts = current_.spec.counts;
  const auto row_bytes = static_cast<std::size_t>(members_) * sizeof(std::uint64_t);
  std::byte* const slot = slots_.slot(me_, turn);
  std::memcpy(slot, counts.shares, row_bytes);
  std::memcpy(slot + row_bytes, counts.recv, row_bytes);
}

// All ranks read the same rows, so they come to the same answer. Nothing is read or written by
// these numbers: each rank moves what its own call says.
SlotRunner::Impl::Progress SlotRunner::Impl::read_counts(std::uint64_t turn) {
  const auto members = static_cast<std::size_t>(members_);
  const auto count_at = [&](int member, std::size_t row, int other) {
    std::uint64_t count = 0;
    const std::size_t index = row * members + static_cast<std::size_t>(other);
    std::memcpy(&count, slots_.slot(member, turn) + index * sizeof count, sizeof count);
    return count;
  };
  std::uint64_t largest = 0;
  for (int from = 0; from < members_; ++from) {
    for (int to = 0; to < members_; ++to) {
      const std::uint64_t sent = count_at(from, 0, to);
      const std::uint64_t due = count_at(to, 1, from);
      largest = std::max(largest, sent);
      if (sent == due) continue;
      end_differently(counts_differ(sequence_, current_.spec.dtype, from, to, sent, due));
      return Progress::Finished;
    }
  }
  if (largest > kCountMax) {
    return damaged(
        fmt::format("operation {}: a rank claims to send {} elements", sequence_, largest));
  }
  next_turn_ += current_.plan.learn(largest);
  return Progress::Finished;
}

void SlotRunner::Impl::reduce_step(const Step& step) {
  if (step.bytes == 0) return;
  const std::uint64_t turn = absolute(step.turn);
  for (int member = 0; member < members_; ++member) {
    const std::byte* source = buffer(member, turn) + step.slot_offset;
    if (member == me_ && step.mine_from_input) {
      source = static_cast<const std::byte*>(current_.spec.in) + step.in_offset;
    }
    sources_[static_cast<std::size_t>(member)] = source;
  }
  std::byte* out = static_cast<std::byte*>(current_.spec.out) + step.out_offset;
  if (step.into_slot) {
    out = buffer(me_, turn + 1);
  } else {
    current_.output_touched = true;
  }
  reduce(current_.spec.dtype, current_.spec.op, out, sources_.data(), members_,
         step.bytes / size_of(current_.spec.dtype), {members_, current_.spec.factor});
}

void SlotRunner::Impl::publish(std::uint64_t turn) {
  spi::Line& line = slots_.line(me_, turn);
  mine_.turns[turn & 1] = turn;
  line.digest.store(digest_, std::memory_order_relaxed);
  waiter_.publish(line.turn, turn);
}

}  // namespace regroup::collective
