/// What is measured: a collective with its sizes, as nccl-tests counts them, and how its buffers
/// are filled and checked.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include <regroup/regroup.hpp>

#include "spi/operation.hpp"

namespace regroup::perf {

enum class Collective : std::uint8_t {
  AllReduce,
  Reduce,
  Broadcast,
  AllGather,
  ReduceScatter,
  Barrier,
  SendRecv,  ///< each rank sends to the next one and receives from the one before
  AllToAll,
  Gather,
  Scatter,
  AllGatherV,
  ReduceScatterV,
  AllToAllV,
  GatherV,
  ScatterV,
};
inline constexpr std::array kCollectives = {
    Collective::AllReduce, Collective::Reduce,     Collective::Broadcast,
    Collective::AllGather, Collective::Barrier,    Collective::ReduceScatter,
    Collective::SendRecv,  Collective::AllToAll,   Collective::Gather,
    Collective::Scatter,   Collective::AllGatherV, Collective::ReduceScatterV,
    Collective::AllToAllV, Collective::GatherV,    Collective::ScatterV};
/// The operation behind it; none: send and recv.
[[nodiscard]] std::optional<spi::OpKind> kind_of(Collective collective);

[[nodiscard]] std::string_view name(Collective collective);
using spi::name;  // of types and operations
/// nccl-tests' word for a type, for the table that its readers parse.
[[nodiscard]] std::string_view nccl_name(DType type);
/// `all_reduce`, `allreduce` and `all-reduce` are one collective; types go by our name or nccl's.
[[nodiscard]] std::optional<Collective> parse_collective(std::string_view text);
[[nodiscard]] std::optional<DType> parse_dtype(std::string_view text);
[[nodiscard]] std::optional<ReduceOp> parse_op(std::string_view text);
[[nodiscard]] bool reduces(Collective collective);
[[nodiscard]] bool has_root(Collective collective);

/// One row of the table. Thread safety: a value.
struct Workload {
  Collective collective = Collective::AllReduce;
  DType dtype = DType::F32;
  ReduceOp op = ReduceOp::Sum;
  int root = 0;
  int ranks = 1;
  std::size_t count = 0;  ///< elements, as the call takes them; of all ranks where it takes counts
  bool in_place = false;

  /// nccl-tests' size: of operations with a share for each rank all of them, else the buffer of
  /// the call.
  [[nodiscard]] std::size_t bytes() const;
  [[nodiscard]] std::size_t in_count(int rank) const;
  [[nodiscard]] std::size_t out_count(int rank) const;
  /// Elements that `from` gives to `to`. With counts the shares grow from rank to rank, and the
  /// last takes what is left.
  [[nodiscard]] std::size_t share(int from, int to) const;
  /// As the call of `rank` takes them: what it sends to each, and what it receives from each.
  [[nodiscard]] std::vector<std::size_t> counts(int rank) const;
  [[nodiscard]] std::vector<std::size_t> received(int rank) const;
  /// Bus bandwidth over algorithm bandwidth.
  [[nodiscard]] double bus_factor() const;
};

/// The row of `bytes`: its count is cut to what divides by the type and, where it must, the ranks.
[[nodiscard]] Workload make_workload(Collective collective, std::size_t bytes, DType dtype,
                                     ReduceOp op, int root, int ranks);

/// Buffers of one rank for one workload. `salt` changes every value, so that what an earlier
/// operation left behind is never right. Thread safety: none.
class Buffers {
 public:
  Buffers(const Workload& workload, int rank);
  void fill(std::uint64_t salt);
  /// Elements of the result that are not bit for bit what they must be.
  [[nodiscard]] std::uint64_t count_wrong(std::uint64_t salt) const;
  [[nodiscard]] const void* in() const { return in_; }
  [[nodiscard]] void* out() const { return out_; }

 private:
  [[nodiscard]] std::size_t first_of(int from) const;
  Workload workload_;
  int rank_;
  std::vector<std::byte> in_memory_;
  std::vector<std::byte> out_memory_;
  void* in_ = nullptr;
  void* out_ = nullptr;
};

/// Of PremulSum: exact in every float type.
inline constexpr double kPremulFactor = 0.5;
/// Bits of `value` in `type`, rounded once to nearest even. For the small
/// values of the checks; of bool their lowest bit.
[[nodiscard]] std::uint64_t encode(DType type, double value);
/// What rank `rank` contributes at element `index`, and what all of them give.
[[nodiscard]] double contribution(ReduceOp op, int rank, std::size_t index, std::uint64_t salt);
[[nodiscard]] double combined(ReduceOp op, int ranks, std::size_t index, std::uint64_t salt);

}  // namespace regroup::perf
