/// The shared memory of the current epoch: the arenas of the world and of every named group of the
/// domain.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <regroup/status.hpp>
#include <regroup/types.hpp>

#include "control/messages.hpp"
#include "launcher/arena_reserve.hpp"
#include "membership/types.hpp"
#include "transports/shm/arena.hpp"

namespace regroup::launcher {

/// Makes the arenas of each epoch, and is the only one who wedges and decides their words.
/// Members of an arena are the occupied seats of its group, in the group's order: a vacant seat has
/// no place in it. Thread safety: one thread. Only install() and attach() block, for the time of
/// clearing the memory.
class EpochArenas {
 public:
  static constexpr const char* kWorldName = "world";
  static constexpr std::size_t kGroupsMax =
      128;  ///< of one job; one message carries all their descriptors
  static constexpr std::size_t kNameBytesMax = 256;

  /// `several`: the job has ranks on other hosts, too.
  explicit EpochArenas(bool several = false) : several_(several) {}

  /// Drops the arenas of the epoch before and makes those of `view`: the world and all groups known
  /// so far; none where no member runs. `local`: the members on this host. An arena has room for
  /// all members, and only the words of the local ones are reported. Errors: those of
  /// shm::make_arena(); the arenas of the epoch before are then still there.
  Status install(const membership::View& view, const std::vector<Member>& local);
  /// After install(), once the members were told: gives the arenas of the epoch before back, and
  /// has memory for the next one made ahead. `losing`: a lost member's seat will stay vacant.
  void prepare_next(bool losing);

  /// The arena of a named group in this epoch, made at the first request; the group is remembered
  /// for later epochs. Errors: InvalidArgument (seats that are not in the world, or others than at
  /// an earlier request of this name), ResourceExhausted.
  Result<std::size_t> attach(const std::string& name, const std::vector<Rank>& seats);

  /// Tells the members that the epoch is to end after a step.
  void want_end();
  /// Wedges every word of every arena, wakes all waiters, and says what the words said. Once an
  /// epoch. Errors: FailedPrecondition when a word says what no member can have written.
  Result<membership::WedgeReport> wedge();
  /// Stores the verdicts into the words of all members that are not lost, and wakes them.
  void decide(const std::vector<membership::WedgeReport::GroupCut>& cuts,
              std::uint64_t committed_step, const std::vector<Member>& lost);

  /// A member that has completed an operation of this epoch; none: nobody yet.
  [[nodiscard]] std::optional<Rank> first_completed() const;

  [[nodiscard]] const membership::View& view() const { return view_; }
  [[nodiscard]] bool is_wedged() const { return wedged_; }
  [[nodiscard]] std::size_t groups() const { return current_.size(); }
  /// What members are told of group `index` (0: the world), and the descriptor of its arena.
  [[nodiscard]] control::ViewInstalled::Group group(std::size_t index) const;
  [[nodiscard]] int descriptor(std::size_t index) const { return current_[index].arena.fd.get(); }
  [[nodiscard]] std::string group_name(std::uint32_t id) const;

 private:
  struct Known {
    std::uint32_t id = 0;
    std::string name;
    std::vector<Rank> seats;  ///< all of them, vacant ones too
  };
  struct Current {
    std::uint32_t id = 0;
    std::vector<Rank> members;
    shm::Arena arena;
  };
  [[nodiscard]] Result<Current> make(std::uint32_t id, const std::vector<Rank>& seats,
                                     const membership::View& view);
  [[nodiscard]] std::vector<int> local_members(const Current& group) const;
  [[nodiscard]] std::uint32_t new_id(const std::string& name) const;
  [[nodiscard]] const Known* find(std::uint32_t id) const;
  Result<const Known*> remember(const std::string& name, const std::vector<Rank>& seats);

  bool several_;
  std::vector<Rank> local_;  ///< seats of this host's members in view_

  membership::View view_;
  bool wedged_ = false;
  std::vector<Known> known_;  ///< the world first
  std::vector<Current> previous_;
  ArenaReserve reserve_;
  std::vector<Current> current_;  ///< of view_; groups without any member are left out
};

}  // namespace regroup::launcher
