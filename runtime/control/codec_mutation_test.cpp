/// Damaged messages: decoding must answer, never crash, and what it accepts must be a message.
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "control/codec.hpp"
#include "control/codec_samples.hpp"

namespace regroup::control {
namespace {

constexpr std::uint64_t kSeed = 8123;
constexpr std::size_t kInputs = 50'000;  // for each of the five kinds

class Mutator {
 public:
  explicit Mutator(std::uint64_t seed) : random_(seed) {}

  Bytes mutate(const Bytes& original) {
    Bytes bytes = original;
    for (std::uint64_t left = 1 + random_() % 4; left > 0 && !bytes.empty(); --left)
      mutate_once(bytes);
    return bytes;
  }
  std::size_t pick(std::size_t below) { return random_() % below; }

 private:
  void mutate_once(Bytes& bytes) {
    const std::size_t at = pick(bytes.size());
    switch (pick(6)) {
      case 0: bytes[at] ^= static_cast<std::byte>(1U << pick(8)); break;
      case 1: bytes[at] = static_cast<std::byte>(random_()); break;
      case 2: bytes.resize(at); break;
      case 3:
        bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(at), 1 + pick(8), std::byte{0});
        break;
      case 4: write(bytes, at / 4 * 4, kNotable[pick(kNotable.size())]); break;
      // An offset or a length made a little wrong comes closer to being accepted than any other
      // damage.
      case 5: nudge(bytes, at / 4 * 4); break;
    }
  }
  static void write(Bytes& bytes, std::size_t at, std::uint32_t value) {
    std::memcpy(bytes.data() + at, &value, std::min(sizeof(value), bytes.size() - at));
  }
  void nudge(Bytes& bytes, std::size_t at) {
    if (at + 4 > bytes.size()) return;
    std::uint32_t value = 0;
    std::memcpy(&value, bytes.data() + at, 4);
    write(bytes, at, value + static_cast<std::uint32_t>(pick(33)) - 16);
  }

  static constexpr std::array<std::uint32_t, 8> kNotable = {
      0, 1, 4, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFF, 1 << 20};
  std::mt19937_64 random_;
};

template <class M>
void expect_total(const std::vector<M>& messages) {
  std::vector<Bytes> originals;
  for (const M& message : messages) originals.push_back(encode(message).value());
  Mutator mutator(kSeed);
  std::size_t accepted = 0;
  for (std::size_t i = 0; i < kInputs; ++i) {
    const Bytes bytes = mutator.mutate(originals[mutator.pick(originals.size())]);
    const Result<M> decoded = decode<M>(bytes);
    if (!decoded) continue;
    ++accepted;
    const Result<Bytes> again = encode(*decoded);
    ASSERT_TRUE(again) << "seed " << kSeed << ", input " << i << ": " << again.error().to_string();
    const Result<M> back = decode<M>(*again);
    ASSERT_TRUE(back) << "seed " << kSeed << ", input " << i << ": " << back.error().to_string();
    ASSERT_EQ(*back, *decoded) << "seed " << kSeed << ", input " << i;
  }
  // Both sides of the test are alive: some damage hits a plain value, some a structure.
  EXPECT_GT(accepted, kInputs / 50);
  EXPECT_LT(accepted, kInputs * 9 / 10);
}

TEST(CodecMutation, RankMessages) { expect_total(samples::rank_messages()); }
TEST(CodecMutation, AgentToRank) { expect_total(samples::agent_to_rank()); }
TEST(CodecMutation, ShimMessages) { expect_total(samples::shim_messages()); }
TEST(CodecMutation, AgentToShim) { expect_total(samples::agent_to_shim()); }
TEST(CodecMutation, AgentMessages) { expect_total(samples::agent_messages()); }
TEST(CodecMutation, CoordinatorMessages) { expect_total(samples::coordinator_messages()); }
TEST(CodecMutation, DurableStates) { expect_total(samples::durable_states()); }

}  // namespace
}  // namespace regroup::control
