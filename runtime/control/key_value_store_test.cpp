#include "control/key_value_store.hpp"

#include <gtest/gtest.h>

namespace regroup::control {
namespace {

using Kind = StoreRequest::Kind;

class KeyValueStoreTest : public ::testing::Test {
 protected:
  std::vector<KeyValueStore::Answer> ask(KeyValueStore::Client client, Kind kind,
                                         std::vector<std::string> keys, std::string value = "",
                                         std::int64_t amount = 0, std::string expected = "") {
    return store_.step(client, {.id = ++id_,
                                .kind = kind,
                                .keys = std::move(keys),
                                .value = std::move(value),
                                .expected = std::move(expected),
                                .amount = amount});
  }
  StoreReply only(const std::vector<KeyValueStore::Answer>& answers) {
    EXPECT_EQ(answers.size(), 1U);
    return answers.empty() ? StoreReply{} : answers[0].reply;
  }
  KeyValueStore store_;
  std::uint64_t id_ = 0;
};

TEST_F(KeyValueStoreTest, GetWaitsUntilTheKeyIsSet) {
  EXPECT_TRUE(ask(1, Kind::Get, {"a"}).empty());
  const auto answers = ask(2, Kind::Set, {"a"}, std::string("x\0y", 3));
  ASSERT_EQ(answers.size(), 2U);
  EXPECT_EQ(answers[0], (KeyValueStore::Answer{2, {.id = 2}}));
  EXPECT_EQ(answers[1], (KeyValueStore::Answer{1, {.id = 1, .value = std::string("x\0y", 3)}}));
  EXPECT_EQ(only(ask(3, Kind::Get, {"a"})).value, std::string("x\0y", 3));
}

TEST_F(KeyValueStoreTest, WaitNeedsAllKeysAtOnce) {
  EXPECT_TRUE(ask(1, Kind::Wait, {"a", "b"}).empty());
  EXPECT_EQ(ask(2, Kind::Set, {"a"}).size(), 1U);
  EXPECT_EQ(only(ask(2, Kind::Erase, {"a"})).number, 1);
  EXPECT_EQ(ask(2, Kind::Add, {"b"}, "", 1).size(), 1U);
  EXPECT_EQ(ask(2, Kind::CompareSet, {"a"}, "new").size(), 2U);
}

TEST_F(KeyValueStoreTest, WhoIsGoneOrGaveUpIsNotAnswered) {
  EXPECT_TRUE(ask(1, Kind::Get, {"a"}).empty());
  EXPECT_TRUE(ask(2, Kind::Get, {"a"}).empty());
  store_.drop(1);
  EXPECT_TRUE(store_.step(2, {.id = id_, .kind = Kind::Cancel}).empty());
  EXPECT_EQ(ask(3, Kind::Set, {"a"}).size(), 1U);
}

TEST_F(KeyValueStoreTest, AddCountsInDecimal) {
  EXPECT_EQ(only(ask(1, Kind::Add, {"n"}, "", 3)).number, 3);
  EXPECT_EQ(only(ask(1, Kind::Add, {"n"}, "", -5)).number, -2);
  EXPECT_EQ(only(ask(1, Kind::Get, {"n"})).value, "-2");
  EXPECT_EQ(only(ask(1, Kind::Set, {"n"}, "2x")).code, Code::Ok);
  EXPECT_EQ(only(ask(1, Kind::Add, {"n"}, "", 1)).code, Code::InvalidArgument);
  EXPECT_EQ(only(ask(1, Kind::Set, {"n"}, "9223372036854775807")).code, Code::Ok);
  EXPECT_EQ(only(ask(1, Kind::Add, {"n"}, "", 1)).code, Code::InvalidArgument);
}

TEST_F(KeyValueStoreTest, CompareSetTakesAnAbsentKeyForAnEmptyOne) {
  EXPECT_EQ(only(ask(1, Kind::CompareSet, {"k"}, "b", 0, "a")).value, "");
  EXPECT_EQ(only(ask(1, Kind::Has, {"k"})).number, 0);
  EXPECT_EQ(only(ask(1, Kind::CompareSet, {"k"}, "a")).number, 1);
  EXPECT_EQ(only(ask(1, Kind::CompareSet, {"k"}, "c", 0, "b")).value, "a");
  EXPECT_EQ(only(ask(1, Kind::CompareSet, {"k"}, "c", 0, "a")).value, "c");
}

TEST_F(KeyValueStoreTest, MemoryIsBounded) {
  const std::string large(KeyValueStore::kValueBytesMax, 'v');
  EXPECT_EQ(only(ask(1, Kind::Set, {"k"}, large + "v")).code, Code::ResourceExhausted);
  EXPECT_EQ(only(ask(1, Kind::Set, {""})).code, Code::InvalidArgument);
  std::size_t kept = 0;
  while (kept < 1000 && only(ask(1, Kind::Set, {std::to_string(kept)}, large)).code == Code::Ok)
    ++kept;
  EXPECT_EQ(kept, KeyValueStore::kBytesMax / (KeyValueStore::kValueBytesMax + 4));
  EXPECT_EQ(only(ask(1, Kind::Count, {})).number, static_cast<std::int64_t>(kept));
  // A key that is there may still change, and what is deleted makes room.
  EXPECT_EQ(only(ask(1, Kind::Set, {"0"}, "small")).code, Code::Ok);
  EXPECT_EQ(only(ask(1, Kind::Erase, {"1"})).number, 1);
  EXPECT_EQ(only(ask(1, Kind::Set, {"k"}, large)).code, Code::Ok);
  for (std::size_t i = 0; i < KeyValueStore::kWaitingMax; ++i)
    EXPECT_TRUE(ask(1, Kind::Get, {"never"}).empty());
  EXPECT_EQ(only(ask(1, Kind::Get, {"never"})).code, Code::ResourceExhausted);
}

}  // namespace
}  // namespace regroup::control
