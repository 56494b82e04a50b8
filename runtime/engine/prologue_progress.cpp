#include "engine/prologue_progress.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace regroup::engine {
namespace {

constexpr const char* kTooLarge =
    "the collectives before the first step gave more than {} MiB of results, too many to keep for "
    "a newcomer; move them behind the first next(), or register what they fill";

Status too_large() {
  return {Code::ResourceExhausted, fmt::format(kTooLarge, PrologueRecord::kBytesMax >> 20)};
}

/// What the members say of one group.
struct Voices {
  std::optional<std::uint64_t> resolved;
  std::uint64_t unresolved_least = 0;
  std::uint64_t heard = 0;
  std::uint64_t members = 0;
};

}  // namespace

std::vector<PrologueLoan> lend_records(std::span<const PrologueInfo> all) {
  std::map<std::uint64_t, std::size_t> givers;
  for (std::size_t member = 0; member < all.size(); ++member) {
    if (all[member].lacks != 0 || all[member].too_large != 0) continue;
    for (const auto& position : all[member].groups) {
      if (position.group != 0 && position.calls > 0) givers.try_emplace(position.group, member);
    }
  }
  std::vector<PrologueLoan> loans;
  for (std::size_t to = 0; to < all.size(); ++to) {
    if (all[to].lacks == 0) continue;
    std::map<std::size_t, PrologueLoan> by_giver;
    for (const auto& [group, from] : givers) {
      auto& loan = by_giver.try_emplace(from, PrologueLoan{from, to, {}}).first->second;
      loan.groups.push_back(group);
    }
    for (auto& [from, loan] : by_giver) loans.push_back(std::move(loan));
  }
  return loans;
}

Result<PrologueAgreement> agree_on_prologue(std::span<const PrologueInfo> all) {
  PrologueAgreement agreement;
  agreement.over = std::ranges::any_of(all, [](const auto& info) { return info.over != 0; });
  if (agreement.over) return agreement;
  if (std::ranges::any_of(all, [](const auto& info) { return info.messages != 0; })) {
    return Status(Code::Unsupported,
                  "a rank was lost before the first step, and send or recv had been used by then: "
                  "messages cannot be paired again after a loss. Use collectives before the first "
                  "next(), or move the messages behind it");
  }
  // A newcomer could not follow: nobody is to wait for it.
  if (std::ranges::any_of(all, [](const auto& info) { return info.too_large != 0; }))
    return Status(Code::ResourceExhausted,
                  fmt::format("a rank was lost before the first step. {}", too_large().text()));
  std::map<std::uint64_t, Voices> groups;
  for (const auto& info : all) {
    for (const auto& position : info.groups) {
      if (position.group == 0) continue;
      auto& voices = groups[position.group];
      voices.members = position.members;
      if (info.resolved != 0) {
        if (voices.resolved.value_or(position.calls) != position.calls) {
          return Status(Code::Internal,
                        fmt::format("survivors have {} and {} calls of one group behind them",
                                    *voices.resolved, position.calls));
        }
        voices.resolved = position.calls;
        continue;
      }
      voices.unresolved_least =
          voices.heard == 0 ? position.calls : std::min(voices.unresolved_least, position.calls);
      ++voices.heard;
    }
  }
  for (const auto& [group, voices] : groups) {
    // Only dead members know of the group: what one of them lacks, nobody can have returned from.
    const auto of_the_dead = voices.heard == voices.members ? voices.unresolved_least : 0;
    agreement.calls[group] = voices.resolved.value_or(of_the_dead);
  }
  return agreement;
}

Status PrologueProgress::inherit(base::Fd kept) {
  if (!kept) return {};
  const std::lock_guard lock(mutex_);
  auto memory = KeptMemory::open(std::move(kept));
  if (!memory) return memory.error();
  auto record = PrologueRecord::open(memory->bytes());
  if (!record) return record.error();
  memory_ = std::move(*memory);
  record_ = std::move(*record);
  messages_ = record_->has_messages();
  return {};
}

Result<bool> PrologueProgress::answer(const PrologueCall& call, std::uint64_t index,
                                      std::span<std::byte> result) {
  const std::lock_guard lock(mutex_);
  const auto key = group_key(call.group, call.message);
  if (record_ && index < record_->calls(key)) {
    const auto given = record_->answer(call, index, result);
    if (!given) return given.error();
    left_out_ |= *given == PrologueRecord::Answer::LeftOut;
    return true;
  }
  const auto agreed = agreed_.find(key);
  const bool made_before = over_ || (agreed != agreed_.end() && index < agreed->second);
  if (made_before && record_ && record_->overflowed()) return too_large();
  if (made_before && !record_) {
    return Status(Code::ResourceExhausted,
                  "the predecessor could keep no record of its prologue: there was no memory or "
                  "descriptor for it");
  }
  if (made_before || (record_ && record_->closed())) {
    return Status(Code::InvalidArgument,
                  "this newcomer makes more collectives before its first step than its predecessor "
                  "did; the prologue must not depend on who runs it");
  }
  if (left_out_) {
    return Status(Code::FailedPrecondition,
                  fmt::format("a newcomer cannot take part in the prologue: it lacks results of "
                              "more than {} MiB that lie in registered state, which it gets at its "
                              "first next() only; register the state behind the last collective of "
                              "the prologue, or make that collective behind the first next()",
                              PrologueRecord::kHealedBytesMax >> 20));
  }
  return false;
}

