/// Writes the binary part of the corpus anew, after a change of the wire form:
/// `regroup-fuzz-seeds CORPUS`. The rest of the corpus is text and written by hand.
#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "control/codec.hpp"
#include "control/codec_samples.hpp"
#include "launcher/wal.hpp"
#include "metrics/beacon_page.hpp"
#include "secure/frame_reader.hpp"
#include "secure/tls_session.hpp"
#include "spi/shared_slots.hpp"
#include "tests/fuzz/targets.hpp"

namespace {

using regroup::control::Bytes;
namespace samples = regroup::control::samples;

class Corpus {
 public:
  explicit Corpus(std::filesystem::path folder) : folder_(std::move(folder)) {}
  void put(const std::string& target, const std::string& name, std::string_view bytes) const {
    std::filesystem::create_directories(folder_ / target);
    std::ofstream file(folder_ / target / name, std::ios::binary);
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  void put(const std::string& target, const std::string& name, const Bytes& bytes) const {
    put(target, name, std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  }

 private:
  std::filesystem::path folder_;
};

template <class Message>
void put_messages(const Corpus& corpus, const std::string& kind,
                  const std::vector<Message>& messages) {
  Bytes stream;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const Bytes bytes = regroup::control::encode(messages[i]).value();
    corpus.put("control_messages", fmt::format("{}_{}", kind, i), bytes);
    if (i < 3) regroup::secure::append_frame(stream, bytes);
  }
  corpus.put("frames", kind, stream);
}

void put_tls(const Corpus& corpus) {
  using namespace regroup::secure;
  const JobSecret secret = JobSecret::make().value();
  const TlsContext agents = TlsContext::make(Role::Agent, secret, "job").value();
  const TlsContext coordinators = TlsContext::make(Role::Coordinator, secret, "job").value();
  TlsSession agent = TlsSession::make(agents, {}).value();
  TlsSession coordinator = TlsSession::make(coordinators, {}).value();
  Bytes hello;
  if (!agent.advance()) return;
  agent.take_output(hello);
  corpus.put("hello", "agent", hello);
  corpus.put("tls", "agent", hello);
  corpus.put("hello", "oversized", std::string_view("\x16\x03\x01\xff\xff\x01", 6));
  corpus.put("hello", "oversized_no_hello", std::string_view("\x16\x03\x01\xff\xff\x02", 6));
  Bytes answer;
  if (!coordinator.feed(hello) || !coordinator.advance()) return;
  coordinator.take_output(answer);
  corpus.put("tls", "coordinator", answer);
}

void put_state(const Corpus& corpus) {
  const std::string path = std::filesystem::temp_directory_path() / "regroup-fuzz-seed";
  std::filesystem::remove(path);
  auto wal = regroup::launcher::Wal::open(path).value();
  const Bytes state = regroup::control::encode(samples::durable_states().back()).value();
  if (!wal.append(state)) return;
  corpus.put("durable_state", "full", state);
  std::ifstream file(path, std::ios::binary);
  const std::string whole{std::istreambuf_iterator<char>(file), {}};
  const std::size_t second = 4096 + (whole.size() - 4096) / 2;
  std::string slots(state.size() + 24, '\0');
  slots += whole.substr(second, state.size() + 24);
  corpus.put("state_file", "one_record", slots);
  std::filesystem::remove(path);
}

void put_memory(const Corpus& corpus) {
  const regroup::spi::ArenaOptions options = regroup::fuzz::kFuzzArena;
  const std::size_t bytes = regroup::spi::arena_bytes(2, options);
  void* const memory = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  const auto slots = regroup::spi::format_arena(memory, bytes, regroup::Epoch{1}, 0, 2, options);
  constexpr std::size_t kHead = 8192;  // what steers others stands there
  if (slots) {
    corpus.put("shared_words", "two_members",
               std::string_view(static_cast<const char*>(memory), std::min(bytes, kHead)));
  }
  std::free(memory);
  const auto page = regroup::metrics::PageMapping::create(regroup::Incarnation{1}).value();
  corpus.put("beacon_page", "fresh",
             std::string_view(reinterpret_cast<const char*>(&page.page()), 1024));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 64;
  const Corpus corpus(argv[1]);
  put_messages(corpus, "rank", samples::rank_messages());
  put_messages(corpus, "to_rank", samples::agent_to_rank());
  put_messages(corpus, "agent", samples::agent_messages());
  put_messages(corpus, "coordinator", samples::coordinator_messages());
  put_tls(corpus);
  put_state(corpus);
  put_memory(corpus);
  return 0;
}
