#include "reconfigure.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

#include "errors.hpp"

namespace regroup::torch_binding {
namespace {

constexpr const char* kName = "reconfigure";
/// The second is for an epoch that was over without a member's knowing it.
constexpr int kRoundsMax = 2;
/// How many say that the epoch is over, how many are here, and what was decided.
constexpr std::array<const char*, 3> kGateParts = {"/over", "/here", "/gate"};
constexpr const char* kEnter = "enter";
constexpr const char* kStay = "stay";
constexpr const char* kClosed = "closed";

/// The seat that a handle names.
int seat_of(std::string_view handle) {
  const auto rest = handle.substr(handle.find('/') + 1);
  int seat = -1;
  const auto read = std::from_chars(rest.data(), rest.data() + rest.size(), seat);
  TORCH_CHECK_VALUE(handle.starts_with("regroup/") && read.ec == std::errc() && seat >= 0,
                    "regroup: reconfigure: '", std::string(handle),
                    "' is no handle of this backend");
  return seat;
}

std::string text_of(const std::vector<std::string>& handles) {
  std::string text;
  for (const auto& handle : handles) text += handle + " ";
  return text;
}

nanoseconds left_until(TimePoint until) {
  return std::max<nanoseconds>(until - Clock::now(), std::chrono::milliseconds(1));
}

}  // namespace

Memberships::Memberships(std::string group_id, std::shared_ptr<Attachment> attachment)
    : group_id_(std::move(group_id)), attachment_(std::move(attachment)) {
  prefix_ = attachment_ == nullptr ? c10::str("regroup/0/process-", ::getpid())
                                   : c10::str("regroup/", attachment_->job.rank(), "/",
                                              attachment_->job.incarnation().value());
}

std::string Memberships::handle() const { return c10::str(prefix_, "/", failures_.load()); }

Memberships::Joined Memberships::join(std::int64_t uuid, std::vector<std::string> handles,
                                      bool ordered, Millis timeout, bool epoch_is_over) {
  if (!ordered) {
    std::ranges::sort(handles, [](const std::string& a, const std::string& b) {
      return std::pair(seat_of(a), a) < std::pair(seat_of(b), b);
    });
  }
  try {
    return join_once(uuid, handles, timeout, epoch_is_over);
  } catch (...) {
    failures_.fetch_add(1);
    throw;
  }
}

Memberships::Joined Memberships::join_once(std::int64_t uuid,
                                           const std::vector<std::string>& handles, Millis timeout,
                                           bool epoch_is_over) {
  const auto mine = std::ranges::find(handles, handle());
  TORCH_CHECK_VALUE(mine != handles.end(), "regroup: reconfigure: the handles do not name this ",
                    "process, whose handle is '", handle(), "': ", text_of(handles));
  TORCH_CHECK_VALUE(std::set(handles.begin(), handles.end()).size() == handles.size(),
                    "regroup: reconfigure: a handle is there twice: ", text_of(handles));
  claim(uuid, handles);
  Joined joined{.rank = static_cast<int>(mine - handles.begin())};
  for (const auto& handle : handles) joined.members.push_back(seat_of(handle));
  if (handles.size() == 1) return joined;
  TORCH_CHECK(attachment_ != nullptr, "regroup: reconfigure: a group of ", handles.size(),
              " ranks needs Regroup's launcher: start the script with `regroup run`");
  const auto& seats = joined.members;
  check(meet(uuid, seats, Clock::now() + timeout, epoch_is_over, joined.group), kName, group_id_);
  if (joined.group.size() != static_cast<int>(seats.size())) {
    check({Code::RankLost, c10::str("only ", joined.group.size(), " of the ", seats.size(),
                                    " processes named are left: ", text_of(handles))},
          kName, group_id_);
  }
  return joined;
}

// Whoever comes first says which processes the number stands for, the others compare: nobody has to
// wait in order to learn that it was taken.
void Memberships::claim(std::int64_t uuid, const std::vector<std::string>& handles) {
  bool taken = !used_.insert(uuid).second;
  if (!taken && attachment_ != nullptr) {
    const auto holds =
        attachment_->job.store().compare_set(key_of(uuid, "members"), "", text_of(handles));
    check(holds.error(), kName, group_id_);
    taken = *holds != text_of(handles);
  }
  TORCH_CHECK(!taken, "regroup: reconfigure: uuid ", uuid,
              " was already used, for other processes or before; give a fresh one");
}

std::string Memberships::key_of(std::int64_t uuid, const std::string& what) const {
  return c10::str("regroup/reconfigure/", group_id_, "/", uuid, "/", what);
}

Status Memberships::meet(std::int64_t uuid, const std::vector<int>& seats, TimePoint until,
                         bool epoch_is_over, ProcessGroup& group) {
  Status status;
  for (int round = 0; round < kRoundsMax; ++round) {
    const auto gate = key_of(uuid, c10::str("round", round));
    const auto enters = pass_gate(gate, seats.size(), until, epoch_is_over);
    if (!enters) return enters.error();
    if (*enters) {
      if (auto entered = attachment_->job.reform(); !entered) return entered;
    }
    status = meet_in_this_epoch(seats, until, group);
    // Everybody is through it.
    if (status && group.rank() == 0) {
      for (const char* part : kGateParts) (void)attachment_->job.store().erase(gate + part);
    }
    const bool is_over = status.code() == Code::RankLost || status.code() == Code::Revoked;
    const auto lost = status.where().rank;
    const bool lost_a_member = lost && std::ranges::find(seats, lost->value()) != seats.end();
    if (!is_over || lost_a_member) return status;
    epoch_is_over = true;
  }
  return status;
}

// All members are here before one of them enters the next epoch, where it would wait for the others
// without a limit. Who comes last opens the gate, who does not want to wait longer closes it.
Result<bool> Memberships::pass_gate(const std::string& gate, std::size_t size, TimePoint until,
                                    bool epoch_is_over) {
  auto store = attachment_->job.store();
  const auto over = store.add(gate + kGateParts[0], epoch_is_over ? 1 : 0);
  if (!over) return over.error();
  const auto here = store.add(gate + kGateParts[1], 1);
  if (!here) return here.error();
  const auto state = gate + kGateParts[2];
  if (*here == static_cast<std::int64_t>(size)) {
    const auto any_over = store.add(gate + kGateParts[0], 0);
    if (!any_over) return any_over.error();
    // When all processes of the job are named, this also ends the set-up, whose calls are kept for
    // newcomers.
    const bool all = static_cast<int>(size) == attachment_->job.world().size();
    const auto set = store.compare_set(state, "", *any_over > 0 || all ? kEnter : kStay);
    if (!set) return set.error();
  }
  auto said = store.get(state, left_until(until));
  if (said.error().code() == Code::DeadlineExceeded) said = store.compare_set(state, "", kClosed);
  if (!said) return said.error();
  if (*said != kClosed) return *said == kEnter;
  return Status(Code::DeadlineExceeded, "not all processes named have called it");
}

Status Memberships::meet_in_this_epoch(const std::vector<int>& seats, TimePoint until,
                                       ProcessGroup& group) {
  auto opened = attachment_->job.group(name_of_group(group_id_ + "/reconfigure", seats), seats);
  if (!opened) return opened.error();
  group = std::move(*opened);
  OpOptions options;
  options.timeout = left_until(until);
  auto status = group.barrier(options);
  if (status.code() != Code::InvalidArgument) return status;
  // The last calls in this group were not the same on all: its numbering has to begin anew.
  (void)attachment_->job.end_epoch("reconfigure, after calls that did not match");
  return {Code::Revoked, std::string(status.text())};
}

}  // namespace regroup::torch_binding
