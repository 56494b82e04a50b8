/// Heal as the engine does it: a collective of all members when they enter an epoch, by plans that
/// the shipped planner makes on each member for itself.
#include "tests/sim/heal.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.hpp"
#include "base/mutant.hpp"
#include "tests/sim/ranks.hpp"

namespace regroup::sim {
namespace {

constexpr std::uint32_t kRoundsMax = 3;
constexpr std::size_t kImagesKept = 3;

state::Layout make_layout(const std::vector<std::uint64_t>& tensor_bytes) {
  std::vector<state::Tensor> tensors;
  for (std::size_t i = 0; i < tensor_bytes.size(); ++i) {
    tensors.push_back({fmt::format("t{}", i), tensor_bytes[i]});
  }
  auto layout = state::Layout::make(std::move(tensors));
  REGROUP_ASSERT(layout);
  return std::move(*layout);
}

}  // namespace

StateImages::StateImages(const std::vector<std::uint64_t>& tensor_bytes)
    : layout(make_layout(tensor_bytes)) {}

std::size_t StateImages::words() const { return (layout.total_bytes() + 7) / 8; }

std::vector<std::span<const std::byte>> StateImages::tensors(
    const std::vector<std::uint64_t>& words) const {
  std::vector<std::span<const std::byte>> parts;
  std::span<const std::byte> left = std::as_bytes(std::span(words));
  for (const state::Tensor& tensor : layout.tensors()) {
    parts.push_back(left.first(tensor.bytes));
    left = left.subspan(tensor.bytes);
  }
  return parts;
}

/// Each chunk's words begin with the state and say which chunk they are.
const StateImage& StateImages::of(std::uint64_t state) {
  for (const StateImage& image : recent) {
    if (image.state == state) return image;
  }
  StateImage image{.state = state};
  if (recent.size() == kImagesKept) {
    image = std::move(recent.front());
    recent.erase(recent.begin());
    image.state = state;
  }
  image.words.resize(words());
  const std::size_t chunk_words = layout.chunk_bytes() / 8;
  for (std::size_t at = 0; at < image.words.size(); at += chunk_words) {
    const auto end = std::min(at + chunk_words, image.words.size());
    std::fill(image.words.begin() + static_cast<std::ptrdiff_t>(at),
              image.words.begin() + static_cast<std::ptrdiff_t>(end),
              combine(state, at / chunk_words));
    image.words[at] = state;
  }
  image.digests.clear();
  for (const auto& part : tensors(image.words)) image.digests.push_back(state::digest(part));
  recent.push_back(std::move(image));
  return recent.back();
}

std::uint64_t StateImages::decode(const std::vector<std::uint64_t>& words) const {
  const std::size_t chunk_words = layout.chunk_bytes() / 8;
  for (std::size_t at = 0; at < words.size(); at += chunk_words) {
    const bool has_second = (at + 2) * 8 <= layout.total_bytes();
    const bool right = (at + 1) * 8 > layout.total_bytes() || words[at] == words[0];
    if (!right || (has_second && words[at + 1] != combine(words[0], at / chunk_words))) {
      return ~words[0];
    }
  }
  return words[0];
}

Ranks::Ranks(Core& core) : core_(core) {}
Ranks::~Ranks() = default;

StateImages& Ranks::images() {
  if (!images_) images_ = std::make_unique<StateImages>(core_.swarm.tensors);
  return *images_;
}

/// A collective ends when the epoch does.
bool Ranks::left_behind(Process& p) {
  if (!spi::read(p.mine->blocks[static_cast<std::size_t>(p.seat->value())].step).wedged)
    return false;
  go(p, At::Next);
  return true;
}

/// The first member of whom this does not hold yet; the process is woken when that one's block
/// changes.
template <class Holds>
bool Ranks::await_all(Process& p, Holds holds) {
  for (const std::int32_t seat : p.mine->members[0]) {
    if (holds(p.mine->blocks[static_cast<std::size_t>(seat)])) continue;
    watch(*p.mine, seat, p);
    return false;
  }
  return true;
}

/// The exchange as an operation of the world: done on all members, or on none.
bool Ranks::join(Process& p) {
  Block& mine = p.mine->blocks[static_cast<std::size_t>(p.seat->value())];
  spi::Word& word = mine.lanes[0].word;
  const auto verdict = spi::verdict(word, 1);
  if (verdict) {
    if (!*verdict) go(p, At::Next);
    return *verdict;
  }
  if (spi::read(word).wedged) return false;  // the decision wakes its owner
  if (!await_all(p, [](const Block& b) { return b.holding != Holding::Unknown; })) return false;
  if (!spi::try_advance(word, 1)) return false;
  changed(*p.mine, p.seat->value());
  return true;
}

void Ranks::meet(Process& p) {
  if (carries_on()) {
    if (!join(p)) return;
  } else {
    if (left_behind(p)) return;
    if (!await_all(p, [](const Block& b) { return b.holding != Holding::Unknown; })) return;
  }
  bool any = false;
  bool all = true;
  bool in_step = false;
  for (const std::int32_t seat : p.mine->members[0]) {
    const Block& block = p.mine->blocks[static_cast<std::size_t>(seat)];
    const bool holds = block.holding == Holding::State;
    any = any || holds;
    all = all && holds;
    in_step = in_step || block.in_step;
  }
  if (REGROUP_MUTANT(CARRY_ON_WITHOUT_AGREEMENT) && p.interrupted) return go_on(p);
  if (all && in_step) {
    if (p.interrupted) return go_on(p);
    return entered(p);  // it was about to begin the step that others are in
  }
  p.interrupted = false;
  if (all) return entered(p);
  Record record = record_of(p, What::HealBegin);
  record.number = p.step;
  record.other = any ? 1 : 0;
  core_.record(record);
  if (!any) {
    // Nobody ever held state: all begin together with the state that the program starts from.
    p.state = 0;
    p.applied = p.step - 1;
    return holds_state(p);
  }
  p.heal_round = 1;
  go(p, At::Share);
}

void Ranks::share_map(Process& p) {
  if (left_behind(p)) return;
  Block& block = p.mine->blocks[static_cast<std::size_t>(p.seat->value())];
  if (!p.has_state) {
    if (!p.healing) p.healing = std::make_unique<Healing>();
    Healing& healing = *p.healing;
    if (healing.resume != p.step || !healing.progress) {
      healing.progress.emplace(images().layout);
      healing.words.assign(images().words(), 0);
      healing.damaged = false;
    } else if (p.heal_round == 1 && healing.progress->have().size() > 0) {
      ++resumed_heals_;
    }
    healing.resume = p.step;
    const auto words = healing.progress->have().words();
    block.have.assign(words.begin(), words.end());
  }
  block.heal_shared = p.heal_round;
  changed(*p.mine, p.seat->value());
  go(p, At::Plan);
}

void Ranks::plan_heal(Process& p) {
  if (left_behind(p)) return;
  if (!await_all(p, [&p](const Block& b) { return b.heal_shared >= p.heal_round; })) return;
  std::vector<Rank> donors;
  std::vector<state::Newcomer> newcomers;
  const auto& seats = p.mine->members[0];
  for (std::size_t i = 0; i < seats.size(); ++i) {
    // Each member names them in another order.
    const std::int32_t seat = seats[(i + p.index) % seats.size()];
    const Block& block = p.mine->blocks[static_cast<std::size_t>(seat)];
    if (block.holding == Holding::State) {
      donors.emplace_back(seat);
      continue;
    }
    auto have = state::ChunkSet::from_words(images().layout.chunks(), block.have);
    REGROUP_ASSERT(have);
    newcomers.push_back({Rank{seat}, std::move(*have)});
  }
  auto plan = state::plan_heal(images().layout, donors, std::move(newcomers));
  if (!plan) return core_.checks.fail("S13 state transfer", std::string(plan.error().text()));
  Record record = record_of(p, What::HealPlan);
  record.number = p.heal_round;
  for (const state::Transfer& transfer : plan->transfers) {
    record.digest = combine(record.digest, transfer.chunk.value() * 1024 +
                                               static_cast<std::uint64_t>(transfer.donor.value()));
    for (const Rank receiver : transfer.receivers) {
      record.digest = combine(record.digest, static_cast<std::uint64_t>(receiver.value()));
    }
  }
  core_.record(record);
  if (p.has_state) return verified(p, false);
  std::sort(donors.begin(), donors.end());
  p.healing->donors = std::move(donors);
  p.healing->mine = plan->of_newcomer(*p.seat);
  p.healing->next = 0;
  go(p, At::Take);
}

void Ranks::take_chunk(Process& p) {
  if (left_behind(p)) return;
  Healing& healing = *p.healing;
  if (healing.next == healing.mine.size()) return go(p, At::Verify);
  const state::Transfer& transfer = healing.mine[healing.next];
  const std::int32_t seat = transfer.donor.value();
  const Process* from = find(p.mine->view.seats[static_cast<std::size_t>(seat)]);
  // Who is dead or has left the epoch gives nothing any more: the wedge will come.
  if (from == nullptr || !from->alive || from->mine != p.mine) return watch(*p.mine, seat, p);
  ++healing.next;
  Record record = record_of(p, What::HealChunk);
  record.number = from->applied;
  record.digest = from->has_state ? from->state : ~std::uint64_t{0};
  record.other = transfer.chunk.value() + 1;
  core_.record(record);
  const state::Range range = images().layout.range(transfer.chunk);
  auto* const to = reinterpret_cast<std::byte*>(healing.words.data()) + range.offset;
  if (from->has_state) {
    std::memcpy(
        to,
        reinterpret_cast<const std::byte*>(images().of(from->state).words.data()) + range.offset,
        range.bytes);
  }
  if (core_.fault(core_.swarm.heal_damage)) {
    ++damaged_chunks_;
    healing.damaged = true;
    to[core_.random.below(range.bytes)] ^= std::byte{1};
  }
  const auto marked = healing.progress->mark(transfer.chunk, transfer.donor);
  if (!marked) core_.checks.fail("S13 state transfer", std::string(marked.error().text()));
  wake(p);
}

void Ranks::verify(Process& p) {
  if (left_behind(p)) return;
  Healing& healing = *p.healing;
  std::vector<state::Digest> expected;
  for (std::size_t i = 0; i < images().layout.tensors().size(); ++i) {
    const Rank donor = state::digest_donor(i, healing.donors);
    const Process* from = find(p.mine->view.seats[static_cast<std::size_t>(donor.value())]);
    if (from == nullptr || !from->alive || from->mine != p.mine)
      return watch(*p.mine, donor.value(), p);
    expected.push_back(images().of(from->state).digests[i]);
  }
  const Status right = healing.progress->verify(expected, images().tensors(healing.words));
  if (!right && !std::exchange(healing.damaged, false)) {
    core_.checks.fail("S13 state transfer", fmt::format("rank {}: nothing was damaged, and {}",
                                                        p.seat->value(), right.text()));
  }
  verified(p, !right);
}

void Ranks::verified(Process& p, bool wrong) {
  Block& block = p.mine->blocks[static_cast<std::size_t>(p.seat->value())];
  block.heal_wrong = wrong;
  block.heal_verified = p.heal_round;
  changed(*p.mine, p.seat->value());
  go(p, At::Judge);
}

void Ranks::judge_heal(Process& p) {
  if (left_behind(p)) return;
  if (!await_all(p, [&p](const Block& b) { return b.heal_verified >= p.heal_round; })) return;
  bool wrong = false;
  for (const std::int32_t seat : p.mine->members[0]) {
    wrong = wrong || p.mine->blocks[static_cast<std::size_t>(seat)].heal_wrong;
  }
  if (wrong && p.heal_round == kRoundsMax) {
    ++failed_heals_;
    return news_->fails(p);
  }
  if (wrong) {
    ++p.heal_round;
    return go(p, At::Share);
  }
  if (p.has_state) return entered(p);
  p.state = images().decode(p.healing->words);
  p.applied = p.step - 1;
  p.healing.reset();
  holds_state(p);
}

void Ranks::holds_state(Process& p) {
  p.has_state = true;
  Record record = record_of(p, What::HealEnd);
  record.number = p.applied;
  record.digest = p.state;
  core_.record(record);
  entered(p);
}

void Ranks::entered(Process& p) {
  news_->entered(p);
  begin_step(p);
}

}  // namespace regroup::sim
