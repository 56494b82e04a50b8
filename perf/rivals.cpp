#include "perf/rivals.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>
#include <system_error>

#include <nlohmann/json.hpp>

extern char** environ;

namespace regroup::perf {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

/// For the start of a rival and for a single block alike.
constexpr std::chrono::seconds kAnswerTimeout{300};
constexpr std::chrono::seconds kEndTimeout{10};

Status refuse(std::string text) { return {Code::InvalidArgument, std::move(text)}; }
Status broken(std::string text) { return {Code::FailedPrecondition, std::move(text)}; }

fs::path own_folder() {
  std::error_code ignored;
  return fs::read_symlink("/proc/self/exe", ignored).parent_path();
}

/// Ours again, as a job of its own: the same program, or the one without fault tolerance.
RivalSpec own_spec(const std::string& name, const char* program) {
  const std::string folder = own_folder().string() + "/";
  RivalSpec spec{.name = name, .command = {folder + "regroup", "run", "-q", "-n", "{n}"}};
  if (const char* const logs = std::getenv("REGROUP_RUN_DIR"); logs != nullptr) {
    spec.command.insert(spec.command.end(), {"--log-dir", fmt::format("{}/{}", logs, name)});
  }
  spec.command.insert(spec.command.end(),
                      {"--", folder + program, "all_reduce", "--serve", "{dir}"});
  return spec;
}

std::vector<RivalSpec> read_specs(const fs::path& folder) {
  std::vector<RivalSpec> specs = {own_spec("self", "regroup-perf"),
                                  own_spec("noft", "regroup-perf-noft")};
  std::error_code missing;
  for (const auto& entry : fs::directory_iterator(folder, missing)) {
    if (entry.path().extension() != ".json") continue;
    std::ifstream file(entry.path());
    const json spec = json::parse(file, nullptr, false);
    if (!spec.is_object()) continue;
    specs.push_back({.name = spec.value("name", entry.path().stem().string()),
                     .command = spec.value("command", std::vector<std::string>{}),
                     .spins = spec.value("spins", false)});
  }
  std::ranges::sort(specs, {}, &RivalSpec::name);
  return specs;
}

/// What other launchers left in our environment would make a rival believe that it is a part of
/// ours.
bool belongs_to_a_launcher(std::string_view variable) {
  static constexpr std::string_view kPrefixes[] = {"OMPI_",
                                                   "PMIX_",
                                                   "PMI_",
                                                   "PRTE_",
                                                   "HYDRA_",
                                                   "HYDI_",
                                                   "MPI_LOCAL",
                                                   "SLURM_",
                                                   "REGROUP_RANK",
                                                   "REGROUP_WORLD_SIZE",
                                                   "REGROUP_CONTROL_FD",
                                                   "REGROUP_JOB_ID",
                                                   "REGROUP_RUN_",
                                                   "TORCHELASTIC",
                                                   "RANK=",
                                                   "WORLD_SIZE="};
  return std::ranges::any_of(kPrefixes,
                             [&](std::string_view p) { return variable.starts_with(p); });
}

std::string replace_all(std::string text, std::string_view from, std::string_view to) {
  for (auto at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
  return text;
}

/// Its processes may use all of `cores`, though this thread may have been given one of them.
Result<int> spawn(const std::vector<std::string>& command, const cpu_set_t& cores) {
  std::vector<char*> argv;
  for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  std::vector<char*> variables;
  for (char** v = environ; *v != nullptr; ++v) {
    if (!belongs_to_a_launcher(*v)) variables.push_back(*v);
  }
  variables.push_back(nullptr);
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  // Its words belong to nobody's table, and it must not read what is meant for us.
  posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&files, STDERR_FILENO, STDOUT_FILENO);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
  cpu_set_t ours;
  CPU_ZERO(&ours);
  (void)::sched_getaffinity(0, sizeof ours, &ours);
  (void)::sched_setaffinity(0, sizeof cores, &cores);
  pid_t pid = -1;
  const int error =
      ::posix_spawnp(&pid, argv[0], &files, &attributes, argv.data(), variables.data());
  (void)::sched_setaffinity(0, sizeof ours, &ours);
  posix_spawn_file_actions_destroy(&files);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) return broken(fmt::format("{}: {}", command[0], std::strerror(error)));
  return pid;
}

}  // namespace

