// How elements in memory become lanes of vectors, and back. For kernels.cpp to include, once for
// each instruction set: Highway flips HWY_TARGET_TOGGLE each time.
#if defined(REGROUP_KERNEL_CODECS) == defined(HWY_TARGET_TOGGLE)
#ifdef REGROUP_KERNEL_CODECS
#undef REGROUP_KERNEL_CODECS
#else
#define REGROUP_KERNEL_CODECS
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

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

}  // namespace regroup::collective::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
// NOLINTEND(cppcoreguidelines-pro-type-reinterpret-cast)
#endif
