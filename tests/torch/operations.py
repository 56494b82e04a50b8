"""Every operation of the backend on three ranks, each result compared with what it must be.

Prints "rank R: N checks" at its end; anything wrong raises.
"""

import functools
from datetime import timedelta

import torch
import torch.distributed as dist

import regroup.torch as rg

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int32, torch.int64, torch.uint8, torch.int8, torch.int16)
MOVED_ONLY = (torch.bool, torch.complex64)
checks = 0


def equal(got, wanted, what):
    global checks
    checks += 1
    assert torch.equal(got, wanted), f"{what}: {got} instead of {wanted}"


def raises(kind, words, call):
    global checks
    checks += 1
    try:
        result = call()
        if result is not None:
            result.wait()
    except kind as error:
        missing = [word for word in words if word not in str(error)]
        assert not missing, f"{missing} not in: {error}"
    else:
        raise AssertionError(f"nothing was raised where {words} belong")


def mine(rank, dtype, n=5):
    return (torch.arange(n) % 3 + rank + 1).to(dtype)


def all_of(world, dtype, n=5):
    return [mine(r, dtype, n) for r in range(world)]


def reductions(rank, world):
    for dtype in FLOATS + INTEGERS:
        everybody = torch.stack([t.to(torch.float64) for t in all_of(world, dtype)])
        wanted = {
            dist.ReduceOp.SUM: everybody.sum(0),
            dist.ReduceOp.PRODUCT: everybody.prod(0),
            dist.ReduceOp.MIN: everybody.min(0).values,
            dist.ReduceOp.MAX: everybody.max(0).values,
        }
        if dtype in FLOATS:
            wanted[dist.ReduceOp.AVG] = everybody.sum(0) / world
        for op, result in wanted.items():
            tensor = mine(rank, dtype)
            dist.all_reduce(tensor, op)
            equal(tensor, result.to(dtype), f"all_reduce {op} {dtype}")
            tensor = mine(rank, dtype)
            work = dist.all_reduce(tensor, op, async_op=True)
            assert work.wait() and work.is_completed() and work.is_success()
            equal(work.result()[0], result.to(dtype), f"async all_reduce {op} {dtype}")
            tensor = mine(rank, dtype)
            dist.reduce(tensor, 1, op)
            equal(tensor, result.to(dtype) if rank == 1 else mine(rank, dtype), f"reduce {op}")
            whole = torch.cat([mine(rank, dtype)] * world)
            part = torch.empty(5, dtype=dtype)
            dist.reduce_scatter_tensor(part, whole, op)
            equal(part, result.to(dtype), f"reduce_scatter_tensor {op} {dtype}")
            dist.reduce_scatter(part, [mine(rank, dtype)] * world, op)
            equal(part, result.to(dtype), f"reduce_scatter {op} {dtype}")
    flags = torch.tensor([rank == 0, rank == 1, False, True])
    dist.all_reduce(flags, dist.ReduceOp.SUM)
    equal(flags, torch.tensor([True, world > 1, False, True]), "all_reduce of bools")
    flags = torch.tensor([rank == 0, rank < 2, True])
    dist.all_reduce(flags, dist.ReduceOp.BXOR)
    equal(flags, torch.tensor([True, False, world % 2 == 1]), "exclusive or of bools")
    for op, both in ((dist.ReduceOp.BAND, torch.bitwise_and), (dist.ReduceOp.BOR, torch.bitwise_or),
                     (dist.ReduceOp.BXOR, torch.bitwise_xor)):
        tensor = mine(rank, torch.int16)
        dist.all_reduce(tensor, op)
        equal(tensor, functools.reduce(both, all_of(world, torch.int16)), f"all_reduce {op}")
    scaled = mine(rank, torch.float32)
    dist.all_reduce(scaled, dist._make_nccl_premul_sum(0.5))
    equal(scaled, torch.stack(all_of(world, torch.float32)).sum(0) / 2, "PREMUL_SUM")
    small = mine(rank, torch.float8_e4m3fn)
    dist.all_reduce(small)
    equal(small.float(), torch.stack(all_of(world, torch.float32)).sum(0), "all_reduce of 8 bits")
    many = [mine(rank, d) for d in (torch.float32, torch.int64, torch.float32)]
    dist.group.WORLD._get_backend(torch.device("cpu")).allreduce_coalesced(many).wait()
    for tensor in many:
        equal(tensor, sum(all_of(world, tensor.dtype)), "all_reduce_coalesced")


