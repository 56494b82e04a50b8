/// The beacon page: what one process tells its agent without being asked, in memory that outlives
/// it.
///
/// One sealed memfd per process, made by the agent and mapped by both. The process holds the death
/// beacon in it and writes what it is doing, its time ledger, its last error and its flight record;
/// the agent reads all of that after a SIGKILL too. A process can damage its own page only: the
/// agent copies, checks and bounds whatever it reads.
#pragma once

#include <pthread.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include <regroup/status.hpp>
#include <regroup/types.hpp>

#include "base/fd.hpp"

namespace regroup::metrics {

inline constexpr std::uint64_t kPageMagic = 0x3145474150524752;  // "RGRPAGE1"
inline constexpr std::uint32_t kPageVersion = 1;
inline constexpr std::size_t kErrorTextBytesMax = 1024;
inline constexpr std::size_t kFlightRecords = 1024;

/// The categories of the time ledger; a rank is in exactly one at any instant. name() gives the
/// report's words.
enum class Category : std::uint8_t {
  Launch,         ///< init.launch: started, not yet attached
  Rendezvous,     ///< init.rendezvous: attached, first view awaited
  Connect,        ///< init.connect: view there, groups being wired
  Compute,        ///< the program's own time
  CommExposed,    ///< caller blocked, everybody has arrived
  StragglerWait,  ///< caller blocked, somebody has not arrived
  Detect,         ///< somebody died, nobody knows yet
  Reform,         ///< loss known, next view not yet installed
  ReplaceWait,    ///< a seat waits for its replacement
  Heal,           ///< state on its way to a newcomer
  Replay,         ///< work done once already
  Checkpoint,     ///< marked by the program
  Degraded,       ///< a seat stays vacant
  Drain,          ///< handed over, in no group
  Spare,          ///< parked; on a line of its own, never part of a seat's time
  Unknown,        ///< the rest
};
inline constexpr std::size_t kCategories = 16;

/// What a process is in the middle of.
enum class Operation : std::uint8_t {
  None,
  AllReduce,
  Reduce,
  Broadcast,
  AllGather,
  ReduceScatter,
  Barrier,
  Send,
  Recv,
  Split,
  Stabilize,
  Commit,
  Heal,
  Attach,
  AllGatherV,
  ReduceScatterV,
  AllToAll,
  AllToAllV,
  Gather,
  Scatter,
  GatherV,
  ScatterV,
  Coalesced,
};
inline constexpr std::size_t kOperations = 23;
enum class Phase : std::uint8_t {
  Idle,
  CopyIn,
  Publish,
  AwaitOthers,
  Reduce,
  CopyOut,
  AwaitExit,
  AwaitDecision,
  Flush,
  Transfer,
  Verify,
};
inline constexpr std::size_t kPhases = 11;
enum class Outcome : std::uint8_t { Running, Done, HandedOver, Revoked, Failed };
inline constexpr std::size_t kOutcomes = 5;

/// Fixed words for people and for JSON; "?" for a number that is none of them. The text lives for
/// ever.
[[nodiscard]] std::string_view name(Category category);
[[nodiscard]] std::string_view name(Operation operation);
[[nodiscard]] std::string_view name(Phase phase);
[[nodiscard]] std::string_view name(Outcome outcome);

using Word32 = std::atomic<std::uint32_t>;
using Word64 = std::atomic<std::uint64_t>;
static_assert(Word32::is_always_lock_free && Word64::is_always_lock_free,
              "shared between processes");

/// Who holds the beacon; see BeaconHolder and BeaconWatch in metrics/beacon.hpp.
enum class BeaconState : std::uint32_t { NeverHeld, Held, Released };

struct BeaconPage {
  // Written once by the agent, before anybody else maps the page.
  std::uint64_t magic;
  std::uint32_t version;
  std::uint32_t page_bytes;
  Word64 incarnation;

  struct alignas(128) Beacon {
    pthread_mutex_t
        mutex;     ///< robust, process-shared; only the process's engine thread ever locks it
    Word32 state;  ///< BeaconState
    std::atomic<std::int32_t> pid;
    std::atomic<std::int32_t> thread;  ///< of the engine thread
  } beacon;

  struct alignas(128) Beat {
    Word64 count;   ///< grows while the engine thread lives
    Word64 at_ns;   ///< CLOCK_MONOTONIC
    Word64 thread;  ///< the engine thread's number
  } beat;

  /// Written by one thread at a time (that of the operation), under `turn`: odd while being
  /// written.
  struct alignas(128) Activity {
    Word64 turn;
    Word64 started_ns;
    Word64 step;
    Word64 attempt;  ///< 1 for the first try of the step
    Word64 sequence;
    Word64 epoch;
    Word64 bytes;
    Word32 group;
    std::atomic<std::uint8_t> operation;
    std::atomic<std::uint8_t> phase;
  } activity;

  /// See Ledger. The time since the last change is found by whoever reads: now - started_ns - sum
  /// of totals.
  struct alignas(128) LedgerWords {
    Word64 started_ns;
    Word64 changed_ns;
    std::atomic<std::uint8_t> category;
    std::array<Word64, kCategories> totals_ns;
    Word64 overlapped_ns;  ///< communication in flight while the caller was not blocked; part of
                           ///< Compute
    Word64 operations;     ///< completed
    Word64 operation_bytes;
  } ledger;

