/// A rank without an engine: it speaks the launcher's protocol by hand, prints what it is told, and
/// misbehaves on order. Of members on other hosts it takes no notice.
///
///   fake_rank [ACTION...]     an action that names a rank concerns its first life only
///
///     until=E    leave the job in order once all have entered epoch E (default 1)
///
///     kill=R     rank R kills itself with SIGKILL once it entered epoch 1
///
///     early=R    rank R kills itself after Hello, before it holds its beacon
///
///     exit=R:C   rank R ends with code C once it entered epoch 1
///
///     stop=R     rank R stops itself (SIGSTOP) once it entered epoch 1
///
///     stall=R    all but rank R say that they have sat in an operation for a minute
///
///     group=N    every rank asks for a group N of all seats in each epoch
///
///     address=TEXT  say so as its address, and print everybody's
///
///     keep=TEXT  a seat's first life hands the agent memory with this text; a later one prints it
///
///     signals    print the name of each signal that it is sent
///
///     ask        ask for groups when SIGUSR1 comes, and print refusals
///
///     deaf       ignore SIGTSTP
///
///     linger     stay after the work is done, until told to stop
#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <optional>
#include <string>

#include <regroup/types.hpp>

#include "base/fd.hpp"
#include "control/channel.hpp"
#include "metrics/beacon.hpp"
#include "transports/shm/arena.hpp"

namespace {

using namespace regroup;

[[noreturn]] void fail(std::string_view text) {
  fmt::print(stderr, "fake_rank: {}\n", text);
  std::_Exit(70);
}

class FakeRank {
 public:
  FakeRank(std::map<std::string, std::string> actions, int fd)
      : actions_(std::move(actions)), channel_(base::Fd(fd)) {}

  int run() {
    if (actions_.contains("deaf")) ::signal(SIGTSTP, SIG_IGN);
    if (actions_.contains("signals") || actions_.contains("ask")) watch_signals();
    send(control::Hello{.pid = ::getpid(), .build = "fake"});
    while (!done_) {
      turn();
      if (leaving_ && all_there()) done_ = true;
    }
    send(control::Detach{});
    holder_.reset();
    fmt::print("done\n");
    return 0;
  }

 private:
  void send(const control::RankMessage& message, const std::vector<int>& fds = {}) {
    if (const Status sent = channel_.send(message, fds); !sent) fail(sent.to_string());
  }