Result<std::vector<RivalSpec>> find_rivals(const std::vector<std::string>& wanted,
                                           const fs::path& folder, const Seating& seating) {
  const fs::path place = folder.empty() ? own_folder() / "../../rivals" : folder;
  const auto specs = read_specs(place);
  std::vector<RivalSpec> chosen;
  for (const std::string& word : wanted) {
    const auto before = chosen.size();
    bool known = false;
    for (const RivalSpec& spec : specs) {
      const bool by_kind =
          word == "mpi" && (spec.name.starts_with("openmpi") || spec.name.starts_with("mpich"));
      if (spec.name != word && !by_kind) continue;
      known = true;
      // Asked for by its own name it is measured all the same.
      if (by_kind && spec.spins && seating.ranks > CPU_COUNT(&seating.cores)) continue;
      chosen.push_back(spec);
    }
    if (!known && chosen.size() == before) {
      return refuse(
          fmt::format("--compare {}: not found in {}; perf/rivals/setup.sh installs what "
                      "can be compared with",
                      word, place.lexically_normal().string()));
    }
  }
  return chosen;
}

std::string to_line(const Workload& w, const BlockPlan& plan) {
  return fmt::format("block {} {} {} {} {} {} {} {} {} {}\n", name(w.collective), name(w.dtype),
                     name(w.op), w.root, w.count, w.in_place ? 1 : 0,
                     plan.mode == Mode::Streaming ? "streaming" : "isolated", plan.iterations,
                     plan.warmups, plan.checks);
}

Result<Command> parse_line(const std::string& line) {
  std::istringstream words(line);
  std::string verb;
  std::string collective;
  std::string dtype;
  std::string op;
  std::string mode;
  Command command;
  auto& [w, plan] = command;
  words >> verb >> collective >> dtype >> op >> w.root >> w.count >> w.in_place >> mode >>
      plan.iterations >> plan.warmups >> plan.checks;
  const auto known_collective = parse_collective(collective);
  const auto known_dtype = parse_dtype(dtype);
  const auto known_op = parse_op(op);
  if (!words || verb != "block" || !known_collective || !known_dtype || !known_op) {
    return refuse(fmt::format("'{}' is no command", line));
  }
  w.collective = *known_collective;
  w.dtype = *known_dtype;
  w.op = *known_op;
  plan.mode = mode == "isolated" ? Mode::Isolated : Mode::Streaming;
  return command;
}

// ---- pipes -------------------------------------------------------------------------------------

Result<Pipes> Pipes::create(int ranks) {
  const char* const logs = std::getenv("REGROUP_RUN_DIR");
  const fs::path parent = logs != nullptr ? fs::path(logs) : fs::temp_directory_path();
  std::string directory = (parent / "regroup-perf.XXXXXX").string();
  if (::mkdtemp(directory.data()) == nullptr) {
    return broken(fmt::format("{}: {}", directory, std::strerror(errno)));
  }
  Pipes pipes(directory);
  // Opened for reading too, so that nobody waits for the other end to be there.
  const auto open_pipe = [&](const std::string& name) {
    const std::string path = directory + "/" + name;
    if (::mkfifo(path.c_str(), 0600) != 0) return base::Fd();
    return base::Fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  };
  for (int rank = 0; rank < ranks; ++rank) {
    pipes.commands_.push_back(open_pipe(fmt::format("command.{}", rank)));
    if (!pipes.commands_.back()) return broken(fmt::format("pipe: {}", std::strerror(errno)));
  }
  pipes.result_ = open_pipe("result");
  if (!pipes.result_) return broken(fmt::format("pipe: {}", std::strerror(errno)));
  return pipes;
}

