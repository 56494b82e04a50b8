#include "perf/workload.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

namespace regroup::perf {
namespace {

// The values of a block repeat after so many elements: a prime, so that no slice or chunk of a
// collective repeats with them.
constexpr std::size_t kPeriod = 509;

std::string lower_without_marks(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '_' || c == '-') continue;
    out += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  }
  return out;
}

std::uint16_t encode_half(float value) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  const std::uint32_t sign = bits >> 16 & 0x8000;
  const std::uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude == 0) return static_cast<std::uint16_t>(sign);
  // Normal numbers of both formats only: the checks use nothing else.
  const std::uint32_t shifted = magnitude - (112U << 23);
  const std::uint32_t rounded = shifted + 0xfff + (shifted >> 13 & 1);
  return static_cast<std::uint16_t>(sign | rounded >> 13);
}

std::uint16_t encode_bfloat16(float value) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/// Of the 8-bit formats, by where the mantissa ends in binary32, and the bias. As encode_half().
std::uint8_t encode_float8(float value, int shift, std::uint32_t bias) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  const std::uint32_t sign = bits >> 24 & 0x80;
  const std::uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude == 0) return static_cast<std::uint8_t>(sign);
  const std::uint32_t shifted = magnitude - ((127 - bias) << 23);
  const std::uint32_t rounded = shifted + (1U << (shift - 1)) - 1 + (shifted >> shift & 1);
  return static_cast<std::uint8_t>(sign | rounded >> shift);
}

template <class T>
std::uint64_t bits_of(T value) {
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}

}  // namespace

std::string_view name(Collective collective) {
  switch (collective) {
    case Collective::AllReduce: return "all_reduce";
    case Collective::Reduce: return "reduce";
    case Collective::Broadcast: return "broadcast";
    case Collective::AllGather: return "all_gather";
    case Collective::ReduceScatter: return "reduce_scatter";
    case Collective::Barrier: return "barrier";
    case Collective::SendRecv: return "sendrecv";
    case Collective::AllToAll: return "all_to_all";
    case Collective::Gather: return "gather";
    case Collective::Scatter: return "scatter";
    case Collective::AllGatherV: return "all_gather_v";
    case Collective::ReduceScatterV: return "reduce_scatter_v";
    case Collective::AllToAllV: return "all_to_all_v";
    case Collective::GatherV: return "gather_v";
    case Collective::ScatterV: return "scatter_v";
  }
  return "?";
}

std::string_view nccl_name(DType type) {
  switch (type) {
    case DType::F64: return "double";
    case DType::F32: return "float";
    case DType::F16: return "half";
    case DType::BF16: return "bfloat16";
    case DType::I32: return "int32";
    case DType::I64: return "int64";
    case DType::U8: return "uint8";
    case DType::F8E4M3: return "f8e4m3";
    case DType::F8E5M2: return "f8e5m2";
    case DType::I8: return "int8";
    case DType::I16: return "int16";
    case DType::U32: return "uint32";
    case DType::U64: return "uint64";
    case DType::Bool: return "bool";
  }
  return "?";
}

std::optional<Collective> parse_collective(std::string_view text) {
  const std::string wanted = lower_without_marks(text);
  for (const Collective collective : kCollectives) {
    if (lower_without_marks(name(collective)) == wanted) return collective;
  }
  return std::nullopt;
}

std::optional<DType> parse_dtype(std::string_view text) {
  for (int i = 0; i < kDTypeCount; ++i) {
    const auto type = static_cast<DType>(i);
    if (text == name(type) || text == nccl_name(type)) return type;
  }
  return std::nullopt;
}

std::optional<ReduceOp> parse_op(std::string_view text) {
  for (int i = 0; i < kReduceOpCount; ++i) {
    if (text == name(static_cast<ReduceOp>(i))) return static_cast<ReduceOp>(i);
  }
  return std::nullopt;
}

