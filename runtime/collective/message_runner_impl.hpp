/// The inside of MessageRunner; see message_runner.hpp for the contract. Not for others to include.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "collective/message_calls.hpp"
#include "collective/message_keepsakes.hpp"
#include "collective/message_letters.hpp"
#include "collective/message_mailbox.hpp"
#include "collective/message_runner.hpp"
#include "collective/own_words.hpp"

namespace regroup::collective {

/// Thread safety: all but the constructor and run(), commit()... with the hub's lock held.
class MessageRunner::Impl final : public MessageReceiver {
 public:
  Impl(spi::SharedSlots words, int me, MessageHub& hub, MessageMembers members,
       const RunnerOptions& options, const MessageTuning& tuning);
  ~Impl() override;

  Outcome run(const OpSpec& spec, Deadline until);
  Outcome settle(Deadline until);
  Outcome commit(std::uint64_t step, Deadline until);
  Outcome entrust(std::uint64_t step, const Entrusted& what, Deadline until);
  Outcome send(const void* data, std::size_t count, DType dtype, int destination, std::uint32_t tag,
               Deadline until);
  Outcome recv(void* data, std::size_t count, DType dtype, int source, std::uint32_t tag,
               Deadline until);
  Outcome find_sender(std::uint32_t tag, int& source, Deadline until);
  std::optional<std::string> look_for_damage();
  [[nodiscard]] bool ends_after(std::uint64_t step);
  [[nodiscard]] std::uint64_t sequence() const { return sequence_; }
  [[nodiscard]] const spi::SharedSlots& slots() const { return words_; }
  [[nodiscard]] int me() const { return me_; }

  void on_message(const spi::MessageHeader& header, const std::byte* data,
                  std::size_t bytes) override;
  std::byte* place_for(const spi::MessageHeader& header, std::size_t bytes) override;
  void on_placed(const spi::MessageHeader& header, bool whole) override;
  void on_sent(std::uint64_t purpose, bool whole) override;

 private:
  enum class Progress : std::uint8_t { Finished, Wedged, Expired, Mismatched, Damaged };
  /// Holds the hub's lock for one call.
  class Holding;
  /// A part that waits for its receiver to be ready.
  struct Deferred {
    int member = 0;
    std::uint64_t part = 0;
    const std::byte* data = nullptr;
    std::size_t bytes = 0;
  };

  /// What output is written over: of the input, in the caller's memory.
  struct Kept {
    std::byte* at = nullptr;
    std::size_t bytes = 0;
    std::size_t copy_offset = 0;
  };
  struct Overlap {
    Kept kept;  ///< of 0 bytes: none
    bool own_place = false;
  };

  void begin(const OpSpec& spec);
  void begin_part();
  [[nodiscard]] std::optional<Algorithm> forced_algorithm() const;
  [[nodiscard]] std::span<const OpSpec> parts() const;
  [[nodiscard]] Overlap overlap_of(const OpSpec& part) const;
  void keep_input();
  void keep_what_is_sent_late();
  void restore_input();
  Outcome drive(Deadline until);
  Outcome complete(Deadline until);
  Outcome decide(Deadline until);
  Outcome stop(Progress why, Deadline until);
  Outcome answer(OutcomeKind kind, std::string text = {}) const {
    return {kind, sequence_, std::move(text)};
  }
  Outcome verdict_of(std::uint64_t step, Deadline until);
  /// For await_decision().
  auto own_wait(Deadline until) {
    return [this, until](auto&& ready, auto&& in_vain) {
      return hub_.wait(held_, nullptr, until, ready, in_vain);
    };
  }

  Progress execute(Deadline until);
  Progress await_sent(Deadline until);
  Progress perform(const MessageStep& step, Deadline until);
  void receive(const MessageStep& step);
  Progress send_part(const MessageStep& step, Deadline until);
  Progress await_sent_part(const MessageStep& step, Deadline until);
  Progress await_part(const MessageStep& step, Deadline until);
  void fold(const MessageStep& step);
  void copy_step(const MessageStep& step);
  void make_counts();
  Progress compare(const MessageStep& step);
  /// A part of the operation's part that is under way, as it is named between the ranks.
  [[nodiscard]] std::uint64_t full(std::uint32_t part) const {
    return static_cast<std::uint64_t>(position_) << 32 | part;
  }
  template <class ReadyFn>
  Progress wait_for(Deadline until, ReadyFn&& ready);
  Progress await_held(Deadline until);
  void say_where_i_am();
  void quiesce();
  bool await_buffers();

