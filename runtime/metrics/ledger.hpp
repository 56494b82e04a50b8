/// The time ledger: where each rank's time went, with no calls from the program.
///
/// A rank is in exactly one category at any instant. The totals live in the beacon page; the time
/// since the last change is never stored but computed by the reader as (end - start - sum of
/// totals), so the categories sum to wall time by construction, also for a process that was killed
/// between two stores.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "metrics/beacon_page.hpp"

namespace regroup::metrics {

/// Writer. Readings of time come from the caller (FastClock, or a test).
/// Thread safety: none; the owner serialises its calls. Cost: a few plain stores.
class Ledger {
 public:
  /// Begins the ledger of this process in `first`. Memory: the page outlives this object.
  Ledger(BeaconPage& page, Category first, std::uint64_t started_ns);

  /// Ends the category in force and begins another. Time that seems to go back counts as none.
  void enter(Category category, std::uint64_t now_ns);
  /// Ends a blocked operation that was entered as CommExposed: what lies before the slowest rank's
  /// arrival was StragglerWait, the rest CommExposed; then begins `next`. Returns the straggler
  /// wait.
  std::uint64_t end_blocked(std::uint64_t slowest_arrival_ns, std::uint64_t now_ns,
                            Category next = Category::Compute);
  /// While replaying, what would count as Compute, CommExposed or StragglerWait counts as Replay:
  /// it was done once already. From the rewound position until that position is reached again.
  void begin_replay(std::uint64_t now_ns);
  void end_replay(std::uint64_t now_ns);
  /// Communication in flight while the caller was not blocked; a part of Compute, reported beside
  /// it.
  void add_overlapped(std::uint64_t ns);
  void count_operation(std::uint64_t bytes);

  [[nodiscard]] Category category() const { return category_; }

 private:
  [[nodiscard]] Category booked(Category category) const;
  void add(Category category, std::uint64_t ns);
  void leave(std::uint64_t now_ns);
  void publish();

  BeaconPage::LedgerWords& words_;
  Category category_;
  bool replaying_ = false;
  std::uint64_t since_ns_;
};

/// Time by category of one life, one seat or a whole job.
struct Snapshot {
  std::array<std::uint64_t, kCategories> ns{};
  std::uint64_t overlapped_ns = 0;
  std::uint64_t operations = 0;
  std::uint64_t operation_bytes = 0;
  std::uint64_t wall_ns = 0;  ///< equals sum() in every snapshot made here
  [[nodiscard]] std::uint64_t& operator[](Category category) {
    return ns[static_cast<std::size_t>(category)];
  }
  [[nodiscard]] std::uint64_t operator[](Category category) const {
    return ns[static_cast<std::size_t>(category)];
  }
  /// Over all categories.
  [[nodiscard]] std::uint64_t sum() const;
  bool operator==(const Snapshot&) const = default;
};

/// The ledger up to `end_ns` (now, or the time of death), also of a dead process. Totals that
/// exceed the wall time (damaged page) are cut to it, in the order of the categories.
[[nodiscard]] Snapshot read_ledger(const BeaconPage& page, std::uint64_t end_ns);
/// Adds `more` to `into`.
void merge(Snapshot& into, const Snapshot& more);

/// Effective training time: productive rank-seconds over asked-for rank-seconds.
struct Ett {
  double strict = 0;    ///< compute (with what overlapped) only
  double progress = 0;  ///< also exposed communication and straggler wait
};
/// `total` is the sum over all seats, `ranks_target` what the job asked for, `wall_ns` the job's
/// wall time; 0 without wall time. Spares are in neither side of the fraction.
[[nodiscard]] Ett ett(const Snapshot& total, std::uint32_t ranks_target, std::uint64_t wall_ns);

/// What lies between a death in a seat and its successor's own ledger. Times are CLOCK_MONOTONIC;
/// 0: did not happen.
struct Gap {
  std::uint64_t died_ns =
      0;  ///< last proof of life of the predecessor: its ledger was read up to here
  std::uint64_t detected_ns = 0;  ///< evidence at the agent
  std::uint64_t decided_ns = 0;   ///< cut agreed, replacement ordered
  std::uint64_t launched_ns = 0;  ///< successor's process started; 0 for a warm spare
  std::uint64_t attached_ns =
      0;  ///< successor's own ledger begins for this seat; end of the job if none came
};
/// Detect, Reform, ReplaceWait, Launch: together exactly attached_ns - died_ns. Times out of order
/// count as none.
[[nodiscard]] Snapshot attribute(const Gap& gap);

/// The ledger of one seat over all its incarnations.
/// Thread safety: none.
class SeatLedger {
 public:
  /// Adds a finished or running life. What it spent as Spare is kept apart: the seat was somebody
  /// else's then.
  void add_life(Snapshot life);
  void add_gap(const Gap& gap) { merge(total_, attribute(gap)); }
  /// A seat left vacant by policy.
  void add_vacant(std::uint64_t ns);

  [[nodiscard]] const Snapshot& total() const { return total_; }
  [[nodiscard]] std::uint64_t spare_ns() const { return spare_ns_; }

 private:
  Snapshot total_;
  std::uint64_t spare_ns_ = 0;
};

/// {"init.launch":12,...} in nanoseconds, every category; for report.json.
[[nodiscard]] std::string to_json(const Snapshot& snapshot);

}  // namespace regroup::metrics
