/// The promised properties as checkers over the trace. Each is a small class that sees every record
/// once, in order. Numbers S1..S19 and L1..L9: docs/testing.md says what each promises.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/sim/swarm.hpp"
#include "tests/sim/trace.hpp"

namespace regroup::sim {

struct Violation {
  std::string property;  ///< "S5b uniform outcome"
  std::string text;
};

/// What stands at the end of a schedule, when nothing more can happen or the bound is reached.
struct Ending {
  bool job_ended = false;    ///< every reachable process has ended, the coordinator says so
  bool orderly = false;      ///< with exit code 0
  std::string end;           ///< the reason given
  bool quiet = false;        ///< nothing is left to happen before the bound
  std::string blocked;       ///< a running process in a call that does not return; empty: none
  std::string dead_in_view;  ///< a dead member that the last view still has; empty: none
  std::string zombie;        ///< a removed process that still runs; empty: none
  std::uint64_t further_operations = 0;  ///< done in liveness mode
  bool further_expected = false;         ///< the program had that many operations left
  std::uint64_t views = 0;
  std::uint64_t faults = 0;  ///< crashes, evictions, losses of hosts, self-made wedges
  std::uint64_t joins = 0;
  std::uint64_t rounds = 0;
  std::uint64_t fills = 0;         ///< newcomers, each of whom may cost a round of its own
  std::uint64_t coordinators = 0;  ///< lives of the coordinator
};

class Checker {
 public:
  virtual ~Checker() = default;
  [[nodiscard]] virtual const char* property() const = 0;
  /// Returns what is wrong, if anything.
  virtual std::optional<std::string> on(const Record& record) = 0;
  virtual std::optional<std::string> at_end(const Ending&) { return std::nullopt; }
};

/// All checkers of one schedule; keeps the first violation. Thread safety: none.
class Checks {
 public:
  explicit Checks(const Swarm& swarm);
  Checks(const Checks&) = delete;
  Checks& operator=(const Checks&) = delete;
  ~Checks();
  void on(const Record& record);
  void at_end(const Ending& ending);
  /// For the properties that are asserted where they hold (S19).
  void fail(std::string property, std::string text);
  [[nodiscard]] const std::optional<Violation>& violation() const { return violation_; }

 private:
  std::vector<std::unique_ptr<Checker>> checkers_;
  std::optional<Violation> violation_;
};

/// Flags of a Reduce record: what decoding the contributions showed.
inline constexpr std::uint64_t kForeign =
    1;  ///< a contribution of another epoch, incarnation or operation
inline constexpr std::uint64_t kWrongValue = 2;  ///< not what that rank put in
inline constexpr std::uint64_t kTwice = 4;       ///< one seat counted twice
inline constexpr std::uint64_t kNotAll = 8;      ///< contributors are not the members

[[nodiscard]] std::vector<std::unique_ptr<Checker>> make_safety_checkers(const Swarm& swarm);
[[nodiscard]] std::vector<std::unique_ptr<Checker>> make_outcome_checkers(const Swarm& swarm);
[[nodiscard]] std::vector<std::unique_ptr<Checker>> make_liveness_checkers(const Swarm& swarm);

}  // namespace regroup::sim
