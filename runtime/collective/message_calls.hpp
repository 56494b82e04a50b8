/// Whether the members of a group call the same operations, when each of them sees only messages.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "spi/operation.hpp"

namespace regroup::collective {

/// One rank's knowledge of who called what. An operation is disputed once some message of it
/// carried another digest than the own call's; then each member tells all others what it called,
/// and the answer is drawn from all calls: the same one everywhere. Where all who differ only send,
/// nobody waits: they are told by the next operation that follows in order.
/// Thread safety: one thread at a time. Pure.
class CalledOperations {
 public:
  /// Operations so far back that no member can still be in them.
  static constexpr std::uint64_t kRemembered = 256;

  CalledOperations(int members, int me);

  /// I call operation `sequence`.
  void called(std::uint64_t sequence, const spi::OpDescriptor& descriptor);
  /// Of an operation that was called.
  [[nodiscard]] std::uint64_t digest(std::uint64_t sequence) const;
  /// A message of `source`. False: it called something else.
  bool fits(int source, std::uint64_t sequence, std::uint64_t digest);
  /// `source` says what it called.
  void heard(int source, std::uint64_t sequence, const spi::OpDescriptor& descriptor);
  /// A disputed operation that I called and have not told the others of; each is returned once.
  [[nodiscard]] std::optional<std::pair<std::uint64_t, spi::OpDescriptor>> next_to_tell();

  /// What all ranks find in operation `sequence` by themselves, in the same words.
  void found(std::uint64_t sequence, std::string text) { mismatches_[sequence] = std::move(text); }

  /// The ranks called different symmetric operations: all of them know, and the group goes on.
  [[nodiscard]] const std::string* mismatch(std::uint64_t sequence) const;
  /// The ranks called different operations, of which some may have been answered: the group is
  /// unusable. Empty: it is usable.
  [[nodiscard]] const std::string& poison() const { return poison_; }
  /// It will end in one of the two, once all members have told what they called.
  [[nodiscard]] bool disputed(std::uint64_t sequence) const { return disputes_.contains(sequence); }
  /// Either of the two ends operation `sequence`.
  [[nodiscard]] bool differ(std::uint64_t sequence) const {
    return !poison_.empty() || mismatch(sequence) != nullptr;
  }

 private:
  struct Own {
    std::uint64_t sequence = 0;
    std::uint64_t digest = 0;
    spi::OpDescriptor descriptor;
  };
  struct Dispute {
    std::vector<std::optional<spi::OpDescriptor>> calls;
    bool told = false;
  };
  [[nodiscard]] const Own* own(std::uint64_t sequence) const;
  Dispute& dispute(std::uint64_t sequence);
  void judge(std::uint64_t sequence, const Dispute& dispute);

  int members_;
  int me_;
  std::vector<Own> own_ = std::vector<Own>(kRemembered);
  /// Of operations that I have yet to call: digests as others sent them.
  std::map<std::uint64_t, std::vector<std::uint64_t>> ahead_;
  std::map<std::uint64_t, Dispute> disputes_;
  std::map<std::uint64_t, std::string> mismatches_;
  std::uint64_t poisoned_at_ = 0;
  std::string poison_;
};

}  // namespace regroup::collective
