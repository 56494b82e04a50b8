/// How far the members of an epoch are in the prologue, and what this process does about it.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include <regroup/status.hpp>

#include "base/fd.hpp"
#include "engine/kept_memory.hpp"
#include "engine/prologue.hpp"

namespace regroup::engine {

/// What each member tells the others when it meets them in a new epoch. Travels as it is.
struct PrologueInfo {
  static constexpr std::size_t kGroupsMax = 128;  ///< of a job, as the agent allows
  std::uint64_t over = 0;                         ///< it has seen all members finish their prologue
  std::uint64_t resolved = 0;   ///< its positions are outcomes; else they may end with one attempt
  std::uint64_t messages = 0;   ///< it sent or received point to point
  std::uint64_t too_large = 0;  ///< its record could not hold all results
  std::uint64_t lacks = 0;      ///< it is a newcomer, and its seat's record is not on its host
  std::array<ProloguePosition, kGroupsMax> groups{};
};

struct PrologueAgreement {
  bool over = false;
  std::map<std::uint64_t, std::uint64_t> calls;  ///< collectives that are done, by group
};

/// Who gives a copy of its record to a newcomer that lacks its own, and of which groups.
struct PrologueLoan {
  std::size_t from = 0;  ///< index of the member
  std::size_t to = 0;
  std::vector<std::uint64_t> groups;
};
/// The same on all members: each group's part comes from the first member that has it.
[[nodiscard]] std::vector<PrologueLoan> lend_records(std::span<const PrologueInfo> all);

/// The same on all members. Errors: Unsupported (messages were used), ResourceExhausted (results
/// were too large to keep), Internal.
Result<PrologueAgreement> agree_on_prologue(std::span<const PrologueInfo> all);

/// A call counts as made once all members of its group have confirmed that they recorded it; so
/// whatever a rank returned from is in the record of every seat, of those that are dead too, and a
/// record holds at most one call of a group more than that. Thread safety: any thread.
class PrologueProgress {
 public:
  /// Hands memory to the agent.
  using Keep = Status (*)(void* context, int fd, std::uint64_t bytes);

  /// Takes over what the seat's last life left; an empty descriptor: nothing.
  Status inherit(base::Fd kept);
  /// This life begins with an open question: its predecessor's last calls may not count.
  void begin_unresolved() {
    resolved_ = false;
    newcomer_ = true;
  }

  /// true: answered, `result` is filled (unless heal brings it). false: make the call for real.
  /// `index`: number of the call in its group in this life, from 0.
  /// Errors: InvalidArgument when the program makes other calls than its predecessor did,
  /// ResourceExhausted when the record ran over, FailedPrecondition when a live call would follow
  /// an answer that only heal completes.
  Result<bool> answer(const PrologueCall& call, std::uint64_t index, std::span<std::byte> result);

  /// Records a call before it is confirmed. `healed`: as PrologueRecord::append().
  Status append(const PrologueCall& call, std::span<const std::byte> result, bool healed, Keep keep,
                void* context);
  /// What other members lend to a newcomer, and its taking all of that over at once.
  [[nodiscard]] std::vector<std::byte> lend(std::span<const std::uint64_t> groups) const;
  Status take_over(std::span<const std::byte> entries, Keep keep, void* context);

  /// All members of the group have recorded it.
  void confirm(const PrologueCall& call);
  /// It did not happen after all.
  void take_back(const PrologueCall& call);
  /// The predecessor's prologue is complete, and `members` took part in it as the world.
  [[nodiscard]] bool is_complete_for(std::uint64_t members) const;
  /// A message is about to be sent or received.
  void note_message();
  /// This rank reached its first step.
  void close();
  /// All members reached their first step.
  void finish();

  [[nodiscard]] PrologueInfo info() const;
  /// Acts upon what the members agreed on. Errors: ResourceExhausted, Internal.
  Status settle(const PrologueAgreement& agreement);

 private:
  Status make_record(Keep keep, void* context);
  Status settle_record(const PrologueAgreement& agreement);

  mutable std::mutex mutex_;
  std::optional<KeptMemory> memory_;
  std::optional<PrologueRecord> record_;
  std::map<std::uint64_t, ProloguePosition> done_;  ///< of collectives, by group
  std::map<std::uint64_t, std::uint64_t> agreed_;
  bool resolved_ = true;
  bool newcomer_ = false;
  bool over_ = false;
  bool messages_ = false;
  bool left_out_ = false;  ///< an answer's bytes are still to come with heal
};

}  // namespace regroup::engine
