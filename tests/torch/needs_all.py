"""Under --on-loss carry_on or shrink a step makes an all_gather, which needs the lost rank."""

import os

import torch
import torch.distributed as dist

import regroup.torch as rg

dist.init_process_group("regroup")
rank, world = dist.get_rank(), dist.get_world_size()
job = rg.attach(state={"weights": torch.zeros(2)})
for step, _ in job.steps(lambda step: None, 1000):
    with job.step(step):
        if rank == 1 and step == 2 and not job.is_replacement:
            os.kill(os.getpid(), 9)
        parts = [torch.zeros(1) for _ in range(world)]
        dist.all_gather(parts, torch.tensor([float(rank)]))
        assert [part.item() for part in parts] == list(range(world))
