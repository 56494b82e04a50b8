/// Who sends which part of the state to whom: a pure function, equal on every rank that asks it.
///
/// The registered tensors are laid end to end and cut into chunks of one size that depends on
/// nothing but their total, so a newcomer's map of what it has stays valid whoever the donors are.
/// Chunks are dealt to the donors in turn: each donor sends the same number, give or take one. When
/// a donor dies, or a newcomer joins in, the same function is asked again with what every newcomer
/// has by then; only missing chunks are in the new plan.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include <regroup/status.hpp>
#include <regroup/types.hpp>

#include "state/digest.hpp"

namespace regroup::state {

/// Chunks are 1/256 of the state within these limits: the chunks under way at one death are few
/// percent of it.
inline constexpr std::uint64_t kChunkBytesMin = 64 * 1024;
inline constexpr std::uint64_t kChunkBytesMax = 4 * 1024 * 1024;
inline constexpr std::uint64_t kChunksAimed = 256;
inline constexpr std::size_t kTensorsMax = 1 << 20;
/// Total state of one rank; it keeps a map of all chunks within 2 MiB.
inline constexpr std::uint64_t kStateBytesMax = std::uint64_t{64} << 40;

using Chunk = StrongId<struct ChunkTag, std::uint64_t>;

struct Tensor {
  std::string name;
  std::uint64_t bytes = 0;
};
/// A range of the tensors laid end to end.
struct Range {
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
  constexpr bool operator==(const Range&) const = default;
};
/// The part of one tensor that a chunk covers.
struct Piece {
  std::size_t tensor = 0;    ///< index in registration order
  std::uint64_t offset = 0;  ///< in the tensor
  std::uint64_t bytes = 0;
  constexpr bool operator==(const Piece&) const = default;
};

/// The registered state, cut into chunks. Thread safety: immutable.
class Layout {
 public:
  /// Tensors in registration order. Errors: InvalidArgument (a name twice), ResourceExhausted
  /// (kTensorsMax, kStateBytesMax).
  static Result<Layout> make(std::vector<Tensor> tensors);

  [[nodiscard]] const std::vector<Tensor>& tensors() const { return tensors_; }
  [[nodiscard]] std::uint64_t total_bytes() const { return starts_.back(); }
  [[nodiscard]] std::uint64_t chunk_bytes() const { return chunk_bytes_; }
  /// 0 when the state is empty.
  [[nodiscard]] std::uint64_t chunks() const {
    return (total_bytes() + chunk_bytes_ - 1) / chunk_bytes_;
  }
  /// The bytes of a chunk; all but the last have chunk_bytes().
  [[nodiscard]] Range range(Chunk chunk) const;
  /// The same by tensor, in order; never empty pieces.
  [[nodiscard]] std::vector<Piece> pieces(Chunk chunk) const;
  /// The chunks that hold bytes of this tensor: first and one past the last.
  [[nodiscard]] std::pair<Chunk, Chunk> chunks_of(std::size_t tensor) const;
  /// Equal exactly when names, sizes and order are: ranks compare it before anything moves.
  [[nodiscard]] Digest signature() const;

 private:
  explicit Layout(std::vector<Tensor> tensors);
  std::vector<Tensor> tensors_;
  std::vector<std::uint64_t> starts_;  ///< where each tensor starts; one more for the end
  std::uint64_t chunk_bytes_;
};

/// A set of chunks: the resume map. Thread safety: a value.
class ChunkSet {
 public:
  explicit ChunkSet(std::uint64_t chunks = 0) : chunks_(chunks), words_((chunks + 63) / 64) {}
  /// From words() of another process. Errors: InvalidArgument (another number of chunks).
  static Result<ChunkSet> from_words(std::uint64_t chunks, std::span<const std::uint64_t> words);

  [[nodiscard]] bool has(Chunk chunk) const;
  void insert(Chunk chunk);
  void erase(Chunk chunk);
  [[nodiscard]] std::uint64_t size() const;                       ///< members
  [[nodiscard]] std::uint64_t chunks() const { return chunks_; }  ///< members and others
  [[nodiscard]] std::span<const std::uint64_t> words() const { return words_; }
  bool operator==(const ChunkSet&) const = default;

 private:
  std::uint64_t chunks_;
  std::vector<std::uint64_t> words_;
};

/// A rank that must be given the state, and what it has of it already.
struct Newcomer {
  Rank seat;
  ChunkSet have;
};
/// One donor gives one chunk to everybody who lacks it.
struct Transfer {
  Chunk chunk;
  Rank donor;
  std::vector<Rank> receivers;  ///< ascending
  bool operator==(const Transfer&) const = default;
};

struct HealPlan {
  std::vector<Transfer> transfers;  ///< ascending by chunk; each donor sends its own in this order
  std::string why;                  ///< for logs
  /// This donor's part, in the order in which it sends.
  [[nodiscard]] std::vector<Transfer> of_donor(Rank donor) const;
  /// This newcomer's part.
  [[nodiscard]] std::vector<Transfer> of_newcomer(Rank seat) const;
};

/// The plan; donors and newcomers in any order, each once.
/// Errors: FailedPrecondition (something is missing and nobody holds the state), InvalidArgument (a
/// seat twice, or on both sides; a resume map of another layout).
[[nodiscard]] Result<HealPlan> plan_heal(const Layout& layout, std::vector<Rank> donors,
                                         std::vector<Newcomer> newcomers);

/// Whose digest of this tensor counts: dealt in turn, so that donors share the reading.
[[nodiscard]] Rank digest_donor(std::size_t tensor, std::span<const Rank> donors);

/// A newcomer's book: what arrived, from whom, and whether it is right.
/// Thread safety: none.
class HealProgress {
 public:
  explicit HealProgress(const Layout& layout) : HealProgress(layout, ChunkSet(layout.chunks())) {}
  /// Goes on from what an earlier attempt had; `have` belongs to this layout (asserted).
  HealProgress(Layout layout, ChunkSet have);

  /// A chunk arrived whole. True when it was missing; a second copy is counted and otherwise
  /// ignored. Errors: InvalidArgument (no such chunk).
  Result<bool> mark(Chunk chunk, Rank donor);

  [[nodiscard]] bool complete() const { return missing_bytes_ == 0; }
  [[nodiscard]] std::uint64_t missing_bytes() const { return missing_bytes_; }
  /// What is missing, ascending, adjacent chunks joined.
  [[nodiscard]] std::vector<Range> missing_ranges() const;
  [[nodiscard]] const ChunkSet& have() const { return have_; }
  /// Bytes that counted, by donor; copies do not.
  [[nodiscard]] const std::map<Rank, std::uint64_t>& bytes_from() const { return bytes_from_; }
  [[nodiscard]] std::uint64_t duplicate_bytes() const { return duplicate_bytes_; }

  /// Compares each tensor with its digest at the donors. On a difference the chunks of that tensor
  /// are missing again (a neighbour that shares a chunk is sent again with them). Memory: `tensors`
  /// are the newcomer's own buffers in registration order, unchanged during the call. Errors:
  /// FailedPrecondition (not complete), InvalidArgument (number or size of tensors), Internal
  /// (digests differ; the text names the tensors).
  Status verify(std::span<const Digest> expected,
                std::span<const std::span<const std::byte>> tensors);

 private:
  void forget(std::size_t tensor);

  Layout layout_;
  ChunkSet have_;
  std::uint64_t missing_bytes_ = 0;
  std::uint64_t duplicate_bytes_ = 0;
  std::map<Rank, std::uint64_t> bytes_from_;
};

}  // namespace regroup::state
