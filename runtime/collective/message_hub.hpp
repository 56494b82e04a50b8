/// One process's end of all messages: moves them, and hands them to the groups that they are for.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include <regroup/types.hpp>

#include "spi/agreement.hpp"
#include "spi/message_port.hpp"
#include "spi/operation.hpp"
#include "spi/waiting.hpp"

namespace regroup::collective {

/// One group in one epoch, as the hub sees it. Called with the hub's lock held.
class MessageReceiver {
 public:
  MessageReceiver() = default;
  MessageReceiver(const MessageReceiver&) = delete;
  MessageReceiver& operator=(const MessageReceiver&) = delete;
  virtual ~MessageReceiver() = default;
  virtual void on_message(const spi::MessageHeader& header, const std::byte* data,
                          std::size_t bytes) = 0;
  virtual std::byte* place_for(const spi::MessageHeader& header, std::size_t bytes) = 0;
  virtual void on_placed(const spi::MessageHeader& header, bool whole) = 0;
  virtual void on_sent(std::uint64_t purpose, bool whole) = 0;
};

/// What was not delivered, and what had to be ended by force.
struct MessageCounters {
  std::uint64_t stale = 0;    ///< of an earlier epoch, another incarnation or an ended operation
  std::uint64_t refused = 0;  ///< malformed, or more than may be held
  std::uint64_t closed_by_force = 0;  ///< channels that did not give back a buffer in time
  std::uint64_t abandoned = 0;        ///< transfers that did not even end then
};

/// Thread safety: any thread; what says so is called with lock() held. A thread of its own moves
/// messages while nobody waits, so that what others sent or ask for never waits for this process's
/// program.
class MessageHub final : private spi::MessageSink {
 public:
  using Lock = std::unique_lock<std::mutex>;

  explicit MessageHub(std::unique_ptr<spi::MessagePort> port);
  MessageHub(const MessageHub&) = delete;
  MessageHub& operator=(const MessageHub&) = delete;
  /// No receiver is attached any more.
  ~MessageHub() override;

  [[nodiscard]] Lock lock() { return Lock(mutex_); }

  // ---- with the lock held

  /// From here on the receiver gets the group's messages, first those that came before.
  void attach(Epoch epoch, std::uint32_t group, MessageReceiver& receiver);
  /// Nobody writes to its places any more.
  void detach(Epoch epoch, std::uint32_t group);
  /// Messages of epochs before `epoch` are stale.
  void begin_epoch(Epoch epoch);
  [[nodiscard]] spi::MessagePort& port() { return *port_; }
  void post(int channel, const spi::MessageHeader& header, const void* data, std::size_t bytes);
  /// `receiver` hears of the end by on_sent(purpose).
  void send(int channel, const spi::MessageHeader& header, const void* data, std::size_t bytes,
            MessageReceiver& receiver, std::uint64_t purpose);
  /// Nobody writes there any more; on_placed() does not come.
  void withdraw(const std::byte* place);
  /// `receiver` will not hear of what it sent; its buffers may still be read.
  void abandon(const MessageReceiver& receiver);
  [[nodiscard]] MessageCounters& counters() { return counters_; }
  /// Messages for groups that are not attached yet.
  [[nodiscard]] std::size_t held() const { return held_count_; }
  /// By force: what is under way on it ends, as not whole.
  void close(int channel);
  /// Neither closed, nor has the network reported an error of it.
  [[nodiscard]] bool is_open(int channel) const { return !closed_.contains(channel); }
  struct Closed {
    TimePoint since;
    std::string why;
  };
  /// Null: it is open.
  [[nodiscard]] const Closed* closed(int channel) const {
    const auto found = closed_.find(channel);
    return found == closed_.end() ? nullptr : &found->second;
  }

  /// Ends as spi::Waiter::wait does; moves messages meanwhile. The predicates are asked with the
  /// lock held.
  template <class ReadyFn, class StopFn>
  spi::WaitEnd wait(Lock& held, const spi::Word* guard, spi::Deadline until, ReadyFn&& ready,
                    StopFn&& stop);

