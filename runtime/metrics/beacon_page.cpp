#include "metrics/beacon_page.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <utility>

#include "base/check.hpp"

namespace regroup::metrics {
namespace {

constexpr std::size_t kFilePage = 4096;
constexpr std::size_t kPageBytes = (sizeof(BeaconPage) + kFilePage - 1) / kFilePage * kFilePage;
constexpr int kReadTries =
    64;  // a writer needs some ten stores: more tries mean that it died in between

constexpr std::array<std::string_view, kCategories> kCategoryNames = {
    "init.launch",       "init.rendezvous", "init.connect", "compute",
    "comm.exposed",      "straggler.wait",  "fail.detect",  "fail.reform",
    "fail.replace_wait", "fail.heal",       "fail.replay",  "ckpt.blocking",
    "degraded",          "drain",           "spare",        "unknown"};
constexpr std::array<std::string_view, kOperations> kOperationNames = {
    "none",       "all_reduce",     "reduce",       "broadcast",
    "all_gather", "reduce_scatter", "barrier",      "send",
    "recv",       "split",          "stabilize",    "commit",
    "heal",       "attach",         "all_gather_v", "reduce_scatter_v",
    "all_to_all", "all_to_all_v",   "gather",       "scatter",
    "gather_v",   "scatter_v",      "coalesced"};
constexpr std::array<std::string_view, kPhases> kPhaseNames = {
    "idle",       "copy_in",        "publish", "await_others", "reduce", "copy_out",
    "await_exit", "await_decision", "flush",   "transfer",     "verify"};
constexpr std::array<std::string_view, kOutcomes> kOutcomeNames = {"running", "done", "handed_over",
                                                                   "revoked", "failed"};

template <std::size_t N>
std::string_view lookup(const std::array<std::string_view, N>& names, std::size_t index) {
  return index < N ? names[index] : std::string_view("?");
}

template <class Enum>
Enum bounded(std::uint32_t raw, std::size_t count) {
  return raw < count ? static_cast<Enum>(raw) : static_cast<Enum>(0);
}

std::string reason(int error) { return std::strerror(error); }  // NOLINT(concurrency-mt-unsafe)

Result<BeaconPage*> map_bytes(int fd) {
  void* const at = ::mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) {
    return Status(Code::ResourceExhausted,
                  fmt::format("cannot map the beacon page: {}", reason(errno)));
  }
  return static_cast<BeaconPage*>(at);
}

Status init_mutex(pthread_mutex_t& mutex) {
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  const int error = pthread_mutex_init(&mutex, &attributes);
  pthread_mutexattr_destroy(&attributes);
  if (error == 0) return {};
  return Status(Code::Unsupported,
                fmt::format("no robust process-shared mutex here: {}", reason(error)));
}

constexpr auto kRelaxed = std::memory_order_relaxed;

// The writer half of a sequence lock: `turn` is odd while the fields change.
std::uint64_t open_turn(Word64& turn) {
  const std::uint64_t even = (turn.load(kRelaxed) | 1) + 1;
  turn.store(even - 1, kRelaxed);
  std::atomic_thread_fence(std::memory_order_release);
  return even;
}

// The reader half: calls `read` until it ran within one even turn; after kReadTries takes what
// there is.
template <class Read>
void read_turn(const Word64& turn, Read read) {
  for (int i = 0; i < kReadTries; ++i) {
    const std::uint64_t before = turn.load(std::memory_order_acquire);
    read();
    std::atomic_thread_fence(std::memory_order_acquire);
    if ((before & 1) == 0 && turn.load(kRelaxed) == before) return;
  }
}

}  // namespace

std::string_view name(Category category) {
  return lookup(kCategoryNames, static_cast<std::size_t>(category));
}
std::string_view name(Operation operation) {
  return lookup(kOperationNames, static_cast<std::size_t>(operation));
}
std::string_view name(Phase phase) { return lookup(kPhaseNames, static_cast<std::size_t>(phase)); }
std::string_view name(Outcome outcome) {
  return lookup(kOutcomeNames, static_cast<std::size_t>(outcome));
}

std::uint64_t monotonic_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000U +
         static_cast<std::uint64_t>(now.tv_nsec);
}

