#include "spi/agreement.hpp"

#include <gtest/gtest.h>

namespace regroup::spi {
namespace {

TEST(Agreement, AdvancesUntilWedged) {
  Word word{0};
  EXPECT_TRUE(try_advance(word, 1));
  EXPECT_EQ(wedge(word).number, 1U);
  EXPECT_FALSE(try_advance(word, 2));
  EXPECT_EQ(read(word).number, 1U);
}

TEST(Agreement, NothingIsAnsweredBeforeTheDecision) {
  Word word{0};
  ASSERT_TRUE(try_advance(word, 4));
  wedge(word);
  EXPECT_FALSE(verdict(word, 5).has_value());
  decide(word, 5);
  EXPECT_EQ(verdict(word, 5), true);
  EXPECT_EQ(verdict(word, 6), false);
}

TEST(Agreement, ARestoredWordSaysWhatItsOwnerSaysAndCompletesNothingMore) {
  for (const std::uint64_t scribbled :
       {std::uint64_t{0}, std::uint64_t{1} << 40, kDecidedBit | 9}) {
    Word word{scribbled};
    restore(word, 4);
    EXPECT_EQ(read(word).number, 4U);
    EXPECT_FALSE(read(word).decided);
    EXPECT_FALSE(try_advance(word, 5));
  }
  Word decided{0};
  wedge(decided);
  decide(decided, 3);
  restore(decided, 4);
  EXPECT_EQ(verdict(decided, 4), false) << "a verdict stays";
}

TEST(Agreement, AVerdictOnceToldHolds) {
  Word word{0};
  wedge(word);
  decide(word, 3);
  decide(word, 7);
  EXPECT_EQ(read(word).number, 3U);
}

}  // namespace
}  // namespace regroup::spi