std::optional<spi::OpKind> kind_of(Collective collective) {
  switch (collective) {
    case Collective::AllReduce: return spi::OpKind::AllReduce;
    case Collective::Reduce: return spi::OpKind::Reduce;
    case Collective::Broadcast: return spi::OpKind::Broadcast;
    case Collective::AllGather: return spi::OpKind::AllGather;
    case Collective::ReduceScatter: return spi::OpKind::ReduceScatter;
    case Collective::Barrier: return spi::OpKind::Barrier;
    case Collective::AllToAll: return spi::OpKind::AllToAll;
    case Collective::Gather: return spi::OpKind::Gather;
    case Collective::Scatter: return spi::OpKind::Scatter;
    case Collective::AllGatherV: return spi::OpKind::AllGatherV;
    case Collective::ReduceScatterV: return spi::OpKind::ReduceScatterV;
    case Collective::AllToAllV: return spi::OpKind::AllToAllV;
    case Collective::GatherV: return spi::OpKind::GatherV;
    case Collective::ScatterV: return spi::OpKind::ScatterV;
    case Collective::SendRecv: break;
  }
  return std::nullopt;
}

namespace {

bool gathers(Collective c) { return kind_of(c) && spi::gathers(*kind_of(c)); }
bool scatters(Collective c) { return kind_of(c) && spi::scatters(*kind_of(c)); }
bool has_counts(Collective c) { return kind_of(c) && spi::has_counts(*kind_of(c)); }

}  // namespace

bool reduces(Collective collective) {
  return kind_of(collective) && spi::reduces(*kind_of(collective));
}

bool has_root(Collective collective) {
  return kind_of(collective) && !spi::is_symmetric(*kind_of(collective));
}

std::size_t Workload::share(int from, int to) const {
  if (!has_counts(collective)) return count;
  int who = scatters(collective) ? to : from;
  if (collective == Collective::AllToAllV) who = (from + to) % ranks;
  const auto p = static_cast<std::size_t>(ranks);
  const auto of = [&](std::size_t rank) { return 2 * count * (rank + 1) / (p * (p + 1)); };
  if (who + 1 < ranks) return of(static_cast<std::size_t>(who));
  std::size_t left = count;
  for (std::size_t rank = 0; rank + 1 < p; ++rank) left -= of(rank);
  return left;
}

std::vector<std::size_t> Workload::counts(int rank) const {
  std::vector<std::size_t> all;
  for (int q = 0; q < ranks; ++q)
    all.push_back(scatters(collective) ? share(rank, q) : share(q, 0));
  return all;
}

std::vector<std::size_t> Workload::received(int rank) const {
  std::vector<std::size_t> all;
  for (int q = 0; q < ranks; ++q) all.push_back(share(q, rank));
  return all;
}

namespace {

/// Elements of a buffer that holds every rank's share.
std::size_t all_of(const Workload& w) {
  return has_counts(w.collective) ? w.count : w.count * static_cast<std::size_t>(w.ranks);
}

}  // namespace

std::size_t Workload::in_count(int rank) const {
  if (collective == Collective::Barrier) return 0;
  if (!scatters(collective)) return share(rank, 0);
  return has_root(collective) && rank != root ? 0 : all_of(*this);
}

std::size_t Workload::out_count(int rank) const {
  if (collective == Collective::Barrier) return 0;
  if (collective == Collective::Reduce && rank != root) return 0;
  if (!gathers(collective)) return share(root, rank);
  return has_root(collective) && rank != root ? 0 : all_of(*this);
}

std::size_t Workload::bytes() const {
  const bool shares = gathers(collective) || scatters(collective);
  return (shares ? all_of(*this) : count) * size_of(dtype);
}

double Workload::bus_factor() const {
  const double n = ranks;
  if (collective == Collective::AllReduce) return 2 * (n - 1) / n;
  if (collective == Collective::Barrier) return 0;
  return gathers(collective) || scatters(collective) ? (n - 1) / n : 1;
}

