#include "collective/point_to_point.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "collective/runner.hpp"

namespace regroup::collective {
namespace {

std::size_t index(int rank) { return static_cast<std::size_t>(rank); }

std::string describe(std::uint64_t count, std::uint32_t dtype) {
  return fmt::format("{} {}", count, spi::name(static_cast<DType>(dtype)));
}

}  // namespace

PointToPoint::PointToPoint(spi::SharedSlots slots, int me, int cores, spi::PumpHook pump,
                           std::function<std::string()> find_damage)
    : slots_(slots),
      me_(me),
      waiter_(slots, me, cores, pump),
      queues_(index(slots.members())),
      cut_(index(slots.members())),
      written_(index(slots.members())),
      read_(index(slots.members())),
      find_all_damage_(std::move(find_damage)) {}

std::string PointToPoint::find_damage() const {
  for (int other = 0; other < slots_.members(); ++other) {
    const bool stands =
        slots_.ring(me_, other).written.load(std::memory_order_acquire) == written_[index(other)] &&
        slots_.ring(other, me_).read.load(std::memory_order_acquire) == read_[index(other)];
    if (!stands) {
      return fmt::format(
          "a position in the rings between this rank and rank {} is not the one "
          "that it wrote: somebody else wrote it",
          other);
    }
  }
  return {};
}

bool PointToPoint::notice_damage() {
  damage_ = find_all_damage_();
  return !damage_.empty();
}

// ---- bytes

std::optional<std::size_t> PointToPoint::readable(int source) {
  const std::uint64_t written = slots_.ring(source, me_).written.load(std::memory_order_acquire);
  const std::uint64_t bytes = written - read_[index(source)];
  if (bytes <= slots_.ring_bytes()) return bytes;
  damage_ = fmt::format("rank {} claims to have written {} bytes into a ring of {}", source, bytes,
                        slots_.ring_bytes());
  return std::nullopt;
}

std::optional<std::size_t> PointToPoint::writable(int destination) {
  const std::uint64_t read = slots_.ring(me_, destination).read.load(std::memory_order_acquire);
  const std::uint64_t unread = written_[index(destination)] - read;
  if (unread <= slots_.ring_bytes()) return slots_.ring_bytes() - unread;
  damage_ = fmt::format("rank {} claims to have read what rank {} did not send", destination, me_);
  return std::nullopt;
}

void PointToPoint::read_bytes(int source, std::byte* out, std::size_t bytes) {
  std::uint64_t& position = read_[index(source)];
  const std::byte* ring = slots_.ring_data(source, me_);
  const std::size_t begin = position & (slots_.ring_bytes() - 1);
  const std::size_t first = std::min(bytes, slots_.ring_bytes() - begin);
  if (first != 0) std::memcpy(out, ring + begin, first);
  if (bytes != first) std::memcpy(out + first, ring, bytes - first);
  position += bytes;
  waiter_.publish(slots_.ring(source, me_).read, position);
}

void PointToPoint::write_bytes(int destination, const std::byte* data, std::size_t bytes) {
  std::uint64_t& position = written_[index(destination)];
  std::byte* ring = slots_.ring_data(me_, destination);
  const std::size_t begin = position & (slots_.ring_bytes() - 1);
  const std::size_t first = std::min(bytes, slots_.ring_bytes() - begin);
  std::memcpy(ring + begin, data, first);
  if (bytes != first) std::memcpy(ring, data + first, bytes - first);
  position += bytes;
  waiter_.publish(slots_.ring(me_, destination).written, position);
}

// ---- messages

/// The envelope that comes next in the ring, where no message is under way: Moved if it is there.
PointToPoint::Poll PointToPoint::peek(int source, Envelope& envelope) {
  const auto available = readable(source);
  if (!available) return Poll::Damaged;
  if (*available < sizeof(Envelope)) return Poll::Nothing;
  std::byte raw[sizeof(Envelope)];
  const std::byte* ring = slots_.ring_data(source, me_);
  for (std::size_t i = 0; i < sizeof raw; ++i) {
    raw[i] = ring[(read_[index(source)] + i) & (slots_.ring_bytes() - 1)];
  }
  std::memcpy(&envelope, raw, sizeof raw);
  if (envelope.dtype >= static_cast<std::uint32_t>(kDTypeCount) || envelope.count > std::uint64_t{1}
                                                                                        << 56) {
    damage_ = fmt::format("the ring from rank {} holds no message where one was due", source);
    return Poll::Damaged;
  }
  return Poll::Moved;
}

PointToPoint::Poll PointToPoint::start_message(int source, const Wanted* wanted) {
  // Looked at before it is taken: without room it stays where it is, and its sender waits.
  Message message;
  const Envelope& envelope = message.envelope;
  if (const Poll there = peek(source, message.envelope); there != Poll::Moved) return there;
  const bool asked_for =
      wanted != nullptr && wanted->source == source && wanted->envelope.tag == envelope.tag &&
      wanted->envelope.count == envelope.count && wanted->envelope.dtype == envelope.dtype &&
      find(source, envelope.tag) == queues_[index(source)].end();
  if (asked_for) {
    message.direct = wanted->data;
  } else {
    if (unexpected_messages_ >= kUnexpectedMessagesMax ||
        envelope.bytes() > kUnexpectedBytesMax - unexpected_bytes_) {
      return Poll::Full;
    }
    keep(message);
  }
  queues_[index(source)].push_back(std::move(message));
  std::byte raw[sizeof(Envelope)];
  read_bytes(source, raw, sizeof raw);
  return Poll::Moved;
}

void PointToPoint::keep(Message& message) {
  message.kept.resize(message.envelope.bytes());
  message.unexpected = true;
  unexpected_bytes_ += message.kept.size();
  ++unexpected_messages_;
}

/// Begins a message, or takes in more of the one under way.
PointToPoint::Poll PointToPoint::advance(int source, const Wanted* wanted) {
  Queue& queue = queues_[index(source)];
  if (queue.empty() || queue.back().complete()) return start_message(source, wanted);
  Message& message = queue.back();
  const auto available = readable(source);
  if (!available) return Poll::Damaged;
  const std::size_t bytes = std::min(*available, message.envelope.bytes() - message.arrived);
  if (bytes == 0) return Poll::Nothing;
  std::byte* out = message.direct != nullptr ? message.direct : message.kept.data();
  read_bytes(source, out + message.arrived, bytes);
  message.arrived += bytes;
  return Poll::Moved;
}

PointToPoint::Poll PointToPoint::drain(int source, const Wanted* wanted) {
  bool moved = false;
  for (;;) {
    const Poll now = advance(source, wanted);
    if (now == Poll::Nothing) return moved ? Poll::Moved : Poll::Nothing;
    if (now != Poll::Moved) return now;
    moved = true;
    const Message& last = queues_[index(source)].back();
    if (!last.unexpected && last.complete()) return Poll::Moved;
  }
}

// A message in the ring is left there: recv() takes it straight into its caller's memory.
PointToPoint::Poll PointToPoint::look_for(int source, std::uint32_t tag) {
  Queue& queue = queues_[index(source)];
  for (;;) {
    if (find(source, tag) != queue.end()) return Poll::Moved;
    Envelope next;
    if (queue.empty() || queue.back().complete()) {
      const Poll there = peek(source, next);
      if (there != Poll::Moved || next.tag == tag) return there;
    }
    if (const Poll now = advance(source, nullptr); now != Poll::Moved) return now;
  }
}

/// Moved: `source` sends one with that tag. Not always the same rank is asked first.
PointToPoint::Poll PointToPoint::look_around(std::uint32_t tag, int& source) {
  Poll worst = Poll::Nothing;
  for (int i = 0; i < slots_.members(); ++i) {
    const int each = (first_looked_at_ + i) % slots_.members();
    const Poll now = look_for(each, tag);
    if (now == Poll::Nothing) continue;
    source = each;
    if (now != Poll::Full) return now;
    worst = Poll::Full;
  }
  return worst;
}

void PointToPoint::drain_all() {
  for (int source = 0; source < slots_.members(); ++source) (void)drain(source, nullptr);
}

PointToPoint::Queue::iterator PointToPoint::find(int source, std::uint32_t tag) {
  Queue& queue = queues_[index(source)];
  return std::ranges::find_if(queue, [tag](const Message& m) { return m.envelope.tag == tag; });
}

// ---- calls

spi::WaitEnd PointToPoint::write_all(int destination, const std::byte* data, std::size_t bytes,
                                     spi::Deadline until) {
  while (bytes > 0) {
    std::size_t space = 0;
    const auto has_space = [&] {
      const auto now = writable(destination);
      space = now.value_or(0);
      if (!now || space > 0) return true;
      drain_all();  // two ranks that send to each other: each takes in what the other sends
      return false;
    };
    const auto end = waiter_.wait(spi::kAnyMember, &slots_.group_word(me_), until, has_space,
                                  [this] { return notice_damage(); });
    if (end != spi::WaitEnd::Ready) return end;
    if (space == 0) return spi::WaitEnd::Interrupted;
    const std::size_t part = std::min(space, bytes);
    write_bytes(destination, data, part);
    data += part;
    bytes -= part;
  }
  return spi::WaitEnd::Ready;
}

Outcome PointToPoint::damaged() {
  spi::wedge(slots_.group_word(me_));
  return {OutcomeKind::Damaged, 0, "point to point: " + damage_};
}

Outcome PointToPoint::send(const void* data, std::size_t count, DType dtype, int destination,
                           std::uint32_t tag, spi::Deadline until) {
  if (spi::read(slots_.group_word(me_)).wedged) return {OutcomeKind::Lost, 0, {}};
  if (cut_[index(destination)]) {
    damage_ =
        fmt::format("an earlier send to rank {} was left unfinished at its deadline", destination);
    return damaged();
  }
  const Envelope envelope{count, tag, static_cast<std::uint32_t>(dtype)};
  const std::uint64_t begin = written_[index(destination)];
  auto end =
      write_all(destination, reinterpret_cast<const std::byte*>(&envelope), sizeof envelope, until);
  if (end == spi::WaitEnd::Ready) {
    end = write_all(destination, static_cast<const std::byte*>(data), envelope.bytes(), until);
  }
  if (end == spi::WaitEnd::Ready) return {OutcomeKind::HandedOver, 0, {}};
  if (end == spi::WaitEnd::Wedged) return {OutcomeKind::Lost, 0, {}};
  if (end == spi::WaitEnd::Interrupted) return damaged();
  cut_[index(destination)] = written_[index(destination)] != begin;
  return {OutcomeKind::Expired, 0,
          fmt::format("send of {} to rank {} with tag {}: the receiver did not take it in before "
                      "the deadline",
                      describe(count, envelope.dtype), destination, tag)};
}

Outcome PointToPoint::recv(void* data, std::size_t count, DType dtype, int source,
                           std::uint32_t tag, spi::Deadline until) {
  const Wanted wanted{
      source, {count, tag, static_cast<std::uint32_t>(dtype)}, static_cast<std::byte*>(data)};
  Poll last = Poll::Nothing;
  const auto arrived = [&] {
    const auto before = find(source, tag);
    if (before != queues_[index(source)].end() && before->complete()) return true;
    last = drain(source, &wanted);
    if (last == Poll::Damaged || last == Poll::Full) return true;
    const auto now = find(source, tag);
    return now != queues_[index(source)].end() && now->complete();
  };
  const auto end = waiter_.wait(source, &slots_.group_word(me_), until, arrived,
                                [this] { return notice_damage(); });
  const auto message = find(source, tag);
  if (message != queues_[index(source)].end() && message->complete()) {
    return deliver(source, message, wanted);
  }
  return give_up(last == Poll::Damaged || last == Poll::Full ? spi::WaitEnd::Interrupted : end,
                 wanted);
}

Outcome PointToPoint::find_sender(std::uint32_t tag, int& source, spi::Deadline until) {
  Poll last = Poll::Nothing;
  const auto found = [&] {
    last = look_around(tag, source);
    return last != Poll::Nothing;
  };
  const auto end = waiter_.wait(spi::kAnyMember, &slots_.group_word(me_), until, found,
                                [this] { return notice_damage(); });
  switch (last) {
    case Poll::Moved: first_looked_at_ = source + 1; return {OutcomeKind::Done, 0, {}};
    case Poll::Full: return too_many(source, tag);
    case Poll::Damaged: return damaged();
    case Poll::Nothing: break;
  }
  if (end == spi::WaitEnd::Wedged) return {OutcomeKind::Lost, 0, {}};
  if (end == spi::WaitEnd::Interrupted) return damaged();
  return {OutcomeKind::Expired, 0,
          fmt::format("receive from any rank with tag {}: nobody sent before the deadline", tag)};
}

Outcome PointToPoint::deliver(int source, Queue::iterator message, const Wanted& wanted) {
  const Envelope envelope = message->envelope;
  const bool fits =
      envelope.count == wanted.envelope.count && envelope.dtype == wanted.envelope.dtype;
  if (message->unexpected) {
    if (fits && !message->kept.empty()) {
      std::memcpy(wanted.data, message->kept.data(), message->kept.size());
    }
    unexpected_bytes_ -= envelope.bytes();
    --unexpected_messages_;
  }
  queues_[index(source)].erase(message);
  if (fits) return {OutcomeKind::Done, 0, {}};
  return {OutcomeKind::Mismatch, 0,
          fmt::format("tag {}: rank {} sent {}, rank {} receives {}", envelope.tag, source,
                      describe(envelope.count, envelope.dtype), me_,
                      describe(wanted.envelope.count, wanted.envelope.dtype))};
}

Outcome PointToPoint::give_up(spi::WaitEnd end, const Wanted& wanted) {
  Queue& queue = queues_[index(wanted.source)];
  if (!queue.empty() && !queue.back().unexpected && !queue.back().complete()) {
    // The caller takes its memory back; what it got so far moves to ours.
    Message& message = queue.back();
    keep(message);
    if (message.arrived != 0) {
      std::memcpy(message.kept.data(), message.direct, message.arrived);
    }
    message.direct = nullptr;
  }
  switch (end) {
    case spi::WaitEnd::Wedged: return {OutcomeKind::Lost, 0, {}};
    case spi::WaitEnd::Ready:
    case spi::WaitEnd::Expired:
      return {OutcomeKind::Expired, 0,
              fmt::format("receive from rank {} with tag {}: nothing complete before the deadline",
                          wanted.source, wanted.envelope.tag)};
    case spi::WaitEnd::Interrupted: break;
  }
  if (!damage_.empty()) return damaged();
  return too_many(wanted.source, wanted.envelope.tag);
}

Outcome PointToPoint::too_many(int source, std::uint32_t tag) const {
  return {OutcomeKind::Mismatch, 0,
          fmt::format("rank {} sent more than this rank keeps ({} messages, {} bytes) without it "
                      "asking for any; it asks for tag {}",
                      source, unexpected_messages_, unexpected_bytes_, tag)};
}

}  // namespace regroup::collective
