/// Reduction and copy over plain memory: the arithmetic of every collective.
#pragma once

#include <cstddef>
#include <regroup/types.hpp>

namespace regroup::collective {

/// What the operations that scale need; others ignore it.
struct Scaling {
  int divisor = 1;      ///< Avg: number of contributors
  double factor = 1.0;  ///< PremulSum
};

/// out[i] = inputs[0][i] op inputs[1][i] op ..., folded in exactly that order, for i in 0..count-1.
///
/// Floats: f64 and f32 round after each operation; narrower ones are widened to f32, folded there
/// and rounded once, to nearest even. Avg is Sum followed by one division. PremulSum multiplies
/// each input by the factor (rounded to f32 unless the type is f64) and rounds, then is Sum. Min
/// and Max give NaN if any input is NaN and order -0 below +0. A NaN result is always the positive
/// quiet NaN without payload: which payload survives an addition differs between processors. 8-bit
/// floats round as PyTorch's conversion from float does: f8e4m3 has no infinity, so that results
/// beyond 464 in magnitude are NaN, with the result's sign; f8e5m2 gives infinity from 61440 on;
/// NaN is 0x7F in both. Integers wrap modulo 2^n; bool is true for any byte but 0 and stored as 1.
/// An operation that is_defined() says no to is the caller's mistake (asserted). The result's bits
/// depend on the arguments only, not on alignment, position in the buffer or instruction set, as
/// long as the thread uses the default rounding and denormal mode.
///
/// Memory: needs no alignment; `out` may be exactly one of the inputs, other overlap is not
/// allowed. inputs_count >= 1. Threads: any. Never blocks, never allocates.
void reduce(DType type, ReduceOp op, void* out, const void* const* inputs, int inputs_count,
            std::size_t count, const Scaling& scaling = {});

/// Floats of 16 and 8 bits to f32 (`widens`), which is exact, or f32 to them as reduce() rounds.
/// Memory: `out` and `in` do not overlap; alignment, threads, NaN as reduce(). Other types are the
/// caller's mistake.
void convert_f32(DType type, bool widens, void* out, const void* in, std::size_t count);

/// Copies bytes between buffers that do not overlap (or are the same). Threads: any. Never blocks.
void copy(void* out, const void* in, std::size_t bytes);

/// As copy(), of what is unlikely to be read again: `out` is stored past the caches where the
/// processor can, so that its lines are not fetched first and nothing else has to go for them.
void copy_past_caches(void* out, const void* in, std::size_t bytes);

}  // namespace regroup::collective
