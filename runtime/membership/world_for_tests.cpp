#include "membership/world_for_tests.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <csignal>
#include <sstream>

#include "membership/text.hpp"

namespace regroup::membership::testing {

namespace {

constexpr int kDeliveriesMax = 20'000;

std::vector<std::string> split(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> words;
  for (std::string word; in >> word;) words.push_back(word);
  return words;
}

std::uint64_t number(const std::string& text) { return std::stoull(text); }

std::string first_word(const std::string& text) { return text.substr(0, text.find(' ')); }

}  // namespace

std::string World::Packet::kind() const {
  return first_word(to_coordinator ? to_text(answer) : to_text(order));
}

void World::line(const std::string& text) {
  const Words words = split(text);
  if (words.empty() || words[0][0] == '#') return;
  write("> " + text);
  const std::string& verb = words[0];
  const std::string what = words.size() > 1 ? words[1] : std::string();
  if (verb == "job") {  // job ranks=4 spares=1 min=1 agents=2 on_loss=shrink ...
    configure(words);
  } else if (verb == "start") {  // coordinator and agents start
    start();
  } else if (verb == "join") {  // join all | join 3
    for_each_running(what, false);
  } else if (verb == "heal") {  // heal all | heal 3
    for_each_running(what, true);
  } else if (verb == "words") {  // words epoch=1 prepared=2 done=7 [agent=0]
    set_words(words);
  } else if (verb == "kill") {  // kill r2 | kill 3: beacon, then reaped by SIGKILL
    const Incarnation victim = member(what);
    lose(victim, {.kind = EvidenceKind::Beacon, .text = "killed by SIGKILL"});
    lose(victim, {.kind = EvidenceKind::Reaped, .signal = SIGKILL});
  } else if (verb == "beacon") {  // only the beacon: the exit status is on its way
    lose(member(what), {.kind = EvidenceKind::Beacon, .text = "beacon"});
  } else if (verb == "reap") {  // reap 3 139
    lose(member(what),
         {.kind = EvidenceKind::Reaped, .signal = static_cast<int>(number(words[2])) - 128});
  } else if (verb == "exit") {  // exit r1 3 [attached]
    end_process(member(what), static_cast<int>(number(words[2])), words.size() < 4);
  } else if (verb == "evict") {  // evict r1 [1]: asked at host 0, or at this one
    const auto at = static_cast<std::uint32_t>(words.size() > 2 ? number(words[2]) : 0);
    host_event(at, host::Evict{member(what), "asked"});
  } else if (verb == "drain") {  // drain r1 r2 [now]: asked at host 0
    std::vector<Incarnation> who;
    for (std::size_t i = 1; i < words.size() && words[i] != "now"; ++i)
      who.push_back(member(words[i]));
    host_event(0, host::Drain{++wishes_, who, words.back() == "now"});
  } else if (verb == "scale") {  // scale 2 [now]
    host_event(
        0, host::Scale{++wishes_, static_cast<std::uint32_t>(number(what)), words.back() == "now"});
  } else if (verb == "park") {  // park all | park r1: stands at the end of a step
    park(what);
  } else if (verb == "stop") {
    host_event(0, host::Stop{"interrupted", static_cast<int>(number(what))});
  } else if (verb == "fail") {  // the supervisor gives up
    host_event(host_of(member(what)), host::StartFailed{member(what), "limit reached"});
  } else if (verb == "want") {  // a rank ends the epoch
    host_event(0, host::WedgeWanted{Epoch{number(what)}, "deadline passed"});
  } else if (verb == "crash") {  // the coordinator dies
    crash();
  } else if (verb == "restart") {  // restart | restart 0: only this host finds it
    start(what.empty() ? std::nullopt : std::optional(number(what)));
  } else if (verb == "cut") {
    unlink(static_cast<std::uint32_t>(number(what)));
  } else if (verb == "link") {
    link(static_cast<std::uint32_t>(number(what)));
  } else if (verb == "hold") {  // hold DecisionStored: such messages (or answers of shells) wait
    held_.insert(what);
  } else if (verb == "release") {
    held_.clear();
  } else if (verb == "wait") {  // wait 900: milliseconds, firing timers
    wait(static_cast<std::int64_t>(number(what)));
  } else if (verb == "expect") {
    const std::string wanted = text.substr(text.find(' ') + 1);
    if (summary() != wanted)
      failures_.push_back(fmt::format("expected {}, is {}", wanted, summary()));
  } else {
    failures_.push_back("unknown word: " + verb);
  }
  settle();
}

std::string World::summary() const {
  std::string text =
      fmt::format("{} epoch {}", name(coordinator_->state()), to_text(coordinator_->view()));
  if (coordinator_->end()) text += fmt::format(" exit={}", coordinator_->end()->exit_code);
  return text;
}

void World::configure(const Words& words) {
  std::uint32_t agents = 1;
  for (std::size_t i = 1; i < words.size(); ++i) {
    const std::string key = words[i].substr(0, words[i].find('='));
    const std::string value = words[i].substr(words[i].find('=') + 1);
    if (key == "on_loss") {
      config_.on_loss = value == "shrink"     ? OnLoss::Shrink
                        : value == "abort"    ? OnLoss::Abort
                        : value == "replace"  ? OnLoss::Replace
                        : value == "carry_on" ? OnLoss::CarryOn
                                              : OnLoss::Replay;
      continue;
    }
    const auto count = static_cast<std::uint32_t>(number(value));
    if (key == "ranks") config_.ranks = count;
    if (key == "min") config_.ranks_min = count;
    if (key == "spares") config_.spares = count;
    if (key == "replacements") config_.replacements_max = count;
    if (key == "restart_unattached") config_.restart_unattached = count != 0;
    if (key == "agents") agents = count;
  }
  for (std::uint32_t id = 0; id < agents; ++id) {
    hosts_[id].machine = std::make_unique<HostAgent>(AgentId{id}, timeouts_);
  }
}

void World::start(std::optional<std::uint64_t> only) {
  coordinator_ = std::make_unique<Membership>(timeouts_);
  Started started{.durable = disk_, .config = config_};
  for (const auto& [id, host] : hosts_) started.agents.push_back(AgentId{id});
  coordinate(started);
  for (const auto& [id, host] : hosts_) {
    if (!only || *only == id) link(id);
  }
}

void World::link(std::uint32_t agent) {
  Host& host = hosts_.at(agent);
  if (host.linked || !coordinator_) return;
  host.linked = true;
  coordinate(AgentConnected{AgentId{agent}});
  host_event(agent, host::ChannelUp{});
}

void World::unlink(std::uint32_t agent) {
  Host& host = hosts_.at(agent);
  if (!host.linked) return;
  host.linked = false;
  std::erase_if(network_, [agent](const Packet& packet) { return packet.agent == agent; });
  if (coordinator_) coordinate(AgentDisconnected{AgentId{agent}});
  host_event(agent, host::ChannelDown{});
}

void World::crash() {
  coordinator_.reset();
  timer_.reset();
  network_.clear();
  for (auto& [id, host] : hosts_) {
    host.linked = false;
    host_event(id, host::ChannelDown{});
  }
}

void World::set_words(const Words& words) {
  std::optional<std::uint32_t> only;
  WedgeReport report;
  for (std::size_t i = 1; i < words.size(); ++i) {
    const std::string key = words[i].substr(0, words[i].find('='));
    const std::uint64_t value = number(words[i].substr(words[i].find('=') + 1));
    if (key == "agent") only = static_cast<std::uint32_t>(value);
    if (key == "epoch") report.epoch = Epoch{value};
    if (key == "prepared") report.prepared = value;
    if (key == "done") report.groups = {{0, value}};
  }
  for (auto& [id, host] : hosts_) {
    if (!only || *only == id) host.words[report.epoch] = report;
  }
}

void World::for_each_running(const std::string& which, bool heal) {
  for (auto& [id, host] : hosts_) {
    const std::set<Incarnation> running = host.running;
    for (const Incarnation incarnation : running) {
      if (which != "all" && incarnation.value() != number(which)) continue;
      if (heal) {
        const auto& seats = host.machine->installed().seats;
        if (std::find(seats.begin(), seats.end(), incarnation) == seats.end()) continue;
        host_event(id, host::Healed{incarnation});
      } else {
        host_event(id, host::Joined{incarnation});
      }
    }
  }
}

void World::park(const std::string& which) {
  for (auto& [id, host] : hosts_) {
    const View view = host.machine->installed();
    for (const Incarnation seat : view.seats) {
      if (!host.running.contains(seat) || (which != "all" && seat != member(which))) continue;
      host_event(id, host::Parked{seat, view.epoch});
    }
  }
}

void World::lose(Incarnation incarnation, const Evidence& evidence) {
  const std::uint32_t agent = host_of(incarnation);
  hosts_.at(agent).running.erase(incarnation);
  host_event(agent, host::Lost{incarnation, evidence});
}

void World::end_process(Incarnation incarnation, int code, bool detached) {
  const std::uint32_t agent = host_of(incarnation);
  hosts_.at(agent).running.erase(incarnation);
  if (code == 0) {
    host_event(agent, host::Finished{incarnation, detached});
  } else {
    host_event(agent, host::Lost{incarnation, {.kind = EvidenceKind::Reaped, .exit_code = code}});
  }
}

void World::wait(std::int64_t milliseconds) {
  const TimePoint until = now_ + std::chrono::milliseconds(milliseconds);
  for (int fired = 0; fired < kDeliveriesMax; ++fired) {
    settle();
    if (!timer_ || *timer_ > until) break;
    now_ = std::max(now_, *timer_);
    timer_.reset();
    if (coordinator_) coordinate(Timer{});
  }
  now_ = until;
}

/// Delivers what is under way, in order, until nothing moves any more.
void World::settle() {
  for (int deliveries = 0; deliveries < kDeliveriesMax; ++deliveries) {
    const auto answer = std::find_if(pending_.begin(), pending_.end(), [this](const auto& entry) {
      return !held_.contains(first_word(to_text(entry.second)));
    });
    if (answer != pending_.end()) {
      const auto [agent, event] = *answer;
      pending_.erase(answer);
      host_event(agent, event);
      continue;
    }
    const auto next = std::find_if(network_.begin(), network_.end(), [this](const Packet& packet) {
      return !held_.contains(packet.kind());
    });
    if (next == network_.end()) return;
    const Packet packet = *next;
    network_.erase(next);
    deliver(packet);
  }
  failures_.push_back("does not settle");
}

void World::deliver(const Packet& packet) {
  if (packet.to_coordinator) {
    if (coordinator_) coordinate(FromAgent{AgentId{packet.agent}, packet.answer});
  } else {
    host_event(packet.agent, host::FromCoordinator{packet.order});
  }
}

void World::coordinate(const Event& event) {
  write("C " + to_text(event));
  for (const Effect& effect : coordinator_->step(event, now_)) {
    write("C   " + to_text(effect));
    if (const auto* persist = std::get_if<Persist>(&effect)) disk_ = persist->state;
    if (const auto* timer = std::get_if<SetTimer>(&effect)) timer_ = timer->at;
    const auto* send = std::get_if<SendTo>(&effect);
    if (send == nullptr || std::holds_alternative<Note>(send->message)) continue;
    for (const auto& [id, host] : hosts_) {
      if (host.linked && (!send->agent || send->agent->value() == id)) {
        network_.push_back({.agent = id, .order = send->message});
      }
    }
  }
}

void World::host_event(std::uint32_t agent, const host::Event& event) {
  write(fmt::format("A{} {}", agent, to_text(event)));
  for (const host::Effect& effect : hosts_.at(agent).machine->step(event, now_)) {
    write(fmt::format("A{}   {}", agent, to_text(effect)));
    perform(agent, effect);
  }
}

void World::perform(std::uint32_t agent, const host::Effect& effect) {
  Host& host = hosts_.at(agent);
  if (const auto* wedge = std::get_if<host::WedgeWords>(&effect)) {
    WedgeReport report = host.words[wedge->epoch];
    report.epoch = wedge->epoch;
    report.prepared = std::max(report.prepared, host.machine->installed().resume_step - 1);
    pending_.emplace_back(agent, host::WordsWedged{report});
  } else if (const auto* decision = std::get_if<host::WriteDecision>(&effect)) {
    pending_.emplace_back(agent, host::DecisionWritten{decision->epoch});
  } else if (const auto* view = std::get_if<host::MakeView>(&effect)) {
    pending_.emplace_back(agent, host::ViewMade{view->view.epoch});
  } else if (const auto* spawn = std::get_if<host::Spawn>(&effect)) {
    host.running.insert(spawn->process.incarnation);
  } else if (const auto* kill = std::get_if<host::Kill>(&effect)) {
    if (host.running.erase(kill->incarnation) == 0) return;
    const Evidence reaped{.kind = EvidenceKind::Reaped, .signal = SIGKILL};
    pending_.emplace_back(agent, host::Lost{kill->incarnation, reaped});
  } else if (const auto* send = std::get_if<host::SendCoordinator>(&effect)) {
    if (host.linked)
      network_.push_back({.agent = agent, .to_coordinator = true, .answer = send->message});
  }
}

void World::write(const std::string& text) {
  // Timers and what only concerns them would make every transcript depend on the time-outs.
  if (text.find("SetTimer") == std::string::npos) transcript_ += text + "\n";
}

std::uint32_t World::host_of(Incarnation incarnation) const {
  for (const auto& [id, host] : hosts_) {
    if (host.machine->processes().contains(incarnation)) return id;
  }
  return 0;
}

/// "r2": whoever sits in seat 2 of the newest view that an agent has; "7": incarnation 7.
Incarnation World::member(const std::string& word) const {
  if (word[0] != 'r') return Incarnation{number(word)};
  View newest;
  for (const auto& [id, host] : hosts_) {
    if (host.machine->installed().epoch >= newest.epoch) newest = host.machine->installed();
  }
  const auto seat = static_cast<std::size_t>(number(word.substr(1)));
  return seat < newest.seats.size() ? newest.seats[seat] : Incarnation{};
}

}  // namespace regroup::membership::testing
