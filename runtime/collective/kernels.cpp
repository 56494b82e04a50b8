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

// NOLINTBEGIN(cppcoreguidelines-pro-type-reinterpret-cast): vector loads take typed pointers and no
// alignment.
HWY_BEFORE_NAMESPACE();
namespace regroup::collective::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// AVX2 and above convert binary16 in hardware, with the same rounding as the integer version.
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2
constexpr bool kNativeHalf = true;
#else
constexpr bool kNativeHalf = false;
#endif

constexpr std::size_t kCacheLine = 64;

// ---- codecs: how elements in memory become lanes

/// One vector from or to memory of any alignment.
template <class D>
HWY_INLINE hn::Vec<D> load_lanes(D d, const std::byte* from) {
  using T = hn::TFromD<D>;
#if HWY_TARGET == HWY_SCALAR  // its LoadU is a plain dereference
  T lane;
  std::memcpy(&lane, from, sizeof lane);
  return hn::Set(d, lane);
#else
  return hn::LoadU(d, reinterpret_cast<const T*>(from));
#endif
}

template <class D>
HWY_INLINE void store_lanes([[maybe_unused]] D d, hn::Vec<D> value, std::byte* to) {
  using T = hn::TFromD<D>;
#if HWY_TARGET == HWY_SCALAR
  const T lane = hn::GetLane(value);
  std::memcpy(to, &lane, sizeof lane);
#else
  hn::StoreU(value, d, reinterpret_cast<T*>(to));
#endif
}

/// A byte of any value but 0 is true; true is stored as 1.
struct Truth {
  using Tag = hn::ScalableTag<std::uint8_t>;
  using Vec = hn::Vec<Tag>;
  static constexpr std::size_t kBytes = 1;
  static HWY_INLINE Vec load(const std::byte* from) {
    return hn::Min(load_lanes(Tag(), from), hn::Set(Tag(), std::uint8_t{1}));
  }
  static HWY_INLINE void store(Vec value, std::byte* to) { store_lanes(Tag(), value, to); }
};

template <class T>
struct Plain {
  using Tag = hn::ScalableTag<T>;
  using Vec = hn::Vec<Tag>;
  static constexpr std::size_t kBytes = sizeof(T);
  static HWY_INLINE Vec load(const std::byte* from) { return load_lanes(Tag(), from); }
  static HWY_INLINE void store(Vec value, std::byte* to) { store_lanes(Tag(), value, to); }
};

using TagF32 = hn::ScalableTag<float>;
using TagU32 = hn::RebindToUnsigned<TagF32>;
using TagI32 = hn::RebindToSigned<TagF32>;
using TagU16 = hn::Rebind<std::uint16_t, TagF32>;
using TagU8 = hn::Rebind<std::uint8_t, TagF32>;
using VecF32 = hn::Vec<TagF32>;
using VecU32 = hn::Vec<TagU32>;

/// Half a vector of 16-bit words, each in a 32-bit lane.
HWY_INLINE VecU32 load_words(const std::byte* from) {
  return hn::PromoteTo(TagU32(), load_lanes(TagU16(), from));
}

/// Lanes are below 2^16, so that saturation never happens.
HWY_INLINE void store_words(VecU32 lanes, std::byte* to) {
  const auto words = hn::DemoteTo(TagU16(), hn::BitCast(TagI32(), lanes));
  store_lanes(TagU16(), words, to);
}

/// A quarter of a vector of bytes, each in a 32-bit lane; back again below 2^8.
HWY_INLINE VecU32 load_bytes(const std::byte* from) {
  return hn::PromoteTo(TagU32(), load_lanes(TagU8(), from));
}
HWY_INLINE void store_bytes(VecU32 lanes, std::byte* to) {
  store_lanes(TagU8(), hn::DemoteTo(TagU8(), hn::BitCast(TagI32(), lanes)), to);
}

struct Bf16 {
  using Tag = TagF32;
  static constexpr std::size_t kBytes = 2;
  static HWY_INLINE VecF32 load(const std::byte* from) {
    return hn::BitCast(TagF32(), hn::ShiftLeft<16>(load_words(from)));
  }
  /// Round to nearest even: adding 0x7FFF, and one more when the kept part is odd, carries exactly
  /// when it must. The only NaN that comes here, 0x7FC00000, stays what it is; infinity too.
  static HWY_INLINE void store(VecF32 value, std::byte* to) {
    const TagU32 d;
    const VecU32 bits = hn::BitCast(d, value);
    const VecU32 odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d, 1u));
    store_words(hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(d, 0x7FFFu)))), to);
  }
};