Workload make_workload(Collective collective, std::size_t bytes, DType dtype, ReduceOp op, int root,
                       int ranks) {
  const bool whole = (gathers(collective) || scatters(collective)) && !has_counts(collective);
  const std::size_t parts = whole ? static_cast<std::size_t>(ranks) : 1;
  Workload workload{.collective = collective,
                    .dtype = dtype,
                    .op = op,
                    .root = has_root(collective) ? root : 0,
                    .ranks = ranks,
                    .count = bytes / size_of(dtype) / parts};
  if (collective == Collective::Barrier) workload.count = 0;
  return workload;
}

std::uint64_t encode(DType type, double value) {
  switch (type) {
    case DType::F64: return bits_of(value);
    case DType::F32: return bits_of(static_cast<float>(value));
    case DType::F16: return encode_half(static_cast<float>(value));
    case DType::BF16: return encode_bfloat16(static_cast<float>(value));
    case DType::F8E4M3: return encode_float8(static_cast<float>(value), 20, 7);
    case DType::F8E5M2: return encode_float8(static_cast<float>(value), 21, 15);
    case DType::I8:
    case DType::I16:
    case DType::I32:
    case DType::I64:
    case DType::U8:
    case DType::U32:
    case DType::U64: return bits_of(static_cast<std::int64_t>(value));  // cut to the type's bytes
    case DType::Bool: return static_cast<std::uint64_t>(value) & 1;
  }
  return 0;
}

// Small integers: exact in every type, and their sum over 32 ranks too.
double contribution(ReduceOp op, int rank, std::size_t index, std::uint64_t salt) {
  const std::size_t position = index % kPeriod + salt * 11 + static_cast<std::size_t>(rank) * 13;
  // A product stays small: two of the first six ranks contribute 2, all others 1.
  if (op == ReduceOp::Prod) return rank < 6 && position % 3 == 0 ? 2 : 1;
  return static_cast<double>(position % 7 + 1);
}

namespace {

/// Integers, of which bool uses the lowest bit.
double combine_bits(ReduceOp op, double a, double b) {
  const auto x = static_cast<std::uint64_t>(a);
  const auto y = static_cast<std::uint64_t>(b);
  if (op == ReduceOp::BAnd) return static_cast<double>(x & y);
  if (op == ReduceOp::BOr) return static_cast<double>(x | y);
  return static_cast<double>(x ^ y);
}

}  // namespace

double combined(ReduceOp op, int ranks, std::size_t index, std::uint64_t salt) {
  double value = contribution(op, 0, index, salt);
  for (int rank = 1; rank < ranks; ++rank) {
    const double next = contribution(op, rank, index, salt);
    switch (op) {
      case ReduceOp::Sum:
      case ReduceOp::PremulSum:
      case ReduceOp::Avg: value += next; break;
      case ReduceOp::Prod: value *= next; break;
      case ReduceOp::Min: value = std::min(value, next); break;
      case ReduceOp::Max: value = std::max(value, next); break;
      case ReduceOp::BAnd:
      case ReduceOp::BOr:
      case ReduceOp::BXor: value = combine_bits(op, value, next); break;
    }
  }
  if (op == ReduceOp::PremulSum) return value * kPremulFactor;
  return op == ReduceOp::Avg ? value / ranks : value;
}

namespace {

/// What `op` does to the lowest bits of integers when it is asked to combine bool.
ReduceOp effective(ReduceOp op, DType type) {
  if (type != DType::Bool) return op;
  if (op == ReduceOp::Sum || op == ReduceOp::Max) return ReduceOp::BOr;
  if (op == ReduceOp::Prod || op == ReduceOp::Min) return ReduceOp::BAnd;
  return op;
}

/// Writes or compares the pattern: value(i % kPeriod) for element i.
class Pattern {
 public:
  template <class ValueFn>
  Pattern(DType type, ValueFn&& value) : element_bytes_(size_of(type)) {
    block_.resize(kPeriod * element_bytes_);
    for (std::size_t i = 0; i < kPeriod; ++i) {
      const std::uint64_t bits = encode(type, value(i));
      std::memcpy(block_.data() + i * element_bytes_, &bits, element_bytes_);
    }
  }
  void write(std::byte* to, std::size_t count) const {
    for_blocks(count, [&](std::size_t at, std::size_t n) {
      std::memcpy(to + at * element_bytes_, block_.data(), n * element_bytes_);
    });
  }
  [[nodiscard]] std::uint64_t count_wrong(const std::byte* from, std::size_t count) const {
    std::uint64_t wrong = 0;
    for_blocks(count, [&](std::size_t at, std::size_t n) {
      const std::byte* const part = from + at * element_bytes_;
      if (std::memcmp(part, block_.data(), n * element_bytes_) == 0) return;
      for (std::size_t i = 0; i < n; ++i) {
        const std::size_t offset = i * element_bytes_;
        wrong += std::memcmp(part + offset, block_.data() + offset, element_bytes_) != 0 ? 1 : 0;
      }
    });
    return wrong;
  }

