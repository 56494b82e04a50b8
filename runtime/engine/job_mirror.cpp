// Volatile state of a seat that outlives its process: in memory that the agent keeps, and, where
// the job has several hosts, with a rank on another one.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "collective/message_keepsakes.hpp"
#include "engine/group.hpp"
#include "engine/job.hpp"

namespace regroup::engine {
namespace {

constexpr const char* kMirror = "mirror";
/// Of a seat that was vacant: its successor takes the newest generation.
constexpr const char* kVacantMirror = "vacant-mirror";

}  // namespace

Status JobImpl::start_mirror(std::uint64_t step) {
  if (mirror_ || state_.volatile_bytes() == 0) return {};
  auto memory = KeptMemory::create("regroup-mirror", Mirror::bytes_needed(state_.volatile_bytes()));
  if (!memory) return memory.error();
  mirror_memory_ = std::move(*memory);
  mirror_ = Mirror::format(mirror_memory_->bytes(), state_.volatile_bytes());
  // A successor may need the generation of the step before, if this seat is lost again before its
  // first commit.
  if (step > 1) mirror_->write(step - 1, state_);
  return link_->keep_memory(kMirror, mirror_memory_->fd(), mirror_memory_->bytes().size());
}

/// False: there is none on this host.
Result<bool> JobImpl::inherit_mirror(std::uint64_t step) {
  base::Fd kept = link_->take_kept(kMirror);
  const bool was_vacant = !kept;
  if (was_vacant) kept = link_->take_kept(kVacantMirror);
  if (!kept) return false;
  auto memory = KeptMemory::open(std::move(kept));
  if (!memory) return memory.error();
  auto mirror = Mirror::open(memory->bytes(), state_.volatile_bytes());
  if (!mirror) return mirror.error();
  const auto status = was_vacant ? mirror->read_newest(state_) : mirror->read(step, state_);
  if (!status) return status;
  return true;
}

Status JobImpl::tell_all(std::uint64_t mine, std::vector<std::uint64_t>& all) {
  all.resize(static_cast<std::size_t>(world_->size()));
  Request request;
  request.operation = metrics::Operation::Heal;
  request.spec = {.kind = spi::OpKind::AllGather,
                  .dtype = DType::U64,
                  .count = 1,
                  .in = &mine,
                  .out = all.data()};
  return world_->perform_inside(request);
}

// Every newcomer gets its seat's volatile state as of `step`.
Status JobImpl::bring_mirrors(std::uint64_t step) {
  if (state_.volatile_bytes() == 0 || step == 0) return {};
  bool has = holds_state_ || brought_ == step;
  if (!has) {
    auto inherited = inherit_mirror(step);
    if (!inherited) return inherited.error();
    // Lost before it had one: the others carried on without it, and its own state is that of the
    // start.
    has = *inherited || carries_on_;
    if (has) brought_ = step;
  }
  if (!entrusts()) {
    if (has) return {};
    return {Code::Internal,
            fmt::format("rank {} took over its seat at step {} but was given no mirror of its "
                        "predecessor's volatile state",
                        seat().rank.value(), step)};
  }
  std::vector<std::uint64_t> has_it;
  if (auto status = tell_all(has ? 1 : 0, has_it); !status) return status;
  for (std::size_t member = 0; member < has_it.size(); ++member) {
    if (has_it[member] != 0) continue;
    if (auto status = bring_mirror(member, step); !status) return status;
  }
  return {};
}

// From whoever keeps it on another host.
Status JobImpl::bring_mirror(std::size_t to, std::uint64_t step) {
  const auto found = entrusted_.find(world_->present_seats()[to]);
  const bool keeps = found != entrusted_.end() && found->second.steps[step & 1] == step;
  std::vector<std::uint64_t> keepers;
  if (auto status = tell_all(keeps ? 1 : 0, keepers); !status) return status;
  const auto from = static_cast<std::size_t>(std::ranges::find(keepers, 1) - keepers.begin());
  const auto me = static_cast<std::size_t>(world_->rank());
  if (from == keepers.size()) {
    return {Code::ResourceExhausted,
            fmt::format("rank {} took over its seat on another host at step {}, and nobody is left "
                        "who keeps its predecessor's volatile state",
                        world_->present_seats()[to].value(), step)};
  }
  if (me == from) return pass(true, to, found->second.bytes[step & 1], spi::kNoDeadline);
  if (me != to) return {};
  std::vector<std::byte> mine(state_.volatile_bytes());
  if (auto status = pass(false, from, mine, spi::kNoDeadline); !status) return status;
  state_.restore_volatile(mine.data());
  brought_ = step;
  return {};
}

// ---- what ranks on other hosts keep

/// Equal on all members, since all registered the same.
bool JobImpl::entrusts() const {
  const std::size_t bytes = state_.volatile_bytes();
  return bytes > 0 && bytes <= collective::MessageKeepsakes::kBytesMax && !carries_on_ &&
         !on_one_host(world_->present_seats(), *bound_);
}

/// The next member behind this one on another host.
std::optional<std::size_t> JobImpl::keeper_of(std::size_t member) const {
  const auto& seats = world_->present_seats();
  const auto host = [&](std::size_t of) {
    return bound_->places[static_cast<std::size_t>(seats[of].value())].host;
  };
  for (std::size_t i = 1; i < seats.size(); ++i) {
    const std::size_t other = (member + i) % seats.size();
    if (host(other) != host(member)) return other;
  }
  return std::nullopt;
}

const collective::Entrusted* JobImpl::to_entrust(std::uint64_t step) {
  if (!entrusts()) return nullptr;
  const std::size_t bytes = state_.volatile_bytes();
  const auto me = static_cast<std::size_t>(world_->rank());
  entrusting_.resize(bytes);
  state_.save_volatile(entrusting_.data());
  to_entrust_ = {.mine = entrusting_, .keeper = -1, .wards = {}, .places = {}};
  if (const auto keeper = keeper_of(me)) to_entrust_.keeper = static_cast<int>(*keeper);
  for (std::size_t member = 0; member < world_->present_seats().size(); ++member) {
    if (member == me || keeper_of(member) != me) continue;
    Generations& kept = entrusted_[world_->present_seats()[member]];
    kept.steps[step & 1] = 0;
    kept.bytes[step & 1].resize(bytes);
    to_entrust_.wards.push_back(static_cast<int>(member));
    to_entrust_.places.push_back(kept.bytes[step & 1].data());
  }
  return &to_entrust_;
}

void JobImpl::note_entrusted(std::uint64_t step) {
  for (const int ward : to_entrust_.wards) {
    const Rank seat = world_->present_seats()[static_cast<std::size_t>(ward)];
    entrusted_[seat].steps[step & 1] = step;
  }
}

// In a new epoch others may be the keepers, and somebody may be lost before the next commit.
Status JobImpl::entrust_anew(std::uint64_t step) {
  if (step == 0 || !entrusts()) return {};
  const collective::Entrusted* const what = to_entrust(step);
  // As of the start of the step to resume at: what was begun of it does not count.
  if (mirror_) {
    if (auto status = mirror_->copy(step, entrusting_.data()); !status) return status;
  }
  if (what->keeper >= 0) {
    auto status = pass(true, static_cast<std::size_t>(what->keeper), entrusting_, spi::kNoDeadline);
    if (!status) return status;
  }
  for (std::size_t i = 0; i < what->wards.size(); ++i) {
    auto status = pass(false, static_cast<std::size_t>(what->wards[i]),
                       {what->places[i], entrusting_.size()}, spi::kNoDeadline);
    if (!status) return status;
  }
  note_entrusted(step);
  return {};
}

}  // namespace regroup::engine
