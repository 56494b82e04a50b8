/// The public API: thin handles over the engine's objects.
#include <fmt/format.h>

#include <algorithm>

#include <regroup/regroup.hpp>

#include "engine/group.hpp"
#include "engine/job.hpp"
#include "engine/steps.hpp"

namespace regroup {
namespace {

using engine::Request;
using metrics::Operation;
using spi::OpKind;

Request collective(Operation operation, const collective::OpSpec& spec, const OpOptions& options) {
  Request request;
  request.operation = operation;
  request.options = options;
  request.spec = spec;
  return request;
}

Request all_reduce_request(const void* in, void* out, std::size_t count, DType type, ReduceOp op,
                           const OpOptions& options) {
  return collective(Operation::AllReduce,
                    {.kind = OpKind::AllReduce,
                     .dtype = type,
                     .op = op,
                     .factor = options.factor,
                     .count = count,
                     .in = in,
                     .out = out},
                    options);
}
Request reduce_request(const void* in, void* out, std::size_t count, DType type, ReduceOp op,
                       int root, const OpOptions& options) {
  return collective(Operation::Reduce,
                    {.kind = OpKind::Reduce,
                     .dtype = type,
                     .op = op,
                     .root = root,
                     .factor = options.factor,
                     .count = count,
                     .in = in,
                     .out = out},
                    options);
}
Request broadcast_request(void* buffer, std::size_t count, DType type, int root,
                          const OpOptions& options) {
  return collective(Operation::Broadcast,
                    {.kind = OpKind::Broadcast,
                     .dtype = type,
                     .root = root,
                     .count = count,
                     .in = buffer,
                     .out = buffer},
                    options);
}
Request reduce_scatter_request(const void* in, void* out, std::size_t count, DType type,
                               ReduceOp op, const OpOptions& options) {
  return collective(Operation::ReduceScatter,
                    {.kind = OpKind::ReduceScatter,
                     .dtype = type,
                     .op = op,
                     .factor = options.factor,
                     .count = count,
                     .in = in,
                     .out = out},
                    options);
}
/// Of the kinds that move `count` elements from rank to rank and combine nothing.
Request moving_request(Operation operation, OpKind kind, const void* in, void* out,
                       std::size_t count, DType type, int root, const OpOptions& options) {
  return collective(
      operation, {.kind = kind, .dtype = type, .root = root, .count = count, .in = in, .out = out},
      options);
}
Request all_gather_request(const void* in, void* out, std::size_t count, DType type,
                           const OpOptions& options) {
  return moving_request(Operation::AllGather, OpKind::AllGather, in, out, count, type, 0, options);
}
Request all_to_all_request(const void* in, void* out, std::size_t count, DType type,
                           const OpOptions& options) {
  return moving_request(Operation::AllToAll, OpKind::AllToAll, in, out, count, type, 0, options);
}
Request gather_request(const void* in, void* out, std::size_t count, DType type, int root,
                       const OpOptions& options) {
  return moving_request(Operation::Gather, OpKind::Gather, in, out, count, type, root, options);
}
Request scatter_request(const void* in, void* out, std::size_t count, DType type, int root,
                        const OpOptions& options) {
  return moving_request(Operation::Scatter, OpKind::Scatter, in, out, count, type, root, options);
}

using Shares = std::span<const std::size_t>;

Request with_counts(Request request, Shares counts) {
  request.spec.counts = {.shares = counts.data(), .ranks = static_cast<int>(counts.size())};
  return request;
}
Request all_gather_v_request(const void* in, void* out, Shares counts, DType type,
                             const OpOptions& options) {
  return with_counts(
      moving_request(Operation::AllGatherV, OpKind::AllGatherV, in, out, 0, type, 0, options),
      counts);
}
Request reduce_scatter_v_request(const void* in, void* out, Shares counts, DType type, ReduceOp op,
                                 const OpOptions& options) {
  auto request = reduce_scatter_request(in, out, 0, type, op, options);
  request.operation = Operation::ReduceScatterV;
  request.spec.kind = OpKind::ReduceScatterV;
  return with_counts(request, counts);
}
Request gather_v_request(const void* in, void* out, Shares counts, DType type, int root,
                         const OpOptions& options) {
  return with_counts(
      moving_request(Operation::GatherV, OpKind::GatherV, in, out, 0, type, root, options), counts);
}
Request scatter_v_request(const void* in, void* out, Shares counts, DType type, int root,
                          const OpOptions& options) {
  return with_counts(
      moving_request(Operation::ScatterV, OpKind::ScatterV, in, out, 0, type, root, options),
      counts);
}
Request all_to_all_v_request(const void* in, Shares send_counts, void* out, Shares recv_counts,
                             DType type, const OpOptions& options) {
  auto request = with_counts(
      moving_request(Operation::AllToAllV, OpKind::AllToAllV, in, out, 0, type, 0, options),
      send_counts);
  request.spec.counts.recv = recv_counts.data();
  // Two lists of different lengths fit no group: its check names the one that is wrong.
  if (recv_counts.size() != send_counts.size()) request.spec.counts.ranks = -1;
  return request;
}
Request barrier_request(Operation operation, const OpOptions& options) {
  return collective(operation, {.kind = OpKind::Barrier}, options);
}
Request send_request(const void* data, std::size_t count, DType type, int destination,
                     std::uint32_t tag, const OpOptions& options) {
  auto request = collective(Operation::Send, {.dtype = type, .count = count, .in = data}, options);
  request.kind = Request::Kind::Send;
  request.other = destination;
  request.tag = tag;
  return request;
}
Request recv_request(void* data, std::size_t count, DType type, int source, std::uint32_t tag,
                     const OpOptions& options) {
  auto request = collective(Operation::Recv, {.dtype = type, .count = count, .out = data}, options);
  request.kind = Request::Kind::Recv;
  request.other = source;
  request.tag = tag;
  return request;
}

Request find_request(std::int64_t& source, void* data, std::size_t count, DType type,
                     std::uint32_t tag, const OpOptions& options) {
  auto request = recv_request(data, count, type, -1, tag, options);
  request.kind = Request::Kind::Find;
  request.found = &source;
  return request;
}

Status no_group() {
  return {Code::FailedPrecondition, "this ProcessGroup was never given a group; take it from Job"};
}

}  // namespace

Work::Work() = default;
Work::Work(std::shared_ptr<engine::WorkImpl> impl) : impl_(std::move(impl)) {}
Work::Work(Work&&) noexcept = default;
Work& Work::operator=(Work&& other) noexcept {
  if (this != &other) {
    if (impl_) (void)impl_->wait();
    impl_ = std::move(other.impl_);
  }
  return *this;
}
Work::~Work() {
  if (impl_) (void)impl_->wait();
}
bool Work::done() const { return impl_ == nullptr || impl_->done(); }
Status Work::wait() { return impl_ ? impl_->wait() : no_group(); }
Contributors Work::contributors() const { return impl_ ? impl_->contributors() : Contributors(); }

ProcessGroup::ProcessGroup(std::shared_ptr<engine::GroupImpl> impl) : impl_(std::move(impl)) {}
int ProcessGroup::rank() const { return impl_ ? impl_->public_rank() : -1; }
int ProcessGroup::size() const { return impl_ ? impl_->public_size() : 0; }
std::string ProcessGroup::name() const { return impl_ ? impl_->name() : std::string(); }
Contributors ProcessGroup::contributors() const {
  return impl_ ? impl_->contributors() : Contributors();
}
Epoch ProcessGroup::epoch() const { return impl_ ? impl_->epoch() : Epoch(); }

Status ProcessGroup::size_mismatch(std::string_view operation, std::size_t in, std::size_t out) {
  return {Code::InvalidArgument,
          fmt::format("{}: the input has {} elements and the output {}; they must be equal",
                      operation, in, out)};
}

Status ProcessGroup::all_reduce(const void* in, void* out, std::size_t count, DType type,
                                ReduceOp op, OpOptions options) {
  return impl_ ? impl_->perform(all_reduce_request(in, out, count, type, op, options)) : no_group();
}
Status ProcessGroup::reduce(const void* in, void* out, std::size_t count, DType type, ReduceOp op,
                            int root, OpOptions options) {
  return impl_ ? impl_->perform(reduce_request(in, out, count, type, op, root, options))
               : no_group();
}
Status ProcessGroup::broadcast(void* buffer, std::size_t count, DType type, int root,
                               OpOptions options) {
  return impl_ ? impl_->perform(broadcast_request(buffer, count, type, root, options)) : no_group();
}
Status ProcessGroup::all_gather(const void* in, void* out, std::size_t count, DType type,
                                OpOptions options) {
  return impl_ ? impl_->perform(all_gather_request(in, out, count, type, options)) : no_group();
}
Status ProcessGroup::reduce_scatter(const void* in, void* out, std::size_t count, DType type,
                                    ReduceOp op, OpOptions options) {
  return impl_ ? impl_->perform(reduce_scatter_request(in, out, count, type, op, options))
               : no_group();
}
Status ProcessGroup::all_gather_v(const void* in, void* out, Shares counts, DType type,
                                  OpOptions options) {
  return impl_ ? impl_->perform(all_gather_v_request(in, out, counts, type, options)) : no_group();
}
Status ProcessGroup::reduce_scatter_v(const void* in, void* out, Shares counts, DType type,
                                      ReduceOp op, OpOptions options) {
  return impl_ ? impl_->perform(reduce_scatter_v_request(in, out, counts, type, op, options))
               : no_group();
}
Status ProcessGroup::all_to_all(const void* in, void* out, std::size_t count, DType type,
                                OpOptions options) {
  return impl_ ? impl_->perform(all_to_all_request(in, out, count, type, options)) : no_group();
}
Status ProcessGroup::all_to_all_v(const void* in, Shares send_counts, void* out, Shares recv_counts,
                                  DType type, OpOptions options) {
  return impl_ ? impl_->perform(
                     all_to_all_v_request(in, send_counts, out, recv_counts, type, options))
               : no_group();
}
Status ProcessGroup::gather(const void* in, void* out, std::size_t count, DType type, int root,
                            OpOptions options) {
  return impl_ ? impl_->perform(gather_request(in, out, count, type, root, options)) : no_group();
}
Status ProcessGroup::scatter(const void* in, void* out, std::size_t count, DType type, int root,
                             OpOptions options) {
  return impl_ ? impl_->perform(scatter_request(in, out, count, type, root, options)) : no_group();
}
Status ProcessGroup::gather_v(const void* in, void* out, Shares counts, DType type, int root,
                              OpOptions options) {
  return impl_ ? impl_->perform(gather_v_request(in, out, counts, type, root, options))
               : no_group();
}
Status ProcessGroup::scatter_v(const void* in, void* out, Shares counts, DType type, int root,
                               OpOptions options) {
  return impl_ ? impl_->perform(scatter_v_request(in, out, counts, type, root, options))
               : no_group();
}
Status ProcessGroup::barrier(OpOptions options) {
  return impl_ ? impl_->perform(barrier_request(Operation::Barrier, options)) : no_group();
}
// On one host what is complete is stable: words and slots outlive every rank, so that a recovery
// counts the words of the dead too. The barrier makes sure that everybody completed everything
// before it.
Status ProcessGroup::stabilize(OpOptions options) {
  return impl_ ? impl_->perform(barrier_request(Operation::Stabilize, options)) : no_group();
}
Status ProcessGroup::send(const void* data, std::size_t count, DType type, int destination,
                          std::uint32_t tag, OpOptions options) {
  return impl_ ? impl_->perform(send_request(data, count, type, destination, tag, options))
               : no_group();
}
Status ProcessGroup::recv(void* data, std::size_t count, DType type, int source, std::uint32_t tag,
                          OpOptions options) {
  return impl_ ? impl_->perform(recv_request(data, count, type, source, tag, options)) : no_group();
}

Result<int> ProcessGroup::recv_any(void* data, std::size_t count, DType type, std::uint32_t tag,
                                   OpOptions options) {
  if (!impl_) return no_group();
  const auto until = std::chrono::steady_clock::now() + options.timeout;
  std::int64_t source = -1;
  if (auto status = impl_->perform(find_request(source, data, count, type, tag, options)); !status)
    return status;
  if (options.timeout.count() > 0) {  // 0 is no limit
    options.timeout = std::max<std::chrono::nanoseconds>(until - std::chrono::steady_clock::now(),
                                                         std::chrono::milliseconds(1));
  }
  const auto from = static_cast<int>(source);
  if (auto status = recv(data, count, type, from, tag, options); !status) return status;
  return from;
}

Work ProcessGroup::all_reduce_async(const void* in, void* out, std::size_t count, DType type,
                                    ReduceOp op, OpOptions options) {
  return Work(impl_ ? impl_->start(all_reduce_request(in, out, count, type, op, options))
                    : nullptr);
}
Work ProcessGroup::reduce_async(const void* in, void* out, std::size_t count, DType type,
                                ReduceOp op, int root, OpOptions options) {
  return Work(impl_ ? impl_->start(reduce_request(in, out, count, type, op, root, options))
                    : nullptr);
}
Work ProcessGroup::broadcast_async(void* buffer, std::size_t count, DType type, int root,
                                   OpOptions options) {
  return Work(impl_ ? impl_->start(broadcast_request(buffer, count, type, root, options))
                    : nullptr);
}
Work ProcessGroup::all_gather_async(const void* in, void* out, std::size_t count, DType type,
                                    OpOptions options) {
  return Work(impl_ ? impl_->start(all_gather_request(in, out, count, type, options)) : nullptr);
}
Work ProcessGroup::reduce_scatter_async(const void* in, void* out, std::size_t count, DType type,
                                        ReduceOp op, OpOptions options) {
  return Work(impl_ ? impl_->start(reduce_scatter_request(in, out, count, type, op, options))
                    : nullptr);
}
Work ProcessGroup::all_gather_v_async(const void* in, void* out, Shares counts, DType type,
                                      OpOptions options) {
  return Work(impl_ ? impl_->start(all_gather_v_request(in, out, counts, type, options)) : nullptr);
}
Work ProcessGroup::reduce_scatter_v_async(const void* in, void* out, Shares counts, DType type,
                                          ReduceOp op, OpOptions options) {
  return Work(impl_ ? impl_->start(reduce_scatter_v_request(in, out, counts, type, op, options))
                    : nullptr);
}
Work ProcessGroup::all_to_all_async(const void* in, void* out, std::size_t count, DType type,
                                    OpOptions options) {
  return Work(impl_ ? impl_->start(all_to_all_request(in, out, count, type, options)) : nullptr);
}
Work ProcessGroup::all_to_all_v_async(const void* in, Shares send_counts, void* out,
                                      Shares recv_counts, DType type, OpOptions options) {
  return Work(
      impl_ ? impl_->start(all_to_all_v_request(in, send_counts, out, recv_counts, type, options))
            : nullptr);
}
Work ProcessGroup::gather_async(const void* in, void* out, std::size_t count, DType type, int root,
                                OpOptions options) {
  return Work(impl_ ? impl_->start(gather_request(in, out, count, type, root, options)) : nullptr);
}
Work ProcessGroup::scatter_async(const void* in, void* out, std::size_t count, DType type, int root,
                                 OpOptions options) {
  return Work(impl_ ? impl_->start(scatter_request(in, out, count, type, root, options)) : nullptr);
}
Work ProcessGroup::gather_v_async(const void* in, void* out, Shares counts, DType type, int root,
                                  OpOptions options) {
  return Work(impl_ ? impl_->start(gather_v_request(in, out, counts, type, root, options))
                    : nullptr);
}
Work ProcessGroup::scatter_v_async(const void* in, void* out, Shares counts, DType type, int root,
                                   OpOptions options) {
  return Work(impl_ ? impl_->start(scatter_v_request(in, out, counts, type, root, options))
                    : nullptr);
}
Work ProcessGroup::barrier_async(OpOptions options) {
  return Work(impl_ ? impl_->start(barrier_request(Operation::Barrier, options)) : nullptr);
}

Status ProcessGroup::begin_coalescing() { return impl_ ? impl_->begin_coalescing() : no_group(); }
Status ProcessGroup::end_coalescing(OpOptions options) {
  return impl_ ? impl_->end_coalescing(options) : no_group();
}
Work ProcessGroup::end_coalescing_async(OpOptions options) {
  return Work(impl_ ? impl_->end_coalescing_async(options) : nullptr);
}

Result<ProcessGroup> ProcessGroup::split(int color, int key, std::string_view name) {
  if (!impl_) return no_group();
  auto group = impl_->split(color, key, name);
  if (!group) return group.error();
  return ProcessGroup(std::move(*group));
}

State& State::add(std::string_view name, void* data, std::size_t bytes) {
  job_->state().add(name, data, bytes);
  return *this;
}
State& State::add_volatile(std::string_view name, void* data, std::size_t bytes) {
  job_->state().add_volatile(name, data, bytes);
  return *this;
}

namespace {

using StoreKind = control::StoreRequest::Kind;

Result<control::StoreReply> ask(engine::JobImpl& job, control::StoreRequest request,
                                nanoseconds timeout = nanoseconds{0}) {
  if (auto status = job.usable(); !status) return status;
  return job.link().ask_store(std::move(request),
                              timeout.count() > 0 ? Clock::now() + timeout : TimePoint::max());
}

control::StoreRequest about(StoreKind kind, std::string_view key) {
  return {.kind = kind, .keys = {std::string(key)}};
}

}  // namespace

Status Store::set(std::string_view key, std::string_view value) {
  auto request = about(StoreKind::Set, key);
  request.value = value;
  return ask(*job_, std::move(request)).error();
}
Result<std::string> Store::get(std::string_view key, nanoseconds timeout) {
  auto reply = ask(*job_, about(StoreKind::Get, key), timeout);
  if (!reply) return reply.error();
  return std::move(reply->value);
}
Status Store::wait(std::span<const std::string> keys, nanoseconds timeout) {
  return ask(*job_, {.kind = StoreKind::Wait, .keys = {keys.begin(), keys.end()}}, timeout).error();
}
Result<bool> Store::has(std::span<const std::string> keys) {
  const auto reply = ask(*job_, {.kind = StoreKind::Has, .keys = {keys.begin(), keys.end()}});
  if (!reply) return reply.error();
  return reply->number != 0;
}
Result<std::int64_t> Store::add(std::string_view key, std::int64_t amount) {
  auto request = about(StoreKind::Add, key);
  request.amount = amount;
  const auto reply = ask(*job_, std::move(request));
  if (!reply) return reply.error();
  return reply->number;
}
Result<std::string> Store::compare_set(std::string_view key, std::string_view expected,
                                       std::string_view desired) {
  auto request = about(StoreKind::CompareSet, key);
  request.expected = expected;
  request.value = desired;
  auto reply = ask(*job_, std::move(request));
  if (!reply) return reply.error();
  return std::move(reply->value);
}
Result<bool> Store::erase(std::string_view key) {
  const auto reply = ask(*job_, about(StoreKind::Erase, key));
  if (!reply) return reply.error();
  return reply->number != 0;
}
Result<std::int64_t> Store::size() {
  const auto reply = ask(*job_, {.kind = StoreKind::Count});
  if (!reply) return reply.error();
  return reply->number;
}

Steps::Steps(std::unique_ptr<engine::StepsImpl> impl) : impl_(std::move(impl)) {}
Steps::Steps(Steps&&) noexcept = default;
Steps& Steps::operator=(Steps&&) noexcept = default;
Steps::~Steps() = default;
bool Steps::next() { return impl_->next(); }
std::uint64_t Steps::index() const { return impl_->index(); }
int Steps::attempt() const { return impl_->attempt(); }
Status Steps::commit() { return impl_->commit(); }
Status Steps::status() const { return impl_->status(); }

Job::Job(std::shared_ptr<engine::JobImpl> impl) : impl_(std::move(impl)) {}
Result<Job> Job::attach(AttachOptions options) {
  auto impl = engine::JobImpl::attach(options);
  if (!impl) return impl.error();
  return Job(std::move(*impl));
}
int Job::rank() const { return impl_->seat().rank.value(); }
int Job::size() const { return static_cast<int>(impl_->seat().ranks); }
Incarnation Job::incarnation() const { return impl_->seat().incarnation; }
OnLoss Job::on_loss() const { return impl_->seat().on_loss; }
bool Job::is_replacement() const { return impl_->seat().replacement; }
bool Job::drained() const { return impl_->link().released(); }
ProcessGroup Job::world() const { return ProcessGroup(impl_->world()); }
Store Job::store() { return Store(impl_); }
Result<ProcessGroup> Job::group(std::string_view name, std::span<const int> ranks) {
  if (auto status = impl_->usable(); !status) return status;
  std::vector<Rank> seats;
  for (const int rank : ranks) seats.emplace_back(rank);
  if (std::ranges::find(seats, impl_->seat().rank) == seats.end()) {
    return Status(
        Code::InvalidArgument,
        fmt::format("rank {} asked for group \"{}\" without being one of its ranks", rank(), name));
  }
  auto group = impl_->group(std::string(name), seats);
  if (!group) return group.error();
  return ProcessGroup(std::move(*group));
}
State Job::state() { return State(impl_.get()); }
Steps Job::steps(std::uint64_t total) {
  return Steps(std::make_unique<engine::StepsImpl>(impl_, total));
}
Status Job::reform() { return impl_->enter(); }
Status Job::end_epoch(std::string_view why) { return impl_->end_epoch(why); }

}  // namespace regroup
