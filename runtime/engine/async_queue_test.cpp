#include "engine/async_queue.hpp"

#include <gtest/gtest.h>

#include <latch>
#include <vector>

namespace regroup::engine {
namespace {

TEST(AsyncQueue, RunsInOrderAndFinishesWhatIsQueued) {
  std::vector<int> done;
  AsyncQueue queue;
  for (int i = 0; i < 100; ++i) queue.submit([&done, i] { done.push_back(i); });
  queue.finish();
  ASSERT_EQ(done.size(), 100U);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(done[static_cast<std::size_t>(i)], i);
}

TEST(AsyncQueue, OneThatWaitsDoesNotHoldAnotherUp) {
  std::latch reached(1);
  AsyncQueue first, second;
  first.submit([&] { reached.wait(); });
  second.submit([&] { reached.count_down(); });
  first.finish();
  second.finish();
}

TEST(AsyncQueue, KnowsItsThreads) {
  bool inside = false;
  AsyncQueue queue;
  queue.submit([&] { inside = AsyncQueue::is_this_thread(); });
  queue.finish();
  EXPECT_TRUE(inside);
  EXPECT_FALSE(AsyncQueue::is_this_thread());
}

}  // namespace
}  // namespace regroup::engine
