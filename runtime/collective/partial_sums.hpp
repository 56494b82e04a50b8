/// What the first members of a group come to, and how the others are folded onto it.
#pragma once

#include <cstddef>
#include <regroup/types.hpp>

#include "collective/kernels.hpp"

namespace regroup::collective {

/// In which type a sum that is not complete is passed on: floats that are folded in f32 stay there,
/// so that they are rounded once.
[[nodiscard]] constexpr DType sum_type(DType type) {
  switch (type) {
    case DType::F16:
    case DType::BF16:
    case DType::F8E4M3:
    case DType::F8E5M2: return DType::F32;
    default: return type;
  }
}

/// Bytes of a sum that is not complete, of `bytes` bytes of elements.
[[nodiscard]] inline std::size_t sum_bytes(DType type, std::size_t bytes) {
  return bytes / size_of(type) * size_of(sum_type(type));
}

/// Which part of all contributions is folded.
struct FoldEnds {
  bool onto_sum = false;  ///< the first input is what came before, of sum_type()
  bool goes_on = false;   ///< `out` is of sum_type(), and nothing is divided yet
};

/// As reduce(), of a part of the contributions: a chain of parts, in order, gives the bits of one
/// reduce() over all. Memory, threads: as reduce(); `out` lies apart from all inputs where its type
/// is another one than theirs.
void fold_part(DType type, ReduceOp op, void* out, const void* const* inputs, int inputs_count,
               std::size_t count, const Scaling& scaling, const FoldEnds& ends);

}  // namespace regroup::collective
