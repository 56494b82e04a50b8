/// What every kind of runner does alike with the two words that its rank owns in an epoch, whatever
/// way the ranks reach each other: it knows what it wrote there, and waits for what is decided.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "collective/runner.hpp"
#include "spi/shared_slots.hpp"
#include "spi/waiting.hpp"

namespace regroup::collective {

/// Thread safety: none.
class OwnWords {
 public:
  OwnWords(const spi::SharedSlots& slots, int me)
      : slots_(slots), me_(me), prepared_(spi::read(step()).number) {}

  [[nodiscard]] spi::Word& group() const { return slots_.group_word(me_); }
  [[nodiscard]] spi::Word& step() const { return slots_.step_word(me_); }
  /// The last step that this rank prepared.
  [[nodiscard]] std::uint64_t prepared() const { return prepared_; }

  /// spi::try_advance of the group word (the step word), and what was written is remembered.
  [[nodiscard]] bool complete(std::uint64_t sequence) {
    if (!spi::try_advance(group(), sequence)) [[unlikely]]
      return false;
    completed_ = sequence;
    return true;
  }
  [[nodiscard]] bool prepare(std::uint64_t number) {
    if (!spi::try_advance(step(), number)) return false;
    prepared_ = number;
    return true;
  }

  /// That a word does not say what this rank wrote; empty: both do. A word that is decided says
  /// something else, rightly.
  [[nodiscard]] std::string find_damage() const;
  /// The cut is made of what the words say: they say the truth again before the agent looks. They
  /// are wedged then.
  void restore() const;

 private:
  spi::SharedSlots slots_;
  int me_;
  std::uint64_t completed_ = 0;
  std::uint64_t prepared_;
};

/// "a published turn of this rank says 0x3 where the rank wrote 0x4: somebody else wrote it".
[[nodiscard]] std::string written_over(std::string_view what, std::uint64_t found,
                                       std::uint64_t written);

/// Tells whoever watches this rank where it is in an operation.
inline void pass_instant(const RunnerOptions& options, Instant instant, std::uint64_t number,
                         std::int64_t chunk) {
  if constexpr (!spi::kFaultTolerance) return;
  if (options.mark.phase != nullptr) {
    options.mark.phase->store(options.mark.of[static_cast<std::size_t>(instant)],
                              std::memory_order_relaxed);
  }
  if (options.fault.call != nullptr) [[unlikely]] {
    options.fault.call(options.fault.context, instant, number, chunk);
  }
}

[[nodiscard]] inline bool is_over(const EpochHook& epoch) {
  return epoch.is_over != nullptr && epoch.is_over(epoch.context);
}

/// An agent that wedged an epoch decides within milliseconds.
inline constexpr std::chrono::milliseconds kDecisionLate{200};

/// Waits, by wait(ready, in_vain), until decided() holds. Interrupted: it never will.
template <class DecidedFn, class WaitFn>
spi::WaitEnd await_decision(const EpochHook& epoch, DecidedFn&& decided, WaitFn&& wait) {
  bool told = epoch.undecided == nullptr;
  const TimePoint late = Clock::now() + kDecisionLate;
  const auto in_vain = [&] {
    if (!told && Clock::now() >= late) {
      told = true;
      epoch.undecided(epoch.context);
    }
    // What is decided is stored before the next epoch is installed.
    return is_over(epoch) && !decided();
  };
  return wait(decided, in_vain);
}

/// The outcome of a wait for a decision about `what` that ended with none.
[[nodiscard]] Outcome without_decision(spi::WaitEnd end, std::uint64_t number,
                                       std::string_view what);

/// What the own step word says of `step` once it is decided. `await`: see await_decision.
template <class WaitFn>
Outcome step_verdict(const OwnWords& own, const EpochHook& epoch, std::uint64_t step,
                     WaitFn&& wait) {
  std::optional<bool> committed;
  const auto decided = [&] {
    committed = spi::verdict(own.step(), step);
    return committed.has_value();
  };
  const spi::WaitEnd end = await_decision(epoch, decided, std::forward<WaitFn>(wait));
  if (end != spi::WaitEnd::Ready)
    return without_decision(end, step, "step " + std::to_string(step));
  return {*committed ? OutcomeKind::Done : OutcomeKind::Lost, step, {}};
}

/// "all_reduce of 8 f32, sum (operation 3 of the group)".
[[nodiscard]] std::string name_call(const spi::OpDescriptor& descriptor, std::uint64_t sequence);
/// The deadline of a commit passed while `rank` had not prepared the step.
[[nodiscard]] Outcome not_prepared(std::uint64_t step, int rank);

}  // namespace regroup::collective