Pipes::~Pipes() { remove_names(); }

void Pipes::remove_names() {
  std::error_code ignored;
  if (!directory_.empty()) fs::remove_all(std::exchange(directory_, ""), ignored);
}

Status Pipes::tell(const std::string& line, int first) {
  for (std::size_t rank = static_cast<std::size_t>(first); rank < commands_.size(); ++rank) {
    if (::write(commands_[rank].get(), line.data(), line.size()) !=
        static_cast<ssize_t>(line.size())) {
      return broken(fmt::format("command pipe of rank {}: {}", rank, std::strerror(errno)));
    }
  }
  return {};
}

Result<std::string> Pipes::answer(int alive) {
  for (;;) {
    if (const auto end = unread_.find('\n'); end != std::string::npos) {
      std::string line = unread_.substr(0, end);
      unread_.erase(0, end + 1);
      return line;
    }
    pollfd watched[2] = {{result_.get(), POLLIN, 0}, {alive, POLLIN, 0}};
    const int timeout_ms = std::chrono::milliseconds(kAnswerTimeout).count();
    const int ready = ::poll(watched, alive >= 0 ? 2 : 1, timeout_ms);
    if (ready < 0 && errno == EINTR) continue;
    if (ready == 0) return broken(fmt::format("no answer within {} s", kAnswerTimeout.count()));
    if ((watched[0].revents & POLLIN) == 0) return broken("it ended");
    char chunk[4096];
    const ssize_t got = ::read(result_.get(), chunk, sizeof chunk);
    if (got <= 0) return broken(fmt::format("result pipe: {}", std::strerror(errno)));
    unread_.append(chunk, static_cast<std::size_t>(got));
  }
}

// ---- a rival's processes -----------------------------------------------------------------------

Result<std::unique_ptr<Rival>> Rival::start(const RivalSpec& spec, const Seating& seating) {
  auto pipes = Pipes::create(seating.ranks);
  if (!pipes) return pipes.error();
  std::vector<std::string> command;
  for (const std::string& word : spec.command) {
    command.push_back(replace_all(replace_all(word, "{n}", std::to_string(seating.ranks)), "{dir}",
                                  pipes->directory()));
  }
  if (command.empty()) return refuse(fmt::format("{}: its description has no command", spec.name));
  std::unique_ptr<Rival> rival(new Rival(spec.name, std::move(*pipes)));
  auto pid = spawn(command, seating.cores);
  if (!pid) return pid.error();
  rival->pid_ = *pid;
  rival->alive_ = base::Fd(static_cast<int>(::syscall(SYS_pidfd_open, *pid, 0)));
  auto line = rival->await_answer();
  if (!line) {
    return broken(
        fmt::format("it did not start: {} ({})", line.error().text(), fmt::join(command, " ")));
  }
  const json ready = json::parse(*line, nullptr, false);
  if (!ready.is_object() || !ready.contains("ready")) {
    return broken(fmt::format("it answered '{}' at its start", *line));
  }
  rival->pipes_.remove_names();
  rival->version_ = ready.value("ready", "");
  return rival;
}

Result<std::string> Rival::await_answer() {
  auto line = pipes_.answer(alive_.get());
  siginfo_t ended{};
  if (line || ::waitid(P_PID, pid_, &ended, WEXITED | WNOHANG | WNOWAIT) != 0 || ended.si_pid == 0)
    return line;
  return ended.si_code == CLD_EXITED
             ? broken(fmt::format("it ended with {}", ended.si_status))
             : broken(fmt::format("it was killed by signal {}", ended.si_status));
}

