"""c10d's reconfigure (torch 2.14 and later), three ranks: under --on-loss shrink all parts, the
last of which kills a rank; under --on-loss replace a newcomer takes part after a kill.

Prints "rank R: reconfigured N times" at its end; anything wrong raises.
"""

import os
import signal
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import ErrorType

import regroup.torch as rg

LONG = timedelta(seconds=40)
store = None
seat = None
uuids = iter(range(100, 1000))
times = 0


def collect(tag, seats=range(3)):
    """The handles of these seats, which all of them call for."""
    store.set(f"{tag}/{seat}", dist._get_reconfigure_handle())
    return [store.get(f"{tag}/{s}").decode() for s in seats]


def meet(tag):
    """All three are here; without the group, which may be broken."""
    store.set(f"met {tag}/{seat}", "here")
    store.wait([f"met {tag}/{s}" for s in range(3)], LONG)


def reconfigure(uuid, handles, timeout=LONG):
    global times
    dist._reconfigure(uuid, handles, timeout=timeout).wait()
    times += 1


def check(size, rank):
    """The group works, and is what it should be."""
    assert (dist.get_world_size(), dist.get_rank()) == (size, rank), (size, rank)
    tensor = torch.full((4,), rank + 1.0)
    dist.all_reduce(tensor)
    assert torch.equal(tensor, torch.full((4,), size * (size + 1) / 2)), tensor
    whole = torch.empty(size)
    dist.all_gather_into_tensor(whole, torch.tensor([float(rank)]))
    assert torch.equal(whole, torch.arange(size).float()), whole


def raises(kind, words, call):
    try:
        call()
    except kind as error:
        assert all(word in str(error) for word in words), f"{words} not in: {error}"
    else:
        raise AssertionError(f"nothing was raised where {words} belong")


def all_of_them(tag, uuid):
    reconfigure(uuid, collect(tag))
    check(3, seat)


def alone_then_together():
    raises(dist.DistBackendError, ["reconfigure"], lambda: dist.all_reduce(torch.ones(1)))
    mine = [dist._get_reconfigure_handle()]
    reconfigure(next(uuids) * 1000 + seat, mine)
    check(1, 0)
    used = next(uuids) * 1000 + seat
    reconfigure(used, mine)
    raises(RuntimeError, ["already used"], lambda: reconfigure(used, mine))
    check(1, 0)


def late_join_and_merge():
    handles = collect("late")
    pair, whole = next(uuids), next(uuids)
    if seat > 0:  # seat 0 goes on alone
        reconfigure(pair, handles[1:])
        check(2, seat - 1)
    all_of_them("merged", whole)


def order():
    handles = collect("order")
    reconfigure(next(uuids), handles[::-1])
    check(3, 2 - seat)
    reconfigure(next(uuids), set(handles))
    check(3, seat)


def shrink_and_rejoin():
    handles = collect("shrink")
    pair, whole = next(uuids), next(uuids)
    if seat != 1:
        reconfigure(pair, [handles[0], handles[2]])
        check(2, seat // 2)
    all_of_them("rejoin", whole)


def refusals():
    handles = collect("refusals")
    others = [handle for s, handle in enumerate(handles) if s != seat]
    raises(ValueError, ["do not name this process"], lambda: reconfigure(next(uuids), others))
    handles = collect("refused")
    assert len(set(handles)) == 3
    raises(ValueError, ["twice"], lambda: reconfigure(next(uuids), handles + handles[:1]))
    raises(ValueError, ["no handle"],
           lambda: reconfigure(next(uuids), {"gloo", *collect("refused again")}))
    check(3, seat)  # what was refused has changed nothing
    used = next(uuids)
    all_of_them("after refusals", used)
    raises(RuntimeError, ["already used"], lambda: reconfigure(used, collect("used")))
    check(3, seat)


def somebody_does_not_come():
    handles = collect("absent")
    uuid = next(uuids)
    if seat != 2:
        raises(RuntimeError, ["timed out after"],
               lambda: reconfigure(uuid, handles, timedelta(milliseconds=300)))
    meet("absent")
    all_of_them("present", next(uuids))


def abort_is_a_revoke():
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    meet("pending")
    pending = dist.all_reduce(torch.ones(4), async_op=True) if seat == 0 else None
    backend.abort()
    if pending is not None:
        raises(dist.DistBackendError, ["all_reduce"], pending.wait)
    assert seat == 0 or backend.get_error() == ErrorType.SUCCESS
    raises(dist.DistBackendError, ["aborted"], lambda: dist.all_reduce(torch.ones(1)))
    all_of_them("aborted", next(uuids))
    assert backend.get_error() == ErrorType.SUCCESS


def timeout_is_cured():
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    if seat == 1:
        backend.set_timeout(timedelta(milliseconds=100))
        raises(rg.DeadlineError, ["timed out"], lambda: dist.all_reduce(torch.ones(4)))
        assert backend.get_error() == ErrorType.TIMEOUT
        raises(dist.DistBackendError, ["timed out"],
               lambda: dist.all_reduce(torch.ones(4), async_op=True))
        backend.set_timeout(LONG)
    meet("timed out")
    all_of_them("cured", next(uuids))


def abort_hooks():
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    called = []
    backend.register_abort_hook(7, lambda: called.append(seat))
    backend.abort()
    assert called == [seat], called
    backend.unregister_abort_hook(7)
    all_of_them("hooks", next(uuids))


def shrink_by_death():
    if seat == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    raises(rg.RankLostError, ["rank 1", "Connection closed by"],
           lambda: dist.all_reduce(torch.ones(4)))
    reconfigure(next(uuids), collect("left", (0, 2)))
    check(2, seat // 2)


def replaced_by_a_newcomer(is_newcomer):
    if not is_newcomer:
        all_of_them("first", 1)
        if seat == 0:  # nothing lives in rank 0 that the others need
            os.kill(os.getpid(), signal.SIGKILL)
        raises(rg.RankLostError, ["rank 0"], lambda: dist.all_reduce(torch.ones(4)))
    all_of_them("second", 2)


PARTS = (alone_then_together, late_join_and_merge, order, shrink_and_rejoin, refusals,
         somebody_does_not_come, abort_is_a_revoke, timeout_is_cured, abort_hooks, shrink_by_death)


def main():
    global store, seat
    dist.init_process_group("regroup", enable_reconfigure=True, timeout=LONG)
    assert dist._supports_reconfigure()
    store = dist.distributed_c10d._get_default_store()
    job = rg._C.attachment()
    seat = job.rank
    if sys.argv[1] == "replace":
        replaced_by_a_newcomer(job.is_replacement)
    else:
        for part in PARTS:
            part()
    print(f"rank {seat}: reconfigured {times} times", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
