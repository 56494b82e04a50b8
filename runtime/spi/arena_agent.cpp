#include "spi/arena_agent.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "spi/waiting.hpp"

namespace regroup::spi {

namespace {

/// Whether a group rank is among those asked for; an empty list means all.
bool is_among(std::span<const int> members, int rank) {
  return members.empty() || std::ranges::find(members, rank) != members.end();
}

}  // namespace

void wedge_all(const SharedSlots& arena) {
  for (int rank = 0; rank < arena.members(); ++rank) {
    wedge(arena.group_word(rank));
    wedge(arena.step_word(rank));
  }
}

ArenaReport read_report(const SharedSlots& arena, std::span<const int> step_members) {
  ArenaReport report;
  std::optional<std::uint64_t> prepared;
  for (int rank = 0; rank < arena.members(); ++rank) {
    report.completed = std::max(report.completed, read(arena.group_word(rank)).number);
    if (!is_among(step_members, rank)) continue;
    const std::uint64_t step = read(arena.step_word(rank)).number;
    prepared = std::min(prepared.value_or(step), step);
  }
  report.prepared = prepared.value_or(0);
  return report;
}

// Members prepare in step: nobody begins the next one before all have prepared the last.
std::optional<std::string> implausible(const SharedSlots& arena, std::uint64_t first_step,
                                       std::span<const int> members) {
  std::optional<std::uint64_t> lowest;
  for (int rank = 0; rank < arena.members(); ++rank) {
    if (!is_among(members, rank)) continue;
    const WordState step = read(arena.step_word(rank));
    if (step.decided || read(arena.group_word(rank)).decided)
      return fmt::format("a word of rank {} is decided, and nothing has been decided", rank);
    if (step.number < first_step) {
      return fmt::format("rank {} has prepared step {}, and the epoch began after step {}", rank,
                         step.number, first_step);
    }
    lowest = std::min(lowest.value_or(step.number), step.number);
  }
  for (int rank = 0; rank < arena.members(); ++rank) {
    const std::uint64_t number = read(arena.step_word(rank)).number;
    if (!is_among(members, rank) || number <= *lowest + 1) continue;
    return fmt::format("rank {} has prepared step {}, and another one only step {}", rank, number,
                       *lowest);
  }
  return std::nullopt;
}

void decide_all(const SharedSlots& arena, std::span<const int> survivors, std::uint64_t cut,
                std::uint64_t committed_step) {
  for (const int rank : survivors) {
    decide(arena.group_word(rank), cut);
    decide(arena.step_word(rank), committed_step);
  }
}

void wake_all(const SharedSlots& arena) {
  for (int rank = 0; rank < arena.members(); ++rank) ring_doorbell(arena, rank);
}

}  // namespace regroup::spi