Status PrologueProgress::append(const PrologueCall& call, std::span<const std::byte> result,
                                bool healed, Keep keep, void* context) {
  const std::lock_guard lock(mutex_);
  if (auto status = make_record(keep, context); !status) return status;
  record_->append(call, result, healed);
  return {};
}

Status PrologueProgress::make_record(Keep keep, void* context) {
  if (record_) return {};
  auto memory = KeptMemory::create("regroup-prologue", PrologueRecord::kBytesMax);
  if (!memory) return memory.error();
  memory_ = std::move(*memory);
  record_ = PrologueRecord::format(memory_->bytes());
  return keep(context, memory_->fd(), PrologueRecord::kBytesMax);
}

std::vector<std::byte> PrologueProgress::lend(std::span<const std::uint64_t> groups) const {
  const std::lock_guard lock(mutex_);
  return record_ ? record_->entries_of(groups) : std::vector<std::byte>();
}

Status PrologueProgress::take_over(std::span<const std::byte> entries, Keep keep, void* context) {
  const std::lock_guard lock(mutex_);
  if (auto status = make_record(keep, context); !status) return status;
  return record_->take_over(entries);
}

void PrologueProgress::confirm(const PrologueCall& call) {
  const std::lock_guard lock(mutex_);
  const auto key = group_key(call.group, call.message);
  auto& position = done_[key];
  position = {key, position.calls + 1, call.members};
}

void PrologueProgress::take_back(const PrologueCall& call) {
  const std::lock_guard lock(mutex_);
  if (record_) record_->drop_last(group_key(call.group, call.message));
}

void PrologueProgress::note_message() {
  const std::lock_guard lock(mutex_);
  messages_ = true;
}

void PrologueProgress::close() {
  const std::lock_guard lock(mutex_);
  if (record_) record_->close();
}

bool PrologueProgress::is_complete_for(std::uint64_t members) const {
  const std::lock_guard lock(mutex_);
  if (!record_ || !record_->closed()) return false;
  const auto all = record_->positions();
  return std::ranges::any_of(all, [world = group_key("world", false), members](const auto& one) {
    return one.group == world && one.members == members;
  });
}

void PrologueProgress::finish() {
  const std::lock_guard lock(mutex_);
  over_ = true;
}

PrologueInfo PrologueProgress::info() const {
  const std::lock_guard lock(mutex_);
  PrologueInfo info{.over = over_ ? 1U : 0U,
                    .resolved = resolved_ ? 1U : 0U,
                    .messages = messages_ ? 1U : 0U,
                    .too_large = record_ && record_->overflowed() ? 1U : 0U,
                    .lacks = newcomer_ && !record_ ? 1U : 0U};
  std::size_t at = 0;
  // Once it is over nothing is agreed on any more: then they say what there is to lend.
  if (resolved_ && !over_) {
    for (const auto& [group, position] : done_) {
      if (at < info.groups.size()) info.groups[at++] = position;
    }
  } else if (record_) {
    for (const auto& position : record_->positions()) {
      if (at < info.groups.size()) info.groups[at++] = position;
    }
  }
  return info;
}

Status PrologueProgress::settle(const PrologueAgreement& agreement) {
  const std::lock_guard lock(mutex_);
  over_ = agreement.over;
  agreed_ = agreement.calls;
  if (resolved_ || over_) {
    resolved_ = true;
    return {};
  }
  if (auto status = settle_record(agreement); !status) return status;
  resolved_ = true;
  return {};
}

Status PrologueProgress::settle_record(const PrologueAgreement& agreement) {
  if (!record_) return {};
  for (const auto& position : record_->positions()) {
    const auto agreed = agreement.calls.at(position.group);
    if (position.calls == agreed + 1) record_->drop_last(position.group);
    if (position.calls > agreed + 1) {
      return {Code::Internal,
              fmt::format("the record of the prologue holds {} calls of a group in which {} are "
                          "agreed upon",
                          position.calls, agreed)};
    }
    if (position.calls < agreed) {
      if (record_->overflowed()) return too_large();
      return {Code::Internal,
              fmt::format("the record of the prologue holds {} calls of a group in which {} are "
                          "agreed upon",
                          position.calls, agreed)};
    }
    if (agreed > 0) done_[position.group] = {position.group, agreed, position.members};
  }
  return {};
}

}  // namespace regroup::engine
