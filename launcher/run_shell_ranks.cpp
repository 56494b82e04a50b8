/// RunShell: the conversation with ranks, and their output.
#include <fmt/format.h>
#include <sys/epoll.h>

#include "launcher/run_shell.hpp"

namespace regroup::launcher {

void RunShell::watch_process(RankProcess& process) {
  beacons_->add(process.incarnation, process.page);
  watch_channel(process);
  if (process.out) watch_output(process, process.out);
  if (process.err) watch_output(process, process.err);
}

void RunShell::watch_channel(RankProcess& process) {
  if (!process.channel) return;
  loop_.watch(
      process.channel->fd(),
      [this, id = process.incarnation](std::uint32_t events) { on_channel(id, events); },
      process.channel->wants_write());
}

void RunShell::watch_output(RankProcess& process, std::optional<OutputStream>& stream) {
  // Processes stay in the map until the job ends, and with them their streams' addresses.
  loop_.watch(stream->fd(), [this, &process, &stream](std::uint32_t) {
    const int fd = stream->fd();
    if (stream->pump(console_, process.prefix())) return;
    loop_.forget(fd);
    stream.reset();
  });
}

void RunShell::on_channel(Incarnation incarnation, std::uint32_t events) {
  RankProcess* process = find(incarnation);
  if (process == nullptr || !process->channel) return;
  if ((events & EPOLLOUT) != 0) {
    const Status flushed = process->channel->flush();
    if (flushed) watch_channel(*process);
  }
  pump_channel(*process);
  drain();
}

void RunShell::pump_channel(RankProcess& process) {
  while (process.channel) {
    auto received = process.channel->try_recv_as<control::RankMessage>();
    if (!received) {
      const Status why = received.error();
      // Closed by the other side is how most conversations end; anything else deserves a word.
      if (why.code() != Code::Cancelled) {
        send(process, control::Refused{why.code(), std::string(why.text())});
        narrator_.warning("E-CHAN-1", fmt::format("{}: what it said cannot be understood: {}",
                                                  process.name(), why.text()));
      }
      close_channel(process);
      post(supervisor::ChannelClosed{process.incarnation});
      return;
    }
    if (!received->has_value()) return;
    on_message(process, std::move((*received)->message), std::move((*received)->fds));
  }
}

void RunShell::close_channel(RankProcess& process) {
  store_.drop(process.incarnation.value());
  if (process.channel) loop_.forget(process.channel->fd());
  process.channel.reset();
}

void RunShell::send(RankProcess& process, const control::AgentToRank& message,
                    const std::vector<int>& fds) {
  if (!process.channel) return;
  const Status sent = process.channel->send(message, fds);
  if (sent) return watch_channel(process);
  if (sent.code() == Code::Cancelled) return;  // closing: reading its channel will tell
  // Its queue is full or descriptors ran out: it would miss a message and wait for ever, so it
  // cannot stay.
  narrator_.warning("E-CHAN-2", fmt::format("{} cannot be told what it must know: {}",
                                            process.name(), sent.text()));
  close_channel(process);
  post(supervisor::ChannelClosed{process.incarnation});
}

void RunShell::on_beacons() {
  for (const BeaconThread::Report& report : beacons_->take()) {
    RankProcess* process = find(report.incarnation);
    if (process == nullptr) continue;
    // It may have said that it leaves just before.
    pump_channel(*process);
    post(supervisor::OwnerDied{report.incarnation});
  }
  drain();
}

void RunShell::on_message(RankProcess& process, control::RankMessage message,
                          std::vector<base::Fd> fds) {
  // Removed from the job: nothing it says counts any more.
  if (process.reported_lost) return;
  if (const auto* memory = std::get_if<control::KeepMemory>(&message))
    return keep(process, *memory, std::move(fds));
  std::visit(
      [&](const auto& m) {
        if constexpr (!std::is_same_v<std::decay_t<decltype(m)>, control::KeepMemory>)
          on(process, m);
      },
      message);
}

void RunShell::on(RankProcess& process, const control::Hello&) {
  if (process.said_hello) return;
  process.said_hello = true;
  control::Welcome welcome;
  welcome.incarnation = process.incarnation;
  welcome.seat = process.seat;
  welcome.ranks = static_cast<std::uint32_t>(options_.ranks);
  welcome.on_loss = options_.on_loss;
  welcome.job = setup_.job;
  welcome.ranks_on_host = static_cast<std::uint32_t>(setup_.ranks_here(options_));
  welcome.replacement = process.life > 0;
  welcome.life = process.life;
  send(process, welcome, {process.page->fd()});
  if (process.seat && process.life > 0) assign(process);
  if (ending_) send(process, control::Stop{ending_->exit_code, ending_->reason});
}

void RunShell::assign(RankProcess& process, bool was_vacant) {
  control::Assign message;
  message.seat = *process.seat;
  message.life = process.life;
  std::vector<int> fds;
  for (const auto& [what, memory] : kept_[*process.seat]) {
    // While a seat is vacant its own state stands still, and its mirror has an older step.
    message.kept.push_back(was_vacant && what == "mirror" ? "vacant-mirror" : what);
    fds.push_back(memory.get());
  }
  send(process, message, fds);
}

void RunShell::on(RankProcess& process, const control::BeaconHeld& message) {
  if (process.attached) return;
  process.attached = true;
  const TimePoint now = Clock::now();
  if (!first_attach_) first_attach_ = now;
  narrator_.attached(process, now);
  post(supervisor::AttachSeen{process.incarnation});
  post(membership::host::Joined{process.incarnation, message.address});
}

void RunShell::on(RankProcess& process, const control::AttachGroup& message) {
  // Of an epoch that is over or ending: a newer view is the answer, here already or on its way.
  if (message.epoch != arenas_.view().epoch || arenas_.is_wedged()) return;
  Result<std::size_t> index = arenas_.attach(message.name, message.seats);
  if (!index)
    return send(process, control::Refused{index.error().code(), std::string(index.error().text())});
  send(process, control::GroupReady{message.epoch, arenas_.group(*index)},
       {arenas_.descriptor(*index)});
}

void RunShell::keep(RankProcess& process, const control::KeepMemory& message,
                    std::vector<base::Fd> fds) {
  constexpr std::size_t kKindsMax = 8;
  if (!process.seat || process.released || fds.size() != 1) return;
  auto& kept = kept_[*process.seat];
  if (kept.size() >= kKindsMax && !kept.contains(message.what)) return;
  kept[message.what] = std::move(fds[0]);
}

void RunShell::on(RankProcess& process, const control::Entered& message) {
  process.entered = message.epoch;
  post(membership::host::Healed{process.incarnation});
  if (!process.seat) return;
  events::Entered event{*process.seat, process.incarnation, message.epoch,
                        static_cast<std::int64_t>(message.heal_ns)};
  for (const auto& from : message.bytes_from) event.bytes_from[from.donor] += from.bytes;
  bool all = message.epoch == arenas_.view().epoch;
  for (const Incarnation seat : arenas_.view().seats) {
    const RankProcess* other = find(seat);
    if (other != nullptr && !other->detached && other->entered != message.epoch) all = false;
  }
  const TimePoint now = Clock::now();
  narrator_.entered(event, all, now);
  if (!all || message.epoch <= Epoch{1}) return;
  first_operation_wait_ = std::chrono::milliseconds(1);
  first_operation_due_ = now + first_operation_wait_;
}

void RunShell::on(RankProcess& process, const control::Detach&) {
  process.detached = true;
  post(supervisor::DetachSeen{process.incarnation});
  // Nobody waits for it at the end of a step.
  post(membership::host::Parked{process.incarnation, arenas_.view().epoch});
}

void RunShell::on(RankProcess& process, const control::Fault& message) {
  process.fault = message.text;
  narrator_.note({"fault", fmt::format("{}: {}", process.name(), message.text)}, true);
}

void RunShell::on(RankProcess& process, const control::RankParked& message) {
  post(membership::host::Parked{process.incarnation, message.epoch});
}

void RunShell::on(RankProcess& process, const control::StoreRequest& message) {
  for (const auto& [client, reply] : store_.step(process.incarnation.value(), message)) {
    if (RankProcess* const waiting = find(Incarnation{client})) send(*waiting, reply);
  }
}

void RunShell::on(RankProcess& process, const control::EndEpoch& message) {
  post(membership::host::WedgeWanted{message.epoch,
                                     fmt::format("{}: {}", process.name(), message.why)});
}

}  // namespace regroup::launcher