Result<Block> Rival::run(const Workload& workload, const BlockPlan& plan) {
  if (auto status = pipes_.tell(to_line(workload, plan)); !status) return status;
  auto line = await_answer();
  if (!line) return line.error();
  try {
    const json answer = json::parse(*line);
    if (answer.contains("error")) return Status(Code::Unsupported, answer.at("error"));
    Block block{.us = answer.at("us"),
                .cpu_s = answer.at("cpu_s"),
                .wrong = answer.at("wrong"),
                .checked = answer.at("checked")};
    if (!block.us.empty()) return block;
  } catch (const json::exception&) {
    // As a block without times: it cannot be spoken to.
  }
  return broken(fmt::format("it answered '{}'", *line));
}

Rival::~Rival() {
  if (pid_ < 0) return;
  (void)pipes_.tell("end\n");
  // A launcher that is asked to end takes along the ranks that it put into groups of their own.
  if (!ends_within(kEndTimeout)) {
    (void)::kill(-pid_, SIGTERM);
    (void)ends_within(kEndTimeout);
  }
  (void)::kill(-pid_, SIGKILL);
  (void)::waitpid(pid_, nullptr, 0);
}

bool Rival::ends_within(std::chrono::milliseconds time) const {
  pollfd ended{alive_.get(), POLLIN, 0};
  return alive_ && ::poll(&ended, 1, static_cast<int>(time.count())) == 1;
}

// ---- the other side ----------------------------------------------------------------------------

namespace {

/// Lines of one pipe. Thread safety: none.
class LineReader {
 public:
  explicit LineReader(base::Fd fd) : fd_(std::move(fd)) {}
  /// False at the end.
  bool next(std::string& line) {
    for (;;) {
      if (const auto end = unread_.find('\n'); end != std::string::npos) {
        line = unread_.substr(0, end);
        unread_.erase(0, end + 1);
        return true;
      }
      char chunk[1024];
      const ssize_t got = ::read(fd_.get(), chunk, sizeof chunk);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return false;
      unread_.append(chunk, static_cast<std::size_t>(got));
    }
  }

 private:
  base::Fd fd_;
  std::string unread_;
};

Status put_line(int fd, const json& answer) {
  const std::string line = answer.dump() + "\n";
  std::size_t sent = 0;
  while (sent < line.size()) {
    const ssize_t n = ::write(fd, line.data() + sent, line.size() - sent);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return broken(fmt::format("result pipe: {}", std::strerror(errno)));
    sent += static_cast<std::size_t>(n);
  }
  return {};
}

}  // namespace

Result<int> serve(ProcessGroup group, const std::string& directory, bool answers) {
  const std::string path = fmt::format("{}/command.{}", directory, group.rank());
  base::Fd commands(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!commands) return broken(fmt::format("{}: {}", path, std::strerror(errno)));
  base::Fd result;
  if (answers) result = base::Fd(::open((directory + "/result").c_str(), O_WRONLY | O_CLOEXEC));
  if (answers && !result)
    return broken(fmt::format("{}/result: {}", directory, std::strerror(errno)));
  // Everybody has opened what it reads from, before the first command comes.
  if (auto status = group.barrier(); !status) return status;
  if (answers) {
    if (auto status = put_line(result.get(), {{"ready", "Regroup " REGROUP_VERSION}}); !status) {
      return status;
    }
  }
  LineReader reader(std::move(commands));
  std::string last;
  std::optional<Bench> bench;
  for (std::string line;;) {
    if (!reader.next(line)) return broken("whoever leads the measurement is gone");
    if (line.starts_with("end")) return std::atoi(line.c_str() + 3);
    auto command = parse_line(line);
    if (!command) return command.error();
    command->workload.ranks = group.size();
    // Fresh buffers for a new workload only: all blocks of one measure the same memory.
    const std::string workload = to_line(command->workload, {});
    if (workload != last) bench.emplace(group, command->workload);
    last = workload;
    auto block = bench->run(command->plan);
    if (!block) return block.error();
    if (!answers) continue;
    auto status = put_line(result.get(), {{"us", block->us},
                                          {"cpu_s", block->cpu_s},
                                          {"wrong", block->wrong},
                                          {"checked", block->checked}});
    if (!status) return status;
  }
}

}  // namespace regroup::perf
