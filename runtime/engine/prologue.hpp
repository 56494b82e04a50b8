/// Record of the collectives that a program makes before its first step, from which a newcomer's
/// are answered.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string_view>
#include <vector>

#include <regroup/status.hpp>
#include <regroup/types.hpp>

namespace regroup::engine {

/// What identifies one call of the prologue; all lives of a seat make the same ones in each group
/// in the same order.
struct PrologueCall {
  std::uint32_t kind = 0;
  DType dtype = DType::U8;
  ReduceOp op = ReduceOp::Sum;
  std::int32_t root = 0;
  std::uint64_t count = 0;
  std::uint64_t detail = 0;  ///< what else must be equal, as one number
  std::string_view group;
  std::uint32_t members = 0;  ///< of the group
  bool message = false;       ///< send or recv: counted apart from the collectives
  bool shared = false;        ///< all ranks have the same result
};

/// How many collectives of one group a seat has behind it. Travels between ranks as it is.
struct ProloguePosition {
  std::uint64_t group = 0;  ///< group_key(); 0: an empty entry
  std::uint64_t calls = 0;
  std::uint64_t members = 0;
};

/// Names a group (or its messages) in records and positions; never 0.
[[nodiscard]] std::uint64_t group_key(std::string_view group, bool message);

/// A view of kept memory (not owned) with an append-only list of (call, result bytes). One life of
/// a seat writes it, the next reads it and writes on. Thread safety: one thread at a time.
class PrologueRecord {
 public:
  /// Larger prologues are not kept: their newcomers are told so.
  static constexpr std::size_t kBytesMax = std::size_t{64} << 20;
  /// Results that lie in registered state, which heal brings anyway, fill at most this much.
  static constexpr std::size_t kHealedBytesMax = kBytesMax / 4;

  enum class Answer : std::uint8_t {
    Given,    ///< `result` is filled
    LeftOut,  ///< the call is answered, but its bytes are left to heal; `result` is all ones
  };

  static PrologueRecord format(std::span<std::byte> memory);
  /// Errors: FailedPrecondition when the memory holds no record.
  static Result<PrologueRecord> open(std::span<std::byte> memory);

  /// What other ranks' records hold of these groups, for a seat whose own record is gone with its
  /// host; and that seat's taking it over. Errors: FailedPrecondition when it is damaged.
  [[nodiscard]] std::vector<std::byte> entries_of(std::span<const std::uint64_t> groups) const;
  Status take_over(std::span<const std::byte> entries);

  /// Appends a call. `healed`: the result lies in registered state, its bytes may be left out.
  void append(const PrologueCall& call, std::span<const std::byte> result, bool healed);
  /// Takes the newest call of a group back: it turned out not to have happened.
  void drop_last(std::uint64_t group);
  /// The program reached its first step: the prologue is complete.
  void close();
  [[nodiscard]] bool closed() const;
  [[nodiscard]] bool overflowed() const;
  /// Of collectives only.
  [[nodiscard]] std::vector<ProloguePosition> positions() const;
  [[nodiscard]] bool has_messages() const;
  /// Calls of one group (or of its messages) that are here.
  [[nodiscard]] std::uint64_t calls(std::uint64_t group) const;

  /// Answers call `index` (from 0, below calls()) of its group.
  /// Errors: InvalidArgument when the program makes another call than its predecessor did;
  /// ResourceExhausted when only the predecessor had this result, and its record is gone.
  [[nodiscard]] Result<Answer> answer(const PrologueCall& call, std::uint64_t index,
                                      std::span<std::byte> result) const;

 private:
  struct Header;
  struct Entry;
  explicit PrologueRecord(std::span<std::byte> memory) : memory_(memory) {}
  Status index_entries();
  [[nodiscard]] Header& header() const;
  [[nodiscard]] Entry& entry(std::size_t offset) const;

  std::span<std::byte> memory_;
  std::map<std::uint64_t, std::vector<std::size_t>> entries_;  ///< offsets, by group
  std::size_t healed_bytes_ = 0;
};

}  // namespace regroup::engine