  void send_now(const Deferred& part);
  void on_ready(const spi::MessageHeader& header);
  void on_holds(const spi::MessageHeader& header);
  void tell_calls();
  void post(int member, spi::MessageKind kind, std::uint64_t number, std::uint64_t part,
            std::uint64_t digest, const void* data = nullptr, std::size_t bytes = 0);
  void post_to_all(spi::MessageKind kind, std::uint64_t number, std::uint64_t digest,
                   const void* data = nullptr, std::size_t bytes = 0);
  [[nodiscard]] spi::MessageHeader header(spi::MessageKind kind, std::uint64_t number,
                                          std::uint64_t part, std::uint64_t digest) const;
  [[nodiscard]] bool is_member(const spi::MessageHeader& header) const;

  [[nodiscard]] std::byte* at(Region region, std::size_t offset);
  [[nodiscard]] const std::byte* source(const MessageStep& step);
  [[nodiscard]] bool i_receive() const {
    return spi::receives(descriptor_.kind, descriptor_.root, me_);
  }
  [[nodiscard]] std::string find_broken() const;
  /// Writes damage_; whether there is any, of this rank's words or of the way to a member.
  bool notice_damage();
  void hook(Instant instant, std::uint64_t number, std::int64_t chunk) const {
    pass_instant(options_, instant, number, chunk);
  }
  void hook(Instant instant, std::int64_t chunk = -1) const { hook(instant, sequence_, chunk); }

  spi::SharedSlots words_;
  int me_;
  OwnWords own_;
  int members_;
  MessageHub& hub_;
  MessageMembers reach_;
  RunnerOptions options_;
  MessageTuning tuning_;
  MessageHub::Lock held_;
  CalledOperations calls_;
  Mailbox mailbox_;
  MessageLetters letters_;
  MessageKeepsakes keepsakes_;

  std::vector<std::uint64_t> have_;  ///< per member: it holds what it needs of all up to this one
  std::vector<std::uint64_t> need_;  ///< per member: the last operation so far that it receives in
  /// Per member: operations that it receives in and does not hold, as far as is known.
  std::vector<std::deque<std::uint64_t>> behind_;
  std::vector<std::uint64_t> prepared_;   ///< per member
  std::vector<std::uint64_t> last_step_;  ///< per member, as it announced it; 0: none
  using ReadyPart = std::tuple<std::uint64_t, int, std::uint64_t>;  // sequence, member, part
  std::set<ReadyPart> ready_;

  std::uint64_t sequence_ = 0;
  OpSpec spec_;                   ///< the call
  spi::OpDescriptor descriptor_;  ///< of the call
  std::size_t position_ = 0;      ///< of a coalesced call: the part that is under way
  OpSpec part_;                   ///< that part; of another call the call
  MessagePlan plan_;              ///< of it
  std::optional<spi::OpDescriptor> planned_;
  std::vector<std::uint64_t> counts_;  ///< Region::Counts
  std::vector<std::byte> scratch_;
  std::vector<const void*> sources_;  ///< of a fold
  TimePoint begun_;                   ///< when the operation was
  bool entered_ = false;              ///< the others were told that I am in it
  std::vector<Deferred> deferred_;
  std::vector<int> sending_;  ///< per member: parts whose bytes the port still reads
  int sending_total_ = 0;
  /// The parts that these are, by the number that the port was given.
  std::map<std::uint64_t, std::pair<int, std::uint64_t>> moving_;
  std::uint64_t moved_ = 0;
  bool over_ = true;  ///< no part of the operation is wanted any more
  bool said_held_ = false;
  bool output_touched_ = false;
  bool unsettled_ = false;
  std::string damage_;
  const std::byte* input_ = nullptr;  ///< the part's, or its copy
  std::vector<std::byte> late_;       ///< that copy
  std::vector<std::byte> kept_;       ///< what is put back if the operation is lost
  std::vector<Kept> kept_ranges_;
};

}  // namespace regroup::collective
