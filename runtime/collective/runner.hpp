/// Executes the operations of one rank in one group and one epoch, on the calling thread.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "collective/algorithm_rules.hpp"
#include "collective/schedule.hpp"
#include "spi/shared_slots.hpp"
#include "spi/waiting.hpp"

namespace regroup::collective {

using spi::Deadline;
using spi::kNoDeadline;

/// Instants of an operation at which a FaultHook is called, in the order in which they come.
enum class Instant : std::uint8_t {
  Enter,
  BeforeCopyIn,
  AfterCopyIn,
  AfterPublish,
  AfterAwait,
  AfterReduce,
  BeforeComplete,
  AfterComplete,
  BeforePrepare,  ///< of a commit
  AfterPrepare,   ///< of a commit
};
inline constexpr std::size_t kInstants = 10;
/// "after_copy_in", as REGROUP_FAULTS has it. The text lives for ever.
[[nodiscard]] const char* name(Instant instant);

/// For faults planted by tests and rehearsals. It is called several times in each operation.
/// `chunk` is -1 outside chunks.
struct FaultHook {
  void (*call)(void* context, Instant instant, std::uint64_t number, std::int64_t chunk) = nullptr;
  void* context = nullptr;
};

/// How rank and agent find out that the words in shared memory do not tell what happened. Called
/// only once a wait has become long.
struct EpochHook {
  /// Whether a later epoch is installed: who still waits in this one will never be answered.
  bool (*is_over)(void* context) = nullptr;
  /// The own word is wedged and the decision does not come: the agent may not know of the wedge.
  void (*undecided)(void* context) = nullptr;
  void* context = nullptr;
};

/// Where to leave what this rank is doing, for whoever examines it: at each instant `of` its number
/// is stored.
struct PhaseMark {
  std::atomic<std::uint8_t>* phase = nullptr;
  std::array<std::uint8_t, kInstants> of{};
};

struct RunnerOptions {
  int cores = 1;       ///< of this host, for all its ranks
  spi::PumpHook pump;  ///< called while waiting
  FaultHook fault;     ///< called at each instant
  EpochHook epoch;     ///< may be empty
  PhaseMark mark;      ///< stored to at each instant; the memory outlives the runner
  /// When the operation was called, set by the caller before run(): nanoseconds, one clock for all
  /// ranks of the host. Null: 0 is stored.
  const std::uint64_t* arrival_ns = nullptr;
  /// all_reduce takes what this rank contributes from its input, and never back from shared memory;
  /// everybody then reads everything (OneShot). Equal on all ranks.
  bool own_from_input = false;
  std::optional<Algorithm> algorithm;  ///< overrides the choice; equal on all ranks
  AlgorithmRules rules;                ///< asked without `algorithm`; equal on all ranks
};

struct OpSpec {
  OpKind kind = OpKind::Barrier;
  DType dtype = DType::U8;
  ReduceOp op = ReduceOp::Sum;
  bool keep_input = true;  ///< where `out` overlaps `in`: a Lost operation leaves `in` as it was
  int root = 0;            ///< group rank
  double factor = 1.0;     ///< of PremulSum
  /// Elements, as in the public API; unused where there are counts. Coalesced: of `parts`, at least
  /// 1.
  std::size_t count = 0;
  Counts counts;             ///< of the kinds that have them
  const void* in = nullptr;  ///< Broadcast: the root's buffer. Unused where nothing is sent.
  void* out = nullptr;       ///< Unused where nothing is received.
  /// Coalesced: carried out in this order, none of them coalesced itself. Where ranks are roots or
  /// not, all of them are done, or none is. Memory: the caller's, for as long as the operation.
  const OpSpec* parts = nullptr;
};

/// The part of a call that is compared between the ranks.
[[nodiscard]] OpDescriptor describe_call(const OpSpec& spec);
/// Of `ranks` numbers, in their order.
[[nodiscard]] std::uint64_t hash_of(const std::size_t* counts, int ranks);

/// Of all_to_all_v, as all ranks find it: `sent` elements from one rank to another, which expects
/// `due`.
[[nodiscard]] std::string counts_differ(std::uint64_t sequence, DType dtype, int from, int to,
                                        std::uint64_t sent, std::uint64_t due);

enum class OutcomeKind : std::uint8_t {
  Done,        ///< uniform: done on all survivors
  HandedOver,  ///< this rank receives nothing; its contribution is published
  Lost,        ///< uniform: revoked on all survivors; the epoch is over
  Mismatch,    ///< the ranks called different things; text names both sides, and is the same on all
               ///< ranks
  Expired,     ///< the deadline passed; own word wedged by this rank; tell the agent, then settle()
               ///< for the outcome
  Damaged,     ///< shared memory holds what no member writes (text); own words wedged; as Expired
};
[[nodiscard]] const char* name(OutcomeKind kind);

struct Outcome {
  OutcomeKind kind = OutcomeKind::Done;
  std::uint64_t number = 0;  ///< sequence number, or step
  std::string text;          ///< why, for Mismatch, Expired and Damaged
  [[nodiscard]] bool ok() const {
    return kind == OutcomeKind::Done || kind == OutcomeKind::HandedOver;
  }
};

/// What this rank gives another one to keep as of a step, and what it keeps for others.
struct Entrusted {
  std::span<const std::byte> mine;
  int keeper = -1;                 ///< group rank; -1: nobody
  std::vector<int> wards;          ///< whose keeper this rank is
  std::vector<std::byte*> places;  ///< for each ward's: as many bytes as mine
};

/// One rank's end of one group in one epoch. Operations are numbered 1, 2, 3... here.
/// Memory: the arena outlives the runner; buffers of an operation belong to it until it returned,
/// and, after Expired or Damaged, until settle() returned something else. Thread safety: one thread
/// at a time. run, commit, send, recv and settle block; they end with the operation, with the
/// decision after a wedge, or at the deadline.
class GroupRunner {
 public:
  GroupRunner() = default;
  GroupRunner(const GroupRunner&) = delete;
  GroupRunner& operator=(const GroupRunner&) = delete;
  virtual ~GroupRunner() = default;

