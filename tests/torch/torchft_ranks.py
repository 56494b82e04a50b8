"""regroup.torchft's process group on three ranks under --on-loss shrink, as torchft's Manager uses
it: configure() again and again, and after a kill without the lost rank.

Prints "rank R: configured N times" at its end; anything wrong raises.
"""

import os
import signal
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

import regroup.torch as rg
from regroup.torchft import ProcessGroupRegroup

SIZE = 3
job = rg._C.attach()
seat = job.rank
times = 0


def address():
    """Of a store as torchft's own; that of the rank that is not killed."""
    if seat == SIZE - 1:
        address.server = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        rg._C.make_store().set("server", str(address.server.port))
    return "localhost:" + rg._C.make_store().get("server").decode()


def equal(got, wanted, what):
    assert torch.equal(got, wanted), f"{what}: {got} instead of {wanted}"


def configure(group, store, quorum, ranks):
    """The group of these seats."""
    global times
    group.configure(f"{store}/torchft/{quorum}/0", f"replica{seat}", ranks.index(seat), len(ranks),
                    quorum_id=quorum, group_rank=0, group_world_size=1)
    times += 1
    assert group.size() == len(ranks) and group.errored() is None
    x = torch.tensor([float(seat)])
    group.allreduce([x], dist.ReduceOp.SUM).wait()
    equal(x, torch.tensor([float(sum(ranks))]), f"allreduce in {ranks}")


def operations(group):
    rows = torch.arange(SIZE).float()
    mine = torch.tensor([float(seat)])
    options = c10d.AllreduceOptions()
    options.reduceOp = dist.ReduceOp.MAX
    x = mine.clone()
    group.allreduce([x], options).wait()
    equal(x, torch.tensor([SIZE - 1.0]), "allreduce with options")
    both = [mine.clone(), mine.clone()]
    group.allreduce_coalesced(both, c10d.AllreduceCoalescedOptions()).wait()
    equal(both[1], rows.sum().reshape(1), "allreduce_coalesced")
    lists = [[torch.empty(1) for _ in range(SIZE)]]
    group.allgather(lists, [mine], c10d.AllgatherOptions()).wait()
    equal(torch.cat(lists[0]), rows, "allgather")
    whole = torch.empty(SIZE)
    group.allgather_into_tensor_coalesced([whole], [mine], c10d.AllgatherOptions()).wait()
    equal(whole, rows, "allgather_into_tensor_coalesced")
    turned = torch.empty(SIZE)
    group.alltoall_base(turned, rows + 10 * seat, [], [], c10d.AllToAllOptions()).wait()
    equal(turned, 10 * rows + seat, "alltoall_base")
    group.broadcast_one(x, 1).wait()
    part = torch.empty(1)
    group.reduce_scatter([part], [list(rows.split(1))], c10d.ReduceScatterOptions()).wait()
    equal(part, mine * SIZE, "reduce_scatter")
    group.reduce_scatter_tensor_coalesced([part], [rows], c10d.ReduceScatterOptions()).wait()
    equal(part, mine * SIZE, "reduce_scatter_tensor_coalesced")
    group.barrier().wait()
    if seat == 0:
        group.send([mine + 5], 2, 3).wait()
    if seat == 2:
        group.recv([part], 0, 3).wait()
        equal(part, torch.tensor([5.0]), "recv")


def main():
    store = address()
    group = ProcessGroupRegroup(timeout=timedelta(seconds=40))
    configure(group, store, 1, [0, 1, 2])
    operations(group)
    if seat != 2:
        configure(group, store, 2, [1, 0])
    configure(group, store, 3, [0, 1, 2])
    # Somebody gives up a call that the others never make.
    if seat == 1:
        pending = group.allreduce([torch.ones(1)], dist.ReduceOp.SUM)
        group.abort()
        assert "aborted" in str(group.errored())
    configure(group, store, 4, [0, 1, 2])
    if seat == 1:
        try:
            pending.wait()
        except rg.CommError:
            pass
        else:
            raise AssertionError("a call that was given up came to a good end")
    if seat == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        group.allreduce([torch.ones(1)], dist.ReduceOp.SUM).wait()
    except rg.RankLostError as lost:
        assert lost.rank == 0 and "Connection closed by" in str(lost), lost
    else:
        raise AssertionError("the loss was not seen")
    assert group.errored() is not None
    configure(group, store, 5, [1, 2])
    print(f"rank {seat}: configured {times} times", flush=True)
    group.shutdown()


if __name__ == "__main__":
    main()
