/// The inside of SlotRunner; see runner.hpp for the contract. Not for others to include.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "collective/kept_bytes.hpp"
#include "collective/own_words.hpp"
#include "collective/point_to_point.hpp"
#include "collective/runner.hpp"

namespace regroup::collective {

class SlotRunner::Impl {
 public:
  Impl(spi::SharedSlots slots, int me, const RunnerOptions& options);

  Outcome run(const OpSpec& spec, Deadline until);
  Outcome settle(Deadline until);
  Outcome commit(std::uint64_t step, Deadline until);

  std::optional<std::string> look_for_damage();
  [[nodiscard]] std::uint64_t sequence() const { return sequence_; }
  [[nodiscard]] const spi::SharedSlots& slots() const { return slots_; }
  [[nodiscard]] int me() const { return me_; }
  PointToPoint& point_to_point() { return point_to_point_; }
  Outcome after_message(Outcome outcome) {
    if (outcome.kind == OutcomeKind::Damaged) own_.restore();
    return outcome;
  }

 private:
  /// Why the execution of the plan stopped.
  enum class Progress : std::uint8_t { Finished, Wedged, Expired, Mismatched, Damaged };

  /// The last use of the two buffers of one parity.
  struct Use {
    std::uint64_t turn = 0;  ///< 0: never used
    std::uint64_t sequence = 0;
    int reader = spi::kAnyMember;  ///< group rank, or kAnyMember: all others
  };

  /// The operation that run() was last called for.
  struct Current {
    OpDescriptor descriptor;  ///< of the call
    OpSpec spec;              ///< what is carried out: the call, or the part of it that is due
    const OpSpec* parts = nullptr;  ///< Coalesced: all of them, and where in them `spec` stands
    std::size_t parts_count = 0;
    std::size_t position = 0;  ///< 0: in front of the first one, 1: the first one
    bool small = false;  ///< run_small() does it; `plan` is of an earlier operation until follow()
    Plan plan;
    std::uint64_t first_turn = 0;
    Step step;  ///< performed next when `pending`
    bool pending = false;
    bool flushing = false;  ///< the verdict is "done": finish without regard to the wedge
    bool output_touched = false;
    bool unsettled = false;
    bool differs = false;  ///< an awaited digest was not mine
    std::string mismatch;  ///< the outcome is Mismatch with this text
    std::string damage;
  };
  /// Where an operation's input is kept while its output overlaps it.
  enum class Keep : std::uint8_t {
    Nothing,
    InSlot,
    InCopy,  ///< all of it, before the operation begins
    ByChunk  ///< each chunk once it is published, in front of its output
  };
  struct Kept {
    std::byte* at = nullptr;
    std::size_t bytes = 0;
    std::size_t copy_offset = 0;  ///< in kept_
  };

  void begin(const OpSpec& spec);
  void begin_parts(const OpSpec& spec);
  bool next_part();
  void start(const OpSpec& spec);
  [[nodiscard]] std::optional<Kept> overlap_of(const OpSpec& spec) const;
  void keep_copies();
  void keep_chunk(const Step& step);
  [[nodiscard]] std::optional<Algorithm> forced_algorithm(const OpDescriptor& descriptor) const;
  void keep_input(const OpSpec& spec);
  void restore_input();
  void record_sends();

  Outcome drive(Deadline until);
  Outcome run_small(Deadline until);
  void make_plan();
  void follow(std::optional<StepKind> reached);
  Outcome complete(Deadline until);
  Outcome decide(Deadline until);
  Outcome finish();
  Outcome stop(Progress why, Deadline until);
  [[nodiscard]] Outcome answer(OutcomeKind kind, std::string text = {}) const;
  Outcome verdict_of(std::uint64_t step, Deadline until);

  Progress execute(Deadline until);
  Progress perform(const Step& step, Deadline until);
  Progress reclaim(std::uint64_t turn, Deadline until);
  Progress await_all(std::uint64_t turn, bool check, Deadline until);
  Progress await(int member, std::uint64_t turn, Deadline until);
  Progress await_handed_over(Deadline until);
  void copy_in(const Step& step);
  void copy_out(const Step& step);
  void copy_own(const Step& step);
  void copy_counts(std::uint64_t turn);
  Progress read_counts(std::uint64_t turn);
  void reduce_step(const Step& step);
  void publish(std::uint64_t turn);
  /// Waits for ready(); a wedge of the own word ends the wait unless the operation is being
  /// flushed.
  template <class ReadyFn, class StopFn>
  Progress wait_for(int member, Deadline until, ReadyFn&& ready, StopFn&& stop);
  /// For await_decision().
  auto own_wait(Deadline until) {
    return [this, until](auto&& ready, auto&& in_vain) {
      return waiter_.wait(spi::kAnyMember, nullptr, until, ready, in_vain);
    };
  }

  [[nodiscard]] std::string find_damage() const;
  bool notice_damage();

  Progress judge_mismatch();
  void end_differently(std::string text);
  Progress judge_anomaly(int member, std::uint64_t found, std::uint64_t expected);
  [[nodiscard]] bool called_differently(int member) const;
  Progress poison(std::uint64_t sequence, int a, const OpDescriptor& da, int b,
                  const OpDescriptor& db);
  Progress damaged(std::string text);

  [[nodiscard]] std::byte* buffer(int member, std::uint64_t turn) const {
    const bool in_line = current_.small || current_.plan.inline_payload();
    return in_line ? slots_.line(member, turn).payload : slots_.slot(member, turn);
  }
  [[nodiscard]] std::uint64_t absolute(std::uint64_t turn) const {
    return current_.first_turn + turn;
  }
  [[nodiscard]] bool has_published(int member, std::uint64_t turn) const;
  void hook(Instant instant, std::int64_t chunk = -1) const { hook(instant, sequence_, chunk); }
  void hook(Instant instant, std::uint64_t number, std::int64_t chunk) const {
    pass_instant(options_, instant, number, chunk);
  }

  spi::SharedSlots slots_;
  int me_;
  OwnWords own_;
  int members_;
  RunnerOptions options_;
  spi::Waiter waiter_;
  PointToPoint point_to_point_;

  std::uint64_t sequence_ = 0;
  std::uint64_t next_turn_ = 1;
  std::uint64_t digest_ = 0;  ///< of all operations called so far
  Use uses_[2];
  std::uint64_t everyone_at_ = 0;    ///< every other member has published this turn or a later one
  std::vector<std::uint64_t> seen_;  ///< per member, a turn that it has published
  std::vector<std::uint64_t>
      last_send_;  ///< per member, turn of its last contribution to earlier operations
  std::vector<const void*> sources_;
  /// What the own lines said when this rank wrote them last.
  struct Written {
    std::uint64_t turns[2] = {};
    std::uint64_t read_up_to = 0;
  } mine_;
  std::string damage_;  ///< found while waiting
  Keep keep_ = Keep::Nothing;
  KeptBytes kept_;
  std::vector<Kept> kept_ranges_;
  std::size_t kept_up_to_ = 0;  ///< ByChunk: bytes of the input that are kept
  Current current_;
};

}  // namespace regroup::collective
