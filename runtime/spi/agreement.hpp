/// The words by which survivors agree on the outcome of each operation, and the only functions that
/// touch them.
///
/// One group word per (rank, group) and one step word per (rank, domain) lie in the epoch's shared
/// memory. Both have the same form. docs/spec/uniform.pml is the checked model of these rules;
/// docs/spec/README.md says which function carries which rule. Change one only together with the
/// other.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>

#include "base/mutant.hpp"

namespace regroup::spi {

/// Bit 63: wedged, nothing completes any more. Bit 62: decided, the number is the verdict. Below:
/// the number of the last completed operation (group word) or of the last prepared step (step
/// word).
using Word = std::atomic<std::uint64_t>;
static_assert(Word::is_always_lock_free && sizeof(Word) == 8,
              "the words are shared between processes");

inline constexpr std::uint64_t kWedgedBit = std::uint64_t{1} << 63;
inline constexpr std::uint64_t kDecidedBit = std::uint64_t{1} << 62;
inline constexpr std::uint64_t kNumberMask = kDecidedBit - 1;

/// One reading of a word.
struct WordState {
  bool wedged = false;
  bool decided = false;
  std::uint64_t number = 0;
};

[[nodiscard]] constexpr WordState unpack(std::uint64_t raw) {
  return {(raw & kWedgedBit) != 0, (raw & kDecidedBit) != 0, raw & kNumberMask};
}
[[nodiscard]] inline WordState read(const Word& word) {
  return unpack(word.load(std::memory_order_acquire));
}

/// False only in the benchmark program that shows what fault tolerance costs (perf/README.md): then
/// words are stored without looking, waits do not see a wedge, and no input is kept. Nothing
/// survives a loss there.
#ifdef REGROUP_WITHOUT_FAULT_TOLERANCE
inline constexpr bool kFaultTolerance = false;
#else
inline constexpr bool kFaultTolerance = true;
#endif

/// Owner only. Moves the number forward to `to` (completes an operation, or prepares a step) unless
/// the word is wedged. Everything the owner wrote before is visible to whoever reads the new
/// number. Returns false once wedged: then nothing may be returned to the caller before verdict()
/// has an answer.
[[nodiscard]] inline bool try_advance(Word& word, std::uint64_t to) {
  if constexpr (!kFaultTolerance) {
    word.store(to, std::memory_order_release);
    return true;
  }
  std::uint64_t seen = word.load(std::memory_order_relaxed);
  if (REGROUP_MUTANT(COMPLETE_WHEN_WEDGED)) {
    word.store((seen & ~kNumberMask) | to, std::memory_order_seq_cst);
    return true;
  }
  while ((seen & kWedgedBit) == 0) {
    if (word.compare_exchange_weak(seen, to, std::memory_order_seq_cst, std::memory_order_relaxed))
      return true;
  }
  return false;
}

/// Agent (any time) or the owner (when it noticed a loss, and then it tells its agent at once).
/// Returns what the word said at the instant of the wedge: from then on its number moves only by
/// decide().
inline WordState wedge(Word& word) {
  return unpack(word.fetch_or(kWedgedBit, std::memory_order_seq_cst));
}

/// Owner only, of a word that somebody else wrote: it says `number` again, and is wedged. A decided
/// word keeps its verdict. Then the owner tells its agent at once.
inline void restore(Word& word, std::uint64_t number) {
  std::uint64_t seen = word.load(std::memory_order_relaxed);
  while ((seen & kDecidedBit) == 0 || (seen & kWedgedBit) == 0) {
    if (word.compare_exchange_weak(seen, kWedgedBit | number, std::memory_order_seq_cst,
                                   std::memory_order_relaxed))
      return;
  }
}

/// Agent only, on a wedged word of a survivor: stores the verdict (the cut, or the committed step).
/// A word that was already decided keeps its verdict: what a survivor was told holds.
inline void decide(Word& word, std::uint64_t number) {
  const WordState now = unpack(word.load(std::memory_order_acquire));
  if (now.decided) return;
  word.store(kWedgedBit | kDecidedBit | (number & kNumberMask), std::memory_order_seq_cst);
}

/// What a decided word says of operation (or step) `number`; empty while the decision is awaited.
/// true: it is done, finish it from retained data. false: it is revoked.
[[nodiscard]] inline std::optional<bool> verdict(const Word& word, std::uint64_t number) {
  const WordState now = read(word);
  if (!now.decided) return std::nullopt;
  return number <= now.number && !REGROUP_MUTANT(NO_FLUSH);
}

}  // namespace regroup::spi
