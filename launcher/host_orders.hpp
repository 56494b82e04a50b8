/// What the launcher and the agent of another host say to each other through the starter's pipes.
/// Pure.
///
/// Agent to launcher: lines, the first letter of each says what it is. The first one is the
/// greeting; whatever a shell prints before it is noise. Launcher to agent: one line of orders
/// after the greeting, then a word now and then; the end of the stream means that the launcher is
/// gone.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <regroup/status.hpp>
#include <regroup/types.hpp>

#include "launcher/options.hpp"
#include "membership/types.hpp"

namespace regroup::launcher {

/// Of the lines and orders below. Another one is refused by name, before anything secret is said.
inline constexpr std::uint32_t kHostProtocol = 1;
/// The environment is most of it.
inline constexpr std::size_t kOrdersBytesMax = std::size_t{4} << 20;

/// What a line of the agent is.
enum class LineKind : char {
  Greeting = 'H',
  Output = 'O',  ///< a rank printed it
  Error = 'E',   ///< likewise, on its standard error
  Text = 'A',    ///< for people
  Record = 'J',  ///< one event, as JSON
  Alive = 'B',   ///< nothing but that the pipe is one
};
/// None: no such letter.
[[nodiscard]] std::optional<LineKind> line_kind(std::string_view line);

/// Who is there.
struct AgentGreeting {
  std::uint32_t protocol = kHostProtocol;
  std::string version;
  std::string host;  ///< its own name for itself
  bool operator==(const AgentGreeting&) const = default;
};
/// The whole line, without its end.
[[nodiscard]] std::string greeting_line(const AgentGreeting& greeting);
/// None: this line is no greeting.
[[nodiscard]] std::optional<AgentGreeting> parse_greeting(std::string_view line);

/// Where one host stands among those of the job.
struct HostPlace {
  membership::AgentId agent{0};
  std::string name = "localhost";  ///< as the list has it
  std::uint32_t node = 0;          ///< among the hosts that run processes
  std::uint32_t nodes = 1;         ///< so many of these
  std::uint32_t first_seat = 0;    ///< of those that it holds at first
  std::uint32_t seats = 0;         ///< so many of these; 0: all of the job's, or a spare host
  bool operator==(const HostPlace&) const = default;
};

/// All that an agent on another host has to know.
struct HostOrders {
  std::string job;
  HostPlace place;
  std::string coordinator;  ///< address without the port
  std::uint16_t port = 0;
  std::array<std::byte, 32> secret{};
  std::string master_address;  ///< for torch's env:// rendezvous
  std::uint16_t master_port = 0;
  std::int64_t age_ns = 0;  ///< of the job
  std::string directory;    ///< the program's working directory
  std::vector<std::string> environment;
  RunOptions options;
  bool operator==(const HostOrders&) const = default;
};
/// The whole line, without its end. It holds the secret.
[[nodiscard]] std::string orders_line(const HostOrders& orders);
/// Errors: InvalidArgument (no such line, or something is missing).
Result<HostOrders> parse_orders(std::string_view line);

/// What may follow the orders.
struct HostWord {
  enum class Kind : std::uint8_t {
    Forward,  ///< a signal for all ranks
    Signal,   ///< a signal for one process
    End,      ///< the job is over: end what runs, within the grace
    EndNow,   ///< kill what is left
  };
  Kind kind = Kind::EndNow;
  int signal = 0;
  Incarnation incarnation;
  bool operator==(const HostWord&) const = default;
};
[[nodiscard]] std::string word_line(const HostWord& word);
/// None: no such word.
[[nodiscard]] std::optional<HostWord> parse_word(std::string_view line);

/// Puts lines together out of pieces. A line longer than the limit comes in pieces of that size.
class LineReader {
 public:
  explicit LineReader(std::size_t bytes_max) : bytes_max_(bytes_max) {}
  void feed(std::string_view bytes) { held_.append(bytes); }
  /// The next whole line without its end; none: not yet.
  [[nodiscard]] std::optional<std::string> next();
  /// What is left without an end.
  [[nodiscard]] const std::string& rest() const { return held_; }

 private:
  std::size_t bytes_max_;
  std::string held_;
};

/// The variables of `outer` that go to other hosts: all but those that describe this host or this
/// session.
[[nodiscard]] std::vector<std::string> travelling(const std::vector<std::string>& outer);

}  // namespace regroup::launcher
