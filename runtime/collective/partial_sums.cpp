#include "collective/partial_sums.hpp"

#include <algorithm>
#include <cstring>

namespace regroup::collective {
namespace {

/// Elements that are folded at a time where inputs have to be prepared first: they stay in the
/// cache nearest to the core.
constexpr std::size_t kBlock = 512;

struct Block {
  alignas(64) std::byte bytes[kBlock * sizeof(double)];
};

const std::byte* at(const void* of, DType type, std::size_t element) {
  return static_cast<const std::byte*>(of) + element * size_of(type);
}

/// One input as it is added up: in the type of sums, and multiplied if that is to be.
void prepare(DType type, ReduceOp op, std::byte* out, const std::byte* input, std::size_t count,
             const Scaling& scaling) {
  const DType sums = sum_type(type);
  if (sums == type) {
    std::memcpy(out, input, count * size_of(type));
  } else {
    convert_f32(type, true, out, input, count);
  }
  if (op != ReduceOp::PremulSum) return;
  const void* const one[] = {out};
  reduce(sums, op, out, one, 1, count, scaling);
}

/// The same elements of all inputs, one input after the other.
void fold_block(DType type, ReduceOp op, std::byte* out, const void* const* inputs,
                int inputs_count, std::size_t from, std::size_t count, const Scaling& scaling,
                const FoldEnds& ends) {
  const DType sums = sum_type(type);
  const bool adds = op == ReduceOp::PremulSum || op == ReduceOp::Avg;
  const ReduceOp each = adds ? ReduceOp::Sum : op;
  Block sum;
  Block next;
  if (ends.onto_sum) {
    std::memcpy(sum.bytes, at(inputs[0], sums, from), count * size_of(sums));
  } else {
    prepare(type, op, sum.bytes, at(inputs[0], type, from), count, scaling);
  }
  const void* const both[] = {sum.bytes, next.bytes};
  for (int input = 1; input < inputs_count; ++input) {
    prepare(type, op, next.bytes, at(inputs[input], type, from), count, scaling);
    reduce(sums, each, sum.bytes, both, 2, count);
  }
  if (op == ReduceOp::Avg && !ends.goes_on) reduce(sums, op, sum.bytes, both, 1, count, scaling);
  if (sums == type || ends.goes_on) {
    std::memcpy(out, sum.bytes, count * size_of(sums));
  } else {
    convert_f32(type, false, out, sum.bytes, count);
  }
}

}  // namespace

void fold_part(DType type, ReduceOp op, void* out, const void* const* inputs, int inputs_count,
               std::size_t count, const Scaling& scaling, const FoldEnds& ends) {
  const DType sums = sum_type(type);
  const bool at_once = sums == type && op != ReduceOp::PremulSum;
  if (at_once || (!ends.onto_sum && !ends.goes_on)) {
    const bool averages = op == ReduceOp::Avg && ends.goes_on;
    return reduce(type, averages ? ReduceOp::Sum : op, out, inputs, inputs_count, count, scaling);
  }
  const std::size_t out_unit = size_of(ends.goes_on ? sums : type);
  for (std::size_t from = 0; from < count; from += kBlock) {
    fold_block(type, op, static_cast<std::byte*>(out) + from * out_unit, inputs, inputs_count, from,
               std::min(kBlock, count - from), scaling, ends);
  }
}

}  // namespace regroup::collective