struct F16Native {
  using Tag = TagF32;
  using TagF16 = hn::Rebind<hwy::float16_t, TagF32>;
  static constexpr std::size_t kBytes = 2;
  static HWY_INLINE VecF32 load(const std::byte* from) {
    return hn::PromoteTo(TagF32(),
                         hn::LoadU(TagF16(), reinterpret_cast<const hwy::float16_t*>(from)));
  }
  static HWY_INLINE void store(VecF32 value, std::byte* to) {
    hn::StoreU(hn::DemoteTo(TagF16(), value), TagF16(), reinterpret_cast<hwy::float16_t*>(to));
  }
};

struct F16Integer {
  using Tag = TagF32;
  static constexpr std::size_t kBytes = 2;
  /// Exponent and mantissa move to their place in binary32; the product corrects the bias
  /// (2^(127-15)) and is exact, subnormals included. Infinity and NaN would come out as large
  /// numbers and get their exponent set instead.
  static HWY_INLINE VecF32 load(const std::byte* from) {
    const TagU32 d;
    const TagF32 df;
    const VecU32 half = load_words(from);
    const VecU32 sign = hn::ShiftLeft<16>(hn::And(half, hn::Set(d, 0x8000u)));
    const VecU32 moved = hn::ShiftLeft<13>(hn::And(half, hn::Set(d, 0x7FFFu)));
    const VecU32 rebased = hn::BitCast(d, hn::Mul(hn::BitCast(df, moved), hn::Set(df, 0x1p112F)));
    const auto special =
        hn::Gt(hn::BitCast(TagI32(), moved), hn::Set(TagI32(), (0x7C00 << 13) - 1));
    const VecU32 infinite = hn::Or(moved, hn::Set(d, 0x7F800000u));
    const auto magnitude = hn::IfThenElse(hn::RebindMask(d, special), infinite, rebased);
    return hn::BitCast(df, hn::Or(sign, magnitude));
  }
  /// Normal results round as in Bf16. Below 2^-14 the addition of 0.5 aligns the binary point so
  /// that the processor itself rounds to a multiple of 2^-24, the step of half's subnormals.
  static HWY_INLINE void store(VecF32 value, std::byte* to) {
    const TagU32 d;
    const TagI32 di;
    const TagF32 df;
    const VecU32 bits = hn::BitCast(d, value);
    const VecU32 sign = hn::And(hn::ShiftRight<16>(bits), hn::Set(d, 0x8000u));
    const VecU32 magnitude = hn::And(bits, hn::Set(d, 0x7FFFFFFFu));
    const auto ordered = hn::BitCast(di, magnitude);

    const VecU32 odd = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(d, 1u));
    const VecU32 bias = hn::Set(d, 0xFFFu - (112u << 23));
    const VecU32 normal = hn::ShiftRight<13>(hn::Add(magnitude, hn::Add(odd, bias)));
    const VecU32 aligned = hn::BitCast(d, hn::Add(hn::BitCast(df, magnitude), hn::Set(df, 0.5F)));
    const VecU32 subnormal = hn::Sub(aligned, hn::Set(d, 0x3F000000u));

    const auto tiny = hn::RebindMask(d, hn::Lt(ordered, hn::Set(di, 0x38800000)));
    const auto overflow = hn::RebindMask(d, hn::Gt(ordered, hn::Set(di, 0x477FEFFF)));
    const auto nan = hn::RebindMask(d, hn::Gt(ordered, hn::Set(di, 0x7F800000)));
    VecU32 half = hn::IfThenElse(tiny, subnormal, normal);
    half = hn::IfThenElse(overflow, hn::Set(d, 0x7C00u), half);
    half = hn::IfThenElse(nan, hn::Set(d, 0x7E00u), half);
    store_words(hn::Or(half, sign), to);
  }
};

template <bool kNative>
struct ChooseF16 {
  using Type = F16Native;
};
template <>
struct ChooseF16<false> {
  using Type = F16Integer;
};
using F16 = ChooseF16<kNativeHalf>::Type;

/// Both 8-bit formats, by where their mantissa ends in binary32 and by how they say what is no
/// number. The method is F16Integer's.
struct E4M3 {
  static constexpr int kShift = 20;                        // 3 bits of mantissa
  static constexpr std::uint32_t kRebias = 120;            // 127 - 7
  static constexpr std::uint32_t kSpecial = 0x7F;          // the one NaN
  static constexpr std::uint32_t kAboveAll = 1087u << 20;  // 480: it would encode to the NaN
  static constexpr std::uint32_t kOverflow = 0x7F;
};
struct E5M2 {
  static constexpr int kShift = 21;                       // 2 bits of mantissa
  static constexpr std::uint32_t kRebias = 112;           // 127 - 15
  static constexpr std::uint32_t kSpecial = 0x7C;         // infinity; NaN above it
  static constexpr std::uint32_t kAboveAll = 143u << 23;  // 2^16
  static constexpr std::uint32_t kOverflow = 0x7C;
};