Result<PageMapping> PageMapping::create(Incarnation incarnation) {
  base::Fd fd(::memfd_create("regroup-beacon", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) {
    return Status(Code::ResourceExhausted,
                  fmt::format("cannot make a beacon page: {}; see ulimit -n", reason(errno)));
  }
  if (const int error = ::posix_fallocate(fd.get(), 0, kPageBytes); error != 0) {
    return Status(Code::ResourceExhausted,
                  fmt::format("no memory for a beacon page: {}", reason(error)));
  }
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return Status(Code::Internal, fmt::format("cannot seal the beacon page: {}", reason(errno)));
  }
  Result<BeaconPage*> at = map_bytes(fd.get());
  if (!at) return at.error();
  auto* const page = new (*at) BeaconPage{};
  PageMapping mapping(page, std::move(fd));
  if (Status made = init_mutex(page->beacon.mutex); !made) return made;
  page->magic = kPageMagic;
  page->version = kPageVersion;
  page->page_bytes = kPageBytes;
  page->incarnation.store(incarnation.value(), kRelaxed);
  return mapping;
}

Result<PageMapping> PageMapping::map(int fd) {
  struct stat info {};
  if (::fstat(fd, &info) != 0 || static_cast<std::size_t>(info.st_size) != kPageBytes) {
    return Status(Code::InvalidArgument, fmt::format("descriptor {} is no beacon page of {} bytes; "
                                                     "do agent and program use the same version?",
                                                     fd, kPageBytes));
  }
  Result<BeaconPage*> at = map_bytes(fd);
  if (!at) return at.error();
  PageMapping mapping(*at, base::Fd());
  const BeaconPage& page = mapping.page();
  if (page.magic != kPageMagic) {
    return Status(Code::InvalidArgument,
                  fmt::format("descriptor {} is no beacon page: wrong first bytes", fd));
  }
  if (page.version != kPageVersion || page.page_bytes != kPageBytes) {
    return Status(Code::Unsupported,
                  fmt::format("the agent's beacon page has version {} and {} bytes, this program's "
                              "has {} and {}; use "
                              "the same version of regroup for both",
                              page.version, page.page_bytes, kPageVersion, kPageBytes));
  }
  return mapping;
}

PageMapping::PageMapping(PageMapping&& other) noexcept
    : page_(std::exchange(other.page_, nullptr)), fd_(std::move(other.fd_)) {}

PageMapping& PageMapping::operator=(PageMapping&& other) noexcept {
  if (this != &other) {
    if (page_ != nullptr) ::munmap(page_, kPageBytes);
    page_ = std::exchange(other.page_, nullptr);
    fd_ = std::move(other.fd_);
  }
  return *this;
}

PageMapping::~PageMapping() {
  if (page_ != nullptr) ::munmap(page_, kPageBytes);
}

void begin_operation(BeaconPage& page, const Doing& doing) {
  BeaconPage::Activity& activity = page.activity;
  const std::uint64_t done = open_turn(activity.turn);
  activity.started_ns.store(doing.started_ns, kRelaxed);
  activity.step.store(doing.step, kRelaxed);
  activity.attempt.store(doing.attempt, kRelaxed);
  activity.sequence.store(doing.sequence, kRelaxed);
  activity.epoch.store(doing.epoch, kRelaxed);
  activity.bytes.store(doing.bytes, kRelaxed);
  activity.group.store(doing.group, kRelaxed);
  activity.operation.store(static_cast<std::uint8_t>(doing.operation), kRelaxed);
  activity.phase.store(static_cast<std::uint8_t>(doing.phase), kRelaxed);
  activity.turn.store(done, std::memory_order_release);
}

void end_operation(BeaconPage& page, Outcome outcome, std::uint64_t now_ns,
                   std::uint64_t straggler_ns) {
  BeaconPage::Activity& activity = page.activity;
  const std::uint64_t number = page.flight_next.load(kRelaxed);
  BeaconPage::FlightRecord& record = page.flight[number % kFlightRecords];
  record.turn.store(0, kRelaxed);
  std::atomic_thread_fence(std::memory_order_release);
  record.started_ns.store(activity.started_ns.load(kRelaxed), kRelaxed);
  record.ended_ns.store(now_ns, kRelaxed);
  record.straggler_ns.store(straggler_ns, kRelaxed);
  record.sequence.store(activity.sequence.load(kRelaxed), kRelaxed);
  record.step.store(activity.step.load(kRelaxed), kRelaxed);
  record.bytes.store(activity.bytes.load(kRelaxed), kRelaxed);
  record.group.store(activity.group.load(kRelaxed), kRelaxed);
  const std::uint32_t operation = activity.operation.load(kRelaxed);
  const auto attempt =
      static_cast<std::uint32_t>(std::min<std::uint64_t>(activity.attempt.load(kRelaxed), 0xFFFF));
  record.code.store(operation | static_cast<std::uint32_t>(outcome) << 8 | attempt << 16, kRelaxed);
  record.turn.store(number + 1, std::memory_order_release);
  page.flight_next.store(number + 1, std::memory_order_release);

  const std::uint64_t done = open_turn(activity.turn);
  activity.operation.store(static_cast<std::uint8_t>(Operation::None), kRelaxed);
  activity.phase.store(static_cast<std::uint8_t>(Phase::Idle), kRelaxed);
  activity.started_ns.store(now_ns, kRelaxed);
  activity.turn.store(done, std::memory_order_release);
}

