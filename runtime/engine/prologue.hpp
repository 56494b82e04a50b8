/// Record of the collectives that a program makes before its first step, from which a newcomer's
/// are answered.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include <regroup/status.hpp>
#include <regroup/types.hpp>

namespace regroup::engine {

/// What identifies one collective of the prologue; all lives of a seat make the same ones in the
/// same order.
struct PrologueCall {
  std::uint32_t kind = 0;
  DType dtype = DType::U8;
  ReduceOp op = ReduceOp::Sum;
  std::int32_t root = 0;
  std::uint64_t count = 0;
  std::string_view group;
};

/// A view of kept memory (not owned) with an append-only list of (call, result bytes). One seat
/// writes its own; its next life reads it. Thread safety: one writer, then one reader.
class PrologueRecord {
 public:
  /// Larger prologues are not kept: their newcomers are told so.
  static constexpr std::size_t kBytesMax = std::size_t{64} << 20;

  static PrologueRecord format(std::span<std::byte> memory);
  /// Errors: FailedPrecondition when the memory holds no record.
  static Result<PrologueRecord> open(std::span<std::byte> memory);

  /// Appends a finished call. `healed`: the result lies in registered state, its bytes are left
  /// out.
  void append(const PrologueCall& call, std::span<const std::byte> result, bool healed);
  /// The program reached its first step: the prologue is complete.
  void close();

  /// Answers the reader's next call. true: answered, `result` is filled (unless heal brings it).
  /// false: the predecessor had not got that far, make the call for real.
  /// Errors: InvalidArgument when the program makes another call than its predecessor did,
  /// ResourceExhausted when the record ran over its cap.
  Result<bool> answer(const PrologueCall& call, std::span<std::byte> result);

 private:
  struct Header;
  struct Entry;
  explicit PrologueRecord(std::span<std::byte> memory) : memory_(memory) {}
  [[nodiscard]] Header& header() const;

  std::span<std::byte> memory_;
  std::size_t read_offset_ = 0;
};

}  // namespace regroup::engine
