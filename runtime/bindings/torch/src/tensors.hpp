/// What of a tensor the runtime needs, and what it refuses.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include <regroup/types.hpp>

#include "torch_headers.hpp"

namespace regroup::torch_binding {

/// Elements of a contiguous tensor in host memory.
struct Elements {
  void* data = nullptr;
  std::size_t count = 0;
  DType type = DType::U8;
};

/// Throws (ValueError, NotImplementedError) unless the tensor is dense, contiguous and in host
/// memory; the text names what is wrong and what to do.
void require_usable(const at::Tensor& tensor, std::string_view operation);
void require_usable(const std::vector<at::Tensor>& tensors, std::string_view operation);
/// The only tensor of a list that c10d keeps for historical reasons.
at::Tensor& only(std::vector<at::Tensor>& tensors, std::string_view operation);

/// For moving: any element type, as bytes where the runtime has no such type.
Elements to_move(const at::Tensor& tensor);
/// For reducing. Throws when the runtime cannot reduce this type with this operation.
Elements to_reduce(const at::Tensor& tensor, const c10d::ReduceOp& op, std::string_view operation);
/// The runtime's operation for a tensor of this type. Throws NotImplementedError.
ReduceOp reduction(const c10d::ReduceOp& op, at::ScalarType type, std::string_view operation);

/// What PREMUL_SUM multiplies by; 1 for every other operation.
double factor_of(const c10d::ReduceOp& op);

/// Throws ValueError unless a group of `size` has this rank.
void require_rank(std::int64_t rank, int size, std::string_view operation);
[[nodiscard]] bool share_memory(const at::Tensor& a, const at::Tensor& b);

/// Throws ValueError unless the tensors have `numel` elements of this type each.
void require_like(const std::vector<at::Tensor>& tensors, std::int64_t numel, at::ScalarType type,
                  std::string_view operation);

/// The only list of lists that c10d keeps for historical reasons: `size` tensors, usable and each
/// like `one`. `what` they are: "input". Throws ValueError.
const std::vector<at::Tensor>& only_list(const std::vector<std::vector<at::Tensor>>& lists,
                                         int size, const at::Tensor& one,
                                         std::string_view operation, std::string_view what);

/// One contiguous tensor with the elements of all, one behind the other.
at::Tensor joined(const std::vector<at::Tensor>& tensors);
/// The reverse: copies the parts of `flat` into the tensors.
void split_into(const at::Tensor& flat, const std::vector<at::Tensor>& tensors);

}  // namespace regroup::torch_binding
