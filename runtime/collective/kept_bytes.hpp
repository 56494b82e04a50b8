/// Memory for what an operation may have to put back.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>

namespace regroup::collective {

/// Grows and is used again by the next operation, so that its pages are made once; in huge pages
/// where it is large. Thread safety: one thread at a time.
class KeptBytes {
 public:
  /// At least so many bytes, aligned for any store. What was there before may be gone.
  void reserve(std::size_t bytes);
  [[nodiscard]] std::byte* data() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  std::unique_ptr<std::byte[], Free> memory_;
  std::size_t bytes_ = 0;
};

}  // namespace regroup::collective
