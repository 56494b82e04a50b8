/// Whether this test runs under a sanitizer: each process and each case takes ten times as long
/// there, and what is looked at is what the code reaches, not its values. So less is repeated.
#pragma once

namespace regroup::test {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace regroup::test
