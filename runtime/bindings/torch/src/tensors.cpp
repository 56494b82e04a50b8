#include "tensors.hpp"

#include <string>

namespace regroup::torch_binding {
namespace {

std::optional<DType> native(at::ScalarType type) {
  switch (type) {
    case at::kDouble: return DType::F64;
    case at::kFloat: return DType::F32;
    case at::kHalf: return DType::F16;
    case at::kBFloat16: return DType::BF16;
    case at::kInt: return DType::I32;
    case at::kLong: return DType::I64;
    case at::kByte: return DType::U8;
    case at::kChar: return DType::I8;
    case at::kShort: return DType::I16;
    case at::kUInt32: return DType::U32;
    case at::kUInt64: return DType::U64;
    case at::kBool: return DType::Bool;
    case at::kFloat8_e4m3fn: return DType::F8E4M3;
    case at::kFloat8_e5m2: return DType::F8E5M2;
    default: return std::nullopt;
  }
}

const char* name_of(c10d::ReduceOp::RedOpType op) {
  using enum c10d::ReduceOp::RedOpType;
  switch (op) {
    case SUM: return "SUM";
    case AVG: return "AVG";
    case PRODUCT: return "PRODUCT";
    case MIN: return "MIN";
    case MAX: return "MAX";
    case BAND: return "BAND";
    case BOR: return "BOR";
    case BXOR: return "BXOR";
    case PREMUL_SUM: return "PREMUL_SUM";
    case UNUSED: break;
  }
  return "?";
}

std::optional<ReduceOp> native(c10d::ReduceOp::RedOpType op) {
  using enum c10d::ReduceOp::RedOpType;
  switch (op) {
    case SUM: return ReduceOp::Sum;
    case AVG: return ReduceOp::Avg;
    case PRODUCT: return ReduceOp::Prod;
    case MIN: return ReduceOp::Min;
    case MAX: return ReduceOp::Max;
    case BAND: return ReduceOp::BAnd;
    case BOR: return ReduceOp::BOr;
    case BXOR: return ReduceOp::BXor;
    case PREMUL_SUM: return ReduceOp::PremulSum;
    case UNUSED: break;
  }
  return std::nullopt;
}

}  // namespace

void require_usable(const at::Tensor& tensor, std::string_view operation) {
  TORCH_CHECK_VALUE(tensor.defined(), "regroup: ", operation, ": the tensor is undefined");
  TORCH_CHECK_VALUE(tensor.layout() == at::kStrided, "regroup: ", operation, " does not support ",
                    tensor.layout(), " tensors; convert it with .to_dense() first");
  TORCH_CHECK_VALUE(tensor.device().is_cpu(), "regroup: ", operation, " was given a tensor on ",
                    tensor.device(),
                    "; this build of regroup.torch moves tensors in host memory "
                    "only: use .cpu() or another backend for that device");
  TORCH_CHECK_VALUE(tensor.is_contiguous(), "regroup: ", operation,
                    " needs contiguous tensors; this one has sizes ", tensor.sizes(),
                    " and strides ", tensor.strides(), ": call .contiguous() first");
}

void require_usable(const std::vector<at::Tensor>& tensors, std::string_view operation) {
  TORCH_CHECK_VALUE(!tensors.empty(), "regroup: ", operation, ": the list of tensors is empty");
  for (const auto& tensor : tensors) require_usable(tensor, operation);
}

at::Tensor& only(std::vector<at::Tensor>& tensors, std::string_view operation) {
  TORCH_CHECK_VALUE(tensors.size() == 1, "regroup: ", operation,
                    " takes one tensor a call, it was given ", tensors.size());
  require_usable(tensors[0], operation);
  return tensors[0];
}

Elements to_move(const at::Tensor& tensor) {
  if (const auto type = native(tensor.scalar_type()))
    return {tensor.data_ptr(), static_cast<std::size_t>(tensor.numel()), *type};
  return {tensor.data_ptr(), tensor.nbytes(), DType::U8};
}

Elements to_reduce(const at::Tensor& tensor, const c10d::ReduceOp& op, std::string_view operation) {
  (void)reduction(op, tensor.scalar_type(), operation);
  return {tensor.data_ptr(), static_cast<std::size_t>(tensor.numel()),
          *native(tensor.scalar_type())};
}

ReduceOp reduction(const c10d::ReduceOp& op, at::ScalarType type, std::string_view operation) {
  const auto ours = native(type);
  const auto mapped = native(op.op_);
  TORCH_CHECK_NOT_IMPLEMENTED(ours.has_value(), "Backend regroup does not support ", operation,
                              " of ", type);
  const bool divides_integers = mapped == ReduceOp::Avg && at::isIntegralType(type, true);
  TORCH_CHECK_VALUE(!divides_integers, "regroup: ", operation,
                    ": the average of integers is not defined; use SUM and divide");
  TORCH_CHECK_NOT_IMPLEMENTED(mapped.has_value() && is_defined(*mapped, *ours),
                              "Backend regroup does not support ", operation, " with ReduceOp.",
                              name_of(op.op_), " of ", type);
  return *mapped;
}

double factor_of(const c10d::ReduceOp& op) {
  if (op.op_ != c10d::ReduceOp::PREMUL_SUM) return 1;
  const auto* const given = dynamic_cast<const c10d::PreMulSumSupplement*>(op.supplement_.get());
  TORCH_CHECK_VALUE(given != nullptr, "regroup: ReduceOp.PREMUL_SUM came without its factor");
  return given->tensor_factor.defined() ? given->tensor_factor.item<double>()
                                        : given->double_factor;
}

void require_rank(std::int64_t rank, int size, std::string_view operation) {
  TORCH_CHECK_VALUE(rank >= 0 && rank < size, "regroup: ", operation, ": rank ", rank,
                    " is not in this group of ", size);
}

bool share_memory(const at::Tensor& a, const at::Tensor& b) {
  const auto* const a0 = static_cast<const char*>(a.data_ptr());
  const auto* const b0 = static_cast<const char*>(b.data_ptr());
  return a0 < b0 + b.nbytes() && b0 < a0 + a.nbytes();
}

void require_like(const std::vector<at::Tensor>& tensors, std::int64_t numel, at::ScalarType type,
                  std::string_view operation) {
  for (const auto& tensor : tensors) {
    TORCH_CHECK_VALUE(
        tensor.scalar_type() == type && tensor.numel() == numel, "regroup: ", operation,
        ": tensors must agree in type and number of elements; one has ", tensor.numel(), " of ",
        tensor.scalar_type(), ", expected are ", numel, " of ", type);
  }
}

const std::vector<at::Tensor>& only_list(const std::vector<std::vector<at::Tensor>>& lists,
                                         int size, const at::Tensor& one,
                                         std::string_view operation, std::string_view what) {
  TORCH_CHECK_VALUE(lists.size() == 1 && static_cast<int>(lists[0].size()) == size,
                    "regroup: ", operation, " needs one list of ", size, " ", what, " tensors");
  require_usable(lists[0], operation);
  require_like(lists[0], one.numel(), one.scalar_type(), operation);
  return lists[0];
}

at::Tensor joined(const std::vector<at::Tensor>& tensors) {
  std::vector<at::Tensor> parts;
  parts.reserve(tensors.size());
  for (const auto& tensor : tensors) parts.push_back(tensor.reshape({-1}));
  return at::cat(parts);
}

void split_into(const at::Tensor& flat, const std::vector<at::Tensor>& tensors) {
  std::int64_t at = 0;
  for (const auto& tensor : tensors) {
    tensor.view({-1}).copy_(flat.narrow(0, at, tensor.numel()));
    at += tensor.numel();
  }
}

}  // namespace regroup::torch_binding
