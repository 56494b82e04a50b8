// The operations of BackendRegroup: what c10d hands over, checked and turned into calls of the
// runtime. A group of one rank is answered here.
#include <algorithm>
#include <utility>

#include "backend.hpp"

namespace regroup::torch_binding {
namespace {

using c10d::OpType;
using Tensors = BackendRegroup::Tensors;

OpOptions with_factor(OpOptions options, const c10d::ReduceOp& op) {
  options.factor = factor_of(op);
  return options;
}

/// The reduction of a group of one rank.
Status reduce_alone(const at::Tensor& tensor, const c10d::ReduceOp& op) {
  if (op.op_ == c10d::ReduceOp::PREMUL_SUM) tensor.mul_(factor_of(op));
  return {};
}

Status reduce_all(ProcessGroup& group, int size, const at::Tensor& tensor, const c10d::ReduceOp& op,
                  const char* name, const OpOptions& options) {
  const auto elements = to_reduce(tensor, op, name);
  if (size == 1) return reduce_alone(tensor, op);
  return group.all_reduce(elements.data, elements.data, elements.count, elements.type,
                          reduction(op, tensor.scalar_type(), name), with_factor(options, op));
}

/// `out` holds the tensors of all ranks, `in` this rank's; it may be its own part of `out`.
Status gather_all(ProcessGroup& group, int size, const at::Tensor& in, const at::Tensor& out,
                  const OpOptions& options) {
  if (size == 1) {
    out.view({-1}).copy_(in.view({-1}));
    return {};
  }
  const at::Tensor from = share_memory(in, out) ? in.clone() : in;
  const auto elements = to_move(from);
  return group.all_gather(elements.data, out.data_ptr(), elements.count, elements.type, options);
}

Status scatter_reduced(ProcessGroup& group, int size, const at::Tensor& in, const at::Tensor& out,
                       const c10d::ReduceOp& op, const char* name, const OpOptions& options) {
  const auto to = to_reduce(out, op, name);
  if (size == 1) {
    out.view({-1}).copy_(in.view({-1}));
    return reduce_alone(out, op);
  }
  const at::Tensor from = share_memory(in, out) ? in.clone() : in;
  return group.reduce_scatter(from.data_ptr(), to.data, to.count, to.type,
                              reduction(op, out.scalar_type(), name), with_factor(options, op));
}

void require_parts(const at::Tensor& whole, const at::Tensor& part, int size, const char* name) {
  TORCH_CHECK_VALUE(whole.numel() == part.numel() * size, "regroup: ", name, ": the tensor of all ",
                    size, " ranks has ", whole.numel(), " elements, and that of one rank ",
                    part.numel());
  TORCH_CHECK_VALUE(whole.scalar_type() == part.scalar_type(), "regroup: ", name,
                    ": input and output differ in type: ", part.scalar_type(), " and ",
                    whole.scalar_type());
}

Tensors bytes_of(const Tensors& tensors) {
  Tensors bytes;
  bytes.reserve(tensors.size());
  for (const auto& tensor : tensors) bytes.push_back(tensor.view({-1}).view(at::kByte));
  return bytes;
}

void require_same_count(const Tensors& a, const Tensors& b, const char* name) {
  TORCH_CHECK_VALUE(a.size() == b.size(), "regroup: ", name, ": ", a.size(), " outputs, but ",
                    b.size(), " inputs");
  require_usable(a, name);
  require_usable(b, name);
}

}  // namespace

BackendRegroup::WorkPtr BackendRegroup::broadcast(Tensors& tensors,
                                                  const c10d::BroadcastOptions& opts) {
  static constexpr const char* kName = "broadcast";
  const at::Tensor tensor = only(tensors, kName);
  require_rank(opts.rootRank, getSize(), kName);
  const int root = static_cast<int>(opts.rootRank);
  return begin(
      {.type = OpType::BROADCAST,
       .name = kName,
       .inputs = {tensor},
       .outputs = {tensor},
       .body =
           [tensor, root, size = getSize()](ProcessGroup& group, const OpOptions& options) {
             if (size == 1) return Status();
             const auto elements = to_move(tensor);
             return group.broadcast(elements.data, elements.count, elements.type, root, options);
           },
       .timeout = timeout_of(opts.timeout),
       .in_background = opts.asyncOp});
}

BackendRegroup::WorkPtr BackendRegroup::allreduce(Tensors& tensors,
                                                  const c10d::AllreduceOptions& opts) {
  static constexpr const char* kName = "all_reduce";
  const at::Tensor tensor = only(tensors, kName);
  (void)to_reduce(tensor, opts.reduceOp, kName);
  return begin({.type = OpType::ALLREDUCE,
                .name = kName,
                .inputs = {tensor},
                .outputs = {tensor},
                .body =
                    [tensor, op = opts.reduceOp, size = getSize()](ProcessGroup& group,
                                                                   const OpOptions& options) {
                      return reduce_all(group, size, tensor, op, kName, options);
                    },
                .timeout = timeout_of(opts.timeout),
                .in_background = opts.asyncOp,
                .fewer_do = true});
}

// One operation for each element type, into memory of its own: if one of them fails, no tensor has
// changed.
BackendRegroup::WorkPtr BackendRegroup::allreduce_coalesced(
    Tensors& tensors, const c10d::AllreduceCoalescedOptions& opts) {
  static constexpr const char* kName = "all_reduce_coalesced";
  require_usable(tensors, kName);
  std::vector<Tensors> by_type;
  for (const auto& tensor : tensors) {
    (void)to_reduce(tensor, opts.reduceOp, kName);
    const auto same = std::ranges::find_if(by_type, [&](const Tensors& list) {
      return list.front().scalar_type() == tensor.scalar_type();
    });
    if (same == by_type.end()) {
      by_type.push_back({tensor});
    } else {
      same->push_back(tensor);
    }
  }
  return begin({.type = OpType::ALLREDUCE_COALESCED,
                .name = kName,
                .inputs = tensors,
                .outputs = tensors,
                .body =
                    [by_type, op = opts.reduceOp, size = getSize()](ProcessGroup& group,
                                                                    const OpOptions& options) {
                      Tensors flats;
                      for (const auto& list : by_type) {
                        flats.push_back(joined(list));
                        auto status = reduce_all(group, size, flats.back(), op, kName, options);
                        if (!status) return status;
                      }
                      for (std::size_t i = 0; i < flats.size(); ++i)
                        split_into(flats[i], by_type[i]);
                      return Status();
                    },
                .timeout = timeout_of(opts.timeout),
                .in_background = opts.asyncOp,
                .fewer_do = true});
}

BackendRegroup::WorkPtr BackendRegroup::reduce(Tensors& tensors, const c10d::ReduceOptions& opts) {
  static constexpr const char* kName = "reduce";
  const at::Tensor tensor = only(tensors, kName);
  require_rank(opts.rootRank, getSize(), kName);
  (void)to_reduce(tensor, opts.reduceOp, kName);
  const int root = static_cast<int>(opts.rootRank);
  return begin({.type = OpType::REDUCE,
                .name = kName,
                .inputs = {tensor},
                .outputs = {tensor},
                .body =
                    [tensor, root, op = opts.reduceOp, size = getSize()](ProcessGroup& group,
                                                                         const OpOptions& options) {
                      if (size == 1) return reduce_alone(tensor, op);
                      const auto elements = to_reduce(tensor, op, kName);
                      return group.reduce(elements.data, elements.data, elements.count,
                                          elements.type, reduction(op, tensor.scalar_type(), kName),
                                          root, with_factor(options, op));
                    },
                .timeout = timeout_of(opts.timeout),
                .in_background = opts.asyncOp});
}

BackendRegroup::WorkPtr BackendRegroup::allgather(TensorLists& outputs, Tensors& inputs,
                                                  const c10d::AllgatherOptions& opts) {
  static constexpr const char* kName = "all_gather";
  const at::Tensor input = only(inputs, kName);
  const Tensors& parts = only_list(outputs, getSize(), input, kName, "output");
  return begin(
      {.type = OpType::ALLGATHER,
       .name = kName,
       .inputs = {input},
       .outputs = parts,
       .body =
           [input, parts, size = getSize()](ProcessGroup& group, const OpOptions& options) {
             const auto flat = at::empty({input.numel() * size}, input.options());
             auto status = gather_all(group, size, input, flat, options);
             if (status) split_into(flat, parts);
             return status;
           },
       .timeout = timeout_of(opts.timeout),
       .in_background = opts.asyncOp});
}

// One operation over the bytes of all tensors: if it fails, no output has changed.
BackendRegroup::WorkPtr BackendRegroup::allgather_coalesced(TensorLists& outputs, Tensors& inputs,
                                                            const c10d::AllgatherOptions& opts) {
  static constexpr const char* kName = "all_gather_coalesced";
  require_usable(inputs, kName);
  TORCH_CHECK_VALUE(static_cast<int>(outputs.size()) == getSize(), "regroup: ", kName, " needs ",
                    getSize(), " lists of output tensors, one a rank, it was given ",
                    outputs.size());
  Tensors parts;
  for (const auto& list : outputs) {
    require_same_count(list, inputs, kName);
    for (std::size_t i = 0; i < inputs.size(); ++i)
      require_like({list[i]}, inputs[i].numel(), inputs[i].scalar_type(), kName);
    parts.insert(parts.end(), list.begin(), list.end());
  }
  return begin(
      {.type = OpType::ALLGATHER_COALESCED,
       .name = kName,
       .inputs = inputs,
       .outputs = parts,
       .body =
           [inputs, parts, size = getSize()](ProcessGroup& group, const OpOptions& options) {
             const auto flat = joined(bytes_of(inputs));
             const auto whole = at::empty({flat.numel() * size}, flat.options());
             auto status = gather_all(group, size, flat, whole, options);
             if (status) split_into(whole, bytes_of(parts));
             return status;
           },
       .timeout = timeout_of(opts.timeout),
       .in_background = opts.asyncOp});
}

BackendRegroup::WorkPtr BackendRegroup::_allgather_base(at::Tensor& output, at::Tensor& input,
                                                        const c10d::AllgatherOptions& opts) {
  static constexpr const char* kName = "all_gather_into_tensor";
  require_usable(output, kName);
  require_usable(input, kName);
  require_parts(output, input, getSize(), kName);
  return begin(
      {.type = OpType::_ALLGATHER_BASE,
       .name = kName,
       .inputs = {input},
       .outputs = {output},
       .body =
           [input, output, size = getSize()](ProcessGroup& group, const OpOptions& options) {
             return gather_all(group, size, input, output, options);
           },
       .timeout = timeout_of(opts.timeout),
       .in_background = opts.asyncOp});
}

BackendRegroup::WorkPtr BackendRegroup::allgather_into_tensor_coalesced(
    Tensors& outputs, Tensors& inputs, const c10d::AllgatherOptions& opts) {
  static constexpr const char* kName = "all_gather_into_tensor_coalesced";
  require_same_count(outputs, inputs, kName);
  for (std::size_t i = 0; i < inputs.size(); ++i)
    require_parts(outputs[i], inputs[i], getSize(), kName);
  return begin(
      {.type = OpType::COALESCED,
       .name = kName,
       .inputs = inputs,
       .outputs = outputs,
       .body =
           [inputs, outputs, size = getSize()](ProcessGroup& group, const OpOptions& options) {
             for (std::size_t i = 0; i < inputs.size(); ++i) {
               auto status = gather_all(group, size, inputs[i], outputs[i], options);
               if (!status) return status;
             }
             return Status();
           },
       .timeout = timeout_of(opts.timeout),
       .in_background = opts.asyncOp});
}

BackendRegroup::WorkPtr BackendRegroup::reduce_scatter(Tensors& outputs, TensorLists& inputs,
                                                       const c10d::ReduceScatterOptions& opts) {
  static constexpr const char* kName = "reduce_scatter";
  const at::Tensor output = only(outputs, kName);
  const Tensors& parts = only_list(inputs, getSize(), output, kName, "input");
  (void)to_reduce(output, opts.reduceOp, kName);
  return begin({.type = OpType::REDUCE_SCATTER,
                .name = kName,
                .inputs = parts,
                .outputs = {output},
                .body =
                    [parts, output, op = opts.reduceOp, size = getSize()](
                        ProcessGroup& group, const OpOptions& options) {
                      return scatter_reduced(group, size, joined(parts), output, op, kName,
                                             options);
                    },
                .timeout = timeout_of(opts.timeout),
                .in_background = opts.asyncOp});
}

BackendRegroup::WorkPtr BackendRegroup::_reduce_scatter_base(
    at::Tensor& output, at::Tensor& input, const c10d::ReduceScatterOptions& opts) {
  static constexpr const char* kName = "reduce_scatter_tensor";
  require_usable(output, kName);
  require_usable(input, kName);
  require_parts(input, output, getSize(), kName);
  (void)to_reduce(output, opts.reduceOp, kName);
  return begin({.type = OpType::_REDUCE_SCATTER_BASE,
                .name = kName,
                .inputs = {input},
                .outputs = {output},
                .body =
                    [input, output, op = opts.reduceOp, size = getSize()](
                        ProcessGroup& group, const OpOptions& options) {
                      return scatter_reduced(group, size, input, output, op, kName, options);
                    },
                .timeout = timeout_of(opts.timeout),
                .in_background = opts.asyncOp});
}

BackendRegroup::WorkPtr BackendRegroup::reduce_scatter_tensor_coalesced(
    Tensors& outputs, Tensors& inputs, const c10d::ReduceScatterOptions& opts) {
  static constexpr const char* kName = "reduce_scatter_tensor_coalesced";
  require_same_count(outputs, inputs, kName);
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    require_parts(inputs[i], outputs[i], getSize(), kName);
    (void)to_reduce(outputs[i], opts.reduceOp, kName);
  }
  return begin({.type = OpType::REDUCE_SCATTER_TENSOR_COALESCED,
                .name = kName,
                .inputs = inputs,
                .outputs = outputs,
                .body =
                    [inputs, outputs, op = opts.reduceOp, size = getSize()](
                        ProcessGroup& group, const OpOptions& options) {
                      for (std::size_t i = 0; i < inputs.size(); ++i) {
                        auto status =
                            scatter_reduced(group, size, inputs[i], outputs[i], op, kName, options);
                        if (!status) return status;
                      }
                      return Status();
                    },
                .timeout = timeout_of(opts.timeout),
                .in_background = opts.asyncOp});
}

