// Highway compiles this file once for each instruction set and picks one of them when first called.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "collective/kernels.cpp"
#include "collective/kernels.hpp"

#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <cstdint>
#include <cstring>

#include "base/check.hpp"
#include "collective/kernel_codecs.inl.hpp"

// NOLINTBEGIN(cppcoreguidelines-pro-type-reinterpret-cast): vector loads take typed pointers and no
// alignment.
HWY_BEFORE_NAMESPACE();
namespace regroup::collective::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr std::size_t kCacheLine = 64;

// ---- operations on lanes

struct Sum {
  template <class D, class V>
  static HWY_INLINE V apply(D, V a, V b) {
    return hn::Add(a, b);
  }
};

struct Prod {
  template <class D, class V>
  static HWY_INLINE V apply(D, V a, V b) {
    return hn::Mul(a, b);
  }
};

#if HWY_TARGET == HWY_SCALAR
/// One lane and no way to look into it as narrower lanes, but the language multiplies any width.
struct ProdAny {
  template <class D, class V>
  static HWY_INLINE V apply(D d, V a, V b) {
    const auto product = std::uint64_t{hn::GetLane(a)} * std::uint64_t{hn::GetLane(b)};
    return hn::Set(d, static_cast<hn::TFromD<D>>(product));
  }
};
using ProdU8 = ProdAny;
using ProdU64 = ProdAny;
#else
/// Modulo 2^8: even and odd bytes of each 16-bit lane in turn.
struct ProdU8 {
  template <class D, class V>
  static HWY_INLINE V apply(D d, V a, V b) {
    const hn::RepartitionToWide<D> wide;
    const auto a16 = hn::BitCast(wide, a);
    const auto b16 = hn::BitCast(wide, b);
    const auto even = hn::And(hn::Mul(a16, b16), hn::Set(wide, 0xFFu));
    const auto odd = hn::ShiftLeft<8>(hn::Mul(hn::ShiftRight<8>(a16), hn::ShiftRight<8>(b16)));
    return hn::BitCast(d, hn::Or(even, odd));
  }
};

/// Modulo 2^64 from 32-bit products: low*low + ((high*low + low*high) << 32).
struct ProdU64 {
  template <class D, class V>
  static HWY_INLINE V apply(D, V a, V b) {
    const hn::Repartition<std::uint32_t, D> narrow;
    const auto a_low = hn::BitCast(narrow, a);
    const auto b_low = hn::BitCast(narrow, b);
    const auto a_high = hn::BitCast(narrow, hn::ShiftRight<32>(a));
    const auto b_high = hn::BitCast(narrow, hn::ShiftRight<32>(b));
    const auto crossed = hn::Add(hn::MulEven(a_high, b_low), hn::MulEven(a_low, b_high));
    return hn::Add(hn::MulEven(a_low, b_low), hn::ShiftLeft<32>(crossed));
  }
};
#endif

struct And {
  template <class D, class V>
  static HWY_INLINE V apply(D, V a, V b) {
    return hn::And(a, b);
  }
};

struct Or {
  template <class D, class V>
  static HWY_INLINE V apply(D, V a, V b) {
    return hn::Or(a, b);
  }
};

struct Xor {
  template <class D, class V>
  static HWY_INLINE V apply(D, V a, V b) {
    return hn::Xor(a, b);
  }
};

struct MinInteger {
  template <class D, class V>
  static HWY_INLINE V apply(D, V a, V b) {
    return hn::Min(a, b);
  }
};

struct MaxInteger {
  template <class D, class V>
  static HWY_INLINE V apply(D, V a, V b) {
    return hn::Max(a, b);
  }
};

/// Instruction sets differ in NaN and signed zeros, so both are written out: equal values have
/// equal bits or are zeros, where Or keeps a minus sign and And drops it; a NaN in `a` stays, one
/// in `b` fails every comparison.
struct MinFloat {
  template <class D, class V>
  static HWY_INLINE V apply(D, V a, V b) {
    const V smaller =
        hn::IfThenElse(hn::Eq(a, b), hn::Or(a, b), hn::IfThenElse(hn::Lt(a, b), a, b));
    return hn::IfThenElse(hn::IsNaN(a), a, smaller);
  }
};

