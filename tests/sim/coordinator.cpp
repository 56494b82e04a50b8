#include "tests/sim/coordinator.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "tests/sim/message_text.hpp"

namespace regroup::sim {

using membership::CoordinatorMessage;

namespace {
constexpr std::uint64_t kInFlightMax = 512;

std::uint64_t digest_of(const membership::EndJob& end) {
  std::uint64_t digest = static_cast<std::uint64_t>(end.exit_code);
  for (const char c : end.reason) digest = combine(digest, static_cast<unsigned char>(c));
  return digest;
}

/// Somebody acts on a decision of which nothing is durable yet.
bool tells_of_decision(const membership::Event& event) {
  const auto* from = std::get_if<membership::FromAgent>(&event);
  return from != nullptr && std::holds_alternative<membership::DecisionStored>(from->message);
}

bool is_note(const CoordinatorMessage& message) {
  return std::holds_alternative<membership::Note>(message);
}
bool is_note(const membership::AgentMessage&) { return false; }

/// The hello opens a channel: on an ordered channel it comes once. Any other message may be sent
/// again.
bool comes_once(const CoordinatorMessage&) { return false; }
bool comes_once(const membership::AgentMessage& message) {
  return std::holds_alternative<membership::AgentHello>(message);
}
}  // namespace

Coordinator::Coordinator(Core& core, Agents& agents, FaultCount& faults)
    : core_(core), agents_(agents), faults_(faults), channels_(core.swarm.hosts) {
  agents.connect_to(this);
}

void Coordinator::start() {
  restarting_ = false;
  ++life_;
  ++lives_;
  core_.record({.what = What::CoordinatorStart, .number = lives_});
  machine_ = std::make_unique<membership::Membership>();
  membership::Started started{.durable = store_, .config = core_.swarm.job};
  for (std::uint32_t i = 0; i < core_.swarm.hosts; ++i)
    started.agents.push_back(membership::AgentId{i});
  step(started);
  for (std::uint32_t i = 0; i < core_.swarm.hosts; ++i) reconnect_at_start(i);
}

/// Some hosts come late, most of them before they count as lost: what the others say meanwhile must
/// not get lost. Some come after that: what took the coordinator down took their way to it, too.
void Coordinator::reconnect_at_start(std::uint32_t host) {
  if (core_.fault(core_.swarm.host_very_late)) {
    ++faults_.partitions;
    core_.record({.what = What::ChannelDown, .host = host + 1, .other = 1});
    return reconnect(host, core_.random.between(kSecond, 3 * kSecond));
  }
  const bool is_late = core_.fault(0.15);
  reconnect(host, is_late ? core_.random.between(0, 500 * kMillisecond)
                          : core_.random.delay(core_.swarm.wire));
}

void Coordinator::step(const membership::Event& event) {
  if (!machine_) return;
  if (tells_of_decision(event) && core_.fault(core_.swarm.crash_when_decided)) return crash();
  const membership::State before = machine_->state();
  const membership::Effects effects = machine_->step(event, core_.time());
  if (core_.trace.keeps_text() && before != machine_->state()) {
    core_.trace.note(core_.now(), fmt::format("coordinator: {} -> {}: {}", name(before),
                                              name(machine_->state()), machine_->explain()));
  }
  const std::size_t effects_max = 64 + 16 * (core_.swarm.job.ranks + 4 + core_.swarm.hosts);
  if (effects.size() > effects_max) {
    core_.checks.fail("S19 bounded",
                      fmt::format("coordinator: {} effects of one event", effects.size()));
  }
  const std::uint64_t life = life_;
  for (const membership::Effect& effect : effects) {
    if (core_.fault(core_.swarm.coordinator_crash)) return crash();
    if (!perform(effect) || life != life_) return;
    // What is durable is not told yet.
    const bool is_persist = std::holds_alternative<membership::Persist>(effect);
    if (is_persist && core_.fault(core_.swarm.crash_when_durable)) return crash();
  }
  note_holder(event);
}

/// From here on the coordinator knows, durably, that there is a state to lose.
void Coordinator::note_holder(const membership::Event& event) {
  const auto* from = std::get_if<membership::FromAgent>(&event);
  const auto* healed =
      from == nullptr ? nullptr : std::get_if<membership::ProcessHealed>(&from->message);
  if (healed == nullptr) return;
  core_.record({.what = What::HealedHeard, .incarnation = healed->incarnation});
}

bool Coordinator::perform(const membership::Effect& effect) {
  if (const auto* send = std::get_if<membership::SendTo>(&effect)) {
    for (std::uint32_t i = 0; i < core_.swarm.hosts; ++i) {
      if (!send->agent || send->agent->value() == i) send_down(i, send->message);
    }
  } else if (const auto* persist = std::get_if<membership::Persist>(&effect)) {
    store_ = persist->state;
    for (const Member& member : store_->released) {
      core_.record({.what = What::Released,
                    .rank = member.rank,
                    .incarnation = member.incarnation,
                    .epoch = store_->view.epoch});
    }
    core_.record({.what = What::Persist,
                  .epoch = store_->view.epoch,
                  .number = store_->next_incarnation.value(),
                  .other = store_->ended ? 1U : 0U,
                  .view = &store_->view});
  } else if (const auto* timer = std::get_if<membership::SetTimer>(&effect)) {
    const std::uint64_t generation = ++timer_;
    const Nanos delay = std::chrono::nanoseconds(timer->at - core_.time()).count();
    core_.after(delay, [this, generation, life = life_] {
      if (generation == timer_ && life == life_) step(membership::Timer{});
    });
  }
  return true;
}

// ---- channels ------------------------------------------------------------------------------

template <class Message, class Deliver>
void Coordinator::transfer(std::uint32_t host, Nanos& clear_at, Message message, Deliver deliver) {
  Channel& channel = channels_[host];
  if (core_.fault(core_.swarm.message_lost)) {
    ++faults_.messages_lost;
    core_.record({.what = What::MessageLost, .host = host + 1});
    return break_channel(host);
  }
  const int copies = !comes_once(message) && core_.fault(core_.swarm.message_twice) ? 2 : 1;
  if (copies == 2) {
    ++faults_.messages_twice;
    core_.record({.what = What::MessageTwice, .host = host + 1});
  }
  for (int copy = 0; copy < copies; ++copy) {
    // The second copy is one that was sent again: it comes in order, behind whatever was sent
    // since.
    const Nanos again = copy == 0 ? 0 : core_.random.delay(8 * core_.swarm.wire);
    core_.after(again, [this, host, &clear_at, &channel, message, deliver, life = channel.life] {
      if (life != channel.life || !channel.up) return;
      if (++channel.in_flight > kInFlightMax) {
        core_.checks.fail("S19 bounded", "more messages under way than any protocol needs");
      }
      const std::uint64_t number = core_.sent();
      clear_at = std::max(clear_at + 1, core_.now() + core_.random.delay(core_.swarm.wire));
      core_.after(clear_at - core_.now(), [this, host, &channel, message, deliver, life, number] {
        if (life != channel.life || !channel.up) return;
        core_.delivered(number);
        --channel.in_flight;
        core_.record({.what = What::Message, .host = host + 1, .other = message.index()});
        if (core_.trace.keeps_text() && !is_note(message)) {
          core_.trace.note(core_.now(), text_of(message));
        }
        deliver(message);
      });
    });
  }
}

void Coordinator::send_up(std::uint32_t host, membership::AgentMessage message) {
  Channel& channel = channels_[host];
  if (!channel.up || channel.cut_up) return;
  transfer(host, channel.up_clear_at, std::move(message), [this, host](const auto& delivered) {
    step(membership::FromAgent{membership::AgentId{host}, delivered});
  });
}

void Coordinator::send_down(std::uint32_t host, const CoordinatorMessage& message) {
  record_order(host, message);
  Channel& channel = channels_[host];
  if (!channel.up || channel.cut_down) return;
  transfer(host, channel.down_clear_at, message, [this, host](const auto& delivered) {
    agents_.deliver(host, membership::host::FromCoordinator{delivered});
  });
}

void Coordinator::record_order(std::uint32_t host, const CoordinatorMessage& message) {
  Record record{.host = host + 1};
  if (const auto* start = std::get_if<membership::StartProcess>(&message)) {
    record.what = What::Order;
    record.rank = start->seat.value_or(Rank{-1});
    record.incarnation = start->incarnation;
    core_.record(record);
  } else if (const auto* wedge = std::get_if<membership::WedgeEpoch>(&message)) {
    rounds_.insert(wedge->round.value());
    note_removed(wedge->lost, wedge->epoch);
  } else if (const auto* decision = std::get_if<membership::StoreDecision>(&message)) {
    note_removed(decision->lost, decision->epoch);
  } else if (const auto* install = std::get_if<membership::InstallView>(&message)) {
    record.what = What::Choose;
    record.epoch = install->view.epoch;
    record.number = install->view.resume_step;
    record.view = &install->view;
    core_.record(record);
    if (chosen_.insert(install->view.epoch).second) ++views_;
    note_removed(install->lost, install->view.epoch);
  } else if (const auto* end = std::get_if<membership::EndJob>(&message)) {
    record.what = What::EndJob;
    record.number = static_cast<std::uint64_t>(end->exit_code);
    record.digest = digest_of(*end);
    core_.record(record);
    if (core_.trace.keeps_text()) core_.trace.note(core_.now(), "end of the job: " + end->reason);
    if (!end_) end_ = *end;
  } else if (const auto* note = std::get_if<membership::Note>(&message)) {
    if (host == 0) core_.trace.note(core_.now(), note->kind + ": " + note->text);
  }
}

void Coordinator::note_removed(const std::vector<Member>& lost, Epoch epoch) {
  for (const Member& member : lost) {
    core_.record({.what = What::Removed,
                  .rank = member.rank,
                  .incarnation = member.incarnation,
                  .epoch = epoch});
  }
}

void Coordinator::break_channel(std::uint32_t host) {
  Channel& channel = channels_[host];
  if (!channel.up) return;
  channel.up = false;
  ++channel.life;
  channel.in_flight = 0;
  core_.record({.what = What::ChannelDown, .host = host + 1});
  // The ends notice at different times, each before it makes or takes a new channel.
  agent_notices(host);
  core_.after(0, [this, host, life = life_] {
    if (life == life_) step(membership::AgentDisconnected{membership::AgentId{host}});
  });
  reconnect(host, core_.random.delay(8 * core_.swarm.wire));
}

void Coordinator::reconnect(std::uint32_t host, Nanos after) {
  core_.after(after, [this, host, life = life_, channel_life = channels_[host].life] {
    Channel& channel = channels_[host];
    if (life != life_ || channel.up || channel_life != channel.life || !machine_) return;
    if (channel.isolated || !agents_.is_running(host)) return;
    if (channel.cut_up || channel.cut_down) return;  // the end of the partition tries again
    channel.up = true;
    channel.met = true;
    ++channel.life;
    channel.up_clear_at = channel.down_clear_at = core_.now();
    core_.record({.what = What::ChannelUp, .host = host + 1});
    step(membership::AgentConnected{membership::AgentId{host}});
    if (!channel.up) return;
    agent_notices(host);
    channel.agent_up = true;
    agents_.deliver(host, membership::host::ChannelUp{});
  });
}

void Coordinator::partition(std::uint32_t host, bool to_agent, Nanos length) {
  Channel& channel = channels_[host];
  if (channel.cut_up || channel.cut_down || channel.isolated) return;
  ++faults_.partitions;
  (to_agent ? channel.cut_down : channel.cut_up) = true;
  core_.record({.what = What::ChannelDown, .host = host + 1, .other = 1});
  // The channel's own keep-alive tears it down on both sides.
  core_.after(core_.random.between(10 * kMillisecond, 500 * kMillisecond), [this, host] {
    if (channels_[host].cut_up || channels_[host].cut_down) break_channel(host);
  });
  core_.after(length, [this, host] {
    Channel& healed = channels_[host];
    if (healed.isolated) return;
    healed.cut_up = healed.cut_down = false;
    // Messages that went into the void show as a broken channel, never as a gap.
    if (healed.up)
      break_channel(host);
    else
      reconnect(host, core_.random.delay(core_.swarm.wire));
  });
}

void Coordinator::isolate(std::uint32_t host) {
  channels_[host].isolated = true;
  core_.record({.what = What::ChannelDown, .host = host + 1, .other = 2});
  break_channel(host);
}

void Coordinator::heal() {
  for (std::uint32_t host = 0; host < core_.swarm.hosts; ++host) {
    Channel& channel = channels_[host];
    if (channel.isolated || !(channel.cut_up || channel.cut_down)) continue;
    channel.cut_up = channel.cut_down = false;
    if (channel.up)
      break_channel(host);
    else
      reconnect(host, core_.random.delay(core_.swarm.wire));
  }
}

void Coordinator::agent_notices(std::uint32_t host) {
  if (!std::exchange(channels_[host].agent_up, false)) return;
  agents_.deliver(host, membership::host::ChannelDown{});
}

void Coordinator::collect_cells() {
  if (!machine_) return;
  for (std::size_t s = 0; s < membership::kStates; ++s) {
    for (std::size_t e = 0; e < membership::kEventKinds; ++e) {
      cells_[s][e] += machine_->cells_reached()[s][e];
    }
  }
}

void Coordinator::crash() {
  ++faults_.coordinator_crashes;
  core_.record({.what = What::CoordinatorCrash});
  collect_cells();
  // The machine may be on the stack right now (this is an effect of its own step): nothing of it is
  // used any more.
  machine_.reset();
  ++life_;
  for (std::uint32_t host = 0; host < core_.swarm.hosts; ++host) {
    Channel& channel = channels_[host];
    if (!channel.up) continue;
    channel.up = false;
    ++channel.life;
    channel.in_flight = 0;
    core_.after(core_.random.delay(core_.swarm.local), [this, host, life = channel.life] {
      if (life == channels_[host].life) agent_notices(host);
    });
  }
  if (core_.fault(core_.swarm.coordinator_burst)) {
    agents_.crash_near(static_cast<std::uint32_t>(core_.random.below(core_.swarm.hosts)));
  }
  // Often back at once, so that answers to its earlier life still come in.
  const Nanos away = core_.random.chance(0.5) ? core_.random.delay(2 * core_.swarm.local)
                                              : core_.random.between(kMillisecond, 2 * kSecond);
  core_.after(away, [this] { start(); });
}

}  // namespace regroup::sim
