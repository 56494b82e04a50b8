/// What an agent and one of its ranks say to each other over the inherited socket pair
/// (SOCK_SEQPACKET). Descriptors travel beside the message in the order that each struct states.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include <regroup/status.hpp>
#include <regroup/types.hpp>

#include "membership/types.hpp"

namespace regroup::control {

inline constexpr std::uint32_t kProtocolVersion = 4;

// ---- rank -> agent ----

/// First message of an attaching process. Descriptors: none.
struct Hello {
  std::uint32_t protocol = kProtocolVersion;
  std::int32_t pid = 0;
  std::string build;
  bool operator==(const Hello&) const = default;
};
/// The engine thread holds the death beacon (robust futex in the beacon page) now: the process has
/// attached.
struct BeaconHeld {
  /// How members on other hosts reach this process, at most membership::kMemberAddressBytesMax
  /// bytes; only they understand it. Every member gets it back with each view.
  membership::MemberAddress address;
  bool operator==(const BeaconHeld&) const = default;
};
/// Wants the arena of a group for this epoch; seats in group-rank order. The answer is GroupReady
/// (or a newer view).
struct AttachGroup {
  Epoch epoch;
  std::string name;
  std::vector<Rank> seats;
  bool operator==(const AttachGroup&) const = default;
};
/// Memory that outlives this process: descriptor 0 = memfd. `what` = "mirror" (volatile state) or
/// "prologue" (record of the prologue's collectives). The agent hands the newest of each to this
/// seat's next incarnation.
struct KeepMemory {
  std::string what;
  std::uint64_t bytes = 0;
  bool operator==(const KeepMemory&) const = default;
};
/// This member entered the epoch: it holds the state. bytes_from: what a newcomer got from each
/// donor.
struct Entered {
  Epoch epoch;
  struct Bytes {
    Rank donor;
    std::uint64_t bytes = 0;
    bool operator==(const Bytes&) const = default;
  };
  std::vector<Bytes> bytes_from;
  std::uint64_t heal_ns = 0;
  bool operator==(const Entered&) const = default;
};
/// This rank wedged its own words (its deadline passed, or the arena is damaged): the epoch must
/// end, though nobody is lost. Descriptors: none.
struct EndEpoch {
  Epoch epoch;
  std::string why;
  bool operator==(const EndEpoch&) const = default;
};
/// The program is done with the job (Job destroyed in order).
struct Detach {
  bool operator==(const Detach&) const = default;
};
/// The program cannot go on and says why; the agent makes it the first cause.
struct Fault {
  std::int32_t code = 0;
  std::string text;
  bool operator==(const Fault&) const = default;
};

/// The program stands at the end of the epoch's last step, in next(), and waits for the next view.
struct RankParked {
  Epoch epoch;
  bool operator==(const RankParked&) const = default;
};

/// A request to the job's key-value store (key_value_store.hpp), numbered by the process that makes
/// it. Descriptors: none.
struct StoreRequest {
  enum class Kind : std::uint8_t {
    Set,         ///< keys[0] := value
    Get,         ///< value of keys[0]; waits until it is there
    Wait,        ///< waits until all keys are there
    Has,         ///< number: 1 if all keys are there
    Add,         ///< keys[0] is a decimal number (absent: 0), to which `amount` is added
    CompareSet,  ///< keys[0] := value if it holds `expected`; absent and empty are equal here
    Erase,       ///< number: 1 if keys[0] was there
    Count,       ///< number of keys
    Cancel,      ///< the request `id` is waited for no longer; no answer
  };
  std::uint64_t id = 0;
  Kind kind = Kind::Count;
  std::vector<std::string> keys;
  std::string value;
  std::string expected;
  std::int64_t amount = 0;
  bool operator==(const StoreRequest&) const = default;
};

using RankMessage = std::variant<Hello, BeaconHeld, AttachGroup, KeepMemory, Entered, Detach, Fault,
                                 EndEpoch, RankParked, StoreRequest>;

// ---- agent -> rank ----

/// Answer to Hello. seat none: parked as a spare until Assign. Descriptor 0 = beacon page
/// (metrics/beacon_page.hpp).
struct Welcome {
  Incarnation incarnation;
  std::optional<Rank> seat;
  std::uint32_t ranks = 0;
  OnLoss on_loss = OnLoss::Replay;
  std::string job;
  std::uint32_t ranks_on_host = 0;
  bool replacement = false;
  std::uint32_t life = 0;  ///< how many lives this seat had before (0: the first)
  bool operator==(const Welcome&) const = default;
};
/// A spare takes this seat. Descriptors: per entry of `kept` one memfd ("mirror", "prologue") of
/// the predecessor. Sent to a cold-started replacement too, right after Welcome.
struct Assign {
  Rank seat;
  std::vector<std::string> kept;
  std::uint32_t life = 0;
  bool operator==(const Assign&) const = default;
};
/// This view is current. Descriptors: one arena per entry of `groups` (the world, group 0, first),
/// in that order.
struct ViewInstalled {
  membership::View view;
  struct Group {
    std::uint32_t id = 0;
    std::string name;
    std::vector<Rank> seats;
    std::uint64_t arena_bytes = 0;
    bool operator==(const Group&) const = default;
  };
  std::vector<Group> groups;
  /// Why the epoch before ended: "rank 2 (incarnation 3) lost: killed by SIGKILL".
  std::string cause;
  /// Host and address of each seat's member; a vacant seat's says nothing.
  std::vector<membership::SeatPlace> places;
  bool operator==(const ViewInstalled&) const = default;
};
/// Answer to AttachGroup. Descriptor 0 = the group's arena.
struct GroupReady {
  Epoch epoch;
  ViewInstalled::Group group;
  bool operator==(const GroupReady&) const = default;
};
/// The words of this epoch are wedged on this host: who was lost and by which evidence.
struct LossNotice {
  Epoch epoch;
  std::vector<Member> lost;
  std::string text;
  bool operator==(const LossNotice&) const = default;
};
/// The job is ending: blocked calls return Cancelled with this text; a parked spare exits with 0.
struct Stop {
  std::int32_t exit_code = 0;
  std::string reason;
  bool operator==(const Stop&) const = default;
};
/// A request cannot be served (memory or descriptors for segments not to be had, ...).
struct Refused {
  Code code = Code::Internal;
  std::string text;
  bool operator==(const Refused&) const = default;
};

/// This process has left its seat by a planned change (`regroup drain`, `regroup scale`): the job
/// goes on without it, and blocked calls return Cancelled with this text.
struct Released {
  std::string text;
  bool operator==(const Released&) const = default;
};

/// Answer to the StoreRequest of this id. Not Ok: `value` says why.
struct StoreReply {
  std::uint64_t id = 0;
  Code code = Code::Ok;
  std::string value;
  std::int64_t number = 0;
  bool operator==(const StoreReply&) const = default;
};

using AgentToRank = std::variant<Welcome, Assign, ViewInstalled, GroupReady, LossNotice, Stop,
                                 Refused, Released, StoreReply>;

}  // namespace regroup::control
