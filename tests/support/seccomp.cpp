#include "tests/support/seccomp.hpp"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>

namespace regroup::test {
namespace {

constexpr std::size_t kFilterMax = 64;
constexpr std::size_t kPerCall = 4;

sock_filter load(std::size_t offset) {
  return BPF_STMT(BPF_LD | BPF_W | BPF_ABS, static_cast<std::uint32_t>(offset));
}

}  // namespace

bool refuse_calls(std::initializer_list<RefusedCall> calls) {
  std::array<sock_filter, kFilterMax> filter{};
  if (calls.size() * kPerCall + 2 > filter.size()) return false;
  std::size_t at = 0;
  for (const RefusedCall& call : calls) {
    filter[at++] = load(offsetof(seccomp_data, nr));
    // Jumps count the instructions that they pass over.
    const bool always = call.fourth_min == 0;
    filter[at++] = BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call.number, 0,
                            static_cast<std::uint8_t>(always ? 1 : 3));
    if (!always) {
      // The low half, little-endian: such lengths stay below 4 GiB.
      filter[at++] = load(offsetof(seccomp_data, args) + 3 * sizeof(std::uint64_t));
      filter[at++] = BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, call.fourth_min, 0, 1);
    }
    filter[at++] = BPF_STMT(BPF_RET | BPF_K,
                            SECCOMP_RET_ERRNO | (static_cast<std::uint32_t>(call.error) & 0xffffU));
  }
  filter[at++] = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  const sock_fprog program{static_cast<unsigned short>(at), filter.data()};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

bool can_refuse_calls() {
  const pid_t child = ::fork();
  if (child == 0) {
    const bool done = refuse_calls({{SYS_getppid, ENOSYS}});
    ::_exit(done && ::syscall(SYS_getppid) == -1 && errno == ENOSYS ? 0 : 1);
  }
  int status = -1;
  return ::waitpid(child, &status, 0) == child && status == 0;
}

}  // namespace regroup::test
