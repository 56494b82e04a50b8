/// Memory of one epoch: per member its words, its flags, its slots. Fresh for each epoch; it
/// outlives its members.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "membership/types.hpp"
#include "spi/agreement.hpp"
#include "tests/sim/random.hpp"

namespace regroup::sim {

inline constexpr std::uint32_t kGroupsMax = 2;

/// Contribution to one operation; says by itself whose it is, from when and for what.
struct Slot {
  Rank rank{-1};
  Incarnation incarnation;
  Epoch epoch;
  std::uint64_t number = 0;
  std::uint64_t value = 0;
};

enum class Kind : std::uint8_t { AllReduce, Broadcast, Reduce };
struct Operation {
  std::uint64_t step = 0;
  std::uint32_t index = 0;
  std::uint32_t group = 0;
  std::uint64_t number = 0;  ///< sequence number in its group and epoch
  Kind kind = Kind::AllReduce;
  std::int32_t root = 0;  ///< seat
  [[nodiscard]] bool sends(std::int32_t seat) const {
    switch (kind) {
      case Kind::AllReduce: return true;
      case Kind::Broadcast: return seat == root;
      case Kind::Reduce: return seat != root;
    }
    return false;
  }
  [[nodiscard]] bool receives(std::int32_t seat) const {
    switch (kind) {
      case Kind::AllReduce: return true;
      case Kind::Broadcast: return seat != root;
      case Kind::Reduce: return seat == root;
    }
    return false;
  }
};

/// What a member says about its state when it enters an epoch.
enum class Holding : std::uint8_t { Unknown, Nothing, State };

/// One member's part of one epoch.
struct Block {
  struct Lane {
    spi::Word word{0};
    std::uint64_t arrived = 0;  ///< last operation whose slot is written
    std::array<Slot, 2> slots;
  };
  std::array<Lane, kGroupsMax> lanes;
  spi::Word step{0};
  std::uint64_t last_step = 0;  ///< announced (spi/planned_end.hpp)
  Holding holding = Holding::Unknown;
  bool in_step = false;                 ///< under carry_on: in the middle of a step, with the state
  std::uint32_t heal_shared = 0;        ///< newest round of a heal for which `have` was said
  std::vector<std::uint64_t> have;      ///< a newcomer's resume map
  std::uint32_t heal_verified = 0;      ///< newest round whose digests it compared
  bool heal_wrong = false;              ///< and found different
  std::vector<std::uint32_t> watchers;  ///< processes to wake when this block changes
};

struct EpochMemory {
  membership::View view;
  std::array<std::vector<std::int32_t>, kGroupsMax> members;  ///< seats of each group, ascending
  std::array<std::uint64_t, kGroupsMax> seat_set{};           ///< the same as sets
  std::unique_ptr<Block[]> blocks;                            ///< by seat
  std::uint64_t end_wanted = 0;  ///< set of hosts whose agent wants the end of this epoch
  /// The program's operations of this epoch in order, for all groups, and per group by sequence
  /// number - 1.
  std::array<std::vector<Operation>, kGroupsMax> operations;
};

}  // namespace regroup::sim
