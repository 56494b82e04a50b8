#include "transports/loopback/message_net.hpp"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <mutex>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "base/check.hpp"
#include "base/fd.hpp"

namespace regroup::loopback {
namespace {

/// A message on its way, or waiting at its sender (`posted` false).
struct Packet {
  int from = 0;
  spi::MessageHeader header;
  bool posted = true;
  std::vector<std::byte> data;        ///< posted
  const std::byte* source = nullptr;  ///< sent
  std::size_t bytes = 0;
  std::uint64_t token = 0;
  unsigned delay = 0;
};

/// The bytes of a sent message on their way to their place.
struct Transfer {
  int from = 0;
  std::uint64_t token = 0;
  spi::MessageHeader header;
  const std::byte* source = nullptr;
  std::byte* place = nullptr;
  std::size_t bytes = 0;
  unsigned delay = 0;
  bool stuck = false;
};

/// What progress() tells the sink, once the net's lock is free.
struct Event {
  enum class Kind : std::uint8_t { Message, Place, Placed, Sent, Broken } kind;
  Packet packet;
  bool whole = false;
  int channel = 0;
  const std::byte* place = nullptr;  ///< Placed
};

struct Channel {
  int to = 0;
  bool open = true;
};

struct Outgoing {
  std::uint64_t token = 0;
  int to = 0;
};

struct End {
  bool alive = true;
  std::vector<Channel> channels;
  std::deque<Packet> inbox;
  std::vector<Transfer> transfers;  ///< to this end
  std::vector<Outgoing> outgoing;   ///< sent by this end, not over yet
  std::deque<Event> events;
  base::Fd bell{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
};

}  // namespace

class MessageNet::State {
 public:
  State(int ports, NetOptions options)
      : options_(options), random_(options.seed), ends_(static_cast<std::size_t>(ports)) {}

  std::mutex mutex;

  [[nodiscard]] End& end(int rank) { return ends_[static_cast<std::size_t>(rank)]; }
  [[nodiscard]] int size() const { return static_cast<int>(ends_.size()); }
  [[nodiscard]] bool coin() { return random_() % 2 == 0; }
  [[nodiscard]] unsigned delay() {
    return options_.delay_max == 0 ? 0 : static_cast<unsigned>(random_() % options_.delay_max);
  }
  void ring(int rank) {
    const std::uint64_t one = 1;
    (void)!::write(end(rank).bell.get(), &one, sizeof one);
  }

  /// The sender's bytes are its own again; what still refers to them is gone.
  void finish(int from, std::uint64_t token, bool whole) {
    End& sender = end(from);
    const auto erased =
        std::erase_if(sender.outgoing, [&](const Outgoing& each) { return each.token == token; });
    if (erased == 0) return;
    for (int rank = 0; rank < size(); ++rank) cut(rank, from, token);
    Event event{.kind = Event::Kind::Sent, .whole = whole};
    event.packet.token = token;
    sender.events.push_back(std::move(event));
    ring(from);
  }
  /// Whatever of (from, token) is still on its way to `rank`.
  void cut(int rank, int from, std::uint64_t token) {
    End& e = end(rank);
    std::erase_if(e.inbox,
                  [&](const Packet& p) { return !p.posted && p.from == from && p.token == token; });
    for (std::size_t i = 0; i < e.transfers.size();) {
      const Transfer& t = e.transfers[i];
      if (t.from == from && t.token == token) {
        placed(rank, t, false);
        e.transfers.erase(e.transfers.begin() + static_cast<std::ptrdiff_t>(i));
      } else {
        ++i;
      }
    }
  }
  void placed(int rank, const Transfer& transfer, bool whole) {
    if (transfer.place == nullptr) return;
    Event event{.kind = Event::Kind::Placed, .whole = whole};
    event.packet.header = transfer.header;
    event.place = transfer.place;
    end(rank).events.push_back(std::move(event));
    ring(rank);
  }

  /// Messages that are due become events, bytes that are due move.
  void advance(int rank) {
    End& e = end(rank);
    std::set<int> held_back;
    for (std::size_t i = 0; i < e.inbox.size();) {
      Packet& packet = e.inbox[i];
      if (packet.delay > 0 || held_back.contains(packet.from)) {
        if (!options_.overtaking) held_back.insert(packet.from);
        if (packet.delay > 0) --packet.delay;
        ++i;
        continue;
      }
      const auto kind = packet.posted ? Event::Kind::Message : Event::Kind::Place;
      e.events.push_back({.kind = kind, .packet = std::move(packet)});
      e.inbox.erase(e.inbox.begin() + static_cast<std::ptrdiff_t>(i));
    }
    std::vector<Transfer> done;
    for (std::size_t i = 0; i < e.transfers.size();) {
      Transfer& t = e.transfers[i];
      if (t.stuck || t.delay > 0) {
        if (!t.stuck) --t.delay;
        ++i;
        continue;
      }
      if (t.place != nullptr) std::memcpy(t.place, t.source, t.bytes);
      done.push_back(t);
      e.transfers.erase(e.transfers.begin() + static_cast<std::ptrdiff_t>(i));
    }
    for (const Transfer& t : done) {
      placed(rank, t, true);
      finish(t.from, t.token, true);
    }
  }