  void watch_signals() {
    sigset_t set;
    ::sigemptyset(&set);
    for (const int signal : {SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH, SIGCONT})
      ::sigaddset(&set, signal);
    ::sigprocmask(SIG_BLOCK, &set, nullptr);
    signals_.reset(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  }

  void turn() {
    pollfd ready[]{{channel_.fd(), POLLIN, 0}, {signals_.get(), POLLIN, 0}};
    ::poll(ready, 2, 20);
    signalfd_siginfo info{};
    while (signals_ && ::read(signals_.get(), &info, sizeof info) > 0) {
      fmt::print("signal={}\n", ::sigabbrev_np(static_cast<int>(info.ssi_signo)));
      if (!actions_.contains("ask")) continue;
      // The first may be served from what was made ahead.
      for (const char* name : {"first", "second", "third"})
        send(control::AttachGroup{epoch_, name, everybody()});
    }
    if (page_) page_->page().beat.thread.store(static_cast<std::uint64_t>(::gettid()));
    if (page_) metrics::beat(page_->page(), metrics::monotonic_ns());
    while (!done_) {
      auto received = channel_.try_recv_as<control::AgentToRank>();
      if (!received) fail(received.error().to_string());
      if (!received->has_value()) return;
      control::Received<control::AgentToRank>& message = **received;
      std::visit([&](const auto& m) { on(m, message.fds); }, message.message);
    }
  }

  [[nodiscard]] bool ordered(const char* action) const {
    const auto found = actions_.find(action);
    return found != actions_.end() && seat_ && life_ == 0 &&
           std::atoi(found->second.c_str()) == seat_->value();
  }

  void on(const control::Welcome& welcome, std::vector<base::Fd>& fds) {
    seat_ = welcome.seat;
    life_ = welcome.life;
    if (ordered("early")) ::raise(SIGKILL);
    auto page = metrics::PageMapping::map(fds.at(0).get());
    if (!page) fail(page.error().to_string());
    page_.emplace(std::move(*page));
    auto holder = metrics::BeaconHolder::hold(page_->page());
    if (!holder) fail(holder.error().to_string());
    holder_.emplace(std::move(*holder));
    send(control::BeaconHeld{own_address()});
    fmt::print("welcome seat={} life={} ranks={}\n", seat_ ? seat_->value() : -1, life_,
               welcome.ranks);
  }

  void on(const control::Assign& assign, std::vector<base::Fd>& fds) {
    seat_ = assign.seat;
    life_ = assign.life;
    fmt::print("assigned seat={} life={}\n", seat_->value(), life_);
    for (std::size_t i = 0; i < fds.size(); ++i) {
      char text[64] = {};
      if (::pread(fds[i].get(), text, sizeof text - 1, 0) < 0) fail("kept memory cannot be read");
      fmt::print("kept {}={}\n", assign.kept.at(i), text);
    }
  }

  void on(const control::ViewInstalled& installed, std::vector<base::Fd>& fds) {
    std::vector<std::uint64_t> seats;
    for (const Incarnation seat : installed.view.seats) seats.push_back(seat.value());
    for (std::size_t i = 0; i < fds.size(); ++i) {
      auto arena = shm::open_arena(fds[i].get(), installed.view.epoch, installed.groups.at(i).id);
      if (!arena) fail(arena.error().to_string());
      if (arena->slots.members() != static_cast<int>(installed.groups[i].seats.size()))
        fail("wrong arena");
      if (i == 0) enter(std::move(*arena), installed.groups[0].seats);
    }
    epoch_ = installed.view.epoch;
    note_neighbours(installed);
    seats_ = static_cast<int>(seats.size());
    fmt::print("view epoch={} seats={} groups={} resume={} cause={}\n", epoch_.value(),
               fmt::join(seats, ","), fds.size(), installed.view.resume_step, installed.cause);
    if (actions_.contains("address")) {
      for (const membership::SeatPlace& place : installed.places) {
        fmt::print(
            "place host={} life={} address={}\n", place.host.value(), place.life,
            std::string(reinterpret_cast<const char*>(place.address.data()), place.address.size()));
      }
    }
    send(control::Entered{epoch_, {}, 0});
    if (const auto keep = actions_.find("keep"); keep != actions_.end() && life_ == 0) {
      const base::Fd memory(::memfd_create("fake-mirror", MFD_CLOEXEC));
      if (::write(memory.get(), keep->second.data(), keep->second.size()) < 0) fail("memfd");
      send(control::KeepMemory{"mirror", keep->second.size()}, {memory.get()});
    }
    if (const auto group = actions_.find("group"); group != actions_.end()) {
      send(control::AttachGroup{epoch_, group->second, everybody()});
      return;  // it goes on when the group is there
    }
    work();
  }

  void on(const control::GroupReady& ready, std::vector<base::Fd>& fds) {
    const auto arena = shm::open_arena(fds.at(0).get(), ready.epoch, ready.group.id);
    if (!arena) fail(arena.error().to_string());
    fmt::print("group {} id={} epoch={}\n", ready.group.name, ready.group.id, ready.epoch.value());
    work();
  }

  [[nodiscard]] membership::MemberAddress own_address() const {
    const auto text = actions_.find("address");
    if (text == actions_.end()) return {};
    const std::string mine = fmt::format("{}{}", text->second, ::getpid());
    const auto* const begin = reinterpret_cast<const std::byte*>(mine.data());
    return {begin, begin + mine.size()};
  }

  [[nodiscard]] std::vector<Rank> everybody() const {
    std::vector<Rank> all;
    for (int seat = 0; seat < seats_; ++seat) all.emplace_back(seat);
    return all;
  }

  /// Which members of the world run on this host.
  void note_neighbours(const control::ViewInstalled& installed) {
    neighbours_.clear();
    const auto host = [&](Rank seat) {
      return installed.places.at(static_cast<std::size_t>(seat.value())).host;
    };
    for (std::size_t i = 0; i < installed.groups[0].seats.size(); ++i) {
      if (host(installed.groups[0].seats[i]) == host(*seat_))
        neighbours_.push_back(static_cast<int>(i));
    }
  }

  void enter(shm::Arena arena, const std::vector<Rank>& seats) {
    leaving_ = false;
    world_.emplace(std::move(arena));
    for (std::size_t i = 0; i < seats.size(); ++i) {
      if (seats[i] == *seat_) me_ = static_cast<int>(i);
    }
  }

  /// Every member has done its work in this epoch: nobody leaves while another needs it.
  [[nodiscard]] bool all_there() const {
    for (const int member : neighbours_) {
      const spi::WordState word = spi::read(world_->slots.group_word(member));
      if (word.wedged || word.number == 0) return false;
    }
    return true;
  }

  void work() {
    if (epoch_ == Epoch{1}) {
      if (ordered("kill")) ::raise(SIGKILL);
      if (ordered("stop")) ::raise(SIGSTOP);
      const auto exits = actions_.find("exit");
      if (exits != actions_.end() && ordered("exit"))
        std::_Exit(std::atoi(exits->second.substr(exits->second.find(':') + 1).c_str()));
    }
    if (actions_.contains("stall") && !ordered("stall")) {
      constexpr std::uint64_t kLong = 60'000'000'000;
      metrics::begin_operation(page_->page(), {.operation = metrics::Operation::AllReduce,
                                               .epoch = epoch_.value(),
                                               .sequence = 7,
                                               .started_ns = metrics::monotonic_ns() - kLong});
    }
    const auto until = actions_.find("until");
    const std::uint64_t last =
        until == actions_.end() ? 1 : std::strtoull(until->second.c_str(), nullptr, 10);
    if (epoch_.value() < last || actions_.contains("linger")) return;
    leaving_ = spi::try_advance(world_->slots.group_word(me_), 1);
  }

  void on(const control::LossNotice& notice, std::vector<base::Fd>&) {
    fmt::print("loss epoch={} text={}\n", notice.epoch.value(), notice.text);
  }
  void on(const control::Stop& stop, std::vector<base::Fd>&) {
    fmt::print("stop code={}\n", stop.exit_code);
    done_ = true;
  }
  void on(const control::Released&, std::vector<base::Fd>&) { done_ = true; }
  void on(const control::StoreReply&, std::vector<base::Fd>&) {}
  void on(const control::Refused& refused, std::vector<base::Fd>&) {
    if (!actions_.contains("ask")) fail(refused.text);
    fmt::print("refused: {}\n", refused.text);
  }

  std::map<std::string, std::string> actions_;
  control::Channel channel_;
  std::optional<metrics::PageMapping> page_;
  std::optional<metrics::BeaconHolder> holder_;
  std::optional<Rank> seat_;
  std::uint32_t life_ = 0;
  Epoch epoch_;
  std::optional<shm::Arena> world_;
  base::Fd signals_;
  std::vector<int> neighbours_;
  int seats_ = 0;
  int me_ = 0;
  bool leaving_ = false;
  bool done_ = false;
};

}  // namespace

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // a pipe, and somebody waits for each line
  std::map<std::string, std::string> actions;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const std::size_t equals = word.find('=');
    actions[word.substr(0, equals)] = equals == std::string::npos ? "" : word.substr(equals + 1);
  }
  const char* fd = std::getenv("REGROUP_CONTROL_FD");
  if (fd == nullptr) fail("not started by regroup run");
  return FakeRank(std::move(actions), std::atoi(fd)).run();
}
