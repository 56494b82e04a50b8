/// Parts of operations that others send: those that have arrived, and the places for those to come.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace regroup::collective {

/// Thread safety: one thread at a time. Pure; places are written by whoever moves the bytes.
class Mailbox {
 public:
  struct Part {
    int source = 0;
    std::uint64_t sequence = 0;
    std::uint64_t number = 0;
    bool operator==(const Part&) const = default;
  };

  /// The part is to lie at `place`. It may have arrived before. False: it came with another size.
  bool want(const Part& part, std::byte* place, std::size_t bytes);
  [[nodiscard]] bool has(const Part& part) const;
  /// After has(): its place is the caller's again.
  void take(const Part& part) { entries_.erase(part); }

  /// A part came with its bytes. False: twice, or with another size than it was wanted with.
  bool arrived(const Part& part, const std::byte* data, std::size_t bytes);
  /// A part waits at its sender: where its bytes shall go; null: nobody wants it so.
  [[nodiscard]] std::byte* place_for(const Part& part, std::size_t bytes);
  /// place_for()'s place is filled, or will not be.
  void placed(const Part& part, bool whole);
  /// A place that somebody else is filling, and is to leave alone from now on; null: there is none.
  [[nodiscard]] const std::byte* next_to_withdraw();

  /// Everything of the operations up to `sequence`; nothing of it is being filled.
  void forget(std::uint64_t sequence);

 private:
  struct Hash {
    std::size_t operator()(const Part& part) const {
      const std::uint64_t mixed = (part.sequence * 0x9e3779b97f4a7c15) ^
                                  (static_cast<std::uint64_t>(part.source) << 48) ^ part.number;
      return static_cast<std::size_t>((mixed ^ (mixed >> 29)) * 0xbf58476d1ce4e5b9);
    }
  };
  enum class State : std::uint8_t { Wanted, Placing, Here };
  struct Entry {
    State state = State::Wanted;
    std::byte* place = nullptr;
    std::size_t bytes = 0;
    std::vector<std::byte> kept;  ///< came before it was wanted
  };
  std::unordered_map<Part, Entry, Hash> entries_;
  int placing_ = 0;
};

}  // namespace regroup::collective
