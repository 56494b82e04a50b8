/// Point to point over messages: matched by (source, tag) in the order of sending.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "collective/message_hub.hpp"
#include "collective/runner.hpp"
#include "spi/shared_slots.hpp"

namespace regroup::collective {

struct MessageMembers;

/// One call of send or recv.
struct LetterCall {
  const void* data = nullptr;  ///< of send
  std::size_t count = 0;
  DType dtype = DType::U8;
  int other = 0;  ///< the receiver, or the source
  std::uint32_t tag = 0;
  [[nodiscard]] std::size_t bytes() const { return count * size_of(dtype); }
};

/// Small letters are posted, and kept by their receiver until it asks for them. Large ones are
/// offered: the bytes move once the receiver asks for them, or, while it sends itself, into its own
/// memory, so that two ranks that send to each other get on. Thread safety: the hub's lock is held;
/// one thread at a time in send or recv.
class MessageLetters {
 public:
  static constexpr std::uint64_t kPurpose = ~std::uint64_t{0};
  /// Letters that a receiver may be behind; then their sender waits.
  static constexpr std::uint64_t kLettersMax = 4096;
  /// Of large letters that nobody has asked for.
  static constexpr std::size_t kKeptBytesMax = std::size_t{64} << 20;

  MessageLetters(MessageHub& hub, MessageReceiver& owner, spi::SharedSlots words,
                 const MessageMembers& reach, int me);

  Outcome send(MessageHub::Lock& held, const LetterCall& call, Deadline until);
  Outcome recv(MessageHub::Lock& held, void* data, const LetterCall& call, Deadline until);
  Outcome find_sender(MessageHub::Lock& held, std::uint32_t tag, int& source, Deadline until);

  void on_message(const spi::MessageHeader& header, const std::byte* data, std::size_t bytes);
  std::byte* place_for(const spi::MessageHeader& header, std::size_t bytes);
  void on_placed(const spi::MessageHeader& header, bool whole);
  void on_sent(bool whole);

 private:
  enum class State : std::uint8_t {
    Offered,   ///< its bytes wait at the source
    Accepted,  ///< asked for
    Placing,   ///< on their way to `place`
    Here,
    Dropped  ///< asked for to end its sender's call; nobody wants them
  };
  struct Letter {
    State state = State::Here;
    std::uint64_t count = 0;
    std::uint32_t tag = 0;
    DType dtype = DType::U8;
    std::vector<std::byte> kept;
    std::byte* place = nullptr;  ///< kept's, or the receiver's own memory
    bool direct = false;         ///< the latter
    [[nodiscard]] std::size_t bytes() const { return count * size_of(dtype); }
  };
  struct Source {
    std::map<std::uint64_t, Letter> letters;  ///< by number
    std::uint64_t in_order = 0;               ///< all letters up to this one have come
    std::uint64_t taken = 0;                  ///< given to the program
    std::uint64_t told = 0;                   ///< of these, as the source knows
  };
  struct Destination {
    std::uint64_t sent = 0;
    std::uint64_t taken = 0;
    bool cut = false;
  };
  enum class Sending : std::uint8_t { Nothing, Offered, Moving, Sent, Broken };
  struct Current {
    Sending state = Sending::Nothing;
    LetterCall call;
    std::uint64_t number = 0;
  };

  Outcome send_large(MessageHub::Lock& held, Deadline until);
  [[nodiscard]] Letter* find(int source, std::uint32_t tag);
  [[nodiscard]] bool look(void* data, const LetterCall& call);
  Outcome deliver(void* data, const LetterCall& call);
  Outcome give_up(MessageHub::Lock& held, void* data, const LetterCall& call, spi::WaitEnd end);
  void take(int source, const Letter& letter);
  void accept(int source, std::uint64_t number);
  void accept_offers();
  template <class OverFn>
  void await_transfer(MessageHub::Lock& held, int other, OverFn&& over);
  void note(int source, std::uint64_t number, Letter letter);
  [[nodiscard]] spi::MessageHeader header(spi::MessageKind kind, std::uint64_t number) const;
  [[nodiscard]] int channel(int member) const;
  [[nodiscard]] const spi::Word& own_word() const { return words_.group_word(me_); }

  MessageHub& hub_;
  MessageReceiver& owner_;
  spi::SharedSlots words_;
  const MessageMembers& reach_;
  int me_;
  std::vector<Source> sources_;
  std::vector<Destination> destinations_;
  std::size_t kept_bytes_ = 0;  ///< of large letters that nobody has asked for
  Current current_;
  int first_looked_at_ = 0;  ///< by find_sender()
};

}  // namespace regroup::collective
