/// Checks before anything is started, each with a text that says what to do.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "launcher/options.hpp"

namespace regroup::launcher {

/// What this kernel offers.
struct KernelFeatures {
  bool pidfd = true;         ///< Linux 5.3
  bool pidfd_signal = true;  ///< Linux 5.1
  bool memfd_seals = true;   ///< Linux 3.17
  bool robust_futex = true;  ///< CONFIG_FUTEX
};
/// By using each of them once. Threads: the main thread.
[[nodiscard]] KernelFeatures probe_kernel();
/// Names the first missing feature.
[[nodiscard]] Refusal check_kernel(const KernelFeatures& features);

/// Descriptors that the launcher needs for this many processes and groups.
[[nodiscard]] std::uint64_t descriptors_needed(const RunOptions& options);
[[nodiscard]] Refusal check_descriptors(const RunOptions& options, std::uint64_t hard_limit);

/// Makes the directory and proves that files can be made in it.
[[nodiscard]] Refusal check_log_dir(const std::filesystem::path& log_dir);

/// The program as execve takes it, in `path`.
[[nodiscard]] Refusal check_program(const std::string& program, const std::string& search,
                                    std::string& path);

}  // namespace regroup::launcher
