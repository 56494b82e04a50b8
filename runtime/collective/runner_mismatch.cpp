// What happens when the ranks of a group did not call the same operation, or when the memory says
// what nobody wrote.
#include <fmt/format.h>

#include <utility>

#include "collective/runner_impl.hpp"
#include "spi/arena_agent.hpp"

namespace regroup::collective {
namespace {

constexpr std::uint64_t kDigestAfterMismatch = 0xd6e8feb86659fd93;

}  // namespace

SlotRunner::Impl::Progress SlotRunner::Impl::damaged(std::string text) {
  current_.damage = std::move(text);
  return Progress::Damaged;
}

// Asked when a wait has become long: what others wait for may have been written over, and then all
// wait for ever.
std::string SlotRunner::Impl::find_damage() const {
  const bool over = is_over(options_.epoch);  // before the words are read: they were wedged before
  if (std::string found = own_.find_damage(); !found.empty()) return found;
  if (over && !(spi::read(own_.group()).wedged && spi::read(own_.step()).wedged))
    return "the epoch is over and a word of this rank is not wedged: somebody else wrote it";
  const spi::MemberBlock& own = slots_.member(me_);
  for (int parity = 0; parity < 2; ++parity) {
    const std::uint64_t turn = own.lines[parity].turn.load(std::memory_order_acquire);
    if (turn != mine_.turns[parity])
      return written_over("a published turn", turn, mine_.turns[parity]);
  }
  const std::uint64_t read = own.read_up_to.load(std::memory_order_acquire);
  if (read != mine_.read_up_to) return written_over("the turn read last", read, mine_.read_up_to);
  return point_to_point_.find_damage();
}

bool SlotRunner::Impl::notice_damage() {
  damage_ = find_damage();
  return !damage_.empty();
}

std::optional<std::string> SlotRunner::Impl::look_for_damage() {
  std::string found = find_damage();
  if (found.empty()) return std::nullopt;
  own_.restore();
  return found;
}

// Asked when a wait has become long. True: `member` is in another operation of the same number and
// will never do what is awaited, or somebody found such a thing. Two symmetric operations meet in
// their first turn instead.
bool SlotRunner::Impl::called_differently(int member) const {
  if (slots_.header().poisoned_by.load(std::memory_order_acquire) != 0) return true;
  const auto theirs = spi::read_ledger(slots_, member, sequence_);
  if (!theirs || theirs->descriptor == current_.descriptor) return false;
  return !spi::is_symmetric(theirs->descriptor.kind) ||
         !spi::is_symmetric(current_.descriptor.kind);
}

// `member` is at turn `found` where `expected` was due.
SlotRunner::Impl::Progress SlotRunner::Impl::judge_anomaly(int member, std::uint64_t found,
                                                           std::uint64_t expected) {
  if (slots_.header().poisoned_by.load(std::memory_order_acquire) != 0) {
    return Progress::Mismatched;
  }
  const auto theirs = spi::read_ledger(slots_, member, sequence_);
  if (theirs && theirs->descriptor != current_.descriptor) {
    return poison(sequence_, me_, current_.descriptor, member, theirs->descriptor);
  }
  return damaged(fmt::format(
      "rank {} of the group stands at turn {} of its shared memory where {} was due in operation "
      "{}: somebody wrote where only that rank may",
      member, found, expected, sequence_));
}

/// The operation ends as Mismatch on all ranks, and the group goes on.
void SlotRunner::Impl::end_differently(std::string text) {
  current_.mismatch = std::move(text);
  digest_ = kDigestAfterMismatch ^ sequence_;  // from here on all agree again
}

// Some awaited digest is not mine. All ranks come to the same answer, from the same ledgers.
SlotRunner::Impl::Progress SlotRunner::Impl::judge_mismatch() {
  for (std::uint64_t back = 0; back < spi::kLedgerEntries && back < sequence_; ++back) {
    const std::uint64_t sequence = sequence_ - back;
    std::optional<std::pair<int, OpDescriptor>> first;
    std::optional<std::pair<int, OpDescriptor>> other;
    bool all_symmetric = true;
    for (int member = 0; member < members_; ++member) {
      const auto called = spi::read_ledger(slots_, member, sequence);
      if (!called) continue;
      all_symmetric = all_symmetric && spi::is_symmetric(called->descriptor.kind);
      if (!first) first = {member, called->descriptor};
      if (!other && called->descriptor != first->second) other = {member, called->descriptor};
    }
    if (!other) continue;
    if (back == 0 && all_symmetric && spi::is_symmetric(current_.descriptor.kind)) {
      end_differently(fmt::format(
          "operation {} of the group differs: rank {} called {}, rank {} called {}", sequence,
          first->first, spi::describe(first->second), other->first, spi::describe(other->second)));
      return Progress::Finished;
    }
    return poison(sequence, first->first, first->second, other->first, other->second);
  }
  // Each side knows itself only: name the two by number.
  return poison(0, me_, current_.descriptor, me_ == 0 ? 1 : 0, current_.descriptor);
}

SlotRunner::Impl::Progress SlotRunner::Impl::poison(std::uint64_t sequence, int a,
                                                    const OpDescriptor& da, int b,
                                                    const OpDescriptor& db) {
  spi::PoisonRecord& record = slots_.member(me_).poison;
  record.sequence.store(sequence, std::memory_order_relaxed);
  const OpDescriptor* const sides[2] = {&da, &db};
  const int ranks[2] = {a, b};
  for (int i = 0; i < 2; ++i) {
    record.rank[i].store(static_cast<std::uint64_t>(ranks[i]), std::memory_order_relaxed);
    record.meta[i].store(spi::pack_meta(*sides[i]), std::memory_order_relaxed);
    record.count[i].store(sides[i]->count, std::memory_order_relaxed);
    record.detail[i].store(sides[i]->detail, std::memory_order_relaxed);
  }
  // The record of whoever comes first is read by all, and a record never changes once it is
  // claimed.
  std::uint32_t nobody = 0;
  if (slots_.header().poisoned_by.compare_exchange_strong(
          nobody, static_cast<std::uint32_t>(me_) + 1, std::memory_order_seq_cst)) {
    spi::wake_all(slots_);
  }
  return Progress::Mismatched;
}

}  // namespace regroup::collective
