#include "engine/open_view.hpp"

#include <fmt/format.h>

namespace regroup::engine {
namespace {

constexpr Epoch kSingleEpoch{1};

Result<std::shared_ptr<OpenGroup>> checked(std::shared_ptr<OpenGroup> group) {
  if (static_cast<std::size_t>(group->arena.slots.members()) != group->seats.size()) {
    return Status(Code::Internal,
                  fmt::format("the arena of group \"{}\" is made for {} ranks, but {} are present",
                              group->name, group->arena.slots.members(), group->seats.size()));
  }
  return group;
}

Result<std::shared_ptr<OpenGroup>> single_group(std::uint32_t id, const std::string& name) {
  auto arena = shm::make_arena(kSingleEpoch, id, 1);
  if (!arena) return arena.error();
  return std::make_shared<OpenGroup>(OpenGroup{id, name, {Rank(0)}, std::move(*arena)});
}

}  // namespace

std::vector<Rank> present(const std::vector<Rank>& seats, const membership::View& view) {
  std::vector<Rank> there;
  for (const Rank seat : seats) {
    const auto index = static_cast<std::size_t>(seat.value());
    if (index < view.seats.size() && view.seats[index] != Incarnation()) there.push_back(seat);
  }
  return there;
}

Result<std::shared_ptr<OpenGroup>> open_group(Epoch epoch,
                                              const control::ViewInstalled::Group& group,
                                              base::Fd fd) {
  auto arena = shm::open_arena(fd.get(), epoch, group.id);
  if (!arena) return arena.error();
  return checked(
      std::make_shared<OpenGroup>(OpenGroup{group.id, group.name, group.seats, std::move(*arena)}));
}

Result<std::shared_ptr<OpenView>> open_view(const control::ViewInstalled& message,
                                            std::vector<base::Fd> fds) {
  if (message.groups.empty() || fds.size() != message.groups.size()) {
    return Status(Code::Internal,
                  fmt::format("the view of epoch {} came with {} groups and {} descriptors",
                              message.view.epoch.value(), message.groups.size(), fds.size()));
  }
  auto view = std::make_shared<OpenView>(OpenView{message.view, {}, message.cause, message.places});
  for (std::size_t i = 0; i < fds.size(); ++i) {
    auto group = message.groups[i];
    group.seats = present(group.seats, message.view);
    auto opened = open_group(message.view.epoch, group, std::move(fds[i]));
    if (!opened) return opened.error();
    view->groups.push_back(std::move(*opened));
  }
  return view;
}

Result<std::shared_ptr<OpenView>> open_single_view() {
  auto world = single_group(0, "world");
  if (!world) return world.error();
  auto view = std::make_shared<OpenView>();
  view->view.epoch = kSingleEpoch;
  view->view.seats = {Incarnation(1)};
  view->groups.push_back(std::move(*world));
  return view;
}

Result<std::shared_ptr<OpenGroup>> open_single_group(const std::string& name) {
  return single_group(1, name);
}

}  // namespace regroup::engine
