#include "collective/message_letters.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "collective/message_runner.hpp"

namespace regroup::collective {
namespace {

constexpr std::chrono::seconds kBufferPatience{1};
constexpr std::uint64_t kTellEvery = MessageLetters::kLettersMax / 4;
/// `part` of an Accept: how many letters were taken, instead of one that is asked for.
constexpr std::uint32_t kTaken = 1;
constexpr std::uint64_t kCountMax = std::uint64_t{1} << 56;

std::size_t index(int member) { return static_cast<std::size_t>(member); }

std::string describe(std::uint64_t count, DType dtype) {
  return fmt::format("{} {}", count, spi::name(dtype));
}

}  // namespace

MessageLetters::MessageLetters(MessageHub& hub, MessageReceiver& owner, spi::SharedSlots words,
                               const MessageMembers& reach, int me)
    : hub_(hub),
      owner_(owner),
      words_(words),
      reach_(reach),
      me_(me),
      sources_(index(words.members())),
      destinations_(index(words.members())) {}

int MessageLetters::channel(int member) const { return reach_.channels[index(member)]; }

spi::MessageHeader MessageLetters::header(spi::MessageKind kind, std::uint64_t number) const {
  return {.epoch = words_.epoch().value(),
          .incarnation = reach_.incarnations[index(me_)],
          .sequence = number,
          .group = words_.group(),
          .source = static_cast<std::uint16_t>(me_),
          .kind = kind};
}

/// Waits until over(), which a transfer under way on the channel to `other` brings about.
template <class OverFn>
void MessageLetters::await_transfer(MessageHub::Lock& held, int other, OverFn&& over) {
  const auto never = [] { return false; };
  const auto patience = [] { return Clock::now() + kBufferPatience; };
  if (hub_.wait(held, nullptr, patience(), over, never) == spi::WaitEnd::Ready) return;
  ++hub_.counters().closed_by_force;
  hub_.close(channel(other));
  if (hub_.wait(held, nullptr, patience(), over, never) != spi::WaitEnd::Ready) {
    hub_.abandon(owner_);
  }
}

// ---- send

Outcome MessageLetters::send(MessageHub::Lock& held, const LetterCall& call, Deadline until) {
  if (spi::read(own_word()).wedged) return {OutcomeKind::Lost, 0, {}};
  Destination& to = destinations_[index(call.other)];
  if (to.cut) {
    spi::wedge(words_.group_word(me_));
    return {OutcomeKind::Damaged, 0,
            fmt::format("point to point: an earlier send to rank {} was left unfinished at its "
                        "deadline",
                        call.other)};
  }
  const auto room = [&] {
    accept_offers();
    return to.sent - to.taken < kLettersMax;
  };
  const auto end = hub_.wait(held, &own_word(), until, room, [] { return false; });
  if (end == spi::WaitEnd::Wedged) return {OutcomeKind::Lost, 0, {}};
  if (end != spi::WaitEnd::Ready) {
    return {OutcomeKind::Expired, 0,
            fmt::format("send to rank {} with tag {}: {} letters wait there to be received",
                        call.other, call.tag, kLettersMax)};
  }
  current_ = {Sending::Nothing, call, ++to.sent};
  const bool large = call.bytes() > spi::kPostedBytesMax;
  spi::MessageHeader letter =
      header(large ? spi::MessageKind::Offer : spi::MessageKind::Letter, current_.number);
  letter.tag = call.tag;
  letter.digest = call.count;
  letter.dtype = static_cast<std::uint8_t>(call.dtype);
  if (!large) {
    hub_.post(channel(call.other), letter, call.data, call.bytes());
    return {OutcomeKind::HandedOver, 0, {}};
  }
  current_.state = Sending::Offered;
  hub_.post(channel(call.other), letter, nullptr, 0);
  return send_large(held, until);
}

Outcome MessageLetters::send_large(MessageHub::Lock& held, Deadline until) {
  const LetterCall& call = current_.call;
  const auto sent = [this] {
    accept_offers();
    return current_.state == Sending::Sent;
  };
  const auto end = hub_.wait(held, &own_word(), until, sent, [] { return false; });
  if (current_.state == Sending::Moving) {
    await_transfer(held, call.other, [this] { return current_.state != Sending::Moving; });
  }
  const bool whole = current_.state == Sending::Sent;
  current_.state = Sending::Nothing;
  if (whole) return {OutcomeKind::HandedOver, 0, {}};
  if (end == spi::WaitEnd::Wedged) return {OutcomeKind::Lost, 0, {}};
  destinations_[index(call.other)].cut = true;
  return {OutcomeKind::Expired, 0,
          fmt::format("send of {} to rank {} with tag {}: the receiver did not take it in before "
                      "the deadline",
                      describe(call.count, call.dtype), call.other, call.tag)};
}

void MessageLetters::on_sent(bool whole) {
  if (current_.state == Sending::Moving) current_.state = whole ? Sending::Sent : Sending::Broken;
}

// ---- receive

MessageLetters::Letter* MessageLetters::find(int source, std::uint32_t tag) {
  Source& from = sources_[index(source)];
  for (auto& [number, letter] : from.letters) {
    if (number > from.in_order) break;
    if (letter.tag == tag && letter.state != State::Dropped) return &letter;
  }
  return nullptr;
}

// True once the letter can be delivered; an offer that fits is accepted into the caller's memory.
bool MessageLetters::look(void* data, const LetterCall& call) {
  Letter* letter = find(call.other, call.tag);
  if (letter == nullptr) return false;
  if (letter->state == State::Here) return true;
  if (letter->count != call.count || letter->dtype != call.dtype) return true;
  if (letter->state != State::Offered) return false;
  letter->place = static_cast<std::byte*>(data);
  letter->direct = true;
  for (const auto& [number, each] : sources_[index(call.other)].letters) {
    if (&each == letter) accept(call.other, number);
  }
  return false;
}

void MessageLetters::accept(int source, std::uint64_t number) {
  sources_[index(source)].letters.at(number).state = State::Accepted;
  hub_.post(channel(source), header(spi::MessageKind::Accept, number), nullptr, 0);
}

Outcome MessageLetters::recv(MessageHub::Lock& held, void* data, const LetterCall& call,
                             Deadline until) {
  const auto end = hub_.wait(
      held, &own_word(), until, [&] { return look(data, call); }, [] { return false; });
  return end == spi::WaitEnd::Ready ? deliver(data, call) : give_up(held, data, call, end);
}

Outcome MessageLetters::find_sender(MessageHub::Lock& held, std::uint32_t tag, int& source,
                                    Deadline until) {
  const int members = words_.members();
  const auto found = [&] {
    for (int i = 0; i < members; ++i) {
      source = (first_looked_at_ + i) % members;
      if (find(source, tag) != nullptr) return true;
    }
    return false;
  };
  const auto end = hub_.wait(held, &own_word(), until, found, [] { return false; });
  if (end == spi::WaitEnd::Ready) {
    first_looked_at_ = source + 1;
    return {OutcomeKind::Done, 0, {}};
  }
  if (end == spi::WaitEnd::Wedged) return {OutcomeKind::Lost, 0, {}};
  return {OutcomeKind::Expired, 0,
          fmt::format("receive from any rank with tag {}: nobody sent before the deadline", tag)};
}

Outcome MessageLetters::deliver(void* data, const LetterCall& call) {
  Letter* letter = find(call.other, call.tag);
  const bool fits = letter->count == call.count && letter->dtype == call.dtype;
  if (fits && !letter->direct && letter->bytes() != 0) {
    std::memcpy(data, letter->kept.data(), letter->bytes());
  }
  const std::string sent = describe(letter->count, letter->dtype);
  take(call.other, *letter);
  if (fits) return {OutcomeKind::Done, 0, {}};
  return {OutcomeKind::Mismatch, 0,
          fmt::format("tag {}: rank {} sent {}, rank {} receives {}", call.tag, call.other, sent,
                      me_, describe(call.count, call.dtype))};
}

// The program has it, or will never have it.
void MessageLetters::take(int source, const Letter& letter) {
  Source& from = sources_[index(source)];
  const auto at =
      std::ranges::find_if(from.letters, [&](const auto& each) { return &each.second == &letter; });
  Letter& taken = at->second;
  const bool kept = taken.bytes() > spi::kPostedBytesMax && !taken.kept.empty();
  if (kept) kept_bytes_ -= taken.kept.size();
  switch (taken.state) {
    case State::Here: from.letters.erase(at); break;
    case State::Offered:
      accept(source, at->first);
      taken.state = State::Dropped;
      break;
    case State::Accepted:
    case State::Placing:
    case State::Dropped: taken.state = State::Dropped; break;
  }
  ++from.taken;
  if (from.taken - from.told < kTellEvery) return;
  from.told = from.taken;
  spi::MessageHeader told = header(spi::MessageKind::Accept, from.taken);
  told.part = kTaken;
  hub_.post(channel(source), told, nullptr, 0);
}

Outcome MessageLetters::give_up(MessageHub::Lock& held, void* data, const LetterCall& call,
                                spi::WaitEnd end) {
  Letter* letter = find(call.other, call.tag);
  if (letter != nullptr && letter->direct) {
    if (letter->state == State::Placing && end == spi::WaitEnd::Expired) {
      await_transfer(held, call.other, [&] { return letter->state != State::Placing; });
    }
    if (letter->state == State::Here) return deliver(data, call);
    hub_.withdraw(letter->place);
    // The caller takes its memory back; what comes later goes to ours.
    letter->direct = false;
    letter->kept.resize(letter->bytes());
    letter->place = letter->kept.data();
    kept_bytes_ += letter->bytes();
  }
  if (end == spi::WaitEnd::Wedged) return {OutcomeKind::Lost, 0, {}};
  return {OutcomeKind::Expired, 0,
          fmt::format("receive from rank {} with tag {}: nothing complete before the deadline",
                      call.other, call.tag)};
}

// While this rank sends, others may do nothing but send to it.
void MessageLetters::accept_offers() {
  for (int source = 0; source < words_.members(); ++source) {
    for (auto& [number, letter] : sources_[index(source)].letters) {
      if (letter.state != State::Offered) continue;
      if (letter.bytes() > kKeptBytesMax - kept_bytes_) continue;
      kept_bytes_ += letter.bytes();
      letter.kept.resize(letter.bytes());
      letter.place = letter.kept.data();
      accept(source, number);
    }
  }
}

// ---- messages

void MessageLetters::on_message(const spi::MessageHeader& header, const std::byte* data,
                                std::size_t bytes) {
  const int source = header.source;
  if (header.kind == spi::MessageKind::Accept) {
    Destination& to = destinations_[index(source)];
    if (header.part == kTaken) {
      to.taken = std::max(to.taken, std::min(header.sequence, to.sent));
    } else if (current_.state == Sending::Offered && current_.call.other == source &&
               current_.number == header.sequence) {
      current_.state = Sending::Moving;
      hub_.send(channel(source), this->header(spi::MessageKind::LetterData, current_.number),
                current_.call.data, current_.call.bytes(), owner_, kPurpose);
    }
    return;
  }
  const bool offer = header.kind == spi::MessageKind::Offer;
  const bool known = header.dtype < kDTypeCount && header.digest < kCountMax;
  Letter letter{.state = offer ? State::Offered : State::Here,
                .count = header.digest,
                .tag = header.tag,
                .dtype = static_cast<DType>(header.dtype)};
  if (!known || header.sequence == 0 || (!offer && letter.bytes() != bytes)) {
    ++hub_.counters().refused;
    return;
  }
  if (!offer) letter.kept.assign(data, data + bytes);
  note(source, header.sequence, std::move(letter));
}

void MessageLetters::note(int source, std::uint64_t number, Letter letter) {
  Source& from = sources_[index(source)];
  from.letters.emplace(number, std::move(letter));
  while (from.letters.contains(from.in_order + 1)) ++from.in_order;
}

std::byte* MessageLetters::place_for(const spi::MessageHeader& header, std::size_t bytes) {
  Source& from = sources_[header.source];
  const auto found = from.letters.find(header.sequence);
  if (found == from.letters.end()) return nullptr;
  Letter& letter = found->second;
  if (letter.state == State::Dropped) {
    from.letters.erase(found);
    return nullptr;
  }
  if (letter.state != State::Accepted || letter.bytes() != bytes) return nullptr;
  letter.state = State::Placing;
  return letter.place;
}

void MessageLetters::on_placed(const spi::MessageHeader& header, bool whole) {
  Source& from = sources_[header.source];
  const auto found = from.letters.find(header.sequence);
  if (found == from.letters.end()) return;
  if (found->second.state == State::Dropped) {
    from.letters.erase(found);
  } else if (found->second.state == State::Placing) {
    found->second.state = whole ? State::Here : State::Accepted;
  }
}

}  // namespace regroup::collective
