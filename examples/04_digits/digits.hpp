/// The handwritten digits of data/README.md, built into the program.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

namespace digits {

inline constexpr std::size_t kPixels = 64;
inline constexpr std::size_t kClasses = 10;

/// One image, pixels from 0 to 1, and what it shows.
struct Sample {
  std::array<float, kPixels> pixels;
  std::size_t digit;
};

struct DataSet {
  std::vector<Sample> training;
  std::vector<Sample> held_out;  ///< every fifth image, never trained on
};

/// Ends the process if the built-in text is damaged.
DataSet load();

}  // namespace digits
