// Operations of BackendRegroup that give each rank something else: all-to-all, gather, scatter.
// What is said at the top of operations.cpp holds here.
#include <utility>

#include "backend.hpp"

namespace regroup::torch_binding {
namespace {

using c10d::OpType;
using Tensors = BackendRegroup::Tensors;
using Counts = std::vector<std::size_t>;

/// The runtime's elements of each part, where one of torch's may be several bytes of the runtime's.
Counts counts_of(const Tensors& parts) {
  Counts counts;
  for (const auto& part : parts) counts.push_back(to_move(part).count);
  return counts;
}

/// The parts, along the first dimension, that torch's split sizes name; without any: equal ones.
Tensors parts_of(const at::Tensor& whole, const std::vector<std::int64_t>& splits, int size,
                 const char* name) {
  const std::int64_t rows = whole.dim() == 0 ? 1 : whole.size(0);
  std::vector<std::int64_t> wanted = splits;
  if (wanted.empty()) {
    TORCH_CHECK_VALUE(rows % size == 0, "regroup: ", name, ": the first dimension, ", rows,
                      ", cannot be divided among ", size, " ranks; give split sizes");
    wanted.assign(static_cast<std::size_t>(size), rows / size);
  }
  TORCH_CHECK_VALUE(static_cast<int>(wanted.size()) == size, "regroup: ", name, ": ", wanted.size(),
                    " split sizes for ", size, " ranks");
  Tensors parts;
  std::int64_t at = 0;
  for (const std::int64_t count : wanted) {
    TORCH_CHECK_VALUE(count >= 0 && at + count <= rows, "regroup: ", name, ": split sizes ", wanted,
                      " do not fit the first dimension, ", rows);
    parts.push_back(whole.dim() == 0 ? whole : whole.narrow(0, at, count));
    at += count;
  }
  TORCH_CHECK_VALUE(at == rows, "regroup: ", name, ": split sizes ", wanted,
                    " do not fill the first dimension, ", rows);
  return parts;
}

/// `in` and `out` hold the shares for and from all ranks, one behind the other.
Status exchange(ProcessGroup& group, int size, const at::Tensor& in, const Counts& sent,
                const at::Tensor& out, const Counts& received, const OpOptions& options) {
  if (size == 1) {
    out.view({-1}).copy_(in.view({-1}));
    return {};
  }
  const at::Tensor from = share_memory(in, out) ? in.clone() : in;
  const auto elements = to_move(from);
  return group.all_to_all_v(elements.data, sent, out.data_ptr(), received, elements.type, options);
}

/// What a group of one rank sends it receives itself.
void require_balance(int size, const Counts& sent, const Counts& received, const char* name) {
  TORCH_CHECK_VALUE(size > 1 || sent == received, "regroup: ", name,
                    ": what a group of one rank sends is not what it receives");
}

void require_one_type(const Tensors& tensors, at::ScalarType type, const char* name) {
  for (const auto& tensor : tensors) {
    TORCH_CHECK_VALUE(tensor.scalar_type() == type, "regroup: ", name,
                      ": tensors must agree in type; ", tensor.scalar_type(), " stands beside ",
                      type);
  }
}

/// The list that root gives and nobody else; empty on the others.
Tensors list_of_root(const BackendRegroup::TensorLists& lists, bool is_root, int size,
                     const at::Tensor& like, const char* name, const char* what) {
  if (!is_root) {
    TORCH_CHECK_VALUE(lists.empty(), "regroup: ", name, ": only the root gives ", what, " tensors");
    return {};
  }
  return only_list(lists, size, like, name, what);
}

}  // namespace

BackendRegroup::WorkPtr BackendRegroup::alltoall_base(at::Tensor& output, at::Tensor& input,
                                                      std::vector<std::int64_t>& output_splits,
                                                      std::vector<std::int64_t>& input_splits,
                                                      const c10d::AllToAllOptions& opts) {
  static constexpr const char* kName = "all_to_all_single";
  require_usable(output, kName);
  require_usable(input, kName);
  require_one_type({output}, input.scalar_type(), kName);
  Counts sent = counts_of(parts_of(input, input_splits, getSize(), kName));
  Counts received = counts_of(parts_of(output, output_splits, getSize(), kName));
  require_balance(getSize(), sent, received, kName);
  return begin({.type = OpType::ALLTOALL_BASE,
                .name = kName,
                .inputs = {input},
                .outputs = {output},
                .body =
                    [input, output, sent = std::move(sent), received = std::move(received),
                     size = getSize()](ProcessGroup& group, const OpOptions& options) {
                      return exchange(group, size, input, sent, output, received, options);
                    },
                .timeout = timeout_of(opts.timeout),
                .in_background = opts.asyncOp});
}

BackendRegroup::WorkPtr BackendRegroup::alltoall(Tensors& outputs, Tensors& inputs,
                                                 const c10d::AllToAllOptions& opts) {
  static constexpr const char* kName = "all_to_all";
  require_usable(outputs, kName);
  require_usable(inputs, kName);
  TORCH_CHECK_VALUE(static_cast<int>(inputs.size()) == getSize() && inputs.size() == outputs.size(),
                    "regroup: ", kName, " needs ", getSize(), " input and as many output tensors");
  const at::ScalarType type = inputs[0].scalar_type();
  require_one_type(inputs, type, kName);
  require_one_type(outputs, type, kName);
  Counts sent = counts_of(inputs);
  Counts received = counts_of(outputs);
  require_balance(getSize(), sent, received, kName);
  std::int64_t taken = 0;
  for (const auto& output : outputs) taken += output.numel();
  return begin({.type = OpType::ALLTOALL,
                .name = kName,
                .inputs = inputs,
                .outputs = outputs,
                .body =
                    [inputs, outputs, sent = std::move(sent), received = std::move(received), taken,
                     size = getSize()](ProcessGroup& group, const OpOptions& options) {
                      const auto out = at::empty({taken}, outputs[0].options());
                      auto status =
                          exchange(group, size, joined(inputs), sent, out, received, options);
                      if (status) split_into(out, outputs);
                      return status;
                    },
                .timeout = timeout_of(opts.timeout),
                .in_background = opts.asyncOp});
}

BackendRegroup::WorkPtr BackendRegroup::gather(TensorLists& outputs, Tensors& inputs,
                                               const c10d::GatherOptions& opts) {
  static constexpr const char* kName = "gather";
  const at::Tensor input = only(inputs, kName);
  require_rank(opts.rootRank, getSize(), kName);
  const int root = static_cast<int>(opts.rootRank);
  const Tensors parts = list_of_root(outputs, root == getRank(), getSize(), input, kName, "output");
  return begin(
      {.type = OpType::GATHER,
       .name = kName,
       .inputs = {input},
       .outputs = parts,
       .body =
           [input, parts, root, size = getSize()](ProcessGroup& group, const OpOptions& options) {
             if (size == 1) {
               split_into(input.view({-1}), parts);
               return Status();
             }
             at::Tensor whole;
             if (!parts.empty()) whole = at::empty({input.numel() * size}, input.options());
             const auto elements = to_move(input);
             auto status = group.gather(elements.data, parts.empty() ? nullptr : whole.data_ptr(),
                                        elements.count, elements.type, root, options);
             if (status) split_into(whole, parts);
             return status;
           },
       .timeout = timeout_of(opts.timeout),
       .in_background = opts.asyncOp});
}

BackendRegroup::WorkPtr BackendRegroup::scatter(Tensors& outputs, TensorLists& inputs,
                                                const c10d::ScatterOptions& opts) {
  static constexpr const char* kName = "scatter";
  const at::Tensor output = only(outputs, kName);
  require_rank(opts.rootRank, getSize(), kName);
  const int root = static_cast<int>(opts.rootRank);
  const Tensors parts = list_of_root(inputs, root == getRank(), getSize(), output, kName, "input");
  return begin(
      {.type = OpType::SCATTER,
       .name = kName,
       .inputs = parts,
       .outputs = {output},
       .body =
           [output, parts, root, size = getSize()](ProcessGroup& group, const OpOptions& options) {
             const auto whole = parts.empty() ? at::Tensor() : joined(parts);
             if (size == 1) {
               output.view({-1}).copy_(whole);
               return Status();
             }
             const auto elements = to_move(output);
             return group.scatter(parts.empty() ? nullptr : whole.data_ptr(), elements.data,
                                  elements.count, elements.type, root, options);
           },
       .timeout = timeout_of(opts.timeout),
       .in_background = opts.asyncOp});
}

}  // namespace regroup::torch_binding
