/// Tells what happens: one line per loss and per epoch for people, one event each for the history.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include <regroup/types.hpp>

#include "launcher/console.hpp"
#include "launcher/event_log.hpp"
#include "launcher/rank_process.hpp"
#include "membership/types.hpp"

namespace regroup::launcher {

/// Thread safety: one thread. Lines for people wait until flush(), so that no recovery waits for a
/// console.
class Narrator {
 public:
  Narrator(Console& console, EventLog& log, TimePoint began)
      : console_(console), log_(log), began_(began) {}

  void job_started(const RunOptions& options, const JobSetup& setup,
                   const std::vector<std::string>& hosts);
  void process_started(const RankProcess& process);
  void attached(const RankProcess& process, TimePoint now);
  /// `detect_ns`: from its last proof of life until we knew; none when it never gave one.
  void lost(const RankProcess& process, const membership::Evidence& evidence, Epoch epoch,
            std::optional<std::int64_t> detect_ns, TimePoint now);
  /// The exit status of a process that was reported lost is known now: its line can be told in
  /// full.
  void exit_known(const RankProcess& process);
  void wedged(Epoch epoch, std::uint64_t round, const std::vector<Member>& lost, TimePoint now);
  /// The same, known from another host.
  void recovering(TimePoint now);
  /// A process of another host was lost; its agent has told.
  void lost_elsewhere() { lost_ += 1; }
  void decided(const events::Decided& decision, TimePoint now);
  struct Newcomer {
    Member member;
    Incarnation previous;
    bool from_spare = false;
    pid_t pid = 0;
    std::string host;  ///< another one, whose agent writes the event; empty: this one
  };
  void view_installed(const membership::View& view, const std::vector<Newcomer>& newcomers,
                      std::size_t survivors, TimePoint now);
  /// `all_entered`: every member has entered this epoch now.
  void entered(const events::Entered& entered, bool all_entered, TimePoint now);
  /// It left its seat as planned: the others go on from `resume_step`.
  void drained(const RankProcess& process, std::uint64_t resume_step, TimePoint now);
  /// A process that was drained has ended.
  void ended_after_drain(const RankProcess& process, const std::string& how);
  void finished(const RankProcess& process);
  /// Where the process's time went, up to its end; once for each process.
  void ledger(const RankProcess& process, std::uint64_t end_ns);
  /// Its flight record was written; once for each process.
  void flight(const RankProcess& process, const std::string& file, std::size_t operations);
  void first_operation(Epoch epoch, Rank rank);
  void coordinator_lost(pid_t pid, const std::string& why);
  void coordinator_restarted(pid_t pid, std::uint32_t restarts);
  void refused(const events::Refused& refused);
  void note(const membership::Note& note, bool verbose);
  /// A text of the error catalogue; always told.
  void warning(const std::string& code, const std::string& text);
  void job_ended(const events::JobEnded& ended, int ranks, TimePoint now,
                 const std::string& report);

  /// Tells the lines that are due. A loss whose exit status is not known yet is held back for a
  /// moment.
  void flush(TimePoint now);
  /// When flush() has something held back; none: nothing.
  [[nodiscard]] std::optional<TimePoint> due() const;
  /// When the last line or event was told.
  [[nodiscard]] TimePoint last_told() const { return last_told_; }
  [[nodiscard]] std::uint32_t replaced() const { return replaced_; }

 private:
  struct Line {
    std::string text;
    std::optional<Incarnation> awaits_exit;  ///< told once this exit status is known, or at `until`
    TimePoint until;
    std::string tail;        ///< what follows the exit status
    bool important = false;  ///< told with --quiet too
  };
  struct Recovery {
    Epoch to;  ///< none until the view that ends it is installed
    TimePoint wedged;
    TimePoint decided;
    TimePoint installed;
    std::optional<std::int64_t> detect_ns;
    std::uint64_t heal_ns = 0;
    std::map<Rank, std::uint64_t> bytes_from;
  };
  [[nodiscard]] std::string stamp(TimePoint now) const;
  void tell(std::string text, bool important = false);

  Console& console_;
  EventLog& log_;
  TimePoint began_;
  TimePoint last_told_;
  std::vector<Line> lines_;
  Recovery recovery_;
  bool recovering_ = false;
  std::uint32_t replaced_ = 0;
  std::uint32_t lost_ = 0;
};

}  // namespace regroup::launcher
