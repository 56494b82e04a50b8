#!/usr/bin/env python3
"""The time of one DDP step on Regroup beside Gloo, in turns, in one job.

    regroup run -n 2 -- python perf/torch/ddp_step.py

Stock DDP and AdamW on a network of some layers. On Regroup the step is one of attach(): its time
includes the commit. Blocks alternate; a block's time is that of the slowest rank, and the median of
the blocks is shown.
"""

import argparse
import statistics
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import regroup.torch as rg


class Side:
    """One backend's model and optimizer."""

    def __init__(self, width, layers, group=None):
        torch.manual_seed(1)
        hidden = [layer for _ in range(layers) for layer in (nn.Linear(width, width), nn.ReLU())]
        self.model = DDP(nn.Sequential(*hidden), process_group=group)
        self.optim = torch.optim.AdamW(self.model.parameters())
        self.blocks = []

    def step(self, x):
        began = time.perf_counter()
        self.model(x).square().mean().backward()
        self.optim.step()
        self.optim.zero_grad()
        return time.perf_counter() - began


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--width", type=int, default=512)
    options.add_argument("--layers", type=int, default=4)
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--blocks", type=int, default=9)
    options.add_argument("--steps", type=int, default=30, help="steps of a block")
    args = options.parse_args()

    dist.init_process_group("regroup")
    gloo = dist.new_group(backend="gloo")
    ours = Side(args.width, args.layers)
    theirs = Side(args.width, args.layers, gloo)
    job = rg.attach(model=ours.model, optim=ours.optim)
    generator = torch.Generator().manual_seed(dist.get_rank())
    x = torch.randn(args.batch, args.width, generator=generator)
    sides = {"gloo": theirs, "regroup": ours}
    per_turn = args.steps * len(sides)
    spent = dict.fromkeys(sides, 0.0)
    for step, _ in job.steps(lambda step: None, per_turn * (args.blocks + 1)):
        with job.step(step):
            name = list(sides)[step // args.steps % len(sides)]
            seconds = sides[name].step(x)
        spent[name] += seconds
        if step % per_turn == per_turn - 1:
            if step >= per_turn:  # the first turn warms up
                for each, side in sides.items():
                    side.blocks.append(spent[each] / args.steps)
            spent = dict.fromkeys(sides, 0.0)
    size = sum(p.numel() for p in ours.model.parameters())
    mine = torch.tensor([side.blocks for side in sides.values()])
    dist.all_reduce(mine, dist.ReduceOp.MAX, group=gloo)
    if dist.get_rank() == 0:
        them, us = (statistics.median(row) * 1e3 for row in mine.tolist())
        print(f"# DDP step, {size} parameters, {dist.get_world_size()} ranks, torch "
              f"{torch.__version__}\n{'gloo ms':>10} {'regroup ms':>12} {'ratio':>8}")
        print(f"{them:>10.3f} {us:>12.3f} {them / us:>8.2f}")
    dist.destroy_process_group()
    return gloo


if __name__ == "__main__":
    # Python, not DDP's reducer, must be the last to hold it: docs/pytorch.md says why.
    kept = main()
