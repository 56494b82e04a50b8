#include "engine/agent_link.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>

#include "base/check.hpp"
#include "engine/live_links.hpp"
#include "engine/version.hpp"

namespace regroup::engine {
namespace {

constexpr std::chrono::milliseconds kBeatInterval{20};
/// A message to the agent that cannot be sent for this long means that the agent hangs.
constexpr std::chrono::seconds kSendTimeout{10};

Status unexpected_first_message() {
  return {Code::Internal,
          "the agent's first message was not a welcome; launcher and library differ in version"};
}

}  // namespace

Result<std::unique_ptr<AgentLink>> AgentLink::connect(base::Fd control, TimePoint until) {
  std::unique_ptr<AgentLink> link(new AgentLink(control::Channel(std::move(control))));
  if (auto status = link->greet(until); !status) return status;
  link->open_messages();
  link->start_engine();
  if (auto status = link->await_seat(until); !status) return status;
  return link;
}

Result<std::unique_ptr<AgentLink>> AgentLink::alone() {
  std::unique_ptr<AgentLink> link(new AgentLink(std::nullopt));
  auto page = metrics::PageMapping::create(Incarnation(1));
  if (!page) return page.error();
  link->page_ = std::move(*page);
  link->seat_.incarnation = Incarnation(1);
  link->seat_.job = "single";
  link->own_store_.emplace();
  auto view = open_single_view();
  if (!view) return view.error();
  link->newest_ = std::move(*view);
  link->newest_epoch_ = link->newest_->view.epoch.value();
  link->seated_ = true;
  link->start_engine();
  return link;
}

AgentLink::~AgentLink() {
  LiveLinks::remove(*this);
  leave();
  engine_.request_stop();
  wake_engine();
}

void AgentLink::leave() {
  // The agent may be gone already: then nobody needs to know.
  (void)send(control::Detach{});
}

void AgentLink::abandon_in_child() {
  if (channel_) ::close(channel_->fd());
}

Status AgentLink::greet(TimePoint until) {
  if (auto status = send(control::Hello{.pid = ::getpid(), .build = kBuild}); !status)
    return status;
  auto answer = channel_->recv_as<control::AgentToRank>(until);
  if (!answer) return answer.error();
  if (const auto* stop = std::get_if<control::Stop>(&answer->message))
    return {Code::Cancelled, stop->reason};
  if (const auto* refused = std::get_if<control::Refused>(&answer->message))
    return {refused->code, refused->text};
  const auto* welcome = std::get_if<control::Welcome>(&answer->message);
  if (welcome == nullptr || answer->fds.size() != 1) return unexpected_first_message();
  auto page = metrics::PageMapping::map(answer->fds[0].get());
  if (!page) return page.error();
  page_ = std::move(*page);
  seat_ = {.rank = welcome->seat.value_or(Rank(-1)),
           .incarnation = welcome->incarnation,
           .ranks = welcome->ranks,
           .ranks_on_host = welcome->ranks_on_host,
           .on_loss = welcome->on_loss,
           .job = welcome->job,
           .replacement = welcome->replacement,
           .life = welcome->life};
  // A replacement is also told what its predecessor left, by an Assign that follows.
  seated_ = welcome->seat.has_value() && !welcome->replacement;
  return {};
}

// Without it this rank may still serve: all members of its groups may be on its host.
void AgentLink::open_messages() {
  const char* hosts = std::getenv("REGROUP_NUM_NODES");  // NOLINT(concurrency-mt-unsafe)
  if (hosts == nullptr || std::string_view(hosts) == "1") return;
  auto opened = MessageLink::open();
  if (opened) {
    messages_ = std::move(*opened);
  } else {
    no_messages_ = opened.error();
  }
}

Result<MessageLink*> AgentLink::messages() const {
  if (messages_ == nullptr) return no_messages_;
  return messages_.get();
}

Status AgentLink::await_seat(TimePoint until) {
  std::unique_lock lock(mutex_);
  // A parked spare waits as long as the job lasts; the deadline is for those who hold a seat.
  const bool parked = seat_.rank == Rank(-1);
  return await(lock, parked ? TimePoint::max() : until, "for a seat", [&] { return seated_; });
}

void AgentLink::start_engine() {
  wake_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  LiveLinks::add(*this);
  engine_ = std::jthread([this](const std::stop_token& stop) { engine_main(stop); });
}

void AgentLink::engine_main(const std::stop_token& stop) {
  std::optional<metrics::BeaconHolder> beacon;
  if (auto held = metrics::BeaconHolder::hold(page()); held) {
    beacon.emplace(std::move(*held));
  } else {
    return fail(held.error());
  }
  if (channel_) {
    (void)send(control::BeaconHeld{.address = messages_ == nullptr ? membership::MemberAddress()
                                                                   : messages_->address()});
  }
  page().beat.thread.store(static_cast<std::uint64_t>(::gettid()), std::memory_order_relaxed);
  while (!stop.stop_requested()) {
    metrics::beat(page(), metrics::monotonic_ns());
    if (channel_) serve_channel();
    pollfd waits[2] = {{wake_.get(), POLLIN, 0}, {channel_ ? channel_->fd() : -1, POLLIN, 0}};
    if (::poll(waits, 2, static_cast<int>(kBeatInterval.count())) > 0 &&
        (waits[0].revents & POLLIN) != 0) {
      std::uint64_t count = 0;
      (void)!::read(wake_.get(), &count, sizeof count);
    }
  }
}

void AgentLink::serve_channel() {
  for (;;) {
    {
      const std::lock_guard lock(mutex_);
      if (!ended_) return;
    }
    auto received = channel_->try_recv_as<control::AgentToRank>();
    if (!received) {
      const bool closed = received.error().code() == Code::Cancelled;
      return fail(closed ? Status(Code::Cancelled, "the agent is gone: the launcher ended")
                         : received.error());
    }
    if (!received->has_value()) return;
    handle(std::move((*received)->message), std::move((*received)->fds));
  }
}

void AgentLink::handle(control::AgentToRank message, std::vector<base::Fd> fds) {
  struct Visitor {
    AgentLink& link;
    std::vector<base::Fd>& fds;
    void operator()(const control::Welcome&) const { link.fail(unexpected_first_message()); }
    void operator()(const control::Assign& assign) const { link.take_seat(assign, std::move(fds)); }
    void operator()(const control::ViewInstalled& view) const {
      link.install(view, std::move(fds));
    }
    void operator()(const control::GroupReady& ready) const {
      if (fds.size() != 1) return;
      auto group = open_group(ready.epoch, ready.group, std::move(fds[0]));
      const std::lock_guard lock(link.mutex_);
      if (!group) {
        link.refused_ = group.error();
      } else {
        if (link.groups_epoch_ != ready.epoch) link.groups_ready_.clear();
        link.groups_epoch_ = ready.epoch;
        link.groups_ready_[ready.group.name] = std::move(*group);
      }
      link.changed_.notify_all();
    }
    void operator()(const control::LossNotice& notice) const {
      if (link.messages_ != nullptr) link.messages_->close(notice.lost);
      const std::lock_guard lock(link.mutex_);
      link.last_loss_ = notice;
      link.changed_.notify_all();
    }
    void operator()(const control::Stop& stop) const {
      bool parked = false;
      {
        const std::lock_guard lock(link.mutex_);
        parked = !link.seated_ && link.seat_.rank == Rank(-1);
      }
      // A spare that nobody needed has done its duty; its program never got past attach().
      if (parked) std::_Exit(0);
      link.fail({Code::Cancelled, fmt::format("the job is ending: {}", stop.reason)});
    }
    void operator()(const control::Released& released) const {
      link.released_.store(true, std::memory_order_release);
      link.fail({Code::Cancelled, released.text});
    }
    void operator()(control::StoreReply& reply) const { link.take_reply(std::move(reply)); }
    void operator()(const control::Refused& refused) const {
      const std::lock_guard lock(link.mutex_);
      link.refused_ = Status(refused.code, refused.text);
      link.changed_.notify_all();
    }
  };
  std::visit(Visitor{*this, fds}, message);
}

void AgentLink::take_seat(const control::Assign& message, std::vector<base::Fd> fds) {
  const std::lock_guard lock(mutex_);
  seat_.rank = message.seat;
  seat_.life = message.life;
  seat_.replacement = true;
  for (std::size_t i = 0; i < std::min(fds.size(), message.kept.size()); ++i) {
    kept_[message.kept[i]] = std::move(fds[i]);
  }
  seated_ = true;
  changed_.notify_all();
}

void AgentLink::take_reply(control::StoreReply reply) {
  const std::lock_guard lock(mutex_);
  const auto waiting = store_replies_.find(reply.id);
  if (waiting == store_replies_.end()) return;  // it came after its deadline
  waiting->second = std::move(reply);
  changed_.notify_all();
}

Result<control::StoreReply> AgentLink::ask_store(control::StoreRequest request, TimePoint until) {
  std::unique_lock lock(mutex_);
  request.id = ++store_requests_;
  auto& reply = store_replies_[request.id];
  lock.unlock();
  auto sent = send(request);
  lock.lock();
  if (!channel_) {
    for (auto& answer : own_store_->step(0, request))
      store_replies_[answer.reply.id] = std::move(answer.reply);
    changed_.notify_all();
  }
  if (sent) sent = await(lock, until, "for the job's store", [&] { return reply.has_value(); });
  const auto got = std::exchange(reply, std::nullopt);
  store_replies_.erase(request.id);
  if (got && got->code == Code::Ok) return *got;
  if (got) return Status(got->code, got->value);
  const control::StoreRequest cancel{.id = request.id, .kind = control::StoreRequest::Kind::Cancel};
  if (!channel_) own_store_->step(0, cancel);
  lock.unlock();
  if (sent.code() == Code::DeadlineExceeded) (void)send(cancel);
  return sent;
}

void AgentLink::install(const control::ViewInstalled& message, std::vector<base::Fd> fds) {
  auto view = open_view(message, std::move(fds));
  if (!view) {
    (void)fault(view.error());
    return fail(view.error());
  }
  const std::lock_guard lock(mutex_);
  if (newest_ == nullptr || newest_->view.epoch < (*view)->view.epoch) newest_ = std::move(*view);
  newest_epoch_ = newest_->view.epoch.value();
  changed_.notify_all();
}

void AgentLink::fail(Status why) {
  const std::lock_guard lock(mutex_);
  if (ended_) ended_ = std::move(why);
  over_.store(true, std::memory_order_release);
  changed_.notify_all();
}

Status AgentLink::running() const {
  if (!over_.load(std::memory_order_acquire)) [[likely]]
    return {};
  const std::lock_guard lock(mutex_);
  return ended_;
}

template <class Ready>
Status AgentLink::await(std::unique_lock<std::mutex>& lock, TimePoint until, const char* what,
                        Ready ready) {
  while (!ready()) {
    if (!ended_) return ended_;
    if (until == TimePoint::max()) {
      changed_.wait(lock);
    } else if (changed_.wait_until(lock, until) == std::cv_status::timeout && !ready()) {
      return {Code::DeadlineExceeded,
              fmt::format("waited {} until the deadline; the launcher's output says who is "
                          "missing",
                          what)};
    }
  }
  return {};
}

base::Fd AgentLink::take_kept(const std::string& what) {
  const std::lock_guard lock(mutex_);
  const auto found = kept_.find(what);
  return found == kept_.end() ? base::Fd() : std::move(found->second);
}

Result<std::shared_ptr<OpenView>> AgentLink::await_view(Epoch than, TimePoint until) {
  std::unique_lock lock(mutex_);
  const auto newer = [&] { return newest_ != nullptr && newest_->view.epoch > than; };
  if (auto status = await(lock, until, "for the next view", newer); !status) return status;
  const auto& seats = newest_->view.seats;
  const auto index = static_cast<std::size_t>(seat_.rank.value());
  if (index >= seats.size() || seats[index] != seat_.incarnation) {
    return Status(
        Code::Fenced,
        fmt::format("rank {} (incarnation {}) is not in the view of epoch {}: it was removed "
                    "from the job",
                    seat_.rank.value(), seat_.incarnation.value(), newest_->view.epoch.value()));
  }
  return newest_;
}

Result<std::shared_ptr<OpenGroup>> AgentLink::attach_group(Epoch epoch, const std::string& name,
                                                           const std::vector<Rank>& seats,
                                                           TimePoint until) {
  if (!channel_) return open_single_group(name);
  if (auto status = send(control::AttachGroup{epoch, name, seats}); !status) return status;
  std::unique_lock lock(mutex_);
  const auto ready = [&] { return groups_epoch_ == epoch && groups_ready_.contains(name); };
  const auto over = [&] {
    return (newest_ != nullptr && newest_->view.epoch > epoch) ||
           (last_loss_ && last_loss_->epoch == epoch);
  };
  const auto answered = [&] { return ready() || over() || refused_.has_value(); };
  if (auto status = await(lock, until, "for the arena of a group", answered); !status)
    return status;
  if (ready()) return groups_ready_[name];
  if (refused_) return *std::exchange(refused_, std::nullopt);
  return Status(
      Code::RankLost,
      fmt::format("epoch {} ended while group \"{}\" was being attached", epoch.value(), name),
      {.epoch = epoch, .group = name});
}

std::optional<control::LossNotice> AgentLink::loss_of(Epoch epoch, TimePoint until) {
  const auto known = [&] { return last_loss_ && last_loss_->epoch >= epoch; };
  std::unique_lock lock(mutex_);
  if (auto status = await(lock, until, "for the cause", known); !status) return std::nullopt;
  return last_loss_;
}

Status AgentLink::send(const control::RankMessage& message, std::span<const int> fds) {
  if (!channel_) return {};
  const std::lock_guard lock(send_mutex_);
  if (auto status = channel_->send(message, fds); !status) return status;
  return channel_->flush(Clock::now() + kSendTimeout);
}

Status AgentLink::keep_memory(const std::string& what, int fd, std::uint64_t bytes) {
  const int fds[1] = {fd};
  return send(control::KeepMemory{what, bytes}, fds);
}

Status AgentLink::entered(control::Entered message) { return send(message); }

Status AgentLink::send_end_epoch(Epoch epoch, const std::string& why) {
  return send(control::EndEpoch{epoch, why});
}

Status AgentLink::parked(Epoch epoch) { return send(control::RankParked{epoch}); }

Status AgentLink::fault(const Status& why) {
  return send(control::Fault{static_cast<std::int32_t>(why.code()), std::string(why.text())});
}

void AgentLink::wake_engine() const {
  const std::uint64_t one = 1;
  if (wake_) (void)!::write(wake_.get(), &one, sizeof one);
}

}  // namespace regroup::engine
