/// What reads bytes that somebody else wrote. Each target takes any bytes and must return, and says
/// whether the bytes were accepted: something of the corpus must be, or the target tests nothing.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string_view>

#include "spi/shared_slots.hpp"

namespace regroup::fuzz {

using Bytes = std::span<const std::byte>;

/// What shared_words() and its corpus take an arena to be.
inline constexpr spi::ArenaOptions kFuzzArena{.slot_bytes = 4096, .ring_bytes = 4096};

struct Target {
  std::string_view name;  ///< also of its folder below corpus/
  bool (*run)(Bytes bytes);
};

bool control_messages(Bytes bytes);
bool durable_state(Bytes bytes);
bool frames(Bytes bytes);
bool hello(Bytes bytes);
bool identity(Bytes bytes);
bool tls(Bytes bytes);
bool shared_words(Bytes bytes);
bool beacon_page(Bytes bytes);
bool state_file(Bytes bytes);
bool event_log(Bytes bytes);
bool report(Bytes bytes);
bool status_request(Bytes bytes);
bool status_answer(Bytes bytes);
bool fault_script(Bytes bytes);
bool algorithm_rules(Bytes bytes);
bool command_line(Bytes bytes);
bool environment(Bytes bytes);
bool host_list(Bytes bytes);
bool host_orders(Bytes bytes);

inline constexpr std::array<Target, 19> kTargets = {{{"control_messages", control_messages},
                                                     {"durable_state", durable_state},
                                                     {"frames", frames},
                                                     {"hello", hello},
                                                     {"identity", identity},
                                                     {"tls", tls},
                                                     {"shared_words", shared_words},
                                                     {"beacon_page", beacon_page},
                                                     {"state_file", state_file},
                                                     {"event_log", event_log},
                                                     {"report", report},
                                                     {"status_request", status_request},
                                                     {"status_answer", status_answer},
                                                     {"fault_script", fault_script},
                                                     {"algorithm_rules", algorithm_rules},
                                                     {"command_line", command_line},
                                                     {"environment", environment},
                                                     {"host_list", host_list},
                                                     {"host_orders", host_orders}}};

[[nodiscard]] inline const Target* find_target(std::string_view name) {
  for (const Target& one : kTargets) {
    if (one.name == name) return &one;
  }
  return nullptr;
}

}  // namespace regroup::fuzz
