#include "spi/operation.hpp"

#include <fmt/format.h>

#include <bit>

namespace regroup::spi {

const char* name(OpKind kind) {
  switch (kind) {
    case OpKind::AllReduce: return "all_reduce";
    case OpKind::Reduce: return "reduce";
    case OpKind::Broadcast: return "broadcast";
    case OpKind::AllGather: return "all_gather";
    case OpKind::ReduceScatter: return "reduce_scatter";
    case OpKind::Barrier: return "barrier";
    case OpKind::AllGatherV: return "all_gather_v";
    case OpKind::ReduceScatterV: return "reduce_scatter_v";
    case OpKind::AllToAll: return "all_to_all";
    case OpKind::AllToAllV: return "all_to_all_v";
    case OpKind::Gather: return "gather";
    case OpKind::Scatter: return "scatter";
    case OpKind::GatherV: return "gather_v";
    case OpKind::ScatterV: return "scatter_v";
    case OpKind::Coalesced: return "coalesced";
  }
  return "?";
}

const char* name(DType type) {
  switch (type) {
    case DType::F64: return "f64";
    case DType::F32: return "f32";
    case DType::F16: return "f16";
    case DType::BF16: return "bf16";
    case DType::I32: return "i32";
    case DType::I64: return "i64";
    case DType::U8: return "u8";
    case DType::F8E4M3: return "f8e4m3";
    case DType::F8E5M2: return "f8e5m2";
    case DType::I8: return "i8";
    case DType::I16: return "i16";
    case DType::U32: return "u32";
    case DType::U64: return "u64";
    case DType::Bool: return "bool";
  }
  return "?";
}

const char* name(ReduceOp op) {
  switch (op) {
    case ReduceOp::Sum: return "sum";
    case ReduceOp::Avg: return "avg";
    case ReduceOp::Prod: return "prod";
    case ReduceOp::Min: return "min";
    case ReduceOp::Max: return "max";
    case ReduceOp::BAnd: return "band";
    case ReduceOp::BOr: return "bor";
    case ReduceOp::BXor: return "bxor";
    case ReduceOp::PremulSum: return "premul_sum";
  }
  return "?";
}

std::string describe(const OpDescriptor& d) {
  if (d.kind == OpKind::Barrier) return name(d.kind);
  if (d.kind == OpKind::Coalesced)
    return fmt::format("{} coalesced operations with hash {:016x}", d.count, d.detail);
  std::string text = d.kind == OpKind::AllToAllV
                         ? fmt::format("{} of {}", name(d.kind), name(d.dtype))
                         : fmt::format("{} of {} {}", name(d.kind), d.count, name(d.dtype));
  const bool counts = has_counts(d.kind) && d.kind != OpKind::AllToAllV;
  if (reduces(d.kind)) text += fmt::format(", {}", name(d.op));
  if (d.op == ReduceOp::PremulSum && !counts)
    text += fmt::format(" by {}", std::bit_cast<double>(d.detail));
  if (!is_symmetric(d.kind)) text += fmt::format(", root {}", d.root);
  if (counts) text += fmt::format(", counts with hash {:016x}", d.detail);
  return text;
}

}  // namespace regroup::spi
