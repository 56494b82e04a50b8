/// A view as a member sees it: the seats and the mapped arenas of its groups.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <regroup/status.hpp>

#include "base/fd.hpp"
#include "control/messages.hpp"
#include "membership/types.hpp"
#include "transports/shm/arena.hpp"

namespace regroup::engine {

/// A group's arena in one epoch. Thread safety: immutable; the memory behind it is shared by
/// design.
struct OpenGroup {
  std::uint32_t id = 0;
  std::string name;
  std::vector<Rank> seats;  ///< those present in this epoch, in group-rank order
  shm::Arena arena;
};

/// One installed view. Thread safety: immutable once shared.
struct OpenView {
  membership::View view;
  std::vector<std::shared_ptr<OpenGroup>> groups;  ///< the world first
  std::string cause;                               ///< why the epoch before ended
  std::vector<membership::SeatPlace> places;       ///< of each seat; empty: all on this host
};

/// Those of `seats` that somebody holds in this view; the others take no part in it.
[[nodiscard]] std::vector<Rank> present(const std::vector<Rank>& seats,
                                        const membership::View& view);

/// Maps what came with the message; takes the descriptors. Errors: InvalidArgument,
/// ResourceExhausted.
Result<std::shared_ptr<OpenView>> open_view(const control::ViewInstalled& message,
                                            std::vector<base::Fd> fds);
Result<std::shared_ptr<OpenGroup>> open_group(Epoch epoch,
                                              const control::ViewInstalled::Group& group,
                                              base::Fd fd);

/// The only view of a job of one rank, and further groups in it.
Result<std::shared_ptr<OpenView>> open_single_view();
Result<std::shared_ptr<OpenGroup>> open_single_group(const std::string& name);

}  // namespace regroup::engine
