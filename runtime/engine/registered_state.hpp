/// What the program registered: tensors that heal, and volatile state that next() saves and
/// restores.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <regroup/status.hpp>

namespace regroup::engine {

/// A named range of the program's memory; not owned.
struct Tensor {
  std::string name;
  std::byte* data = nullptr;
  std::size_t bytes = 0;
};

/// Thread safety: the program's thread only. Registration ends with seal(); errors of add() are
/// kept for it, so that registrations can be chained.
class RegisteredState {
 public:
  void add(std::string_view name, void* data, std::size_t bytes) {
    insert(tensors_, name, data, bytes);
  }
  void add_volatile(std::string_view name, void* data, std::size_t bytes) {
    insert(volatiles_, name, data, bytes);
  }

  /// Ends registration. The first error of any add(), if there was one.
  Status seal();

  [[nodiscard]] std::span<const Tensor> tensors() const { return tensors_; }
  [[nodiscard]] std::size_t volatile_bytes() const;
  /// Equal on all ranks that registered the same names and sizes in the same order.
  [[nodiscard]] std::uint64_t layout_digest() const;
  /// True when the range lies inside one registered tensor: heal brings its content anyway.
  [[nodiscard]] bool covers(const void* data, std::size_t bytes) const;
  /// `to` and `from` hold volatile_bytes().
  void save_volatile(std::byte* to) const;
  void restore_volatile(const std::byte* from) const;

 private:
  void insert(std::vector<Tensor>& list, std::string_view name, void* data, std::size_t bytes);

  std::vector<Tensor> tensors_;
  std::vector<Tensor> volatiles_;
  bool sealed_ = false;
  Status error_;
};

}  // namespace regroup::engine
