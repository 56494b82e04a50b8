/// Reduction and copy over plain memory: the arithmetic of every collective.
#pragma once

#include <cstddef>
#include <regroup/types.hpp>

namespace regroup::collective {

/// out[i] = inputs[0][i] op inputs[1][i] op ..., folded in exactly that order, for i in 0..count-1.
///
/// Floats: f64 and f32 round after each operation; f16 and bf16 are widened to f32, folded there
/// and rounded once, to nearest even. Avg is Sum followed by one division by `divisor`, which other
/// operations ignore. Min and Max give NaN if any input is NaN and order -0 below +0. A NaN result
/// is always the positive quiet NaN without payload: which payload survives an addition differs
/// between processors. Integers wrap modulo 2^n; Avg of integers is the caller's mistake
/// (asserted). The result's bits depend on the arguments only, not on alignment, position in the
/// buffer or instruction set, as long as the thread uses the default rounding and denormal mode.
///
/// Memory: needs no alignment; `out` may be exactly one of the inputs, other overlap is not
/// allowed. inputs_count >= 1. Threads: any. Never blocks, never allocates.
void reduce(DType type, ReduceOp op, void* out, const void* const* inputs, int inputs_count,
            std::size_t count, int divisor);

/// Copies bytes between buffers that do not overlap (or are the same). Threads: any. Never blocks.
void copy(void* out, const void* in, std::size_t bytes);

}  // namespace regroup::collective
