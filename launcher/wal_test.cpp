#include "launcher/wal.hpp"

#include <cstring>
#include <fstream>
#include <string>

#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

namespace regroup::launcher {
namespace {

class WalTest : public ::testing::Test {
 protected:
  WalTest() {
    std::string pattern = ::testing::TempDir() + "/wal_XXXXXX";
    dir_ = ::mkdtemp(pattern.data());
    path_ = dir_ / "state";
  }
  WalTest(const WalTest&) = delete;
  WalTest& operator=(const WalTest&) = delete;
  ~WalTest() override { std::filesystem::remove_all(dir_); }

  static std::span<const std::byte> bytes(std::string_view text) {
    return std::as_bytes(std::span(text));
  }
  static std::string text(const Wal& wal) {
    if (!wal.newest()) return "(none)";
    return {reinterpret_cast<const char*>(wal.newest()->data()), wal.newest()->size()};
  }
  std::string newest() { return text(Wal::open(path_).value()); }
  void write_raw(std::streamoff offset, std::string_view what) {
    std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(offset);
    file.write(what.data(), static_cast<std::streamsize>(what.size()));
  }

  std::filesystem::path dir_;
  std::filesystem::path path_;
};

TEST_F(WalTest, KeepsTheNewestRecord) {
  EXPECT_EQ(newest(), "(none)");
  for (int i = 1; i <= 5; ++i) {
    Wal wal = Wal::open(path_).value();
    EXPECT_EQ(wal.sequence(), static_cast<std::uint64_t>(i - 1));
    ASSERT_TRUE(wal.append(bytes("record " + std::to_string(i))));
    EXPECT_EQ(text(wal), "record " + std::to_string(i));
  }
  EXPECT_EQ(newest(), "record 5");
}

TEST_F(WalTest, ATornWriteOfAnyLengthLeavesTheRecordBefore) {
  // Record 3 goes where record 1 was. Whatever part of it reaches the disk, record 2 must be found.
  std::string whole;
  {
    Wal wal = Wal::open(path_).value();
    ASSERT_TRUE(wal.append(bytes("first")));
    ASSERT_TRUE(wal.append(bytes("second")));
    std::filesystem::copy_file(path_, dir_ / "before");
    ASSERT_TRUE(wal.append(bytes("third, longer")));
  }
  const std::streamoff slot = 4096 + ((1 << 20) + 4096);
  const std::size_t record_bytes = 24 + std::strlen("third, longer");
  {
    std::ifstream file(path_, std::ios::binary);
    file.seekg(slot);
    whole.resize(record_bytes);
    file.read(whole.data(), static_cast<std::streamsize>(record_bytes));
    ASSERT_NE(whole.find("third"), std::string::npos);
  }
  for (std::size_t part = 0; part < record_bytes; ++part) {
    std::filesystem::copy_file(dir_ / "before", path_,
                               std::filesystem::copy_options::overwrite_existing);
    write_raw(slot, std::string_view(whole).substr(0, part));
    ASSERT_EQ(newest(), "second") << "after " << part << " bytes";
  }
  write_raw(slot, whole);
  EXPECT_EQ(newest(), "third, longer");
}

TEST_F(WalTest, AForeignFileIsRefusedByNameAndLeftAlone) {
  std::ofstream(path_) << "somebody's thesis, longer than a header";
  const auto wal = Wal::open(path_);
  ASSERT_FALSE(wal);
  EXPECT_EQ(wal.error().code(), Code::InvalidArgument);
  EXPECT_NE(wal.error().text().find("E-STATE-2"), std::string::npos);
  EXPECT_NE(wal.error().text().find(path_.string()), std::string::npos);
  EXPECT_EQ(std::filesystem::file_size(path_),
            std::strlen("somebody's thesis, longer than a header"));
}

TEST_F(WalTest, AnEmptyOrShortFileIsRefused) {
  std::ofstream(path_).flush();
  EXPECT_FALSE(Wal::open(path_));
  std::filesystem::remove(path_);
  (void)Wal::open(path_).value();
  std::filesystem::resize_file(path_, 5000);
  const auto wal = Wal::open(path_);
  ASSERT_FALSE(wal);
  EXPECT_NE(wal.error().text().find("damaged"), std::string::npos);
}

TEST_F(WalTest, ANewerVersionIsRefusedByName) {
  (void)Wal::open(path_).value();
  write_raw(8, std::string_view("\x07\0\0\0", 4));
  const auto wal = Wal::open(path_);
  ASSERT_FALSE(wal);
  EXPECT_EQ(wal.error().code(), Code::Unsupported);
  EXPECT_NE(wal.error().text().find("layout 7"), std::string::npos);
}

TEST_F(WalTest, OneCoordinatorAtATime) {
  const Wal wal = Wal::open(path_).value();
  const auto second = Wal::open(path_);
  ASSERT_FALSE(second);
  EXPECT_NE(second.error().text().find("E-STATE-4"), std::string::npos);
}

TEST_F(WalTest, ALimitOnFileSizeAfterTheStartDoesNotStopIt) {
  // Stands for a disk that fills up: all space was taken when the file was made.
  EXPECT_EXIT(
      {
        Wal wal = Wal::open(path_).value();
        const std::string longest(Wal::kRecordBytesMax, 'x');
        const bool good = wal.append(bytes(longest)) && wal.append(bytes(longest)) &&
                          std::filesystem::file_size(path_) == 4096 + 2 * ((1 << 20) + 4096);
        ::_exit(good ? 0 : 1);
      },
      ::testing::ExitedWithCode(0), "");
  EXPECT_FALSE(Wal::open(path_).value().append(bytes(std::string(Wal::kRecordBytesMax + 1, 'x'))));
}

TEST_F(WalTest, NoSpaceForTheFileIsSaidAtTheStart) {
  EXPECT_EXIT(
      {
        rlimit limit;
        limit.rlim_cur = limit.rlim_max = 4096;
        ::setrlimit(RLIMIT_FSIZE, &limit);
        ::signal(SIGXFSZ, SIG_IGN);
        const auto wal = Wal::open(path_);
        ::_exit(!wal && wal.error().text().find("E-STATE-1") != std::string::npos &&
                        !std::filesystem::exists(path_) &&
                        !std::filesystem::exists(path_.string() + ".new")
                    ? 0
                    : 1);
      },
      ::testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace regroup::launcher
