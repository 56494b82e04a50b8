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

Status EpochArenas::install(const View& view, const std::vector<Member>& local) {
  std::vector<Rank> world;
  for (std::size_t seat = 0; seat < view.seats.size(); ++seat)
    world.emplace_back(static_cast<std::int32_t>(seat));
  if (known_.empty()) known_.push_back({0, kWorldName, world});
  std::vector<Current> fresh;
  for (const Known& known : known_) {
    if (local.empty()) break;
    Result<Current> made = make(known.id, known.seats, view);
    if (!made) return made.error();
    if (!made->members.empty()) fresh.push_back(std::move(*made));
  }
  previous_ = std::move(current_);
  current_ = std::move(fresh);
  view_ = view;
  local_.clear();
  for (const Member& member : local) local_.push_back(member.rank);
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

/// On one host in the order of asking. On several hosts, which ask in orders of their own, it is
/// made of the name: a decision names groups by their ids.
std::uint32_t EpochArenas::new_id(const std::string& name) const {
  if (!several_) return static_cast<std::uint32_t>(known_.size());
  std::uint32_t hash = 2166136261U;  // FNV-1a
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619U;
  return std::max(hash, 1U);
}

const EpochArenas::Known* EpochArenas::find(std::uint32_t id) const {
  const auto known =
      std::find_if(known_.begin(), known_.end(), [id](const Known& k) { return k.id == id; });
  return known == known_.end() ? nullptr : &*known;
}

Result<const EpochArenas::Known*> EpochArenas::remember(const std::string& name,
                                                        const std::vector<Rank>& seats) {
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
  const std::uint32_t id = new_id(name);
  if (const Known* other = find(id)) {
    return Status(Code::InvalidArgument,
                  fmt::format("group '{}': its number is that of group '{}'; give it another name",
                              name, other->name));
  }
  known_.push_back({id, name, seats});
  return &known_.back();
}

Result<std::size_t> EpochArenas::attach(const std::string& name, const std::vector<Rank>& seats) {
  REGROUP_ASSERT(!known_.empty() && !wedged_);
  const auto found =
      std::find_if(known_.begin(), known_.end(), [&](const Known& k) { return k.name == name; });
  const Known* known = found == known_.end() ? nullptr : &*found;
  if (known != nullptr && known->seats != seats) {
    return Status(
        Code::InvalidArgument,
        fmt::format(
            "group '{}' was made with other ranks before; every rank must name the same ones in "
            "the same order, and a name is never used twice",
            name));
  }
  if (known == nullptr) {
    const Result<const Known*> added = remember(name, seats);
    if (!added) return added.error();
    known = *added;
  }
  for (std::size_t index = 0; index < current_.size(); ++index) {
    if (current_[index].id == known->id) return index;
  }
  Result<Current> made = make(known->id, seats, view_);
  if (!made) return made.error();
  current_.push_back(std::move(*made));
  return current_.size() - 1;
}

/// Group ranks of this host's members. Those of other hosts have their own agents report.
std::vector<int> EpochArenas::local_members(const Current& group) const {
  std::vector<int> out;
  for (std::size_t i = 0; i < group.members.size(); ++i) {
    if (std::find(local_.begin(), local_.end(), group.members[i]) != local_.end())
      out.push_back(static_cast<int>(i));
  }
  return out;
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
  report.prepared = view_.resume_step - 1;
  for (const Current& group : current_) {
    const std::vector<int> here = local_members(group);
    const spi::ArenaReport read = spi::read_report(group.arena.slots, here);
    report.groups.push_back({group.id, read.completed});
    if (group.id != 0) continue;
    if (const auto why = spi::implausible(group.arena.slots, view_.resume_step - 1, here))
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
  return {group.id, find(group.id)->name, group.members, group.arena.mapping.bytes()};
}

std::string EpochArenas::group_name(std::uint32_t id) const {
  const Known* known = find(id);
  return known != nullptr ? known->name : fmt::format("{}", id);
}

}  // namespace regroup::launcher
