#include "engine/live_links.hpp"

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <set>

#include "engine/agent_link.hpp"

namespace regroup::engine {
namespace {

std::atomic<std::uint64_t> forks{0};

struct Registry {
  std::mutex mutex;
  std::set<AgentLink*> links;
};

// Never destroyed: links may end after static destructors have begun.
Registry& registry() {
  static auto* const instance = new Registry;
  return *instance;
}

void before_fork() { registry().mutex.lock(); }
void after_fork_in_parent() { registry().mutex.unlock(); }
void after_fork_in_child() {
  forks.fetch_add(1, std::memory_order_relaxed);
  for (auto* link : registry().links) link->abandon_in_child();
  registry().links.clear();
  registry().mutex.unlock();
}
void at_exit() {
  const std::lock_guard lock(registry().mutex);
  for (auto* link : registry().links) link->leave();
}

void install_handlers() {
  static const bool installed = [] {
    return ::pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) == 0 &&
           std::atexit(at_exit) == 0;
  }();
  (void)installed;
}

}  // namespace

void LiveLinks::add(AgentLink& link) {
  install_handlers();
  const std::lock_guard lock(registry().mutex);
  registry().links.insert(&link);
}

void LiveLinks::remove(AgentLink& link) {
  const std::lock_guard lock(registry().mutex);
  registry().links.erase(&link);
}

std::uint64_t LiveLinks::fork_count() { return forks.load(std::memory_order_relaxed); }

}  // namespace regroup::engine