template <class Format>
struct Float8 {
  using Tag = TagF32;
  static constexpr std::size_t kBytes = 1;
  static constexpr int kShift = Format::kShift;
  static HWY_INLINE VecF32 load(const std::byte* from) {
    const TagU32 d;
    const TagF32 df;
    const VecU32 byte = load_bytes(from);
    const VecU32 sign = hn::ShiftLeft<24>(hn::And(byte, hn::Set(d, 0x80u)));
    const VecU32 magnitude = hn::And(byte, hn::Set(d, 0x7Fu));
    const VecU32 moved = hn::ShiftLeft<kShift>(magnitude);
    const VecU32 scale = hn::Set(d, (127u + Format::kRebias) << 23);
    const VecU32 rebased = hn::BitCast(d, hn::Mul(hn::BitCast(df, moved), hn::BitCast(df, scale)));
    const auto special = hn::Gt(hn::BitCast(TagI32(), magnitude),
                                hn::Set(TagI32(), static_cast<std::int32_t>(Format::kSpecial) - 1));
    const VecU32 infinite = hn::Or(moved, hn::Set(d, 0x7F800000u));
    const auto value = hn::IfThenElse(hn::RebindMask(d, special), infinite, rebased);
    return hn::BitCast(df, hn::Or(sign, value));
  }
  static HWY_INLINE void store(VecF32 value, std::byte* to) {
    const TagU32 d;
    const TagI32 di;
    const TagF32 df;
    const VecU32 bits = hn::BitCast(d, value);
    const VecU32 sign = hn::And(hn::ShiftRight<24>(bits), hn::Set(d, 0x80u));
    const VecU32 magnitude = hn::And(bits, hn::Set(d, 0x7FFFFFFFu));
    const auto ordered = hn::BitCast(di, magnitude);

    const VecU32 odd = hn::And(hn::ShiftRight<kShift>(magnitude), hn::Set(d, 1u));
    const VecU32 bias = hn::Set(d, (1u << (kShift - 1)) - 1u - (Format::kRebias << 23));
    const VecU32 normal = hn::ShiftRight<kShift>(hn::Add(magnitude, hn::Add(odd, bias)));
    // The number whose last bit is the format's smallest subnormal.
    constexpr std::uint32_t kAlign = (Format::kRebias + 1 + kShift) << 23;
    const VecU32 align = hn::Set(d, kAlign);
    const VecU32 aligned =
        hn::BitCast(d, hn::Add(hn::BitCast(df, magnitude), hn::BitCast(df, align)));
    const VecU32 subnormal = hn::Sub(aligned, align);

    constexpr auto kNormalMin = static_cast<std::int32_t>((Format::kRebias + 1) << 23);
    constexpr auto kInRange = static_cast<std::int32_t>(Format::kAboveAll) - 1;
    const auto tiny = hn::RebindMask(d, hn::Lt(ordered, hn::Set(di, kNormalMin)));
    const auto overflow = hn::RebindMask(d, hn::Gt(ordered, hn::Set(di, kInRange)));
    const auto nan = hn::RebindMask(d, hn::Gt(ordered, hn::Set(di, 0x7F800000)));
    VecU32 byte = hn::IfThenElse(tiny, subnormal, normal);
    byte = hn::IfThenElse(overflow, hn::Set(d, Format::kOverflow), byte);
    byte = hn::IfThenElse(nan, hn::Set(d, 0x7Fu), byte);
    store_bytes(hn::Or(byte, sign), to);
  }
};

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

}  // namespace regroup::collective::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
// NOLINTEND(cppcoreguidelines-pro-type-reinterpret-cast)

#if HWY_ONCE
namespace regroup::collective {

HWY_EXPORT(reduce_on_target);
HWY_EXPORT(stream_on_target);

void reduce(DType type, ReduceOp op, void* out, const void* const* inputs, int inputs_count,
            std::size_t count, const Scaling& scaling) {
  REGROUP_ASSERT(inputs_count >= 1);
  HWY_DYNAMIC_DISPATCH(reduce_on_target)(type, op, out, inputs, inputs_count, count, scaling);
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
