#include "transports/shm/arena.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

namespace regroup::shm {
namespace {

TEST(ShmArena, IsSharedByEachMappingOfItsDescriptor) {
  const Arena made = make_arena(Epoch(5), 2, 3).value();
  const Arena opened = open_arena(made.fd.get(), Epoch(5), 2).value();
  EXPECT_NE(opened.mapping.data(), made.mapping.data());
  EXPECT_EQ(opened.slots.members(), 3);
  made.slots.line(1, 4).turn = 4;
  EXPECT_EQ(opened.slots.line(1, 4).turn.load(), 4U);
}

TEST(ShmArena, NobodyCanChangeItsSize) {
  const Arena made = make_arena(Epoch(5), 2, 3).value();
  EXPECT_NE(::ftruncate(made.fd.get(), 4096), 0);
  EXPECT_NE(::ftruncate(made.fd.get(), 1 << 30), 0);
  EXPECT_NE(::fcntl(made.fd.get(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST(ShmArena, RefusesWhatIsNotTheArenaItAskedFor) {
  const Arena made = make_arena(Epoch(5), 2, 3).value();
  EXPECT_EQ(open_arena(made.fd.get(), Epoch(6), 2).error().code(), Code::InvalidArgument);
  const base::Fd unsealed(::memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(::ftruncate(unsealed.get(), 1 << 20), 0);
  EXPECT_EQ(open_arena(unsealed.get(), Epoch(5), 2).error().text(),
            "arena: the descriptor's size is not sealed");
  const Memory other = make_memory("regroup-test", 1 << 20).value();
  EXPECT_EQ(open_arena(other.fd.get(), Epoch(5), 2).error().text(), "arena: magic is 0x0");
}

TEST(ShmArena, ScarceMemoryIsSaidAtOnce) {
  fail_next_reservations(1);
  const Status refused = make_arena(Epoch(5), 2, 3).error();
  EXPECT_EQ(refused.code(), Code::ResourceExhausted);
  EXPECT_NE(refused.text().find("No space left on device"), std::string::npos) << refused.text();
  EXPECT_TRUE(make_arena(Epoch(5), 2, 3));
}

TEST(ShmArena, AForkedChildHasNoMappingOfIt) {
  const Arena made = make_arena(Epoch(5), 2, 3).value();
  const pid_t child = ::fork();
  if (child == 0) {
    unsigned char resident = 0;
    // mincore says ENOMEM for addresses where nothing is mapped.
    ::_exit(::mincore(made.mapping.data(), 4096, &resident) == 0 ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace regroup::shm