namespace {

std::array<int, 3> edge(int source, int destination) {
  return {std::min(source, destination), std::max(source, destination),
          source < destination ? 0 : 1};
}

void require_tag(int tag, const char* name) {
  TORCH_CHECK_VALUE(tag >= 0, "regroup: ", name, ": tag ", tag, " is negative");
}

void require_peer(int other, int rank, int size, int tag, const char* name) {
  require_rank(other, size, name);
  TORCH_CHECK_VALUE(other != rank, "regroup: ", name, ": rank ", rank,
                    " cannot exchange messages "
                    "with itself");
  require_tag(tag, name);
}

}  // namespace

BackendRegroup::WorkPtr BackendRegroup::send(Tensors& tensors, int destination, int tag) {
  static constexpr const char* kName = "send";
  const at::Tensor tensor = only(tensors, kName);
  require_peer(destination, getRank(), getSize(), tag, kName);
  return begin({.type = OpType::SEND,
                .name = kName,
                .inputs = {tensor},
                .body =
                    [tensor, destination, tag](ProcessGroup& group, const OpOptions& options) {
                      const auto elements = to_move(tensor);
                      return group.send(elements.data, elements.count, elements.type, destination,
                                        static_cast<std::uint32_t>(tag), options);
                    },
                .timeout = timeout_.load(),
                .edge = edge(getRank(), destination)});
}