def exchanges(rank, world, dtype):
    """Rank r gives rank s the first s + 1 elements of its own."""
    def share(giver, taker):
        return mine(giver, dtype, taker + 1)

    given = [share(rank, s) for s in range(world)]
    taken = [torch.zeros(rank + 1, dtype=dtype) for _ in range(world)]
    dist.all_to_all(taken, given)
    wanted = torch.cat([share(r, rank) for r in range(world)])
    equal(torch.cat(taken), wanted, f"all_to_all {dtype}")
    flat = torch.zeros(world * (rank + 1), dtype=dtype)
    dist.all_to_all_single(flat, torch.cat(given), [rank + 1] * world,
                           [s + 1 for s in range(world)])
    equal(flat, wanted, f"all_to_all_single with split sizes {dtype}")
    rows = torch.stack([mine(rank, dtype, 4)] * world)
    dist.all_to_all_single(rows, rows)
    equal(rows, torch.stack(all_of(world, dtype, 4)), f"all_to_all_single in place {dtype}")
    parts = [torch.zeros(5, dtype=dtype) for _ in range(world)] if rank == 2 else None
    dist.gather(mine(rank, dtype), parts, 2)
    if rank == 2:
        equal(torch.cat(parts), torch.cat(all_of(world, dtype)), f"gather {dtype}")
    part = torch.zeros(5, dtype=dtype)
    dist.scatter(part, all_of(world, dtype) if rank == 1 else None, 1)
    equal(part, mine(rank, dtype), f"scatter {dtype}")


def movements(rank, world):
    for dtype in FLOATS + INTEGERS + MOVED_ONLY:
        everybody = all_of(world, dtype)
        tensor = mine(rank, dtype)
        dist.broadcast(tensor, 2)
        equal(tensor, mine(2, dtype), f"broadcast {dtype}")
        parts = [torch.empty(5, dtype=dtype) for _ in range(world)]
        dist.all_gather(parts, mine(rank, dtype))
        equal(torch.cat(parts), torch.cat(everybody), f"all_gather {dtype}")
        lists = [[torch.empty(n, dtype=dtype) for n in (5, 2)] for _ in range(world)]
        dist.all_gather_coalesced(lists, [mine(rank, dtype, n) for n in (5, 2)])
        wanted = [mine(r, dtype, n) for r in range(world) for n in (5, 2)]
        equal(torch.cat(sum(lists, [])), torch.cat(wanted), f"all_gather_coalesced {dtype}")
        whole = torch.empty(5 * world, dtype=dtype)
        dist.all_gather_into_tensor(whole, mine(rank, dtype))
        equal(whole, torch.cat(everybody), f"all_gather_into_tensor {dtype}")
        whole.zero_()
        whole[5 * rank : 5 * rank + 5] = mine(rank, dtype)
        dist.all_gather_into_tensor(whole, whole[5 * rank : 5 * rank + 5])
        equal(whole, torch.cat(everybody), f"all_gather_into_tensor in place {dtype}")
        exchanges(rank, world, dtype)
    objects = [None] * world
    dist.all_gather_object(objects, {"rank": rank, "text": "x" * rank})
    assert objects == [{"rank": r, "text": "x" * r} for r in range(world)], objects
    given = ["a", rank] if rank == 0 else [None, None]
    dist.broadcast_object_list(given, 0)
    assert given == ["a", 0], given
    gathered = [None] * world if rank == 1 else None
    dist.gather_object(rank, gathered, 1)
    assert gathered == (list(range(world)) if rank == 1 else None), gathered
    share = [None]
    dist.scatter_object_list(share, ["a", "b", "c"] if rank == 2 else None, 2)
    assert share == ["abc"[rank]], share
    dist.barrier()
    dist.group.WORLD.monitored_barrier(timedelta(seconds=20))


def messages(rank, world):
    """Around the ring, with more bytes than anybody keeps for others."""
    after, before = (rank + 1) % world, (rank - 1) % world
    sent = torch.full((1 << 20,), float(rank))
    got = torch.empty(1 << 20)
    batch = [dist.P2POp(dist.isend, sent, after), dist.P2POp(dist.irecv, got, before)]
    for work in dist.batch_isend_irecv(batch):
        work.wait()
    equal(got, torch.full((1 << 20,), float(before)), "batch_isend_irecv")
    token = torch.tensor([float(rank)])
    if rank == 0:
        dist.send(token, 1, tag=7)
        dist.recv(token, world - 1, tag=8)
    else:
        dist.recv(token, rank - 1, tag=7)
        token += 1
        dist.send(token, after, tag=7 if after else 8)
    if rank == 0:
        equal(token, torch.tensor([float(world - 1)]), "send and recv")


