#include "digits.hpp"

#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "digits_text.hpp"

namespace digits {
namespace {

constexpr std::string_view kLevels = "0123456789abcdefg";
constexpr std::size_t kLineLength = kPixels + 2;

[[noreturn]] void damaged(std::size_t line) {
  std::fprintf(stderr, "digits: line %zu of the built-in data is damaged\n", line);
  std::abort();
}

Sample parse(std::string_view line, std::size_t number) {
  if (line.size() != kLineLength || line[kPixels] != ' ') damaged(number);
  Sample sample{};
  for (std::size_t i = 0; i < kPixels; ++i) {
    const auto level = kLevels.find(line[i]);
    if (level == std::string_view::npos) damaged(number);
    sample.pixels[i] = static_cast<float>(level) / 16.0F;
  }
  const char digit = line[kPixels + 1];
  if (digit < '0' || digit > '9') damaged(number);
  sample.digit = static_cast<std::size_t>(digit - '0');
  return sample;
}

}  // namespace

DataSet load() {
  DataSet data;
  std::string_view text(kText);
  for (std::size_t number = 0; !text.empty(); ++number) {
    const auto end = text.find('\n');
    if (end == std::string_view::npos) damaged(number);
    auto& part = number % 5 == 4 ? data.held_out : data.training;
    part.push_back(parse(text.substr(0, end), number));
    text.remove_prefix(end + 1);
  }
  return data;
}

}  // namespace digits
