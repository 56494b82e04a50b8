"""Who took part: under --on-loss carry_on and shrink operations come to a good end without the lost
ranks."""

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_group

from . import _C


def contributors(work):
    """Ranks of the job whose contributions the result of `work` holds, and by how many AVG divided.

    work: what a call with async_op=True returned, of this backend; empty unless it has come to a
    good end.
    """
    return _C.contributors_of_work(work)


def active_ranks(group=None):
    """Ranks of the job that took part in the group's last operation; before it all of its ranks.
    The same on all ranks of the group that took part."""
    group = group or _get_default_group()
    return _C.contributors_of_group(group._get_backend(torch.device("cpu")))


def average_what_is_left(model):
    """DDP divides by the number of ranks that there were; from now on `model` divides by the number
    of those that contributed."""
    if model.broadcast_buffers and any(True for _ in model.module.buffers()):
        raise ValueError(
            "under --on-loss carry_on and shrink DDP must not broadcast the buffers of a rank that "
            "may be lost; use DDP(..., broadcast_buffers=False)"
        )
    if getattr(model, "_comm_hooks", None):
        return  # the program's own, which knows best

    def hook(group, bucket):
        work = dist.all_reduce(bucket.buffer(), dist.ReduceOp.AVG, group=group, async_op=True)
        return work.get_future().then(lambda future: future.value()[0])

    model.register_comm_hook(model.process_group, hook)
