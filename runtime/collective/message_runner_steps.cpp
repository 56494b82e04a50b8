// How each step of a plan is performed, and what happens with what others send.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "base/check.hpp"
#include "collective/kernels.hpp"
#include "collective/message_runner_impl.hpp"
#include "collective/partial_sums.hpp"

namespace regroup::collective {
namespace {

/// Operations that a receiver may be behind of those that send to it.
constexpr std::size_t kBehindMax = 32;
/// Transfers between living members end by themselves; then the channel is closed by force.
constexpr std::chrono::seconds kBufferPatience{1};
constexpr std::chrono::milliseconds kLongWait{20};
constexpr std::chrono::seconds kBrokenPatience{2};

/// What travels with MessageKind::Call.
struct CalledOperation {
  std::uint64_t meta = 0;
  std::uint64_t count = 0;
  std::uint64_t detail = 0;
};

std::size_t index(int member) { return static_cast<std::size_t>(member); }

std::uint64_t full_part(const spi::MessageHeader& header) {
  return static_cast<std::uint64_t>(header.tag) << 32 | header.part;
}

}  // namespace

template <class ReadyFn>
MessageRunner::Impl::Progress MessageRunner::Impl::wait_for(Deadline until, ReadyFn&& ready) {
  const auto stop = [this] {
    say_where_i_am();
    return notice_damage() || calls_.differ(sequence_);
  };
  // What others sent for another operation than mine is of no use.
  const auto may_go_on = [&] { return !calls_.disputed(sequence_) && ready(); };
  switch (hub_.wait(held_, &own_.group(), until, may_go_on, stop)) {
    case spi::WaitEnd::Ready: return Progress::Finished;
    case spi::WaitEnd::Wedged: return Progress::Wedged;
    case spi::WaitEnd::Expired: return Progress::Expired;
    case spi::WaitEnd::Interrupted: break;
  }
  return damage_.empty() ? Progress::Mismatched : Progress::Damaged;
}

// Ranks that called different things may wait for each other, and neither has anything to send:
// once a wait is long, the others are told what this rank is in.
void MessageRunner::Impl::say_where_i_am() {
  if (entered_ || Clock::now() - begun_ < kLongWait) return;
  entered_ = true;
  post_to_all(spi::MessageKind::Enter, sequence_, calls_.digest(sequence_));
}

// Of a member that died the decision comes first. One that lives and cannot be reached any more
// ends the epoch; in the next one it is connected anew.
std::string MessageRunner::Impl::find_broken() const {
  for (int member = 0; member < members_; ++member) {
    if (member == me_) continue;
    const MessageHub::Closed* closed = hub_.closed(reach_.channels[index(member)]);
    if (closed == nullptr || Clock::now() - closed->since < kBrokenPatience) continue;
    return fmt::format("the network does not reach rank {} of the group any more: {}", member,
                       closed->why);
  }
  return {};
}

// Where there are several parts, what one sends has left before the next one writes.
MessageRunner::Impl::Progress MessageRunner::Impl::execute(Deadline until) {
  for (; position_ < parts().size(); ++position_) {
    begin_part();
    for (const MessageStep& step : plan_.steps) {
      const Progress progress = perform(step, until);
      if (progress != Progress::Finished) return progress;
    }
    if (position_ + 1 == parts().size()) break;
    const Progress progress = await_sent(until);
    if (progress != Progress::Finished) return progress;
  }
  if (i_receive() && !said_held_) {
    said_held_ = true;
    have_[index(me_)] = sequence_;
    post_to_all(spi::MessageKind::Holds, sequence_, calls_.digest(sequence_));
  }
  return await_sent(until);
}

MessageRunner::Impl::Progress MessageRunner::Impl::await_sent(Deadline until) {
  return wait_for(until, [this] { return deferred_.empty() && sending_total_ == 0; });
}

MessageRunner::Impl::Progress MessageRunner::Impl::perform(const MessageStep& step,
                                                           Deadline until) {
  switch (step.kind) {
    case MessageStepKind::Receive: receive(step); return Progress::Finished;
    case MessageStepKind::Send: return send_part(step, until);
    case MessageStepKind::Await: return await_part(step, until);
    case MessageStepKind::Fold: fold(step); return Progress::Finished;
    case MessageStepKind::Copy: copy_step(step); return Progress::Finished;
    case MessageStepKind::Compare: return compare(step);
    case MessageStepKind::AwaitSent: return await_sent_part(step, until);
  }
  REGROUP_UNREACHABLE("kind of step");
}

std::byte* MessageRunner::Impl::at(Region region, std::size_t offset) {
  if (region == Region::Scratch) return scratch_.data() + offset;
  return static_cast<std::byte*>(part_.out) + offset;
}

const std::byte* MessageRunner::Impl::source(const MessageStep& step) {
  if (step.region == Region::Input) return input_ + step.offset;
  if (step.region == Region::Counts)
    return reinterpret_cast<const std::byte*>(counts_.data()) + step.offset;
  return at(step.region, step.offset);
}

void MessageRunner::Impl::receive(const MessageStep& step) {
  output_touched_ = output_touched_ || step.region == Region::Output;
  // Of another size than what came: then the calls differ, and a dispute ends the wait for it.
  (void)mailbox_.want({step.member, sequence_, full(step.part)}, at(step.region, step.offset),
                      step.bytes);
  if (step.bytes > spi::kPostedBytesMax) {
    post(step.member, spi::MessageKind::Ready, sequence_, full(step.part),
         calls_.digest(sequence_));
  }
}

MessageRunner::Impl::Progress MessageRunner::Impl::send_part(const MessageStep& step,
                                                             Deadline until) {
  const auto& behind = behind_[index(step.member)];
  const Progress progress = wait_for(until, [&behind] { return behind.size() <= kBehindMax; });
  if (progress != Progress::Finished) return progress;
  const std::byte* data = source(step);
  const std::uint64_t part = full(step.part);
  hook(Instant::BeforeCopyIn, step.part);
  if (step.bytes <= spi::kPostedBytesMax) {
    post(step.member, spi::MessageKind::Data, sequence_, part, calls_.digest(sequence_), data,
         step.bytes);
  } else if (const auto found = ready_.find({sequence_, step.member, part});
             found != ready_.end()) {
    ready_.erase(found);
    send_now({step.member, part, data, step.bytes});
  } else {
    deferred_.push_back({step.member, part, data, step.bytes});
  }
  hook(Instant::AfterPublish, step.part);
  return Progress::Finished;
}

void MessageRunner::Impl::send_now(const Deferred& part) {
  ++sending_[index(part.member)];
  ++sending_total_;
  moving_[++moved_] = {part.member, part.part};
  hub_.send(reach_.channels[index(part.member)],
            header(spi::MessageKind::Data, sequence_, part.part, calls_.digest(sequence_)),
            part.data, part.bytes, *this, moved_);
}

MessageRunner::Impl::Progress MessageRunner::Impl::await_sent_part(const MessageStep& step,
                                                                   Deadline until) {
  const std::pair part{step.member, full(step.part)};
  return wait_for(until, [&] {
    const auto is_it = [&](const Deferred& each) {
      return each.member == part.first && each.part == part.second;
    };
    const auto moves = [&](const auto& each) { return each.second == part; };
    return std::ranges::none_of(deferred_, is_it) && std::ranges::none_of(moving_, moves);
  });
}

MessageRunner::Impl::Progress MessageRunner::Impl::await_part(const MessageStep& step,
                                                              Deadline until) {
  const Mailbox::Part part{step.member, sequence_, full(step.part)};
  const Progress progress = wait_for(until, [&] { return mailbox_.has(part); });
  if (progress != Progress::Finished) return progress;
  mailbox_.take(part);
  hook(Instant::AfterAwait, step.part);
  return progress;
}

void MessageRunner::Impl::fold(const MessageStep& step) {
  sources_.clear();
  const bool onto_sum = step.prior != MessageStep::kNone;
  if (onto_sum) sources_.push_back(scratch_.data() + step.prior);
  for (int i = 0; i < step.count; ++i) {
    const std::size_t piece = step.places == MessageStep::kNone
                                  ? step.offset + index(i) * step.stride
                                  : plan_.places[step.places + index(i)];
    sources_.push_back(step.first + i == me_ ? input_ + step.in_offset : scratch_.data() + piece);
  }
  output_touched_ = output_touched_ || step.region == Region::Output;
  held_.unlock();
  fold_part(part_.dtype, part_.op, at(step.region, step.out_offset), sources_.data(),
            static_cast<int>(sources_.size()), step.bytes / size_of(part_.dtype),
            {members_, part_.factor}, {.onto_sum = onto_sum, .goes_on = step.goes_on});
  held_.lock();
  hook(Instant::AfterReduce, static_cast<std::int64_t>(step.out_offset));
}

void MessageRunner::Impl::copy_step(const MessageStep& step) {
  const std::byte* from =
      step.from_scratch ? scratch_.data() + step.offset : input_ + step.in_offset;
  std::byte* to = at(step.region, step.out_offset);
  if (from == to) return;
  output_touched_ = output_touched_ || step.region == Region::Output;
  held_.unlock();
  collective::copy(to, from, step.bytes);
  held_.lock();
}

void MessageRunner::Impl::make_counts() {
  counts_.assign(part_.counts.shares, part_.counts.shares + members_);
  counts_.insert(counts_.end(), part_.counts.recv, part_.counts.recv + members_);
}

// All ranks read the same numbers, so they come to the same answer. Nothing is read or written by
// them: each rank moves what its own call says.
MessageRunner::Impl::Progress MessageRunner::Impl::compare(const MessageStep& step) {
  const auto count_at = [&](int member, int at) {
    if (member == me_) return counts_[index(at)];
    std::uint64_t count = 0;
    std::memcpy(
        &count,
        scratch_.data() + step.offset + index(member) * step.stride + index(at) * sizeof count,
        sizeof count);
    return count;
  };
  for (int from = 0; from < members_; ++from) {
    for (int to = 0; to < members_; ++to) {
      const std::uint64_t sent = count_at(from, to);
      const std::uint64_t due = count_at(to, members_ + from);
      if (sent == due) continue;
      calls_.found(sequence_, counts_differ(sequence_, part_.dtype, from, to, sent, due));
      return Progress::Mismatched;
    }
  }
  return Progress::Finished;
}

MessageRunner::Impl::Progress MessageRunner::Impl::await_held(Deadline until) {
  return wait_for(until, [this] {
    for (int member = 0; member < members_; ++member) {
      if (have_[index(member)] < need_[index(member)]) return false;
    }
    return true;
  });
}

bool MessageRunner::Impl::await_buffers() {
  return hub_.wait(
             held_, nullptr, Clock::now() + kBufferPatience, [this] { return sending_total_ == 0; },
             [] { return false; }) == spi::WaitEnd::Ready;
}

// The call is over: its buffers are the caller's again. What it sends to living members ends, since
// each of them has a hub that takes it or drops it; a channel where it does not is closed.
void MessageRunner::Impl::quiesce() {
  over_ = true;
  deferred_.clear();
  while (const std::byte* place = mailbox_.next_to_withdraw()) hub_.withdraw(place);
  if (!await_buffers()) {
    for (int member = 0; member < members_; ++member) {
      if (sending_[index(member)] == 0) continue;
      ++hub_.counters().closed_by_force;
      hub_.close(reach_.channels[index(member)]);
    }
    if (!await_buffers()) hub_.abandon(*this);
  }
  mailbox_.forget(sequence_);
  ready_.erase(ready_.begin(), ready_.lower_bound({sequence_ + 1, 0, 0}));
}

// ---- messages

spi::MessageHeader MessageRunner::Impl::header(spi::MessageKind kind, std::uint64_t number,
                                               std::uint64_t part, std::uint64_t digest) const {
  return {.epoch = words_.epoch().value(),
          .incarnation = reach_.incarnations[index(me_)],
          .sequence = number,
          .digest = digest,
          .group = words_.group(),
          .part = static_cast<std::uint32_t>(part),
          .tag = static_cast<std::uint32_t>(part >> 32),
          .source = static_cast<std::uint16_t>(me_),
          .kind = kind,
          .dtype = 0};
}

void MessageRunner::Impl::post(int member, spi::MessageKind kind, std::uint64_t number,
                               std::uint64_t part, std::uint64_t digest, const void* data,
                               std::size_t bytes) {
  hub_.post(reach_.channels[index(member)], header(kind, number, part, digest), data, bytes);
}

void MessageRunner::Impl::post_to_all(spi::MessageKind kind, std::uint64_t number,
                                      std::uint64_t digest, const void* data, std::size_t bytes) {
  for (int i = 1; i < members_; ++i) {
    post((me_ + i) % members_, kind, number, 0, digest, data, bytes);
  }
}

bool MessageRunner::Impl::is_member(const spi::MessageHeader& header) const {
  const int source = header.source;
  return source < members_ && source != me_ &&
         header.incarnation == reach_.incarnations[index(source)];
}

void MessageRunner::Impl::on_message(const spi::MessageHeader& header, const std::byte* data,
                                     std::size_t bytes) {
  if (!is_member(header)) {
    ++hub_.counters().stale;
    return;
  }
  const int source = header.source;
  switch (header.kind) {
    case spi::MessageKind::Data: {
      const bool fits = calls_.fits(source, header.sequence, header.digest);
      const bool past = header.sequence < sequence_ || (header.sequence == sequence_ && over_);
      if (past || !fits) {
        ++hub_.counters().stale;
      } else if (!mailbox_.arrived({source, header.sequence, full_part(header)}, data, bytes)) {
        ++hub_.counters().refused;
      }
      break;
    }
    case spi::MessageKind::Enter: (void)calls_.fits(source, header.sequence, header.digest); break;
    case spi::MessageKind::Ready: on_ready(header); break;
    case spi::MessageKind::Holds: on_holds(header); break;
    case spi::MessageKind::Call: {
      CalledOperation call;
      if (bytes != sizeof call) break;
      std::memcpy(&call, data, sizeof call);
      calls_.heard(source, header.sequence,
                   spi::unpack_descriptor(call.meta, call.count, call.detail));
      break;
    }
    case spi::MessageKind::Prepared:
      prepared_[index(source)] = std::max(prepared_[index(source)], header.sequence);
      last_step_[index(source)] = std::max(last_step_[index(source)], header.digest);
      break;
    case spi::MessageKind::Letter:
    case spi::MessageKind::Offer:
    case spi::MessageKind::Accept:
    case spi::MessageKind::LetterData: letters_.on_message(header, data, bytes); break;
    case spi::MessageKind::Keepsake:
      if (!keepsakes_.arrived({source, header.sequence}, header.part, header.digest,
                              {data, bytes})) {
        ++hub_.counters().refused;
      }
      break;
  }
  tell_calls();
}

void MessageRunner::Impl::on_ready(const spi::MessageHeader& header) {
  const int source = header.source;
  if (!calls_.fits(source, header.sequence, header.digest)) return;
  if (header.sequence < sequence_ || (header.sequence == sequence_ && over_)) {
    ++hub_.counters().stale;
    return;
  }
  const auto waiting = std::ranges::find_if(deferred_, [&](const Deferred& each) {
    return each.member == source && each.part == full_part(header);
  });
  if (header.sequence != sequence_ || waiting == deferred_.end()) {
    ready_.insert({header.sequence, source, full_part(header)});
    return;
  }
  const Deferred part = *waiting;
  deferred_.erase(waiting);
  send_now(part);
}

void MessageRunner::Impl::on_holds(const spi::MessageHeader& header) {
  const std::size_t source = header.source;
  (void)calls_.fits(header.source, header.sequence, header.digest);
  have_[source] = std::max(have_[source], header.sequence);
  auto& behind = behind_[source];
  while (!behind.empty() && behind.front() <= have_[source]) behind.pop_front();
}

void MessageRunner::Impl::tell_calls() {
  while (const auto mine = calls_.next_to_tell()) {
    const CalledOperation call{spi::pack_meta(mine->second), mine->second.count,
                               mine->second.detail};
    post_to_all(spi::MessageKind::Call, mine->first, 0, &call, sizeof call);
  }
}

std::byte* MessageRunner::Impl::place_for(const spi::MessageHeader& header, std::size_t bytes) {
  if (!is_member(header)) return nullptr;
  if (header.kind == spi::MessageKind::LetterData) return letters_.place_for(header, bytes);
  if (header.kind != spi::MessageKind::Data || header.sequence != sequence_ || over_)
    return nullptr;
  if (header.digest != calls_.digest(sequence_)) return nullptr;
  return mailbox_.place_for({header.source, header.sequence, full_part(header)}, bytes);
}

void MessageRunner::Impl::on_placed(const spi::MessageHeader& header, bool whole) {
  if (header.kind == spi::MessageKind::LetterData) {
    letters_.on_placed(header, whole);
  } else {
    mailbox_.placed({header.source, header.sequence, full_part(header)}, whole);
  }
}

void MessageRunner::Impl::on_sent(std::uint64_t purpose, bool whole) {
  if (purpose == MessageLetters::kPurpose) {
    letters_.on_sent(whole);
    return;
  }
  const auto found = moving_.find(purpose);
  if (found == moving_.end()) return;
  --sending_[index(found->second.first)];
  --sending_total_;
  moving_.erase(found);
}

}  // namespace regroup::collective
