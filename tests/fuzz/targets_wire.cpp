/// Targets that read what comes over a channel, or stands in memory that others write.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include <regroup/types.hpp>

#include "base/check.hpp"
#include "base/fd.hpp"
#include "control/codec.hpp"
#include "metrics/beacon_page.hpp"
#include "metrics/ledger.hpp"
#include "secure/frame_reader.hpp"
#include "secure/listener.hpp"
#include "secure/refusals.hpp"
#include "secure/tls_session.hpp"
#include "spi/operation.hpp"
#include "spi/shared_slots.hpp"
#include "tests/fuzz/targets.hpp"

namespace regroup::fuzz {
namespace {

/// What can be read can be written, and then says the same.
template <class M>
bool there_and_back(Bytes bytes) {
  const Result<M> read = control::decode<M>(bytes);
  if (!read) return false;
  const Result<control::Bytes> written = control::encode(*read);
  REGROUP_ASSERT(written);
  const Result<M> again = control::decode<M>(*written);
  REGROUP_ASSERT(again && *again == *read);
  return true;
}

std::string_view view_of(Bytes bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

using secure::HelloState;
using secure::Refusal;

/// A coordinator's port, and strangers at it.
class Border {
 public:
  Border()
      : counters_(secure::RefusalCounters::make().value()),
        listener_(secure::Listener::make(std::move(port_.fd), context(), counters_, {}).value()) {}

  [[nodiscard]] std::uint64_t count(Refusal cause) const {
    return counters_.read().at(static_cast<std::size_t>(cause));
  }
  [[nodiscard]] std::uint64_t total() const {
    const secure::RefusalCounts counts = counters_.read();
    return std::accumulate(counts.begin(), counts.end(), std::uint64_t{0});
  }

  /// Goes on with what is here, or comes within a listener's patience with strangers.
  void turn(int patience_ms = 3000) {
    pollfd event{.fd = listener_.fd(), .events = POLLIN, .revents = 0};
    (void)::poll(&event, 1, patience_ms);
    REGROUP_ASSERT(listener_.turn().empty());  // whoever does not hold the secret is not admitted
  }
  void turn_until(std::uint64_t refused) {
    const TimePoint late = Clock::now() + std::chrono::seconds(10);
    while (total() < refused) {
      REGROUP_ASSERT(Clock::now() < late);
      turn();
    }
  }

  [[nodiscard]] base::Fd connect() const {
    base::Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port_.address.port());
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const linger at_once{.l_onoff = 1, .l_linger = 0};  // many runs must not use up all ports
    REGROUP_ASSERT(::setsockopt(fd.get(), SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once) == 0);
    REGROUP_ASSERT(
        ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    return fd;
  }

 private:
  static secure::TlsContext context() {
    const secure::JobSecret secret = secure::JobSecret::make().value();
    return secure::TlsContext::make(secure::Role::Coordinator, secret, "job").value();
  }

  secure::ListeningPort port_ = secure::ListeningPort::make().value();
  secure::RefusalCounters counters_;
  secure::Listener listener_;
};

/// Whoever says these bytes to a coordinator, in two pieces, is counted as refused, and once.
void one_refusal(Bytes bytes, HelloState state) {
  static Border border;
  const std::uint64_t total = border.total();
  const Refusal cause = state == HelloState::NotTls ? Refusal::NotTls : Refusal::Oversized;
  const std::uint64_t by_cause = border.count(cause);
  base::Fd line = border.connect();
  const std::size_t cut =
      bytes.empty() ? 0 : std::to_integer<std::size_t>(bytes.back()) % bytes.size();
  (void)::send(line.get(), bytes.data(), cut, MSG_NOSIGNAL);
  border.turn();
  (void)::send(line.get(), bytes.data() + cut, bytes.size() - cut, MSG_NOSIGNAL);
  const bool refused = state == HelloState::NotTls || state == HelloState::Oversized;
  if (refused) border.turn_until(total + 1);
  line.reset();
  border.turn_until(total + 1);
  border.turn(0);
  REGROUP_ASSERT(border.total() == total + 1);
  if (refused) REGROUP_ASSERT(border.count(cause) == by_cause + 1);
}

}  // namespace

bool control_messages(Bytes bytes) {
  const std::array accepted = {there_and_back<control::RankMessage>(bytes),
                               there_and_back<control::AgentToRank>(bytes),
                               there_and_back<membership::AgentMessage>(bytes),
                               there_and_back<membership::CoordinatorMessage>(bytes)};
  return std::ranges::find(accepted, true) != accepted.end();
}

bool durable_state(Bytes bytes) { return there_and_back<membership::DurableState>(bytes); }

bool frames(Bytes bytes) {
  // Cut in the place that the input names, the stream must say the same as in one piece.
  secure::FrameReader whole;
  secure::FrameReader cut;
  const Status one = whole.feed(bytes);
  const std::size_t at = bytes.empty() ? 0 : std::to_integer<std::size_t>(bytes[0]) % bytes.size();
  Status other = cut.feed(bytes.first(at));
  if (other) other = cut.feed(bytes.subspan(at));
  REGROUP_ASSERT(one.ok() == other.ok());
  if (!one) return false;
  bool accepted = false;
  while (true) {
    const std::optional<control::Bytes> message = whole.next();
    REGROUP_ASSERT(message == cut.next());
    if (!message) return accepted;
    accepted = true;
    REGROUP_ASSERT(!message->empty() && message->size() <= control::kMessageBytesMax);
  }
}

bool hello(Bytes bytes) {
  // Once it is refused or whole, more bytes do not change that.
  bytes = bytes.first(std::min(bytes.size(), secure::Listener::kHelloBytesMax));
  HelloState before = secure::look_at_hello({});
  for (std::size_t n = 1; n <= bytes.size(); ++n) {
    const HelloState now = secure::look_at_hello(bytes.first(n));
    REGROUP_ASSERT(before == HelloState::Incomplete || now == before);
    before = now;
  }
  one_refusal(bytes, before);
  return before == HelloState::Whole;
}

bool identity(Bytes bytes) {
  const std::optional<secure::Identity> read = secure::Identity::parse(view_of(bytes));
  if (!read) return false;
  const std::optional<secure::Identity> again = secure::Identity::parse(read->text());
  REGROUP_ASSERT(again && again->text() == read->text() && again->job == read->job);
  return true;
}

bool tls(Bytes bytes) {
  static const secure::JobSecret secret = secure::JobSecret::make().value();
  static const secure::TlsContext ends[] = {
      secure::TlsContext::make(secure::Role::Coordinator, secret, "job").value(),
      secure::TlsContext::make(secure::Role::Agent, secret, "job").value()};
  for (const secure::TlsContext& context : ends) {
    secure::TlsSession session = secure::TlsSession::make(context, {}).value();
    control::Bytes out;
    if (!session.advance()) continue;
    session.take_output(out);
    if (session.feed(bytes)) (void)session.advance().ok();
    // Whoever does not hold the secret never gets here.
    REGROUP_ASSERT(!session.established());
  }
  return true;  // nothing is ever accepted, as asserted
}

bool shared_words(Bytes bytes) {
  // As long as two members need, so that what lies behind the header's checks is read.
  constexpr std::size_t kAlignment = 4096;
  const std::size_t least = std::max(bytes.size(), spi::arena_bytes(2, kFuzzArena));
  const std::size_t size = (least + kAlignment - 1) / kAlignment * kAlignment;
  const std::unique_ptr<void, decltype(&std::free)> memory(std::aligned_alloc(kAlignment, size),
                                                           std::free);
  std::memset(memory.get(), 0, size);
  if (!bytes.empty()) std::memcpy(memory.get(), bytes.data(), bytes.size());
  const Result<spi::SharedSlots> slots = spi::SharedSlots::open(memory.get(), size, Epoch{1}, 0);
  if (!slots) return false;
  for (int rank = 0; rank < static_cast<int>(slots->members()); ++rank) {
    for (std::uint64_t sequence = 0; sequence < 3; ++sequence)
      (void)spi::read_ledger(*slots, rank, sequence);
  }
  (void)spi::read_poison(*slots);
  return true;
}

bool beacon_page(Bytes bytes) {
  const metrics::PageMapping mapping = metrics::PageMapping::create(Incarnation{1}).value();
  metrics::BeaconPage& page = mapping.page();
  if (!bytes.empty())
    std::memcpy(static_cast<void*>(&page), bytes.data(), std::min(bytes.size(), sizeof page));
  (void)metrics::describe(metrics::read_doing(page));
  (void)metrics::read_error(page);
  (void)metrics::read_flight(page);
  (void)metrics::read_ledger(page, 1'000'000'000);
  return true;  // any bytes are a page
}

}  // namespace regroup::fuzz