  /// The next operation of the group. The arguments are valid (types fit, root < members, the
  /// operation is defined for the type).
  virtual Outcome run(const OpSpec& spec, Deadline until) = 0;
  /// After Expired or Damaged of run(): waits for the decision and finishes (Done) or undoes (Lost)
  /// that operation.
  virtual Outcome settle(Deadline until) = 0;
  /// On the world's arena. Done: every member prepared `step` (1-based, growing), or the decision
  /// says so. Lost: the decision says no. After Expired or Damaged (own step word wedged; tell the
  /// agent) call again for the outcome.
  virtual Outcome commit(std::uint64_t step, Deadline until) = 0;
  /// Before commit(step): Done once everything that this rank is to keep is here. Since it prepares
  /// the step behind that only, a committed step has all that was to be kept as of it. Where
  /// members share memory nothing is moved.
  virtual Outcome entrust(std::uint64_t step, const Entrusted& what, Deadline until) = 0;

  /// Point to point, matched by (source, destination, tag) in order, apart from the operations'
  /// sequence. HandedOver once all bytes lie in the arena. While it waits it receives what others
  /// send here. Expired: the stream to `destination` is cut, later sends to it return Damaged.
  virtual Outcome send(const void* data, std::size_t count, DType dtype, int destination,
                       std::uint32_t tag, Deadline until) = 0;
  /// Done: `data` holds the message. Lost: wedged before it was complete. Expired: nothing was
  /// consumed.
  virtual Outcome recv(void* data, std::size_t count, DType dtype, int source, std::uint32_t tag,
                       Deadline until) = 0;
  /// Done: a message with that tag comes from `source`, the first one found; recv() takes it.
  /// Nothing is consumed, whatever the outcome. Nobody is passed over for ever.
  virtual Outcome find_sender(std::uint32_t tag, int& source, Deadline until) = 0;

  /// What somebody else wrote over what this rank alone may write; none: it stands as it was
  /// written. Whoever waits for long looks by itself; a rank that leaves has to ask. Then the words
  /// say again what they said, and are wedged: tell the agent.
  [[nodiscard]] virtual std::optional<std::string> look_for_damage() = 0;

  /// Ends this epoch on this rank: both own words are wedged. Tell the agent.
  virtual void wedge() = 0;
  /// On the world, once `step` is committed: whether it is the last one of this epoch
  /// (spi/planned_end.hpp).
  [[nodiscard]] virtual bool ends_after(std::uint64_t step) const = 0;

  /// Number of the last operation that run() was called for.
  [[nodiscard]] virtual std::uint64_t sequence() const = 0;
  /// Where the own words lie.
  [[nodiscard]] virtual const spi::SharedSlots& slots() const = 0;
  /// When `rank` called operation `sequence` (its RunnerOptions::arrival_ns); empty when it is not
  /// known (any more).
  [[nodiscard]] virtual std::optional<std::uint64_t> arrival_ns(int rank,
                                                                std::uint64_t sequence) const = 0;
};

/// Over shared slots: what members publish lies in memory that all of them map.
class SlotRunner final : public GroupRunner {
 public:
  SlotRunner(spi::SharedSlots slots, int me, const RunnerOptions& options);
  SlotRunner(const SlotRunner&) = delete;
  SlotRunner& operator=(const SlotRunner&) = delete;
  ~SlotRunner() override;

  Outcome run(const OpSpec& spec, Deadline until) override;
  Outcome settle(Deadline until) override;
  Outcome commit(std::uint64_t step, Deadline until) override;
  Outcome entrust(std::uint64_t step, const Entrusted& /*what*/, Deadline /*until*/) override {
    return {OutcomeKind::Done, step, {}};
  }
  Outcome send(const void* data, std::size_t count, DType dtype, int destination, std::uint32_t tag,
               Deadline until) override;
  Outcome recv(void* data, std::size_t count, DType dtype, int source, std::uint32_t tag,
               Deadline until) override;
  Outcome find_sender(std::uint32_t tag, int& source, Deadline until) override;
  [[nodiscard]] std::optional<std::string> look_for_damage() override;
  void wedge() override;
  [[nodiscard]] bool ends_after(std::uint64_t step) const override;
  [[nodiscard]] std::uint64_t sequence() const override;
  [[nodiscard]] const spi::SharedSlots& slots() const override;
  [[nodiscard]] std::optional<std::uint64_t> arrival_ns(int rank,
                                                        std::uint64_t sequence) const override;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace regroup::collective