struct MaxFloat {
  template <class D, class V>
  static HWY_INLINE V apply(D, V a, V b) {
    const V larger =
        hn::IfThenElse(hn::Eq(a, b), hn::And(a, b), hn::IfThenElse(hn::Gt(a, b), a, b));
    return hn::IfThenElse(hn::IsNaN(a), a, larger);
  }
};

// ---- what happens to a value before it is folded, and to the folded one before it is stored

struct Keep {
  template <class D, class V>
  HWY_INLINE V apply(D, V value) const {
    return value;
  }
};

struct OneNaN {
  template <class D, class V>
  HWY_INLINE V apply(D d, V value) const {
    const hn::RebindToUnsigned<D> du;
    using T = hn::TFromD<D>;
    const auto bits = sizeof(T) == 4 ? 0x7FC00000u : 0x7FF8000000000000u;
    const auto nan =
        hn::BitCast(d, hn::Set(du, static_cast<hn::TFromD<hn::RebindToUnsigned<D>>>(bits)));
    return hn::IfThenElse(hn::IsNaN(value), nan, value);
  }
};

struct Divide {
  int divisor;
  template <class D, class V>
  HWY_INLINE V apply(D d, V value) const {
    const V by = hn::Set(d, static_cast<hn::TFromD<D>>(divisor));
    return OneNaN().apply(d, hn::Div(value, by));
  }
};

struct Scale {
  double factor;
  template <class D, class V>
  HWY_INLINE V apply(D d, V value) const {
    return hn::Mul(value, hn::Set(d, static_cast<hn::TFromD<D>>(factor)));
  }
};

// ---- the loop

struct Arguments {
  std::byte* out;
  const void* const* inputs;
  int inputs_count;
  std::size_t count;
  HWY_INLINE const std::byte* input(int index) const {
    return static_cast<const std::byte*>(inputs[index]);
  }
};

/// The last elements, fewer than one vector: through a padded copy, so that they take the same
/// instructions.
template <class Codec, class Op, class Begin, class Finish>
HWY_INLINE void fold_tail(const Arguments& args, std::size_t offset, std::size_t bytes, Begin begin,
                          Finish finish) {
  const typename Codec::Tag d;
  HWY_ALIGN std::byte padded[HWY_MAX_BYTES] = {};
  std::memcpy(padded, args.input(0) + offset, bytes);
  auto folded = begin.apply(d, Codec::load(padded));
  for (int k = 1; k < args.inputs_count; ++k) {
    std::memcpy(padded, args.input(k) + offset, bytes);
    folded = Op::apply(d, folded, begin.apply(d, Codec::load(padded)));
  }
  Codec::store(finish.apply(d, folded), padded);
  std::memcpy(args.out + offset, padded, bytes);
}

/// One pass over memory whatever the number of inputs; four vectors at a time hide the latency of
/// the operation. Each block is read from all inputs before it is written, which is what lets `out`
/// be one of them.
template <class Codec, class Op, class Begin, class Finish>
void fold(const Arguments& args, Begin begin, Finish finish) {
  const typename Codec::Tag d;
  const auto load = [&](const std::byte* from)
                        HWY_ATTR { return begin.apply(d, Codec::load(from)); };
  const std::size_t step = hn::Lanes(d) * Codec::kBytes;
  const std::size_t bytes = args.count * Codec::kBytes;
  std::size_t at = 0;
  for (; at + 4 * step <= bytes; at += 4 * step) {
    const std::byte* from = args.input(0) + at;
    auto a = load(from);
    auto b = load(from + step);
    auto c = load(from + 2 * step);
    auto e = load(from + 3 * step);
    for (int k = 1; k < args.inputs_count; ++k) {
      from = args.input(k) + at;
      a = Op::apply(d, a, load(from));
      b = Op::apply(d, b, load(from + step));
      c = Op::apply(d, c, load(from + 2 * step));
      e = Op::apply(d, e, load(from + 3 * step));
    }
    Codec::store(finish.apply(d, a), args.out + at);
    Codec::store(finish.apply(d, b), args.out + at + step);
    Codec::store(finish.apply(d, c), args.out + at + 2 * step);
    Codec::store(finish.apply(d, e), args.out + at + 3 * step);
  }
  for (; at + step <= bytes; at += step) {
    auto folded = load(args.input(0) + at);
    for (int k = 1; k < args.inputs_count; ++k) {
      folded = Op::apply(d, folded, load(args.input(k) + at));
    }
    Codec::store(finish.apply(d, folded), args.out + at);
  }
  if (at < bytes) fold_tail<Codec, Op>(args, at, bytes - at, begin, finish);
}