BackendRegroup::WorkPtr BackendRegroup::recv(Tensors& tensors, int source, int tag) {
  static constexpr const char* kName = "recv";
  const at::Tensor tensor = only(tensors, kName);
  require_peer(source, getRank(), getSize(), tag, kName);
  return begin({.type = OpType::RECV,
                .name = kName,
                .outputs = {tensor},
                .body =
                    [tensor, source, tag](ProcessGroup& group, const OpOptions& options) {
                      const auto elements = to_move(tensor);
                      return group.recv(elements.data, elements.count, elements.type, source,
                                        static_cast<std::uint32_t>(tag), options);
                    },
                .timeout = timeout_.load(),
                .edge = edge(source, getRank()),
                .source = source});
}

BackendRegroup::WorkPtr BackendRegroup::recvAnysource(Tensors& tensors, int tag) {
  static constexpr const char* kName = "recv from any source";
  const at::Tensor tensor = only(tensors, kName);
  require_tag(tag, kName);
  TORCH_CHECK_VALUE(getSize() > 1, "regroup: ", kName, ": nobody else is in a group of one rank");
  auto found = std::make_shared<int>(-1);
  return begin({.type = OpType::RECVANYSOURCE,
                .name = kName,
                .outputs = {tensor},
                .body =
                    [tensor, tag, found](ProcessGroup& group, const OpOptions& options) {
                      const auto elements = to_move(tensor);
                      const auto source =
                          group.recv_any(elements.data, elements.count, elements.type,
                                         static_cast<std::uint32_t>(tag), options);
                      if (!source) return source.error();
                      *found = *source;
                      return Status();
                    },
                .timeout = timeout_.load(),
                .found_source = found});
}

BackendRegroup::WorkPtr BackendRegroup::barrier(const c10d::BarrierOptions& opts) {
  return begin({.type = OpType::BARRIER,
                .name = "barrier",
                .body =
                    [size = getSize()](ProcessGroup& group, const OpOptions& options) {
                      return size == 1 ? Status() : group.barrier(options);
                    },
                .timeout = timeout_of(opts.timeout),
                .in_background = opts.asyncOp,
                .fewer_do = true});
}

// The runtime's error names whoever it waited for.
void BackendRegroup::monitoredBarrier(const c10d::BarrierOptions& opts, bool) {
  auto one = opts;
  one.asyncOp = false;
  barrier(one)->wait();
}

}  // namespace regroup::torch_binding
