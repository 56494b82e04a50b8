#include "state/planner.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <unordered_set>
#include <utility>

#include "base/check.hpp"
#include "base/mutant.hpp"

namespace regroup::state {
namespace {

constexpr std::uint64_t kChunkGrain = 4096;  // whole pages: a chunk can be mapped

std::uint64_t choose_chunk_bytes(std::uint64_t total) {
  const std::uint64_t even = (total / kChunksAimed + kChunkGrain - 1) / kChunkGrain * kChunkGrain;
  return std::clamp(even, kChunkBytesMin, kChunkBytesMax);
}

Status check_sides(const Layout& layout, const std::vector<Rank>& donors,
                   const std::vector<Newcomer>& newcomers) {
  if (std::adjacent_find(donors.begin(), donors.end()) != donors.end()) {
    return Status(Code::InvalidArgument, "heal: a donor is named twice");
  }
  for (std::size_t i = 0; i < newcomers.size(); ++i) {
    const Rank seat = newcomers[i].seat;
    if (i > 0 && newcomers[i - 1].seat == seat) {
      return Status(Code::InvalidArgument,
                    fmt::format("heal: rank {} is named twice", seat.value()));
    }
    if (std::binary_search(donors.begin(), donors.end(), seat)) {
      return Status(Code::InvalidArgument,
                    fmt::format("heal: rank {} is donor and newcomer", seat.value()));
    }
    if (newcomers[i].have.chunks() != layout.chunks()) {
      return Status(
          Code::InvalidArgument,
          fmt::format(
              "heal: rank {} has a map of {} chunks, the state has {}: do all ranks register the "
              "same tensors?",
              seat.value(), newcomers[i].have.chunks(), layout.chunks()));
    }
  }
  return {};
}

}  // namespace

Layout::Layout(std::vector<Tensor> tensors)
    : tensors_(std::move(tensors)), starts_{0}, chunk_bytes_(0) {
  starts_.reserve(tensors_.size() + 1);
  for (const Tensor& tensor : tensors_) starts_.push_back(starts_.back() + tensor.bytes);
  chunk_bytes_ = choose_chunk_bytes(starts_.back());
}

Result<Layout> Layout::make(std::vector<Tensor> tensors) {
  if (tensors.size() > kTensorsMax) {
    return Status(Code::ResourceExhausted, fmt::format("state: {} tensors exceed the limit of {}",
                                                       tensors.size(), kTensorsMax));
  }
  std::unordered_set<std::string_view> names;
  std::uint64_t total = 0;
  for (const Tensor& tensor : tensors) {
    if (!names.insert(tensor.name).second) {
      return Status(Code::InvalidArgument,
                    fmt::format("state: \"{}\" is registered twice", tensor.name));
    }
    if (tensor.bytes > kStateBytesMax - total) {
      return Status(Code::ResourceExhausted,
                    fmt::format("state: with \"{}\" the registered bytes exceed the limit of {}",
                                tensor.name, kStateBytesMax));
    }
    total += tensor.bytes;
  }
  return Layout(std::move(tensors));
}

Range Layout::range(Chunk chunk) const {
  REGROUP_ASSERT(chunk.value() < chunks());
  const std::uint64_t offset = chunk.value() * chunk_bytes_;
  return {.offset = offset, .bytes = std::min(chunk_bytes_, total_bytes() - offset)};
}

std::vector<Piece> Layout::pieces(Chunk chunk) const {
  Range left = range(chunk);
  std::vector<Piece> pieces;
  // The last tensor that starts at or before the chunk.
  const auto after = std::upper_bound(starts_.begin(), starts_.end() - 1, left.offset);
  for (auto tensor = static_cast<std::size_t>(after - starts_.begin()) - 1; left.bytes > 0;
       ++tensor) {
    const std::uint64_t bytes =
        std::min(left.bytes, starts_[tensor + 1] - std::min(left.offset, starts_[tensor + 1]));
    if (bytes == 0) continue;
    pieces.push_back({.tensor = tensor, .offset = left.offset - starts_[tensor], .bytes = bytes});
    left.offset += bytes;
    left.bytes -= bytes;
  }
  return pieces;
}

std::pair<Chunk, Chunk> Layout::chunks_of(std::size_t tensor) const {
  REGROUP_ASSERT(tensor < tensors_.size());
  const std::uint64_t first = starts_[tensor] / chunk_bytes_;
  if (tensors_[tensor].bytes == 0) return {Chunk(first), Chunk(first)};
  return {Chunk(first), Chunk((starts_[tensor + 1] - 1) / chunk_bytes_ + 1)};
}

Digest Layout::signature() const {
  Digester digester;
  const auto add_number = [&](std::uint64_t number) {
    digester.update(std::as_bytes(std::span(&number, 1)));
  };
  add_number(tensors_.size());
  for (const Tensor& tensor : tensors_) {
    add_number(tensor.name.size());
    digester.update(std::as_bytes(std::span(tensor.name)));
    add_number(tensor.bytes);
  }
  return digester.digest();
}

Result<ChunkSet> ChunkSet::from_words(std::uint64_t chunks, std::span<const std::uint64_t> words) {
  const std::uint64_t tail = chunks % 64;
  const bool beyond = tail != 0 && !words.empty() && (words.back() >> tail) != 0;
  if (words.size() != (chunks + 63) / 64 || beyond) {
    return Status(
        Code::InvalidArgument,
        fmt::format("heal: a resume map of {} words does not fit {} chunks", words.size(), chunks));
  }
  ChunkSet set;
  set.chunks_ = chunks;
  set.words_.assign(words.begin(), words.end());
  return set;
}

bool ChunkSet::has(Chunk chunk) const {
  REGROUP_ASSERT(chunk.value() < chunks_);
  return (words_[chunk.value() / 64] >> (chunk.value() % 64) & 1) != 0;
}

void ChunkSet::insert(Chunk chunk) {
  REGROUP_ASSERT(chunk.value() < chunks_);
  words_[chunk.value() / 64] |= std::uint64_t{1} << (chunk.value() % 64);
}

void ChunkSet::erase(Chunk chunk) {
  REGROUP_ASSERT(chunk.value() < chunks_);
  words_[chunk.value() / 64] &= ~(std::uint64_t{1} << (chunk.value() % 64));
}

std::uint64_t ChunkSet::size() const {
  std::uint64_t count = 0;
  for (const std::uint64_t word : words_) count += static_cast<std::uint64_t>(std::popcount(word));
  return count;
}

std::vector<Transfer> HealPlan::of_donor(Rank donor) const {
  std::vector<Transfer> mine;
  std::copy_if(transfers.begin(), transfers.end(), std::back_inserter(mine),
               [donor](const Transfer& transfer) { return transfer.donor == donor; });
  return mine;
}

std::vector<Transfer> HealPlan::of_newcomer(Rank seat) const {
  std::vector<Transfer> mine;
  std::copy_if(transfers.begin(), transfers.end(), std::back_inserter(mine),
               [seat](const Transfer& transfer) {
                 return std::binary_search(transfer.receivers.begin(), transfer.receivers.end(),
                                           seat);
               });
  return mine;
}

Result<HealPlan> plan_heal(const Layout& layout, std::vector<Rank> donors,
                           std::vector<Newcomer> newcomers) {
  if (!REGROUP_MUTANT(DONORS_UNSORTED)) std::sort(donors.begin(), donors.end());
  std::sort(newcomers.begin(), newcomers.end(),
            [](const Newcomer& a, const Newcomer& b) { return a.seat < b.seat; });
  if (Status checked = check_sides(layout, donors, newcomers); !checked) return checked;
  if (REGROUP_MUTANT(HEAL_FROM_NEWCOMER)) {
    for (const Newcomer& newcomer : newcomers) donors.push_back(newcomer.seat);
  }

  HealPlan plan;
  for (std::uint64_t number = 0; number < layout.chunks(); ++number) {
    Transfer transfer{.chunk = Chunk(number)};
    for (const Newcomer& newcomer : newcomers) {
      if (REGROUP_MUTANT(SECOND_NEWCOMER_FORGOTTEN) && !transfer.receivers.empty()) break;
      if (REGROUP_MUTANT(DROP_RESUMED_CHUNK) && plan.transfers.empty() && newcomer.have.size() > 0)
        continue;
      if (!newcomer.have.has(transfer.chunk)) transfer.receivers.push_back(newcomer.seat);
    }
    if (REGROUP_MUTANT(LAST_CHUNK_FORGOTTEN) && number > 0 && number + 1 == layout.chunks())
      continue;
    if (transfer.receivers.empty()) continue;
    if (donors.empty()) {
      return Status(Code::FailedPrecondition,
                    fmt::format("heal: nobody holds the state that rank {} lacks",
                                transfer.receivers[0].value()),
                    {.rank = transfer.receivers[0]});
    }
    // Dealt by the number of missing chunks, not by the chunk's own: also what is left after a
    // death is shared evenly.
    transfer.donor = donors[plan.transfers.size() % donors.size()];
    plan.transfers.push_back(std::move(transfer));
  }
  plan.why =
      fmt::format("heal {} newcomers: {} of {} chunks of {} bytes from {} donors", newcomers.size(),
                  plan.transfers.size(), layout.chunks(), layout.chunk_bytes(), donors.size());
  return plan;
}

Rank digest_donor(std::size_t tensor, std::span<const Rank> donors) {
  REGROUP_ASSERT(!donors.empty());
  return donors[tensor % donors.size()];
}

HealProgress::HealProgress(Layout layout, ChunkSet have)
    : layout_(std::move(layout)), have_(std::move(have)) {
  REGROUP_ASSERT(have_.chunks() == layout_.chunks());
  for (const Range& range : missing_ranges()) missing_bytes_ += range.bytes;
}

Result<bool> HealProgress::mark(Chunk chunk, Rank donor) {
  if (chunk.value() >= layout_.chunks()) {
    return Status(Code::InvalidArgument,
                  fmt::format("heal: rank {} sent chunk {}, the state has {}", donor.value(),
                              chunk.value(), layout_.chunks()));
  }
  const std::uint64_t bytes = layout_.range(chunk).bytes;
  if (have_.has(chunk)) {
    duplicate_bytes_ += bytes;
    return false;
  }
  have_.insert(chunk);
  missing_bytes_ -= bytes;
  bytes_from_[donor] += bytes;
  return true;
}

std::vector<Range> HealProgress::missing_ranges() const {
  std::vector<Range> ranges;
  for (std::uint64_t number = 0; number < layout_.chunks(); ++number) {
    if (have_.has(Chunk(number))) continue;
    const Range range = layout_.range(Chunk(number));
    if (!ranges.empty() && ranges.back().offset + ranges.back().bytes == range.offset) {
      ranges.back().bytes += range.bytes;
    } else {
      ranges.push_back(range);
    }
  }
  return ranges;
}

void HealProgress::forget(std::size_t tensor) {
  if (REGROUP_MUTANT(KEEP_WRONG_CHUNKS)) return;
  const auto [first, last] = layout_.chunks_of(tensor);
  for (std::uint64_t number = first.value(); number < last.value(); ++number) {
    if (!have_.has(Chunk(number))) continue;  // shared with a tensor that was forgotten before
    have_.erase(Chunk(number));
    missing_bytes_ += layout_.range(Chunk(number)).bytes;
  }
}

Status HealProgress::verify(std::span<const Digest> expected,
                            std::span<const std::span<const std::byte>> tensors) {
  if (!complete()) {
    return Status(Code::FailedPrecondition,
                  fmt::format("heal: {} bytes are still missing", missing_bytes_));
  }
  if (expected.size() != layout_.tensors().size() || tensors.size() != expected.size()) {
    return Status(Code::InvalidArgument,
                  fmt::format("heal: {} tensors with {} digests, the layout has {}", tensors.size(),
                              expected.size(), layout_.tensors().size()));
  }
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].size() == layout_.tensors()[i].bytes) continue;
    return Status(
        Code::InvalidArgument,
        fmt::format("heal: tensor \"{}\" has {} bytes here and {} at the donors",
                    layout_.tensors()[i].name, tensors[i].size(), layout_.tensors()[i].bytes));
  }
  std::string differing;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const Digest here = digest(tensors[i]);
    if (here == expected[i] || REGROUP_MUTANT(ACCEPT_WRONG_DIGEST)) continue;
    differing += fmt::format("{}\"{}\" (here {}, at its donor {})", differing.empty() ? "" : ", ",
                             layout_.tensors()[i].name, to_string(here), to_string(expected[i]));
    forget(i);
  }
  if (differing.empty()) return {};
  return Status(Code::Internal, "heal: digests differ for " + differing +
                                    "; is the state changed before commit()?");
}

}  // namespace regroup::state
