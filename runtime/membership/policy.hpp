/// What to do about a lost seat. A pure function of what is known; every verdict says why.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "membership/types.hpp"

namespace regroup::membership {

inline constexpr std::int32_t kExitTemporary = 75;  ///< not enough ranks left to go on
inline constexpr std::int32_t kExitInternal = 70;   ///< a fault of ours
inline constexpr std::uint32_t kPoisonedAt =
    3;  ///< losses of one seat in one step that end the job
inline constexpr nanoseconds kReplacementWindow = std::chrono::hours(1);

/// The losses of one seat that no committed step has wiped out.
/// Thread safety: one thread. Memory: at most replacements_max + 1 instants.
class SeatHistory {
 public:
  /// One more loss while this step was being computed.
  void lose(const Loss& loss);
  [[nodiscard]] bool has(Incarnation incarnation) const;
  [[nodiscard]] const std::vector<Loss>& losses() const { return losses_; }
  /// A step was committed: earlier losses were not without progress.
  void progress() { losses_.clear(); }
  /// Losses without progress within the last hour.
  [[nodiscard]] std::uint32_t recent(TimePoint now) const;
  /// How often this seat was lost in this step.
  [[nodiscard]] std::uint32_t in_step(std::uint64_t step) const;

 private:
  std::vector<Loss> losses_;
  std::uint64_t step_ = 0;
  std::uint32_t in_step_ = 0;
};

enum class SeatAction : std::uint8_t {
  TakeSpare,    ///< a joined spare takes the seat, or a starting one as soon as it joined
  RestartCold,  ///< a new process is started for the seat
  LeaveVacant,  ///< the seat stays empty
  FillLater,    ///< the others go on without it; somebody takes the seat at the end of a step
  EndJob,
};
[[nodiscard]] const char* name(SeatAction action);

/// All that the verdict on one lost seat depends on.
struct SeatLoss {
  Rank rank;
  Incarnation incarnation;
  Evidence evidence;
  bool attached = true;              ///< it had joined
  bool others_attached = true;       ///< some other seat's process has joined
  bool state_exists = true;          ///< some rank has begun its first step
  bool start_gave_up = false;        ///< the supervisor will not start this seat again
  std::uint64_t step = 1;            ///< the step that was being computed
  std::uint32_t losses_in_step = 1;  ///< of this seat in this step, this one included
  std::uint32_t exited_alike = 0;    ///< how many of these exited with this loss's own code
  std::uint32_t losses_recent =
      1;  ///< of this seat without progress within the hour, this one included
  std::uint32_t seats_left = 0;  ///< seats that are held by a living process or will be
  bool spare_left = false;       ///< joined or starting
};

struct SeatVerdict {
  SeatAction action = SeatAction::EndJob;
  std::int32_t exit_code = 0;  ///< with EndJob
  std::string why;
};

/// Whether a lost seat is filled again, at once or later.
[[nodiscard]] bool fills_seats(OnLoss policy);
/// Whether the ranks that are left go on as a smaller world, for good or meanwhile.
[[nodiscard]] bool goes_on_smaller(OnLoss policy);
/// The verdict on one lost seat.
[[nodiscard]] SeatVerdict decide_seat(const JobConfig& config, const SeatLoss& loss);

/// The job's exit code when this loss ends it: 128 + signal, the program's own code, or 75 when
/// neither is known.
[[nodiscard]] std::int32_t exit_code_of(const Evidence& evidence);
/// "killed by signal 9", "exited with code 3", "host lost"; the evidence's own text when it has
/// one.
[[nodiscard]] std::string describe(const Evidence& evidence);
/// Proof evicts at once and counts as dead in the quorum; silence and lost hosts do not.
[[nodiscard]] bool is_proof(EvidenceKind kind);

}  // namespace regroup::membership
