#include "secure/job_secret.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

namespace regroup::secure {
namespace {

TEST(JobSecret, TravelsByDescriptorAndIsNeverTheSame) {
  const JobSecret one = JobSecret::make().value();
  const JobSecret other = JobSecret::make().value();
  EXPECT_FALSE(std::ranges::equal(one.bytes(), other.bytes()));
  const JobSecret inherited = JobSecret::open(base::Fd(::dup(one.fd()))).value();
  EXPECT_TRUE(std::ranges::equal(one.bytes(), inherited.bytes()));
  EXPECT_NE(::fcntl(inherited.fd(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST(JobSecret, CannotBeChangedByWhoHoldsTheDescriptor) {
  const JobSecret secret = JobSecret::make().value();
  const char zero = 0;
  EXPECT_LT(::pwrite(secret.fd(), &zero, 1, 0), 0);
  EXPECT_NE(::ftruncate(secret.fd(), 4096), 0);
  EXPECT_EQ(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, secret.fd(), 0), MAP_FAILED);
}

TEST(JobSecret, RefusesWhatIsNotOne) {
  base::Fd open_ended(::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(::ftruncate(open_ended.get(), JobSecret::kBytes), 0);
  EXPECT_EQ(JobSecret::open(std::move(open_ended)).error().code(), Code::InvalidArgument);
  base::Fd short_one(::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(::ftruncate(short_one.get(), 16), 0);
  ASSERT_EQ(::fcntl(short_one.get(), F_ADD_SEALS,
                    F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL),
            0);
  EXPECT_EQ(JobSecret::open(std::move(short_one)).error().code(), Code::InvalidArgument);
  EXPECT_EQ(JobSecret::open(base::Fd(::open("/dev/null", O_RDONLY))).error().code(),
            Code::InvalidArgument);
  EXPECT_EQ(JobSecret::open(base::Fd()).error().code(), Code::InvalidArgument);
}

}  // namespace
}  // namespace regroup::secure
