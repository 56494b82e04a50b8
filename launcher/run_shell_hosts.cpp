/// RunShell: a job on several hosts. The launcher's side, which has agents started there and hears
/// of their ranks, and the side of such an agent.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "launcher/exit_codes.hpp"
#include "launcher/run_shell.hpp"
#include "launcher/waiting.hpp"

namespace regroup::launcher {
namespace {

using membership::AgentId;
using nlohmann::json;
using std::chrono::seconds;

/// An agent without a coordinator lets its ranks run for so long: the way may be cut for a while.
constexpr seconds kAloneMax{60};
/// One that never got there at all has a wrong address, or nobody to go to.
constexpr seconds kFirstMax{10};
/// After the job's grace, for agents to end.
constexpr seconds kAgentsEndMax{5};
constexpr seconds kLetGoMax{3};

template <class Id, class Number>
std::optional<Id> id_in(const json& fields, const char* key) {
  const auto found = fields.find(key);
  if (found == fields.end() || !found->is_number_integer()) return std::nullopt;
  return Id(found->get<Number>());
}

}  // namespace

bool RunShell::is_elsewhere(Rank seat) const {
  const auto index = static_cast<std::size_t>(seat.value());
  return index < places_.size() && index < agent_.installed().seats.size() &&
         agent_.installed().seats[index] != Incarnation{} &&
         places_[index].host != setup_.place.agent;
}

int RunShell::local_rank(Rank seat) const {
  const HostPlace& place = setup_.place;
  if (place.nodes == 1) return seat.value();
  const auto number = static_cast<std::uint32_t>(seat.value());
  if (number - place.first_seat < place.seats && number >= place.first_seat)
    return static_cast<int>(number - place.first_seat);
  // A seat of another host: the lowest number that nobody has.
  for (int candidate = static_cast<int>(place.seats);; ++candidate) {
    const bool taken =
        std::any_of(processes_.begin(), processes_.end(), [candidate](const auto& entry) {
          return entry.second->seat && !entry.second->gone && entry.second->local_rank == candidate;
        });
    if (!taken) return candidate;
  }
}

// ---- the launcher's side
// ------------------------------------------------------------------------------------------

void RunShell::start_fleet() {
  if (!hosts_.fleet || hosts_.fleet->others.empty()) return;
  HostFleet::Callbacks callbacks;
  callbacks.orders = [this](AgentId id) { return orders_for(id); };
  callbacks.line = [this](AgentId id, LineKind kind, std::string_view text) {
    on_host_line(id, kind, text);
  };
  callbacks.gone = [this](AgentId id, const std::string& why, bool greeted,
                          std::optional<nanoseconds> again) {
    on_host_gone(id, why, greeted, again);
  };
  std::vector<std::string> environment = setup_.outer_environment;
  std::erase_if(environment,
                [](const std::string& one) { return one.starts_with("REGROUP_JOB_ID="); });
  environment.push_back("REGROUP_JOB_ID=" + setup_.job);
  fleet_ = std::make_unique<HostFleet>(loop_, hosts_.fleet->starter, hosts_.fleet->others,
                                       std::move(environment), std::move(callbacks));
  fleet_->start(Clock::now());
}

HostOrders RunShell::orders_for(AgentId id) const {
  HostOrders out;
  out.job = setup_.job;
  out.place = hosts_.fleet->places.at(id.value());
  out.coordinator = hosts_.fleet->listen.host();
  out.port = coordinator_->port();
  std::ranges::copy(coordinator_->secret().bytes(), out.secret.begin());
  out.master_address = setup_.master_address;
  out.master_port = static_cast<std::uint16_t>(setup_.master_port);
  out.age_ns = nanoseconds(Clock::now() - began_).count();
  std::error_code error;
  out.directory = std::filesystem::current_path(error).string();
  out.environment = travelling(setup_.outer_environment);
  out.options = options_;
  return out;
}

void RunShell::on_host_line(AgentId id, LineKind kind, std::string_view text) {
  switch (kind) {
    case LineKind::Output: return console_.program_lines(false, fmt::format("{}\n", text));
    case LineKind::Error: return console_.program_lines(true, fmt::format("{}\n", text));
    case LineKind::Text: return console_.always(fmt::format("{}: {}", fleet_->name(id), text));
    case LineKind::Record: return on_host_event(id, text);
    case LineKind::Greeting:
    case LineKind::Alive: return;
  }
}

namespace {

/// Those that tell of an epoch are told by each host that has members.
bool is_of_the_epoch(EventKind kind) {
  return kind == EventKind::Wedged || kind == EventKind::Decided || kind == EventKind::Flushed;
}

bool is_of_a_process(EventKind kind) {
  switch (kind) {
    case EventKind::ProcessStarted:
    case EventKind::Attached:
    case EventKind::Lost:
    case EventKind::Replaced:
    case EventKind::Entered:
    case EventKind::FirstOperation:
    case EventKind::Finished:
    case EventKind::Ledger:
    case EventKind::Flight:
    case EventKind::Drained:
    case EventKind::Warning: return true;
    default: return false;
  }
}

}  // namespace

void RunShell::on_host_event(AgentId id, std::string_view text) {
  json fields = json::parse(text, nullptr, false);
  if (!fields.is_object() || !fields.contains("kind") || !fields["kind"].is_string()) return;
  const std::optional<EventKind> kind = event_kind(fields["kind"].get<std::string>());
  if (!kind) return;
  fields.erase("kind");
  fields["host"] = fleet_->name(id);
  if (*kind == EventKind::Note && fields.value("about", "") == "host") {
    hosts_reached_.insert(id);
    return log_.write(*kind, fields);
  }
  const bool told_here = std::any_of(processes_.begin(), processes_.end(),
                                     [](const auto& e) { return e.second->seat; });
  if (!is_of_a_process(*kind) && (!is_of_the_epoch(*kind) || told_here)) return;
  log_.write(*kind, fields);
  note_elsewhere(id, *kind, fields);
}

/// What `regroup status` and the job's last line say of other hosts.
void RunShell::note_elsewhere(AgentId id, EventKind kind, const json& fields) {
  const auto incarnation = id_in<Incarnation, std::uint64_t>(fields, "incarnation");
  if (!incarnation) return;
  Elsewhere& one = elsewhere_[*incarnation];
  one.host = id;
  if (const auto rank = id_in<Rank, std::int32_t>(fields, "rank")) one.rank = *rank;
  switch (kind) {
    case EventKind::ProcessStarted:
      one.pid = fields.value("pid", 0);
      one.state = "starting";
      return;
    case EventKind::Attached: one.state = "joined"; return;
    case EventKind::Entered: one.state = "healed"; return;
    case EventKind::Drained: one.state = "drained"; return;
    case EventKind::Finished:
      if (one.rank && one.state != "drained") finished_ += 1;
      elsewhere_.erase(*incarnation);
      return;
    case EventKind::Lost:
      narrator_.lost_elsewhere();
      elsewhere_.erase(*incarnation);
      return;
    default: return;
  }
}

void RunShell::on_host_gone(AgentId id, const std::string& why, bool greeted,
                            std::optional<nanoseconds> again) {
  hosts_reached_.erase(id);
  std::erase_if(elsewhere_, [id](const auto& entry) { return entry.second.host == id; });
  if (ending_) return;
  const std::string& name = fleet_->name(id);
  if (agent_.installed().epoch == Epoch{}) {
    const std::string text = fmt::format("host {} cannot be used: {}", name, why);
    narrator_.warning("E-HOST-2", text);
    return end_job(kExitUnavailable, "launcher", text, false);
  }
  narrator_.warning(
      "E-HOST-3",
      fmt::format(
          "{} on host {}: {}{}", greeted ? "the agent is gone" : "no agent could be started", name,
          why,
          again ? fmt::format("; another one is started in {} s", whole_seconds(*again)) : ""));
}

void RunShell::say_which_hosts_are_missing() {
  if (!fleet_ || ending_ || agent_.installed().epoch != Epoch{}) return;
  const TimePoint now = Clock::now();
  std::vector<std::string> missing;
  for (const auto& [id, entry] : hosts_.fleet->others) {
    if (!hosts_reached_.contains(id)) missing.push_back(entry.name);
  }
  if (missing.empty()) return;
  const std::string list = fmt::format("{}", fmt::join(missing, ", "));
  if (now - began_ >= hosts_.fleet->start_timeout) {
    const std::string text =
        fmt::format("host{} {}: no agent has reached this one after {} s (--start-timeout)",
                    missing.size() == 1 ? "" : "s", list, whole_seconds(now - began_));
    narrator_.warning("E-HOST-2", text);
    return end_job(kExitUnavailable, "launcher", text, false);
  }
  if (now - began_ < kWaitToldAfter || now - wait_told_ < kWaitToldAfter) return;
  wait_told_ = now;
  narrator_.warning("E-WAIT-1", fmt::format("waiting {} s for the agents on: {}",
                                            whole_seconds(now - began_), list));
}

/// Agents end when they are told that the job does. Whoever does not, or cannot be told, is left to
/// the end of its input.
void RunShell::end_hosts(TimePoint now) {
  if (!fleet_ || !ending_) return;
  if (fleet_->all_gone()) return;
  if (!let_go_at_) {
    const bool patience_over = now >= ending_->since + options_.grace + kAgentsEndMax;
    const bool nobody_else = all_gone_ && fleet_->only_silent_left(now);
    if (!patience_over && !nobody_else) return;
    fleet_->let_go();
    let_go_at_ = now;
  } else if (now >= *let_go_at_ + kLetGoMax) {
    fleet_->kill();
  }
}

bool RunShell::hosts_gone() const { return !fleet_ || fleet_->all_gone(); }

Status RunShell::signal_elsewhere(Rank rank, int signal) {
  const auto index = static_cast<std::size_t>(rank.value());
  fleet_->tell(places_[index].host,
               {HostWord::Kind::Signal, signal, agent_.installed().seats[index]});
  return {};
}

void RunShell::add_elsewhere(JobStatus& out) const {
  for (const auto& [incarnation, one] : elsewhere_) {
    ProcessStatus line{one.rank, incarnation, one.pid};
    line.state = one.state;
    line.host = fleet_->name(one.host);
    out.processes.push_back(std::move(line));
  }
}

// ---- an agent's side
// ---------------------------------------------------------------------------------------------

void RunShell::begin_role() {
  loop_.watch(hosts_.role->pipes.in.get(), [this](std::uint32_t) { on_launcher_word(); });
  words_.feed(hosts_.role->early);
  take_words();
}

void RunShell::on_launcher_word() {
  char buffer[4096];
  const ssize_t got = ::read(hosts_.role->pipes.in.get(), buffer, sizeof buffer);
  if (got < 0 && (errno == EINTR || errno == EAGAIN)) return;
  if (got <= 0) {
    loop_.forget(hosts_.role->pipes.in.get());
    end_here(kExitUnavailable, "the launcher is gone");
    return drain();
  }
  words_.feed({buffer, static_cast<std::size_t>(got)});
  take_words();
  drain();
}

void RunShell::take_words() {
  while (const std::optional<std::string> line = words_.next()) {
    const std::optional<HostWord> word = parse_word(*line);
    if (!word) continue;
    switch (word->kind) {
      case HostWord::Kind::Forward: forward(word->signal); break;
      case HostWord::Kind::Signal:
        if (const RankProcess* process = find(word->incarnation); process && !process->gone)
          signal_process(process->spawned, word->signal);
        break;
      case HostWord::Kind::End: end_here(kExitDone, "the job has ended", false); break;
      case HostWord::Kind::EndNow: end_here(kExitUnavailable, "the launcher wants its end"); break;
    }
  }
}

/// Ends what runs on this host, not the job.
void RunShell::end_here(int exit_code, const std::string& why, bool now) {
  if (!ending_) begin_ending({exit_code, "launcher", why, Clock::now()});
  post(supervisor::EndRequested{now});
}

void RunShell::reached_coordinator() {
  if (std::exchange(reached_, true)) return;
  log_.write(events::Note{"host", "this host's agent has reached the coordinator"});
}

void RunShell::look_for_coordinator(TimePoint now) {
  relay_->say(LineKind::Alive, "\n");
  const std::optional<TimePoint> since = coordinator_->away_since();
  if (!since || ending_) return;
  const seconds max = reached_ ? kAloneMax : kFirstMax;
  const bool over = now - *since >= max;
  if (!over && (now - *since < kWaitToldAfter || now - wait_told_ < kWaitToldAfter)) return;
  wait_told_ = now;
  narrator_.warning(
      "E-HOST-5",
      fmt::format("this host has not reached the coordinator at {} for {} s: {}{}",
                  hosts_.role->coordinator.port.address.text(), whole_seconds(now - *since),
                  coordinator_->away_why(),
                  over       ? "; ending what runs here"
                  : reached_ ? ""
                             : "; name an address that all hosts reach with --interface"));
  if (over) end_here(kExitUnavailable, "the coordinator cannot be reached");
}

int RunShell::finish_role() {
  constexpr seconds kFlushMax{2};
  relay_->finish(Clock::now() + kFlushMax);
  return ending_ ? ending_->exit_code : kExitFault;
}

}  // namespace regroup::launcher