template <class Codec>
HWY_INLINE void fold_float(ReduceOp op, const Arguments& args, const Scaling& scaling) {
  switch (op) {
    case ReduceOp::Sum: return fold<Codec, Sum>(args, Keep(), OneNaN());
    case ReduceOp::Avg: return fold<Codec, Sum>(args, Keep(), Divide{scaling.divisor});
    case ReduceOp::Prod: return fold<Codec, Prod>(args, Keep(), OneNaN());
    case ReduceOp::Min: return fold<Codec, MinFloat>(args, Keep(), OneNaN());
    case ReduceOp::Max: return fold<Codec, MaxFloat>(args, Keep(), OneNaN());
    case ReduceOp::PremulSum: return fold<Codec, Sum>(args, Scale{scaling.factor}, OneNaN());
    case ReduceOp::BAnd:
    case ReduceOp::BOr:
    case ReduceOp::BXor: break;
  }
  REGROUP_UNREACHABLE("operation on floats");
}

/// Whatever their width: bits do not know of elements.
void fold_bits(ReduceOp op, Arguments args, std::size_t element_bytes) {
  using Bytes = Plain<std::uint8_t>;
  args.count *= element_bytes;
  if (op == ReduceOp::BAnd) return fold<Bytes, And>(args, Keep(), Keep());
  if (op == ReduceOp::BOr) return fold<Bytes, Or>(args, Keep(), Keep());
  return fold<Bytes, Xor>(args, Keep(), Keep());
}

/// Sums and products wrap, hence unsigned lanes; `Ordered` is the element type itself.
template <class Ordered, class Unsigned, class Product>
void fold_integer(ReduceOp op, const Arguments& args) {
  switch (op) {
    case ReduceOp::Sum: return fold<Plain<Unsigned>, Sum>(args, Keep(), Keep());
    case ReduceOp::Prod: return fold<Plain<Unsigned>, Product>(args, Keep(), Keep());
    case ReduceOp::Min: return fold<Plain<Ordered>, MinInteger>(args, Keep(), Keep());
    case ReduceOp::Max: return fold<Plain<Ordered>, MaxInteger>(args, Keep(), Keep());
    case ReduceOp::BAnd:
    case ReduceOp::BOr:
    case ReduceOp::BXor: return fold_bits(op, args, sizeof(Ordered));
    case ReduceOp::Avg:
    case ReduceOp::PremulSum: break;
  }
  REGROUP_UNREACHABLE("operation on integers");
}

void fold_bool(ReduceOp op, const Arguments& args) {
  switch (op) {
    case ReduceOp::Sum:
    case ReduceOp::Max:
    case ReduceOp::BOr: return fold<Truth, Or>(args, Keep(), Keep());
    case ReduceOp::Prod:
    case ReduceOp::Min:
    case ReduceOp::BAnd: return fold<Truth, And>(args, Keep(), Keep());
    case ReduceOp::BXor: return fold<Truth, Xor>(args, Keep(), Keep());
    case ReduceOp::Avg:
    case ReduceOp::PremulSum: break;
  }
  REGROUP_UNREACHABLE("operation on bool");
}

void reduce_on_target(DType type, ReduceOp op, void* out, const void* const* inputs,
                      int inputs_count, std::size_t count, const Scaling& scaling) {
  const Arguments args{static_cast<std::byte*>(out), inputs, inputs_count, count};
  switch (type) {
    case DType::F64: return fold_float<Plain<double>>(op, args, scaling);
    case DType::F32: return fold_float<Plain<float>>(op, args, scaling);
    case DType::F16: return fold_float<F16>(op, args, scaling);
    case DType::BF16: return fold_float<Bf16>(op, args, scaling);
    case DType::F8E4M3: return fold_float<Float8<E4M3>>(op, args, scaling);
    case DType::F8E5M2: return fold_float<Float8<E5M2>>(op, args, scaling);
    case DType::I8: return fold_integer<std::int8_t, std::uint8_t, ProdU8>(op, args);
    case DType::U8: return fold_integer<std::uint8_t, std::uint8_t, ProdU8>(op, args);
    case DType::I16: return fold_integer<std::int16_t, std::uint16_t, Prod>(op, args);
    case DType::I32: return fold_integer<std::int32_t, std::uint32_t, Prod>(op, args);
    case DType::U32: return fold_integer<std::uint32_t, std::uint32_t, Prod>(op, args);
    case DType::I64: return fold_integer<std::int64_t, std::uint64_t, ProdU64>(op, args);
    case DType::U64: return fold_integer<std::uint64_t, std::uint64_t, ProdU64>(op, args);
    case DType::Bool: return fold_bool(op, args);
  }
  REGROUP_UNREACHABLE("element type");
}

