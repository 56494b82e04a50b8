/// Targets that read files, and what people and other programs say.
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.hpp"
#include "base/fd.hpp"
#include "collective/algorithm_rules.hpp"
#include "control/codec.hpp"
#include "engine/faults.hpp"
#include "launcher/control_address.hpp"
#include "launcher/control_socket.hpp"
#include "launcher/coordinator_host.hpp"
#include "launcher/environment.hpp"
#include "launcher/event_log.hpp"
#include "launcher/host_list.hpp"
#include "launcher/host_orders.hpp"
#include "launcher/launch_environment.hpp"
#include "launcher/observe_text.hpp"
#include "launcher/options.hpp"
#include "launcher/report.hpp"
#include "launcher/report_page.hpp"
#include "launcher/wal.hpp"
#include "tests/fuzz/targets.hpp"

namespace regroup::fuzz {
namespace {

using nlohmann::json;

std::string text_of(Bytes bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// The lines of the input: one word each.
std::vector<std::string> words_of(Bytes bytes, char separator) {
  constexpr std::size_t kWordsMax = 200;
  std::vector<std::string> out;
  const std::string text = text_of(bytes);
  for (std::size_t begin = 0; begin < text.size() && out.size() < kWordsMax;) {
    const std::size_t end = std::min(text.find(separator, begin), text.size());
    out.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return out;
}

/// A job to which nothing can be done.
class Nobody final : public launcher::JobControl {
 public:
  launcher::JobStatus status() override { return {.job = "fuzz", .ranks = 2}; }
  Status signal(Rank, int) override { return {}; }
  Status evict(Rank, const std::string&) override { return {}; }
  Result<std::uint64_t> drain(const std::vector<Rank>&, bool) override { return std::uint64_t{1}; }
  std::uint64_t scale(std::uint32_t, bool) override { return 1; }
  std::optional<launcher::Wish> wish(std::uint64_t) override { return launcher::Wish{}; }
  Status kill_coordinator() override { return {}; }
  std::optional<metrics::Doing> doing(Rank) override { return metrics::Doing{}; }
  Result<json> flight(Rank) override { return json::object(); }
  void refused_other_user() override {}
};

}  // namespace

bool state_file(Bytes bytes) {
  // The input stands over both slots of a good file, so that what lies behind their sums is read.
  static const std::string path = [] {
    const int fd = ::memfd_create("regroup-fuzz-state", 0);
    return "/proc/self/fd/" + std::to_string(fd);
  }();
  static const int fd = std::stoi(path.substr(path.rfind('/') + 1));
  constexpr std::size_t kPage = 4096;
  constexpr std::size_t kSlot = (launcher::Wal::kRecordBytesMax + 24 + kPage - 1) / kPage * kPage;
  const std::uint64_t header[2] = {0x3154415453475247, 1 | std::uint64_t{kSlot} << 32};
  REGROUP_ASSERT(::ftruncate(fd, 0) == 0 && ::ftruncate(fd, kPage + 2 * kSlot) == 0);
  REGROUP_ASSERT(::pwrite(fd, header, sizeof header, 0) == sizeof header);
  const std::size_t half = bytes.size() / 2;
  for (int i = 0; i < 2; ++i) {
    const Bytes part = i == 0 ? bytes.first(half) : bytes.subspan(half);
    const auto at = static_cast<off_t>(kPage + static_cast<std::size_t>(i) * kSlot);
    REGROUP_ASSERT(::pwrite(fd, part.data(), part.size(), at) == static_cast<ssize_t>(part.size()));
  }
  const Result<launcher::Wal> wal = launcher::Wal::open(path);
  return wal && wal->newest() && control::decode<membership::DurableState>(*wal->newest());
}

bool event_log(Bytes bytes) {
  launcher::Report report;
  bool accepted = false;
  for (const std::string& line : words_of(bytes, '\n')) {
    const Result<launcher::ParsedEvent> event = launcher::parse_event(line);
    if (!event) continue;
    (void)launcher::event_text(event->stamp, event->kind, *event->fields);
    const auto kind = launcher::event_kind(event->kind);
    if (!kind) continue;
    report.observe(event->stamp, *kind, *event->fields);
    accepted = true;
  }
  (void)launcher::report_text(report.to_json());
  return accepted;
}

bool report(Bytes bytes) {
  const json object = json::parse(text_of(bytes), nullptr, false);
  if (object.is_discarded()) return false;
  (void)launcher::report_text(object);
  (void)launcher::report_page(object, json::array());
  return true;
}

bool status_answer(Bytes bytes) {
  const json object = json::parse(text_of(bytes), nullptr, false);
  if (!object.is_discarded()) (void)launcher::status_text(object);
  const bool jobs = !launcher::parse_running_jobs(text_of(bytes)).empty();
  return jobs || !object.is_discarded();
}

bool status_request(Bytes bytes) {
  static Nobody nobody;
  static const std::string job = "fuzz-" + std::to_string(::getpid());
  static launcher::ControlSocket socket =
      launcher::ControlSocket::open(job, nobody, nullptr).value();
  static const auto address = launcher::control_address({::getuid(), job}).value();
  const base::Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  REGROUP_ASSERT(::connect(fd.get(), address.get(), address.bytes) == 0);
  (void)::send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
  (void)::send(fd.get(), "\n", 1, MSG_NOSIGNAL);
  (void)::shutdown(fd.get(), SHUT_WR);
  for (int turn = 0; turn < 3; ++turn) socket.turn();
  std::array<char, 4096> answer{};
  const ssize_t n = ::recv(fd.get(), answer.data(), answer.size(), 0);
  return n > 0 &&
         std::string_view(answer.data(), static_cast<std::size_t>(n)).find(R"("ok":true)") !=
             std::string_view::npos;
}

bool fault_script(Bytes bytes) {
  return static_cast<bool>(engine::FaultScript::parse(text_of(bytes), Rank{1}, 0));
}

bool algorithm_rules(Bytes bytes) {
  const auto rules = collective::AlgorithmRules::parse(text_of(bytes));
  if (rules) (void)rules->pick(spi::OpKind::AllReduce, 4096);
  return static_cast<bool>(rules);
}

bool command_line(Bytes bytes) {
  const std::vector<std::string> words = words_of(bytes, '\n');
  const auto accepted = static_cast<bool>(launcher::parse_coordinator(words));
  (void)launcher::split_arguments(words, [](const std::string& word) { return word.size() == 2; });
  for (const std::string& word : words) {
    (void)launcher::parse_duration(word);
    (void)launcher::parse_on_loss(word);
    (void)launcher::parse_control(word);
    (void)launcher::Trigger::parse(word);
  }
  return accepted;
}

bool environment(Bytes bytes) {
  const std::vector<std::string> variables = words_of(bytes, '\n');
  const auto accepted = static_cast<bool>(launcher::read_launch_environment(variables));
  (void)launcher::explain_launch_environment(variables);
  (void)launcher::make_environment(variables, {});
  (void)launcher::slurm_tasks(text_of(bytes), 3);
  return accepted;
}

bool host_list(Bytes bytes) {
  const std::string text = text_of(bytes);
  const std::size_t half = text.size() / 2;
  bool good = false;
  const auto check = [&good](const Result<std::vector<launcher::HostEntry>>& hosts) {
    if (!hosts) return;
    good = true;
    REGROUP_ASSERT(!hosts->empty() && hosts->size() <= launcher::kHostsMax);
    for (const launcher::HostEntry& host : *hosts) {
      // A name becomes an argument of the starter.
      REGROUP_ASSERT(!host.name.empty() && host.name.front() != '-' && host.target()[0] != '-');
      REGROUP_ASSERT(host.name.find_first_of(" ;&|$`'\"\n") == std::string::npos);
    }
    const auto plan = launcher::plan_seats(*hosts, 7, 2);
    if (!plan) return;
    std::uint64_t seats = 0;
    for (const membership::HostPlan& host : *plan) seats += host.seats;
    REGROUP_ASSERT(seats == 7);
  };
  check(launcher::parse_host_list(text));
  check(launcher::parse_host_file(text));
  check(launcher::parse_slurm(text.substr(0, half), text.substr(half)));
  (void)launcher::split_words(text);
  return good;
}

bool host_orders(Bytes bytes) {
  const std::string text = text_of(bytes);
  launcher::LineReader lines(256);
  lines.feed(text);
  bool good = false;
  while (const std::optional<std::string> line = lines.next()) {
    good = launcher::parse_greeting(*line) || launcher::parse_word(*line) || good;
    REGROUP_ASSERT(line->size() <= 256);
  }
  const Result<launcher::HostOrders> orders = launcher::parse_orders(text);
  if (!orders) return good;
  const Result<launcher::HostOrders> again = launcher::parse_orders(launcher::orders_line(*orders));
  REGROUP_ASSERT(again && *again == *orders);
  return true;
}

}  // namespace regroup::fuzz
