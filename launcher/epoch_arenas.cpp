#include "launcher/epoch_arenas.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.hpp"
#include "spi/arena_agent.hpp"
#include "spi/planned_end.hpp"

namespace regroup::launcher {

using membership::View;
using membership::WedgeReport;

namespace {

/// Out of the reserve when it has the size, else made now.
Result<shm::Arena> arena_from(ArenaReserve& reserve, Epoch epoch, std::uint32_t group,
                              std::uint32_t members) {
  const std::size_t bytes = spi::arena_bytes(members);
  std::optional<shm::Memory> memory = reserve.take(bytes);
  if (!memory) return shm::make_arena(epoch, group, members);
  Result<spi::SharedSlots> slots =
      spi::format_arena(memory->mapping.data(), bytes, epoch, group, members);
  if (!slots) return slots.error();
  return shm::Arena{std::move(memory->fd), std::move(memory->mapping), *slots};
}

}  // namespace

Result<EpochArenas::Current> EpochArenas::make(std::uint32_t id, const std::vector<Rank>& seats,
                                               const View& view) {
  Current made;
  made.id = id;
  for (const Rank seat : seats) {
    const auto index = static_cast<std::size_t>(seat.value());
    if (index < view.seats.size() && view.seats[index] != Incarnation{})
      made.members.push_back(seat);
  }
  if (made.members.empty()) return made;
  const auto members = static_cast<std::uint32_t>(made.members.size());
  Result<shm::Arena> arena = arena_from(reserve_, view.epoch, id, members);
  if (!arena) return arena.error();
  made.arena = std::move(*arena);
  // A member that has not begun the epoch's first step has, as far as a cut goes, prepared the one
  // before.
  for (int member = 0; member < made.arena.slots.members(); ++member) {
    made.arena.slots.step_word(member).store(view.resume_step - 1, std::memory_order_release);
  }
  return made;
}

Status EpochArenas::install(const View& view) {
  std::vector<Rank> world;
  for (std::size_t seat = 0; seat < view.seats.size(); ++seat)
    world.emplace_back(static_cast<std::int32_t>(seat));
  if (known_.empty()) known_.push_back({kWorldName, world});
  std::vector<Current> fresh;
  for (std::size_t id = 0; id < known_.size(); ++id) {
    Result<Current> made = make(static_cast<std::uint32_t>(id), known_[id].seats, view);
    if (!made) return made.error();
    if (!made->members.empty()) fresh.push_back(std::move(*made));
  }
  previous_ = std::move(current_);
  current_ = std::move(fresh);
  view_ = view;
  wedged_ = false;
  return {};
}

void EpochArenas::prepare_next(bool losing) {
  previous_.clear();
  std::vector<std::size_t> sizes;
  for (const Current& group : current_) {
    const std::size_t members = group.members.size() - (losing && group.members.size() > 1 ? 1 : 0);
    sizes.push_back(spi::arena_bytes(static_cast<std::uint32_t>(members)));
  }
  reserve_.want(sizes);
}

Result<std::size_t> EpochArenas::attach(const std::string& name, const std::vector<Rank>& seats) {
  REGROUP_ASSERT(!known_.empty() && !wedged_);
  auto known =
      std::find_if(known_.begin(), known_.end(), [&](const Known& k) { return k.name == name; });
  if (known != known_.end() && known->seats != seats) {
    return Status(
        Code::InvalidArgument,
        fmt::format(
            "group '{}' was made with other ranks before; every rank must name the same ones in "
            "the same order, and a name is never used twice",
            name));
  }
  if (known == known_.end()) {
    if (name.empty() || name.size() > kNameBytesMax || known_.size() >= kGroupsMax) {
      return Status(Code::ResourceExhausted,
                    fmt::format("group '{}': at most {} groups in a job, names of 1 to {} bytes",
                                name.substr(0, kNameBytesMax), kGroupsMax, kNameBytesMax));
    }
    std::vector<Rank> sorted = seats;
    std::sort(sorted.begin(), sorted.end());
    const bool twice = std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end();
    const bool outside = seats.empty() || sorted.front() < Rank{0} ||
                         sorted.back().value() >= static_cast<std::int32_t>(view_.seats.size());
    if (twice || outside) {
      return Status(Code::InvalidArgument,
                    fmt::format("group '{}': its ranks are not distinct ranks of the world", name));
    }
    known = known_.insert(known_.end(), {name, seats});
  }
  const auto id = static_cast<std::uint32_t>(known - known_.begin());
  for (std::size_t index = 0; index < current_.size(); ++index) {
    if (current_[index].id == id) return index;
  }
  Result<Current> made = make(id, seats, view_);
  if (!made) return made.error();
  current_.push_back(std::move(*made));
  return current_.size() - 1;
}

void EpochArenas::want_end() {
  for (const Current& group : current_) {
    if (group.id == 0) spi::want_end(group.arena.slots);
  }
}

Result<WedgeReport> EpochArenas::wedge() {
  wedged_ = true;
  for (const Current& group : current_) spi::wedge_all(group.arena.slots);
  for (const Current& group : current_) spi::wake_all(group.arena.slots);
  WedgeReport report;
  report.epoch = view_.epoch;
  for (const Current& group : current_) {
    const spi::ArenaReport read = spi::read_report(group.arena.slots);
    report.groups.push_back({group.id, read.completed});
    if (group.id != 0) continue;
    if (const auto why = spi::implausible(group.arena.slots, view_.resume_step - 1))
      return Status(Code::FailedPrecondition, *why);
    report.prepared = read.prepared;
  }
  return report;
}

void EpochArenas::decide(const std::vector<WedgeReport::GroupCut>& cuts,
                         std::uint64_t committed_step, const std::vector<Member>& lost) {
  for (const Current& group : current_) {
    const auto cut =
        std::find_if(cuts.begin(), cuts.end(), [&](const auto& c) { return c.group == group.id; });
    std::vector<int> survivors;
    for (std::size_t i = 0; i < group.members.size(); ++i) {
      const Rank seat = group.members[i];
      const Member member{seat, view_.seats[static_cast<std::size_t>(seat.value())]};
      if (std::find(lost.begin(), lost.end(), member) == lost.end())
        survivors.push_back(static_cast<int>(i));
    }
    spi::decide_all(group.arena.slots, survivors, cut == cuts.end() ? 0 : cut->completed,
                    committed_step);
  }
  for (const Current& group : current_) spi::wake_all(group.arena.slots);
}

std::optional<Rank> EpochArenas::first_completed() const {
  for (const Current& group : current_) {
    for (std::size_t i = 0; i < group.members.size(); ++i) {
      const spi::WordState word = spi::read(group.arena.slots.group_word(static_cast<int>(i)));
      if (word.number > 0) return group.members[i];
    }
  }
  return std::nullopt;
}

control::ViewInstalled::Group EpochArenas::group(std::size_t index) const {
  const Current& group = current_[index];
  return {group.id, known_[group.id].name, group.members, group.arena.mapping.bytes()};
}

std::string EpochArenas::group_name(std::uint32_t id) const {
  return id < known_.size() ? known_[id].name : fmt::format("{}", id);
}

}  // namespace regroup::launcher
