#include "engine/heal.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "state/digest.hpp"

namespace regroup::engine {
namespace {

constexpr int kRoundsMax = 3;

/// What each member says of itself when it enters an epoch.
struct EntryInfo {
  std::uint64_t layout = 0;
  std::uint64_t holds_state = 0;
};

std::vector<state::Tensor> sizes_of(std::span<const Tensor> tensors) {
  std::vector<state::Tensor> sizes;
  for (const auto& tensor : tensors) sizes.push_back({tensor.name, tensor.bytes});
  return sizes;
}

std::span<const std::byte> bytes_of(const Tensor& tensor) { return {tensor.data, tensor.bytes}; }

}  // namespace

Healer::Healer(GroupImpl& world, const RegisteredState& state, HealBook& book, FaultHook hook)
    : world_(world), state_(state), book_(book), hook_(std::move(hook)) {}

Status Healer::collective(spi::OpKind kind, DType type, const void* in, void* out,
                          std::size_t count) {
  Request request;
  request.operation = metrics::Operation::Heal;
  request.spec = {.kind = kind, .dtype = type, .count = count, .in = in, .out = out};
  return world_.perform_inside(request);
}

Result<HealRound> Healer::exchange(bool holds_state) {
  const EntryInfo mine{state_.layout_digest(), holds_state ? 1U : 0U};
  std::vector<EntryInfo> all(static_cast<std::size_t>(world_.size()));
  constexpr auto kWords = sizeof(EntryInfo) / sizeof(std::int64_t);
  if (auto status = collective(spi::OpKind::AllGather, DType::I64, &mine, all.data(), kWords);
      !status)
    return status;
  HealRound round;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (all[i].layout != all[0].layout) {
      return Status(
          Code::InvalidArgument,
          fmt::format(
              "ranks {} and {} registered different state (names, sizes or order); every rank "
              "registers the same before its first next()",
              world_.present_seats()[0].value(), world_.present_seats()[i].value()));
    }
    (all[i].holds_state != 0 ? round.donors : round.newcomers)
        .push_back(Rank(static_cast<std::int32_t>(i)));
  }
  if (!round.donors.empty()) return round;
  return Status(Code::FailedPrecondition,
                "nobody is left to heal from: every rank that held the state is lost. Start the "
                "job again from a "
                "checkpoint");
}

Status Healer::run(const HealRound& round) {
  auto layout = state::Layout::make(sizes_of(state_.tensors()));
  if (!layout) return layout.error();
  layout_ = std::move(*layout);
  if (!book_.progress) book_.progress.emplace(*layout_);
  for (int i = 0; i < kRoundsMax; ++i) {
    if (auto status = transfer(round); !status) return status;
    auto right = verify(round);
    if (!right) return right.error();
    if (*right) return {};
  }
  return {
      Code::Internal,
      fmt::format("the state that newcomers received differs from the donors' after {} attempts; "
                  "is registered state changed outside of steps?",
                  kRoundsMax)};
}

Result<state::HealPlan> Healer::plan(const HealRound& round) {
  const auto mine = book_.progress->have().words();
  std::vector<std::uint64_t> all(mine.size() * static_cast<std::size_t>(world_.size()));
  if (auto status =
          collective(spi::OpKind::AllGather, DType::I64, mine.data(), all.data(), mine.size());
      !status) {
    return status;
  }
  std::vector<state::Newcomer> newcomers;
  for (const Rank newcomer : round.newcomers) {
    const auto words = std::span(all).subspan(
        static_cast<std::size_t>(newcomer.value()) * mine.size(), mine.size());
    auto have = state::ChunkSet::from_words(layout_->chunks(), words);
    if (!have) return have.error();
    newcomers.push_back({newcomer, std::move(*have)});
  }
  return state::plan_heal(*layout_, round.donors, std::move(newcomers));
}

Status Healer::transfer(const HealRound& round) {
  if (layout_->chunks() == 0) return {};
  auto plan_now = plan(round);
  if (!plan_now) return plan_now.error();
  const bool donor = std::ranges::find(round.donors, Rank(world_.rank())) != round.donors.end();
  return donor ? give(*plan_now) : take(*plan_now);
}

Status Healer::give(const state::HealPlan& plan) {
  for (const auto& transfer : plan.of_donor(Rank(world_.rank()))) {
    hook_("give", transfer.chunk.value());
    for (const Rank receiver : transfer.receivers) {
      if (auto status = move_chunk(true, receiver, transfer.chunk); !status) return status;
    }
  }
  return {};
}

Status Healer::take(const state::HealPlan& plan) {
  for (const auto& transfer : plan.of_newcomer(Rank(world_.rank()))) {
    hook_("take", transfer.chunk.value());
    if (auto status = move_chunk(false, transfer.donor, transfer.chunk); !status) return status;
    if (auto marked = book_.progress->mark(transfer.chunk, transfer.donor); !marked)
      return marked.error();
  }
  return {};
}

Status Healer::move_chunk(bool give, Rank other, state::Chunk chunk) {
  Request request;
  request.kind = give ? Request::Kind::Send : Request::Kind::Recv;
  request.operation = metrics::Operation::Heal;
  request.other = other.value();
  for (const auto& piece : layout_->pieces(chunk)) {
    std::byte* const data = state_.tensors()[piece.tensor].data + piece.offset;
    request.spec = {.dtype = DType::U8, .count = piece.bytes, .in = data, .out = data};
    if (auto status = world_.perform_inside(request); !status) return status;
  }
  return {};
}

Result<bool> Healer::verify(const HealRound& round) {
  hook_("verify", 0);
  const auto tensors = state_.tensors();
  const Rank me(world_.rank());
  // Each digest is computed by one donor; the sum with the others' zeros brings it to everybody.
  std::vector<state::Digest> digests(tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (state::digest_donor(i, round.donors) == me)
      digests[i] = state::digest(bytes_of(tensors[i]));
  }
  constexpr auto kWords = sizeof(state::Digest) / sizeof(std::int64_t);
  const auto words = digests.size() * kWords;
  if (auto status =
          collective(spi::OpKind::AllReduce, DType::I64, digests.data(), digests.data(), words);
      !status) {
    return status;
  }
  std::int64_t wrong = 0;
  if (std::ranges::find(round.newcomers, me) != round.newcomers.end()) {
    std::vector<std::span<const std::byte>> mine;
    for (const auto& tensor : tensors) mine.push_back(bytes_of(tensor));
    if (!book_.progress->verify(digests, mine)) wrong = 1;
  }
  if (auto status = collective(spi::OpKind::AllReduce, DType::I64, &wrong, &wrong, 1); !status)
    return status;
  return wrong == 0;
}

}  // namespace regroup::engine