 private:
  template <class BlockFn>
  void for_blocks(std::size_t count, BlockFn&& call) const {
    for (std::size_t at = 0; at < count; at += kPeriod) call(at, std::min(kPeriod, count - at));
  }
  std::size_t element_bytes_;
  std::vector<std::byte> block_;
};

}  // namespace

Buffers::Buffers(const Workload& workload, int rank) : workload_(workload), rank_(rank) {
  const std::size_t unit = size_of(workload.dtype);
  const std::size_t in_bytes = workload.in_count(rank) * unit;
  const std::size_t out_bytes = workload.out_count(rank) * unit;
  if (workload.collective == Collective::Broadcast || workload.in_place) {
    out_memory_.resize(std::max(in_bytes, out_bytes));
    in_ = out_ = out_memory_.data();
    return;
  }
  in_memory_.resize(in_bytes);
  out_memory_.resize(out_bytes);
  in_ = in_memory_.data();
  out_ = out_memory_.data();
}

void Buffers::fill(std::uint64_t salt) {
  const Workload& w = workload_;
  // A result that is never written shows: no contribution encodes to these bytes.
  if (!out_memory_.empty()) std::memset(out_memory_.data(), 0xee, out_memory_.size());
  if (w.collective == Collective::Broadcast && rank_ != w.root) return;
  const ReduceOp op = reduces(w.collective) ? effective(w.op, w.dtype) : ReduceOp::Sum;
  const Pattern pattern(w.dtype, [&](std::size_t i) { return contribution(op, rank_, i, salt); });
  pattern.write(static_cast<std::byte*>(in_), w.in_count(rank_));
}

/// Where the share for this rank begins in the input of `from`.
std::size_t Buffers::first_of(int from) const {
  std::size_t first = 0;
  for (int rank = 0; scatters(workload_.collective) && rank < rank_; ++rank)
    first += workload_.share(from, rank);
  return first;
}

std::uint64_t Buffers::count_wrong(std::uint64_t salt) const {
  const Workload& w = workload_;
  const auto* out = static_cast<const std::byte*>(out_);
  if (w.out_count(rank_) == 0) return 0;
  if (reduces(w.collective)) {
    const ReduceOp op = effective(w.op, w.dtype);
    const std::size_t first = first_of(0);
    const Pattern pattern(w.dtype,
                          [&](std::size_t i) { return combined(op, w.ranks, first + i, salt); });
    return pattern.count_wrong(out, w.out_count(rank_));
  }
  const auto wrong_from = [&](int rank, std::size_t count) {
    const std::size_t first = first_of(rank);
    const Pattern pattern(
        w.dtype, [&](std::size_t i) { return contribution(ReduceOp::Sum, rank, first + i, salt); });
    return pattern.count_wrong(out, count);
  };
  if (w.collective == Collective::SendRecv)
    return wrong_from((rank_ + w.ranks - 1) % w.ranks, w.count);
  if (!gathers(w.collective)) return wrong_from(w.root, w.out_count(rank_));
  std::uint64_t wrong = 0;
  for (int rank = 0; rank < w.ranks; ++rank) {
    wrong += wrong_from(rank, w.share(rank, rank_));
    out += w.share(rank, rank_) * size_of(w.dtype);
  }
  return wrong;
}

}  // namespace regroup::perf