// Streaming stores take aligned places; whole cache lines of them go out without a read.
void stream_on_target(std::byte* out, const std::byte* in, std::size_t bytes) {
  const hn::ScalableTag<std::uint8_t> d;
  const std::size_t step = hn::Lanes(d);
  const std::size_t off = reinterpret_cast<std::uintptr_t>(out) % kCacheLine;
  const std::size_t head = off == 0 ? 0 : HWY_MIN(bytes, kCacheLine - off);
  std::memcpy(out, in, head);
  std::size_t at = head;
  for (; at + kCacheLine <= bytes; at += kCacheLine) {
    for (std::size_t part = 0; part < kCacheLine; part += step) {
      hn::Stream(load_lanes(d, in + at + part), d,
                 reinterpret_cast<std::uint8_t*>(out + at + part));
    }
  }
  std::memcpy(out + at, in + at, bytes - at);
  hwy::FlushStream();
}

template <class From, class To>
void convert(const Arguments& args) {
  const typename From::Tag d;
  const std::size_t lanes = hn::Lanes(d);
  HWY_ALIGN std::byte padded[2][HWY_MAX_BYTES] = {};
  const auto one = [d](const std::byte* from, std::byte* to)
                       HWY_ATTR { To::store(OneNaN().apply(d, From::load(from)), to); };
  std::size_t at = 0;
  for (; at + lanes <= args.count; at += lanes)
    one(args.input(0) + at * From::kBytes, args.out + at * To::kBytes);
  std::memcpy(padded[0], args.input(0) + at * From::kBytes, (args.count - at) * From::kBytes);
  one(padded[0], padded[1]);
  std::memcpy(args.out + at * To::kBytes, padded[1], (args.count - at) * To::kBytes);
}

void convert_on_target(DType type, bool widens, void* out, const void* in, std::size_t count) {
  const Arguments args{static_cast<std::byte*>(out), &in, 1, count};
  const auto convert_as = [&]<class Codec>(Codec) {
    return widens ? convert<Codec, Plain<float>>(args) : convert<Plain<float>, Codec>(args);
  };
  if (type == DType::F16) return convert_as(F16());
  if (type == DType::BF16) return convert_as(Bf16());
  return type == DType::F8E4M3 ? convert_as(Float8<E4M3>()) : convert_as(Float8<E5M2>());
}

}  // namespace regroup::collective::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
// NOLINTEND(cppcoreguidelines-pro-type-reinterpret-cast)

#if HWY_ONCE
namespace regroup::collective {

HWY_EXPORT(reduce_on_target);
HWY_EXPORT(stream_on_target);
HWY_EXPORT(convert_on_target);

void reduce(DType type, ReduceOp op, void* out, const void* const* inputs, int inputs_count,
            std::size_t count, const Scaling& scaling) {
  REGROUP_ASSERT(inputs_count >= 1);
  HWY_DYNAMIC_DISPATCH(reduce_on_target)(type, op, out, inputs, inputs_count, count, scaling);
}

void convert_f32(DType type, bool widens, void* out, const void* in, std::size_t count) {
  HWY_DYNAMIC_DISPATCH(convert_on_target)(type, widens, out, in, count);
}

void copy(void* out, const void* in, std::size_t bytes) {
  if (bytes != 0 && out != in) std::memcpy(out, in, bytes);
}

void copy_past_caches(void* out, const void* in, std::size_t bytes) {
  if (bytes == 0) return;
  HWY_DYNAMIC_DISPATCH(stream_on_target)
  (static_cast<std::byte*>(out), static_cast<const std::byte*>(in), bytes);
}

}  // namespace regroup::collective
#endif  // HWY_ONCE
