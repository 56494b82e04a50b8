/// The guardian: a small process beside the launcher that cleans up if the launcher is killed.
///
/// Ranks and coordinator die with the launcher by themselves (parent death signal). Their
/// descendants do not: one that called setsid has no tie to anybody left. The guardian waits for
/// the launcher's end and kills every process that carries the job's id in its environment (an
/// agent on another host: the job's id with the host's number). A descendant that has emptied its
/// environment escapes it (not the launcher's own clean-up, which follows parenthood).
#pragma once

#include <string>

#include <regroup/status.hpp>

#include "launcher/process.hpp"

namespace regroup::launcher {

/// Holds the guardian; ends it in the destructor, without a clean-up.
/// Thread safety: the main thread.
class Guardian {
 public:
  /// `mark`: the variable, with its value, of what it kills. Errors: those of spawn().
  static Result<Guardian> start(const std::string& job, const std::string& mark);
  Guardian(const Guardian&) = delete;
  Guardian& operator=(const Guardian&) = delete;
  Guardian(Guardian&&) noexcept = default;
  Guardian& operator=(Guardian&&) = delete;
  ~Guardian();
  [[nodiscard]] pid_t pid() const { return process_.pid; }
  /// It was reaped (somebody killed it).
  void gone() { process_.pid = -1; }

 private:
  Guardian(Spawned process, base::Fd alive)
      : process_(std::move(process)), alive_(std::move(alive)) {}
  Spawned process_;
  base::Fd alive_;  ///< its other end reads end-of-file when this process is gone
};

}  // namespace regroup::launcher
