#include "launcher/narrator.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "metrics/ledger.hpp"

namespace regroup::launcher {

using std::chrono::duration;
using std::chrono::duration_cast;
using std::chrono::milliseconds;
using std::chrono::nanoseconds;

namespace {

constexpr milliseconds kExitAwaited{500};

double millis(nanoseconds time) { return duration<double, std::milli>(time).count(); }

std::string host_name() {
  char name[256] = {};
  return ::gethostname(name, sizeof name - 1) == 0 ? name : "localhost";
}

}  // namespace

std::string Narrator::stamp(TimePoint now) const {
  return fmt::format("[{:.2f}s]", duration<double>(now - began_).count());
}

void Narrator::tell(std::string text, bool important) {
  lines_.push_back({std::move(text), std::nullopt, {}, "", important});
}

void Narrator::job_started(const RunOptions& options, const JobSetup& setup,
                           const std::vector<std::string>& hosts) {
  log_.write(events::JobStarted{setup.job, REGROUP_VERSION, ::getpid(), host_name(),
                                static_cast<std::uint32_t>(options.ranks),
                                static_cast<std::uint32_t>(options.ranks_min),
                                static_cast<std::uint32_t>(options.spares),
                                std::string(name(options.on_loss)), options.program, hosts});
  const auto plural = [](int count, const char* word) {
    return fmt::format("{} {}{}", count, word, count == 1 ? "" : "s");
  };
  tell(fmt::format("regroup {}  job {}  {}{} on {}   logs {}", REGROUP_VERSION, setup.job,
                   plural(options.ranks, "rank"),
                   options.spares > 0 ? " + " + plural(options.spares, "spare") : "",
                   plural(std::max<int>(1, static_cast<int>(hosts.size())), "host"),
                   options.log_dir.string()));
}

void Narrator::process_started(const RankProcess& process) {
  log_.write(events::ProcessStarted{process.seat, process.incarnation, process.spawned.pid});
}

void Narrator::attached(const RankProcess& process, TimePoint now) {
  log_.write(events::Attached{process.seat, process.incarnation, process.spawned.pid,
                              nanoseconds(now - process.started_at).count()});
}

void Narrator::lost(const RankProcess& process, const membership::Evidence& evidence, Epoch epoch,
                    std::optional<std::int64_t> detect_ns, TimePoint now) {
  const metrics::Doing doing = metrics::read_doing(process.page->page());
  events::Lost event{process.seat, process.incarnation, epoch, evidence, process.attached};
  std::string did;
  if (process.attached) {
    if (doing.operation != metrics::Operation::None) {
      event.operation = metrics::name(doing.operation);
      event.seq = doing.sequence;
      event.phase = metrics::name(doing.phase);
    }
    event.step = doing.step;
    did = fmt::format("; {}", metrics::describe(doing));
  }
  event.detect_ns = detect_ns;
  log_.write(event);
  lost_ += 1;
  if (process.seat && process.attached) recovery_.detect_ns = detect_ns;
  Line line;
  line.text = fmt::format("{} {} (pid {}) lost: ", stamp(now), process.name(), process.spawned.pid);
  line.tail = did + (process.fault.empty() ? "" : fmt::format("; it said: {}", process.fault));
  line.important = true;
  const bool known = evidence.signal != 0 || evidence.exit_code >= 0;
  if (known || evidence.kind == membership::EvidenceKind::Silence ||
      evidence.kind == membership::EvidenceKind::Requested) {
    const ExitStatus status{evidence.exit_code, evidence.signal};
    line.text += known ? status.text() : evidence.text;
    if (evidence.signal != 0) line.text += fmt::format(" (exit {})", 128 + evidence.signal);
    line.text += line.tail;
  } else {
    line.awaits_exit = process.incarnation;
    line.until = now + kExitAwaited;
  }
  lines_.push_back(std::move(line));
}

void Narrator::exit_known(const RankProcess& process) {
  for (Line& line : lines_) {
    if (line.awaits_exit != process.incarnation) continue;
    line.awaits_exit.reset();
    line.text += process.exit->text();
    if (process.exit->signal != 0)
      line.text += fmt::format(" (exit {})", 128 + process.exit->signal);
    line.text += line.tail;
  }
}

void Narrator::wedged(Epoch epoch, std::uint64_t round, const std::vector<Member>& lost,
                      TimePoint now) {
  recovering(now);
  log_.write(events::Wedged{epoch, round, lost});
}

void Narrator::recovering(TimePoint now) {
  if (!recovering_) recovery_.wedged = now;
  recovering_ = true;
}

void Narrator::decided(const events::Decided& decision, TimePoint now) {
  recovery_.decided = now;
  log_.write(decision);
  log_.write(events::Flushed{decision.epoch, decision.round});
}

void Narrator::view_installed(const membership::View& view, const std::vector<Newcomer>& newcomers,
                              std::size_t survivors, TimePoint now) {
  recovery_.installed = now;
  log_.write(events::ViewInstalled{view.epoch, view.seats, view.resume_step});
  std::vector<std::string> changes;
  for (const Newcomer& newcomer : newcomers) {
    if (newcomer.previous == Incarnation{}) continue;
    replaced_ += 1;
    if (!newcomer.host.empty()) {
      changes.push_back(
          fmt::format("rank {} is on host {} now", newcomer.member.rank.value(), newcomer.host));
      continue;
    }
    log_.write(events::Replaced{newcomer.member.rank, newcomer.member.incarnation,
                                newcomer.previous, newcomer.from_spare});
    changes.push_back(newcomer.from_spare
                          ? fmt::format("spare {} (pid {}) becomes rank {}",
                                        newcomer.member.incarnation.value(), newcomer.pid,
                                        newcomer.member.rank.value())
                          : fmt::format("rank {} started anew (pid {})",
                                        newcomer.member.rank.value(), newcomer.pid));
  }
  if (!recovering_) return;
  recovery_.to = view.epoch;
  const auto vacant = std::count(view.seats.begin(), view.seats.end(), Incarnation{});
  if (vacant > 0)
    changes.push_back(fmt::format("{} of {} seats vacant", vacant, view.seats.size()));
  if (changes.empty()) changes.emplace_back("same members");
  tell(fmt::format("{} epoch {}->{}: {}; {} kept, on from step {}", stamp(now),
                   view.epoch.value() - 1, view.epoch.value(), fmt::join(changes, ", "), survivors,
                   view.resume_step - 1));
}

void Narrator::entered(const events::Entered& entered, bool all_entered, TimePoint now) {
  log_.write(entered);
  if (!recovering_ || entered.epoch != recovery_.to) return;
  recovery_.heal_ns =
      std::max<std::uint64_t>(recovery_.heal_ns, static_cast<std::uint64_t>(entered.heal_ns));
  for (const auto& [donor, bytes] : entered.bytes_from) recovery_.bytes_from[donor] += bytes;
  if (!all_entered) return;
  std::string text = fmt::format("{} epoch {} ready: ", stamp(now), entered.epoch.value());
  if (recovery_.detect_ns)
    text += fmt::format("detect {:.1f} ms, ", millis(nanoseconds(*recovery_.detect_ns)));
  text += fmt::format("agree {:.1f} ms, attach {:.1f} ms, enter {:.1f} ms",
                      millis(recovery_.decided - recovery_.wedged),
                      millis(recovery_.installed - recovery_.decided),
                      millis(now - recovery_.installed));
  if (!recovery_.bytes_from.empty()) {
    std::uint64_t bytes = 0;
    std::vector<int> donors;
    for (const auto& [donor, count] : recovery_.bytes_from) {
      bytes += count;
      donors.push_back(donor.value());
    }
    text += fmt::format(", of it heal {:.1f} ms: {} bytes from ranks {}",
                        millis(nanoseconds(static_cast<std::int64_t>(recovery_.heal_ns))), bytes,
                        fmt::join(donors, " "));
  }
  tell(std::move(text));
  recovery_ = {};
  recovering_ = false;
}

void Narrator::drained(const RankProcess& process, std::uint64_t resume_step, TimePoint now) {
  log_.write(events::Drained{*process.seat, process.incarnation, resume_step});
  tell(fmt::format("{} {} (pid {}) drained: it has left its seat, step {} is next", stamp(now),
                   process.name(), process.spawned.pid, resume_step - 1));
}

void Narrator::ended_after_drain(const RankProcess& process, const std::string& how) {
  note({"drained", fmt::format("{} (incarnation {}), which was drained, {}", process.name(),
                               process.incarnation.value(), how)},
       false);
}

void Narrator::finished(const RankProcess& process) {
  log_.write(events::Finished{process.seat, process.incarnation, 0});
}

void Narrator::ledger(const RankProcess& process, std::uint64_t end_ns) {
  log_.write(events::Ledger{process.seat, process.incarnation,
                            metrics::read_ledger(process.page->page(), end_ns)});
}

void Narrator::flight(const RankProcess& process, const std::string& file, std::size_t operations) {
  log_.write(
      events::Flight{process.seat, process.incarnation, file, operations, metrics::monotonic_ns()});
}

void Narrator::first_operation(Epoch epoch, Rank rank) {
  log_.write(events::FirstOperation{epoch, rank});
}

void Narrator::coordinator_lost(pid_t pid, const std::string& why) {
  log_.write(events::CoordinatorLost{pid, why});
  tell(fmt::format(
      "regroup: the coordinator (pid {}) ended: {}; starting it again, running operations go on",
      pid, why));
}

void Narrator::coordinator_restarted(pid_t pid, std::uint32_t restarts) {
  log_.write(events::CoordinatorRestarted{pid, restarts});
}

void Narrator::refused(const events::Refused& refused) { log_.write(refused); }

void Narrator::note(const membership::Note& note, bool verbose) {
  log_.write(events::Note{note.kind, note.text});
  if (verbose) tell(fmt::format("regroup: {}: {}", note.kind, note.text));
}

void Narrator::warning(const std::string& code, const std::string& text) {
  log_.write(events::Warning{code, text});
  tell(fmt::format("regroup: {} {}", code, text), true);
}

void Narrator::job_ended(const events::JobEnded& ended, int ranks, TimePoint now,
                         const std::string& report) {
  log_.write(ended);
  for (Line& line : lines_) line.awaits_exit.reset();
  const std::string counts =
      fmt::format("{}/{} ranks finished, {} replaced, after {:.1f} s", ended.ranks_finished, ranks,
                  ended.replaced, duration<double>(now - began_).count());
  if (ended.exit_code == 0) {
    // A job in which nothing happened ends as silently as the program itself would.
    if (lost_ > 0) tell(fmt::format("regroup: {}   report: {}", counts, report));
  } else {
    tell(fmt::format("regroup: job ended with exit code {} ({}): {}; {}   report: {}",
                     ended.exit_code, ended.origin, ended.reason, counts, report),
         true);
  }
  flush(now);
}

std::optional<TimePoint> Narrator::due() const {
  if (lines_.empty()) return std::nullopt;
  return lines_.front().awaits_exit ? lines_.front().until : TimePoint{};
}

void Narrator::flush(TimePoint now) {
  std::size_t told = 0;
  for (; told < lines_.size(); ++told) {
    const Line& line = lines_[told];
    if (line.awaits_exit && line.until > now) break;
    const std::string text =
        line.awaits_exit
            ? line.text + "its death beacon fired, the exit status is still to come" + line.tail
            : line.text;
    if (line.important) console_.always(text);
    if (!line.important) console_.say(text);
    last_told_ = now;
  }
  lines_.erase(lines_.begin(), lines_.begin() + static_cast<std::ptrdiff_t>(told));
}

}  // namespace regroup::launcher