  struct alignas(128) ErrorText {
    Word64 turn;
    Word32 bytes;
    std::array<Word64, kErrorTextBytesMax / 8> text;
  } error;

  /// One finished operation: 64 bytes, one cache line. `turn` is 0 while being written, else 1 +
  /// its running number.
  struct alignas(64) FlightRecord {
    Word64 turn;
    Word64 started_ns;
    Word64 ended_ns;
    Word64 straggler_ns;
    Word64 sequence;
    Word64 step;
    Word64 bytes;
    Word32 group;
    Word32 code;  ///< operation | outcome << 8 | attempt << 16 (saturated)
  };
  Word64 flight_next;  ///< running number of the next record
  std::array<FlightRecord, kFlightRecords> flight;
};
static_assert(std::is_standard_layout_v<BeaconPage> && sizeof(BeaconPage::FlightRecord) == 64);
static_assert(sizeof(BeaconPage) <= 72 * 1024);

/// CLOCK_MONOTONIC, the time base of everything in the page: the same on all ranks of a host.
[[nodiscard]] std::uint64_t monotonic_ns();

/// One mapping of a page. An object that exists is usable; it unmaps itself.
/// Thread safety: the page's words are atomic; which thread may write which is said at each writer.
class PageMapping {
 public:
  /// Agent: makes a new page, sealed against resizing, and maps it. Errors: ResourceExhausted.
  static Result<PageMapping> create(Incarnation incarnation);
  /// Process: maps the page that came with Welcome. The descriptor may be closed
  /// afterwards. Errors: InvalidArgument (not a page, wrong size), Unsupported (other version),
  /// ResourceExhausted.
  static Result<PageMapping> map(int fd);

  PageMapping(PageMapping&& other) noexcept;
  PageMapping& operator=(PageMapping&& other) noexcept;
  PageMapping(const PageMapping&) = delete;
  PageMapping& operator=(const PageMapping&) = delete;
  ~PageMapping();

  [[nodiscard]] BeaconPage& page() const { return *page_; }
  /// The memfd to hand to the process; -1 in a mapping made by map(). Owned by this object.
  [[nodiscard]] int fd() const { return fd_.get(); }

 private:
  PageMapping(BeaconPage* page, base::Fd fd) : page_(page), fd_(std::move(fd)) {}
  BeaconPage* page_ = nullptr;
  base::Fd fd_;
};

// ---- written by the process ----

/// What begin_operation() publishes.
struct Doing {
  Operation operation = Operation::None;
  Phase phase = Phase::Idle;
  std::uint32_t group = 0;
  std::uint64_t epoch = 0;
  std::uint64_t sequence = 0;
  std::uint64_t step = 0;
  std::uint64_t attempt = 0;
  std::uint64_t bytes = 0;
  std::uint64_t started_ns = 0;
  bool operator==(const Doing&) const = default;
};

/// Says what this process is about to do. A dozen plain stores; no fence, lock or system call on
/// x86. Threads: one at a time.
void begin_operation(BeaconPage& page, const Doing& doing);
/// Threads: that of begin_operation(). One plain store.
inline void set_phase(BeaconPage& page, Phase phase) {
  page.activity.phase.store(static_cast<std::uint8_t>(phase), std::memory_order_relaxed);
}
/// Ends what begin_operation() began: adds it to the flight record and clears the activity (its
/// step stays).
void end_operation(BeaconPage& page, Outcome outcome, std::uint64_t now_ns,
                   std::uint64_t straggler_ns = 0);
/// Engine thread: proof of life.
inline void beat(BeaconPage& page, std::uint64_t now_ns) {
  page.beat.at_ns.store(now_ns, std::memory_order_relaxed);
  page.beat.count.fetch_add(1, std::memory_order_release);
}
/// Keeps the last error for whoever examines the page after this process is gone; cut at
/// kErrorTextBytesMax. Threads: one at a time.
void set_error(BeaconPage& page, std::string_view text);

// ---- read by the agent, of live and of dead processes ----

/// One finished operation of the flight record.
struct Flight {
  std::uint64_t number = 0;
  Operation operation = Operation::None;
  Outcome outcome = Outcome::Running;
  std::uint32_t attempt = 0;
  std::uint32_t group = 0;
  std::uint64_t sequence = 0;
  std::uint64_t step = 0;
  std::uint64_t bytes = 0;
  std::uint64_t started_ns = 0;
  std::uint64_t ended_ns = 0;
  std::uint64_t straggler_ns = 0;
  bool operator==(const Flight&) const = default;
};

/// What the process is doing, or was doing when it died. If it died within begin_operation() the
/// fields may belong to two operations. Never blocks; enumerators out of range come back as None
/// and Idle.
[[nodiscard]] Doing read_doing(const BeaconPage& page);
/// "in all_reduce seq 17 of step 3 (attempt 1, group 0, 4096 bytes), phase reduce" or "in the
/// program's own code after step 3".
[[nodiscard]] std::string describe(const Doing& doing);
/// The last error; empty if none.
[[nodiscard]] std::string read_error(const BeaconPage& page);
/// The finished operations that are still there, oldest first; records being overwritten are left
/// out.
[[nodiscard]] std::vector<Flight> read_flight(const BeaconPage& page);

}  // namespace regroup::metrics
