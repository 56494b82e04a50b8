"""A script that never attaches and has made more results than are kept for a newcomer when rank 1
dies: the other rank is told so by a typed error."""

import os

import torch
import torch.distributed as dist

import regroup.torch as rg

dist.init_process_group("regroup")
gradient = torch.ones(4 << 20)  # 16 MiB
for step in range(12):
    if dist.get_rank() == 1 and step == 8 and os.environ["REGROUP_LIFE"] == "0":
        os.kill(os.getpid(), 9)
    try:
        dist.all_reduce(gradient, dist.ReduceOp.AVG)
    except rg.CommError as error:
        assert isinstance(error, dist.DistBackendError)
        print(f"rank {dist.get_rank()} step {step}: {error}", flush=True)
        raise