  /// Whoever waits looks again. Any thread, without the lock.
  void wake() { port_->wake(); }

 private:
  using Key = std::pair<std::uint64_t, std::uint32_t>;  // epoch, group
  struct Held {
    spi::MessageHeader header;
    std::vector<std::byte> data;
  };
  static constexpr std::size_t kHeldMax = 65536;
  /// A wedge of a word rings no descriptor: who blocks looks this often.
  static constexpr std::chrono::milliseconds kLookInterval{2};
  static constexpr int kYields = 20;
  /// The hub's own thread moves messages once nobody waited for so long.
  static constexpr std::chrono::milliseconds kIdle{1};
  /// Another thread may take an event for which this one had armed the descriptor.
  static constexpr std::chrono::milliseconds kServeInterval{50};

  /// A thread in wait(). Thread safety: the hub's lock is held.
  class Waiting {
   public:
    explicit Waiting(MessageHub& hub) : hub_(hub) {
      ++hub_.waiting_;
      ++hub_.waits_;
    }
    ~Waiting() {
      // Somebody else may have to block in its stead.
      if (--hub_.waiting_ > 0) hub_.changed_.notify_all();
    }
    Waiting(const Waiting&) = delete;
    Waiting& operator=(const Waiting&) = delete;

   private:
    MessageHub& hub_;
  };

  void on_message(const spi::MessageHeader& header, const std::byte* data,
                  std::size_t bytes) override;
  std::byte* place_for(const spi::MessageHeader& header, std::size_t bytes) override;
  void on_placed(const spi::MessageHeader& header, const std::byte* place, bool whole) override;
  void on_sent(std::uint64_t token, bool whole) override;
  void on_broken(int channel, const std::string& why) override;

  [[nodiscard]] MessageReceiver* receiver_of(const spi::MessageHeader& header);
  void serve();
  int move();
  void block(Lock& held, std::chrono::milliseconds limit);
  void wait_for_turn(Lock& held, spi::Deadline until);
  [[nodiscard]] static bool is_wedged(const spi::Word* guard) {
    return guard != nullptr && spi::read(*guard).wedged;
  }

  std::mutex mutex_;
  std::condition_variable changed_;  ///< messages were moved, or nobody blocks any more
  std::condition_variable ending_;   ///< for the hub's own thread
  std::unique_ptr<spi::MessagePort> port_;
  std::map<Key, MessageReceiver*> receivers_;
  std::map<Key, std::vector<Held>> held_;
  std::map<const std::byte*, Key> places_;  ///< that the port may write to
  std::size_t held_count_ = 0;
  std::uint64_t epoch_ = 0;
  std::uint64_t next_token_ = 1;
  std::unordered_map<std::uint64_t, std::pair<MessageReceiver*, std::uint64_t>> sending_;
  std::map<int, Closed> closed_;  ///< channels that carry nothing more
  MessageCounters counters_;
  int waiting_ = 0;          ///< threads in wait()
  std::uint64_t waits_ = 0;  ///< calls of wait() so far
  bool blocking_ = false;    ///< one of them blocks on the port's descriptor
  bool over_ = false;
  std::thread server_;
};

template <class ReadyFn, class StopFn>
spi::WaitEnd MessageHub::wait(Lock& held, const spi::Word* guard, spi::Deadline until,
                              ReadyFn&& ready, StopFn&& stop) {
  if (ready()) return spi::WaitEnd::Ready;
  const Waiting waiting(*this);
  int idle = 0;
  for (;;) {
    const bool moved = move() > 0;
    if (ready()) return spi::WaitEnd::Ready;
    if (is_wedged(guard)) return spi::WaitEnd::Wedged;
    if (stop()) return spi::WaitEnd::Interrupted;
    if (moved) {
      idle = 0;
    } else if (idle < kYields) {
      ++idle;
      held.unlock();
      spi::yield_cpu();
      held.lock();
    } else {
      if (Clock::now() >= until) return spi::WaitEnd::Expired;
      wait_for_turn(held, until);
    }
  }
}

}  // namespace regroup::collective
