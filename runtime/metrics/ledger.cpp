#include "metrics/ledger.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

namespace regroup::metrics {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;
constexpr int kReadTries = 16;

std::array<std::uint64_t, kCategories> load_totals(const BeaconPage::LedgerWords& words) {
  std::array<std::uint64_t, kCategories> totals{};
  for (std::size_t i = 0; i < kCategories; ++i)
    totals[i] = words.totals_ns[i].load(std::memory_order_acquire);
  return totals;
}

// One writer: a plain load and store is enough, and costs no locked instruction.
void increase(Word64& word, std::uint64_t by) {
  word.store(word.load(kRelaxed) + by, std::memory_order_release);
}

}  // namespace

Ledger::Ledger(BeaconPage& page, Category first, std::uint64_t started_ns)
    : words_(page.ledger), category_(first), since_ns_(started_ns) {
  for (Word64& total : words_.totals_ns) total.store(0, kRelaxed);
  words_.changed_ns.store(started_ns, kRelaxed);
  publish();
  words_.started_ns.store(started_ns, std::memory_order_release);
}

Category Ledger::booked(Category category) const {
  const bool redone =
      replaying_ && (category == Category::Compute || category == Category::CommExposed ||
                     category == Category::StragglerWait);
  return redone ? Category::Replay : category;
}

void Ledger::add(Category category, std::uint64_t ns) {
  increase(words_.totals_ns[static_cast<std::size_t>(booked(category))], ns);
}

void Ledger::publish() {
  words_.category.store(static_cast<std::uint8_t>(booked(category_)), std::memory_order_release);
}

void Ledger::leave(std::uint64_t now_ns) {
  if (now_ns > since_ns_) {
    add(category_, now_ns - since_ns_);
    since_ns_ = now_ns;
  }
  words_.changed_ns.store(since_ns_, std::memory_order_release);
}

void Ledger::enter(Category category, std::uint64_t now_ns) {
  leave(now_ns);
  category_ = category;
  publish();
}

std::uint64_t Ledger::end_blocked(std::uint64_t slowest_arrival_ns, std::uint64_t now_ns,
                                  Category next) {
  std::uint64_t waited = 0;
  if (slowest_arrival_ns > since_ns_ && now_ns > since_ns_) {
    const std::uint64_t until = std::min(slowest_arrival_ns, now_ns);
    waited = until - since_ns_;
    add(Category::StragglerWait, waited);
    since_ns_ = until;
  }
  enter(next, now_ns);
  return waited;
}

void Ledger::begin_replay(std::uint64_t now_ns) {
  leave(now_ns);
  replaying_ = true;
  publish();
}

void Ledger::end_replay(std::uint64_t now_ns) {
  leave(now_ns);
  replaying_ = false;
  publish();
}

void Ledger::add_overlapped(std::uint64_t ns) { increase(words_.overlapped_ns, ns); }

void Ledger::count_operation(std::uint64_t bytes) {
  increase(words_.operations, 1);
  increase(words_.operation_bytes, bytes);
}

std::uint64_t Snapshot::sum() const {
  return std::accumulate(ns.begin(), ns.end(), std::uint64_t{0});
}

Snapshot read_ledger(const BeaconPage& page, std::uint64_t end_ns) {
  const BeaconPage::LedgerWords& words = page.ledger;
  Snapshot snapshot;
  const std::uint64_t started = words.started_ns.load(std::memory_order_acquire);
  if (started == 0 || end_ns <= started) return snapshot;
  snapshot.wall_ns = end_ns - started;

  // The category is read before the totals: its tail may then come out short, never in another
  // category's name. A change in between is seen at changed_ns and read again.
  std::size_t category = 0;
  for (int i = 0; i < kReadTries; ++i) {
    const std::uint64_t changed = words.changed_ns.load(std::memory_order_acquire);
    category = words.category.load(std::memory_order_acquire);
    snapshot.ns = load_totals(words);
    if (words.changed_ns.load(std::memory_order_acquire) == changed) break;
  }
  if (category >= kCategories) category = static_cast<std::size_t>(Category::Unknown);

  std::uint64_t left = snapshot.wall_ns;
  for (std::uint64_t& total : snapshot.ns) {
    total = std::min(total, left);
    left -= total;
  }
  snapshot.ns[category] += left;
  snapshot.overlapped_ns = words.overlapped_ns.load(kRelaxed);
  snapshot.operations = words.operations.load(kRelaxed);
  snapshot.operation_bytes = words.operation_bytes.load(kRelaxed);
  return snapshot;
}

void merge(Snapshot& into, const Snapshot& more) {
  for (std::size_t i = 0; i < kCategories; ++i) into.ns[i] += more.ns[i];
  into.overlapped_ns += more.overlapped_ns;
  into.operations += more.operations;
  into.operation_bytes += more.operation_bytes;
  into.wall_ns += more.wall_ns;
}

Ett ett(const Snapshot& total, std::uint32_t ranks_target, std::uint64_t wall_ns) {
  const double asked = static_cast<double>(ranks_target) * static_cast<double>(wall_ns);
  if (asked <= 0) return {};
  const auto compute = static_cast<double>(total[Category::Compute]);
  const auto waiting =
      static_cast<double>(total[Category::CommExposed] + total[Category::StragglerWait]);
  return {.strict = compute / asked, .progress = (compute + waiting) / asked};
}

Snapshot attribute(const Gap& gap) {
  Snapshot snapshot;
  if (gap.attached_ns <= gap.died_ns) return snapshot;
  snapshot.wall_ns = gap.attached_ns - gap.died_ns;
  std::uint64_t from = gap.died_ns;
  const auto until = [&](std::uint64_t to, Category category) {
    const std::uint64_t bounded = std::min(to, gap.attached_ns);
    if (bounded <= from) return;
    snapshot[category] += bounded - from;
    from = bounded;
  };
  until(gap.detected_ns, Category::Detect);
  until(gap.decided_ns, Category::Reform);
  until(gap.launched_ns, Category::ReplaceWait);
  // Without a start of its own the successor was there already: the rest is waiting for its
  // hand-over.
  until(gap.attached_ns, gap.launched_ns != 0 ? Category::Launch : Category::ReplaceWait);
  return snapshot;
}

void SeatLedger::add_life(Snapshot life) {
  std::uint64_t& spare = life[Category::Spare];
  spare_ns_ += spare;
  life.wall_ns -= std::min(life.wall_ns, spare);
  spare = 0;
  merge(total_, life);
}

void SeatLedger::add_vacant(std::uint64_t ns) {
  total_[Category::Degraded] += ns;
  total_.wall_ns += ns;
}

std::string to_json(const Snapshot& snapshot) {
  std::string text = "{";
  for (std::size_t i = 0; i < kCategories; ++i) {
    text += fmt::format("\"{}\":{},", name(static_cast<Category>(i)), snapshot.ns[i]);
  }
  return text + fmt::format(
                    "\"comm.overlapped\":{},\"operations\":{},\"operation_bytes\":{},\"wall\":{}}}",
                    snapshot.overlapped_ns, snapshot.operations, snapshot.operation_bytes,
                    snapshot.wall_ns);
}

}  // namespace regroup::metrics
