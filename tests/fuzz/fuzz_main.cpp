/// libFuzzer's entry: `regroup-fuzz --target=NAME CORPUS...`. All targets are one program, so that
/// it is linked once.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "tests/fuzz/targets.hpp"

namespace {
const regroup::fuzz::Target* chosen = nullptr;
}

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  constexpr std::string_view kFlag = "--target=";
  for (int i = 1; i < *argc; ++i) {
    const std::string_view word = (*argv)[i];
    if (word.starts_with(kFlag)) chosen = regroup::fuzz::find_target(word.substr(kFlag.size()));
  }
  if (chosen != nullptr) return 0;
  for (const auto& one : regroup::fuzz::kTargets)
    std::fprintf(stderr, "--target=%s\n", one.name.data());
  std::exit(64);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  (void)chosen->run(std::as_bytes(std::span(data, size)));
  return 0;
}