def from_anybody(rank, world):
    """A rank that does not know who sends first; more bytes than a ring holds among them."""
    rows = 1 << 16
    if rank:
        for turn in range(3):
            dist.send(torch.full((rows,), float(10 * rank + turn)), 0, tag=5)
        return
    turns = [0] * world
    for _ in range(3 * (world - 1)):
        got = torch.empty(rows)
        source = dist.recv(got, tag=5)
        equal(got, torch.full((rows,), float(10 * source + turns[source])), "recv from anybody")
        turns[source] += 1
    assert turns == [0] + [3] * (world - 1), turns


def futures(rank, world):
    seen = []
    work = dist.all_reduce(mine(rank, torch.float32), async_op=True)
    chained = work.get_future().then(lambda f: seen.append(f.value()[0].sum().item()) or 5)
    assert chained.wait() == 5
    equal(torch.tensor(seen), torch.stack(all_of(world, torch.float32)).sum().reshape(1), "then")


def groups(rank, world):
    # Nobody else calls: construction is local. (All make one, since torch numbers groups so.)
    few = [0, 1] if rank < 2 else [2]
    dist.barrier(group=dist.new_group(few, use_local_synchronization=True))
    for ranks in ([0, 2], [1, 2], [1], [0, 1, 2]):
        group = dist.new_group(ranks)
        if rank not in ranks:
            continue
        tensor = torch.tensor([float(rank)])
        dist.all_reduce(tensor, group=group)
        equal(tensor, torch.tensor([float(sum(ranks))]), f"all_reduce in {ranks}")
        assert dist.get_rank(group) == sorted(ranks).index(rank)


def functional(rank, world):
    from torch.distributed import _functional_collectives as funcol

    group = dist.group.WORLD
    x = mine(rank, torch.float32)
    total = torch.stack(all_of(world, torch.float32)).sum(0)
    equal(funcol.all_reduce(x, "sum", group).wait(), total, "functional all_reduce")
    whole = funcol.all_gather_tensor(x, 0, group)
    equal(whole.wait(), torch.cat(all_of(world, torch.float32)), "functional all_gather_tensor")
    part = funcol.reduce_scatter_tensor(torch.cat([x] * world), "sum", 0, group)
    equal(part.wait(), total, "functional reduce_scatter_tensor")
    turned = funcol.all_to_all_single(torch.cat([x] * world), None, None, group)
    equal(turned.wait(), torch.cat(all_of(world, torch.float32)), "functional all_to_all_single")
    both = funcol.all_reduce_coalesced([x, x * 2], "sum", group)
    equal(both[0].wait() * 2, both[1].wait(), "functional all_reduce_coalesced")


def errors(rank, world):
    x = torch.ones(4, 4)
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    raises(ValueError, ["contiguous", "[3, 4]"], lambda: dist.all_reduce(x.t()[1:]))
    raises(ValueError, ["meta", "host memory"], lambda: backend.allreduce([x.to("meta")]))
    raises(ValueError, ["Sparse", "to_dense"], lambda: backend.allreduce([x.to_sparse()]))
    raises(NotImplementedError, ["does not support", "ComplexFloat"],
           lambda: backend.allreduce([x.to(torch.complex64)]))
    raises(ValueError, ["average of integers"],
           lambda: dist.all_reduce(torch.ones(2, dtype=torch.int32), dist.ReduceOp.AVG))
    raises(ValueError, ["13", "4"],
           lambda: dist.all_gather_into_tensor(torch.empty(13), torch.ones(4)))
    raises(ValueError, ["first dimension", "13"],
           lambda: dist.all_to_all_single(torch.ones(13), torch.ones(13)))
    raises(ValueError, ["split sizes 2 2 2", "7"],
           lambda: dist.all_to_all_single(torch.ones(6), torch.ones(7), [2, 2, 2], [2, 2, 2]))
    raises(NotImplementedError, ["BAND", "Float"], lambda: dist.all_reduce(x, dist.ReduceOp.BAND))
    # Ranks that disagree are both named, on all of them, and the group is as good as before.
    raises(rg.CommError, ["rank 1", "InvalidArgument"],
           lambda: dist.all_reduce(torch.ones(3 if rank == 1 else 4)))
    again = torch.ones(2)
    dist.all_reduce(again)
    equal(again, torch.full((2,), float(world)), "all_reduce after a mismatch")
    # Last, since it ends the epoch: rank 1 does not come in time.
    pair = dist.new_group([0, 1], timeout=timedelta(milliseconds=300))
    if rank == 0:
        raises(rg.DeadlineError, ["timed out after", "300 ms"], lambda: dist.barrier(group=pair))


def main():
    dist.init_process_group("regroup")
    rank, world = dist.get_rank(), dist.get_world_size()
    assert dist.get_backend() == "regroup" and world == 3
    for part in (reductions, movements, messages, from_anybody, futures, groups, functional,
                 errors):
        part(rank, world)
    print(f"rank {rank}: {checks} checks", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