void set_error(BeaconPage& page, std::string_view text) {
  const std::string_view kept = text.substr(0, kErrorTextBytesMax);
  const std::uint64_t done = open_turn(page.error.turn);
  for (std::size_t i = 0; i * 8 < kept.size(); ++i) {
    std::uint64_t word = 0;
    std::memcpy(&word, kept.data() + i * 8, std::min<std::size_t>(8, kept.size() - i * 8));
    page.error.text[i].store(word, kRelaxed);
  }
  page.error.bytes.store(static_cast<std::uint32_t>(kept.size()), kRelaxed);
  page.error.turn.store(done, std::memory_order_release);
}

Doing read_doing(const BeaconPage& page) {
  const BeaconPage::Activity& activity = page.activity;
  Doing doing;
  read_turn(activity.turn, [&] {
    doing.started_ns = activity.started_ns.load(kRelaxed);
    doing.step = activity.step.load(kRelaxed);
    doing.attempt = activity.attempt.load(kRelaxed);
    doing.sequence = activity.sequence.load(kRelaxed);
    doing.epoch = activity.epoch.load(kRelaxed);
    doing.bytes = activity.bytes.load(kRelaxed);
    doing.group = activity.group.load(kRelaxed);
    doing.operation = bounded<Operation>(activity.operation.load(kRelaxed), kOperations);
    doing.phase = bounded<Phase>(activity.phase.load(kRelaxed), kPhases);
  });
  return doing;
}

std::string describe(const Doing& doing) {
  if (doing.operation == Operation::None) {
    if (doing.step == 0) return "in the program's own code";
    return fmt::format("in the program's own code, last seen in step {}", doing.step);
  }
  return fmt::format("in {} seq {} of step {} (attempt {}, epoch {}, group {}, {} bytes), phase {}",
                     name(doing.operation), doing.sequence, doing.step, doing.attempt, doing.epoch,
                     doing.group, doing.bytes, name(doing.phase));
}

std::string read_error(const BeaconPage& page) {
  std::string text;
  read_turn(page.error.turn, [&] {
    text.assign(std::min<std::size_t>(page.error.bytes.load(kRelaxed), kErrorTextBytesMax), '\0');
    for (std::size_t i = 0; i * 8 < text.size(); ++i) {
      const std::uint64_t word = page.error.text[i].load(kRelaxed);
      std::memcpy(text.data() + i * 8, &word, std::min<std::size_t>(8, text.size() - i * 8));
    }
  });
  return text;
}

std::vector<Flight> read_flight(const BeaconPage& page) {
  const std::uint64_t next = page.flight_next.load(std::memory_order_acquire);
  const std::uint64_t first = next > kFlightRecords ? next - kFlightRecords : 0;
  std::vector<Flight> flights;
  // `next` comes from memory that the process writes: the loop is bounded by the ring, never by it
  // alone.
  for (std::uint64_t number = first; number < next && flights.size() < kFlightRecords; ++number) {
    const BeaconPage::FlightRecord& record = page.flight[number % kFlightRecords];
    if (record.turn.load(std::memory_order_acquire) != number + 1) continue;
    Flight flight{.number = number};
    flight.started_ns = record.started_ns.load(kRelaxed);
    flight.ended_ns = record.ended_ns.load(kRelaxed);
    flight.straggler_ns = record.straggler_ns.load(kRelaxed);
    flight.sequence = record.sequence.load(kRelaxed);
    flight.step = record.step.load(kRelaxed);
    flight.bytes = record.bytes.load(kRelaxed);
    flight.group = record.group.load(kRelaxed);
    const std::uint32_t code = record.code.load(kRelaxed);
    flight.operation = bounded<Operation>(code & 0xFF, kOperations);
    flight.outcome = bounded<Outcome>(code >> 8 & 0xFF, kOutcomes);
    flight.attempt = code >> 16;
    std::atomic_thread_fence(std::memory_order_acquire);
    if (record.turn.load(kRelaxed) == number + 1) flights.push_back(flight);
  }
  return flights;
}

}  // namespace regroup::metrics