  void kill(int rank) {
    End& dead = end(rank);
    if (!dead.alive) return;
    dead.alive = false;
    dead.inbox.clear();
    std::vector<Transfer> mine = std::exchange(dead.transfers, {});
    for (const Transfer& t : mine) placed(rank, t, false);
    for (int other = 0; other < size(); ++other) {
      if (other != rank) forsake(other, rank);
    }
    for (const Outgoing& each : std::vector<Outgoing>(dead.outgoing)) {
      // The survivors' places may hang: their memory stays theirs.
      Event event{.kind = Event::Kind::Sent, .whole = false};
      event.packet.token = each.token;
      dead.events.push_back(std::move(event));
    }
    dead.outgoing.clear();
    ring(rank);
  }
  /// What `rank` sees of the death of `dead`.
  void forsake(int rank, int dead) {
    End& e = end(rank);
    std::erase_if(e.inbox,
                  [&](const Packet& p) { return p.from == dead && (!p.posted || coin()); });
    for (std::size_t i = 0; i < e.transfers.size();) {
      Transfer& t = e.transfers[i];
      if (t.from != dead) {
        ++i;
        continue;
      }
      t.stuck = coin();
      if (t.stuck) {
        t.source = nullptr;
        ++i;
        continue;
      }
      placed(rank, t, false);
      e.transfers.erase(e.transfers.begin() + static_cast<std::ptrdiff_t>(i));
    }
    for (const Outgoing& each : std::vector<Outgoing>(e.outgoing)) {
      if (each.to == dead && coin()) finish(rank, each.token, false);
    }
    for (std::size_t c = 0; c < e.channels.size(); ++c) {
      if (e.channels[c].to != dead || !coin()) continue;
      e.events.push_back({.kind = Event::Kind::Broken, .channel = static_cast<int>(c)});
    }
    ring(rank);
  }

  void close(int rank, int channel) {
    End& e = end(rank);
    Channel& c = e.channels[static_cast<std::size_t>(channel)];
    if (!c.open) return;
    c.open = false;
    for (const Outgoing& each : std::vector<Outgoing>(e.outgoing)) {
      if (each.to == c.to) finish(rank, each.token, false);
    }
    for (std::size_t i = 0; i < e.transfers.size();) {
      const Transfer t = e.transfers[i];
      if (t.from != c.to) {
        ++i;
        continue;
      }
      placed(rank, t, false);
      e.transfers.erase(e.transfers.begin() + static_cast<std::ptrdiff_t>(i));
      finish(t.from, t.token, false);
    }
  }

 private:
  NetOptions options_;
  std::mt19937_64 random_;
  std::vector<End> ends_;
};

class MessageNet::Port final : public spi::MessagePort {
 public:
  Port(std::shared_ptr<State> state, int rank) : state_(std::move(state)), rank_(rank) {}
  ~Port() override {
    const std::lock_guard lock(state_->mutex);
    state_->kill(rank_);
  }

  void deliver_to(spi::MessageSink& sink) override { sink_ = &sink; }
  [[nodiscard]] std::vector<std::byte> address() const override {
    return MessageNet::address(rank_);
  }
  Result<int> connect(std::span<const std::byte> address) override {
    int to = -1;
    if (address.size() == sizeof to) std::memcpy(&to, address.data(), sizeof to);
    const std::lock_guard lock(state_->mutex);
    if (to < 0 || to >= state_->size()) {
      return Status(Code::InvalidArgument, "loopback: no such rank");
    }
    auto& channels = state_->end(rank_).channels;
    channels.push_back({.to = to});
    return static_cast<int>(channels.size()) - 1;
  }
  void close(int channel) override {
    const std::lock_guard lock(state_->mutex);
    state_->close(rank_, channel);
  }

