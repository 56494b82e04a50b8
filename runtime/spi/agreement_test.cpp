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

TEST(Agreement, AVerdictOnceToldHolds) {
  Word word{0};
  wedge(word);
  decide(word, 3);
  decide(word, 7);
  EXPECT_EQ(read(word).number, 3U);
}

}  // namespace
}  // namespace regroup::spi
