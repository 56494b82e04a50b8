/// Executes the operations of one rank in one group and one epoch over messages, for members that
/// share no memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "collective/message_hub.hpp"
#include "collective/runner.hpp"
#include "collective/schedule_messages.hpp"

namespace regroup::collective {

/// How this rank reaches the others, by group rank; the own entries of `channels` is unused.
struct MessageMembers {
  std::vector<int> channels;                ///< MessagePort::connect()
  std::vector<std::uint64_t> incarnations;  ///< of each member, the own one too
  std::vector<int> hosts{};                 ///< of each member, as numbers; empty: not known
};

struct MessageTuning {
  std::size_t direct_bytes = MessageShape{}.direct_bytes;
  std::size_t chunk_bytes = MessageShape{}.chunk_bytes;
  std::size_t window = MessageShape{}.window;
  NetworkCost cost{};
};

/// The contract is GroupRunner's. How outcomes are uniform: a rank that holds everything it needs
/// of operation k tells all others so, and completes k once every receiver of the operations up to
/// k holds them. So a completed operation can be finished by each living receiver alone
/// (docs/adr/0029-collectives-over-messages.md).
/// Memory: `words` is the arena that this rank shares with its agent; of it only the own words are
/// used. Arena and hub outlive the runner. A call that ends without the operation waits until no
/// transfer uses its buffers, at most two seconds. Thread safety: one thread at a time; the hub's
/// lock is not held.
class MessageRunner final : public GroupRunner {
 public:
  MessageRunner(spi::SharedSlots words, int me, MessageHub& hub, MessageMembers members,
                const RunnerOptions& options, const MessageTuning& tuning = {});
  MessageRunner(const MessageRunner&) = delete;
  MessageRunner& operator=(const MessageRunner&) = delete;
  ~MessageRunner() override;

  Outcome run(const OpSpec& spec, Deadline until) override;
  Outcome settle(Deadline until) override;
  Outcome commit(std::uint64_t step, Deadline until) override;
  Outcome entrust(std::uint64_t step, const Entrusted& what, Deadline until) override;
  /// HandedOver: up to spi::kPostedBytesMax once it is sent; above, once the receiver has it.
  Outcome send(const void* data, std::size_t count, DType dtype, int destination, std::uint32_t tag,
               Deadline until) override;
  Outcome recv(void* data, std::size_t count, DType dtype, int source, std::uint32_t tag,
               Deadline until) override;
  Outcome find_sender(std::uint32_t tag, int& source, Deadline until) override;
  [[nodiscard]] std::optional<std::string> look_for_damage() override;
  void wedge() override;
  [[nodiscard]] bool ends_after(std::uint64_t step) const override;
  [[nodiscard]] std::uint64_t sequence() const override;
  [[nodiscard]] const spi::SharedSlots& slots() const override;
  /// Not known: other hosts have other clocks.
  [[nodiscard]] std::optional<std::uint64_t> arrival_ns(int rank,
                                                        std::uint64_t sequence) const override;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace regroup::collective