  void post(int channel, const spi::MessageHeader& header, const void* data,
            std::size_t bytes) override {
    REGROUP_ASSERT(bytes <= spi::kPostedBytesMax);
    Packet packet{.from = rank_, .header = header, .bytes = bytes};
    const auto* begin = static_cast<const std::byte*>(data);
    packet.data.assign(begin, begin + bytes);
    const std::lock_guard lock(state_->mutex);
    deliver(channel, std::move(packet));
  }
  void send(int channel, const spi::MessageHeader& header, const void* data, std::size_t bytes,
            std::uint64_t token) override {
    Packet packet{.from = rank_,
                  .header = header,
                  .posted = false,
                  .source = static_cast<const std::byte*>(data),
                  .bytes = bytes,
                  .token = token};
    const std::lock_guard lock(state_->mutex);
    End& mine = state_->end(rank_);
    const Channel& c = mine.channels[static_cast<std::size_t>(channel)];
    mine.outgoing.push_back({token, c.to});
    if (!mine.alive || !c.open) {
      state_->finish(rank_, token, false);
    } else {
      deliver(channel, std::move(packet));
    }
  }

  void withdraw(const std::byte* place) override {
    const std::lock_guard lock(state_->mutex);
    for (Transfer& transfer : state_->end(rank_).transfers) {
      if (transfer.place == place) transfer.place = nullptr;
    }
  }

  int progress() override {
    std::deque<Event> events;
    {
      const std::lock_guard lock(state_->mutex);
      End& mine = state_->end(rank_);
      std::uint64_t rung = 0;
      (void)!::read(mine.bell.get(), &rung, sizeof rung);
      if (mine.alive) state_->advance(rank_);
      events = std::exchange(mine.events, {});
    }
    for (Event& event : events) tell(event);
    return static_cast<int>(events.size());
  }
  [[nodiscard]] int descriptor() const override { return state_->end(rank_).bell.get(); }
  bool arm() override {
    const std::lock_guard lock(state_->mutex);
    const End& mine = state_->end(rank_);
    return mine.inbox.empty() && mine.events.empty() &&
           std::ranges::all_of(mine.transfers, [](const Transfer& t) { return t.stuck; });
  }
  void wake() override { state_->ring(rank_); }

 private:
  void deliver(int channel, Packet packet) {
    End& mine = state_->end(rank_);
    const Channel& c = mine.channels[static_cast<std::size_t>(channel)];
    if (!mine.alive || !c.open || !state_->end(c.to).alive) return;
    packet.delay = state_->delay();
    state_->end(c.to).inbox.push_back(std::move(packet));
    state_->ring(c.to);
  }
  void tell(Event& event) {
    Packet& packet = event.packet;
    switch (event.kind) {
      case Event::Kind::Message:
        sink_->on_message(packet.header, packet.data.data(), packet.data.size());
        return;
      case Event::Kind::Place: place(packet); return;
      case Event::Kind::Placed: sink_->on_placed(packet.header, event.place, event.whole); return;
      case Event::Kind::Sent: sink_->on_sent(packet.token, event.whole); return;
      case Event::Kind::Broken: sink_->on_broken(event.channel, "loopback: the rank died"); return;
    }
  }
  void place(const Packet& packet) {
    std::byte* const place = sink_->place_for(packet.header, packet.bytes);
    const std::lock_guard lock(state_->mutex);
    End& mine = state_->end(rank_);
    const auto& outgoing = state_->end(packet.from).outgoing;
    const bool waits = std::ranges::any_of(
        outgoing, [&](const Outgoing& each) { return each.token == packet.token; });
    Transfer transfer{.from = packet.from,
                      .token = packet.token,
                      .header = packet.header,
                      .source = packet.source,
                      .place = place,
                      .bytes = packet.bytes,
                      .delay = state_->delay()};
    if (place == nullptr) {
      state_->finish(packet.from, packet.token, true);
    } else if (!waits || !mine.alive) {
      state_->placed(rank_, transfer, false);
    } else {
      mine.transfers.push_back(transfer);
    }
  }

  std::shared_ptr<State> state_;
  int rank_;
  spi::MessageSink* sink_ = nullptr;
};

MessageNet::MessageNet(int ports, NetOptions options)
    : state_(std::make_shared<State>(ports, options)) {}
MessageNet::~MessageNet() = default;

std::unique_ptr<spi::MessagePort> MessageNet::port(int rank) {
  return std::make_unique<Port>(state_, rank);
}

std::vector<std::byte> MessageNet::address(int rank) {
  std::vector<std::byte> bytes(sizeof rank);
  std::memcpy(bytes.data(), &rank, sizeof rank);
  return bytes;
}

void MessageNet::kill(int rank) {
  const std::lock_guard lock(state_->mutex);
  state_->kill(rank);
}

}  // namespace regroup::loopback
