#!/usr/bin/env python3
"""all_reduce through torch.distributed: Regroup beside Gloo, in turns, in one job.

    regroup run -n 4 -- python perf/torch/compare_gloo.py

Each cell is measured by both backends in alternating blocks; a block's time is that of the slowest
rank, and the median of the blocks is shown. A result of each block is checked.
"""

import argparse
import statistics
import time

import torch
import torch.distributed as dist

import regroup.torch as rg


def block(group, tensor, wanted, calls):
    """Seconds of one call, on the slowest rank. The timed ones are in place, of zeros, so that
    nothing has to be filled in between; one of ones behind them is checked."""
    tensor.zero_()
    dist.barrier(group=group)
    began = time.perf_counter()
    for _ in range(calls):
        dist.all_reduce(tensor, group=group)
    mine = torch.tensor([(time.perf_counter() - began) / calls])
    tensor.fill_(1.0)
    dist.all_reduce(tensor, group=group)
    if not torch.equal(tensor, wanted):
        raise RuntimeError(f"a wrong sum of {tensor.numel()} elements")
    dist.all_reduce(mine, dist.ReduceOp.MAX, group=group)
    return mine.item()


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("-b", "--begin", type=int, default=8, help="bytes of the smallest cell")
    options.add_argument("-e", "--end", type=int, default=64 << 20, help="of the largest")
    options.add_argument("-f", "--factor", type=int, default=8)
    options.add_argument("--blocks", type=int, default=9)
    args = options.parse_args()

    dist.init_process_group("regroup")
    groups = {"gloo": dist.new_group(backend="gloo"), "regroup": dist.group.WORLD}
    rg.attach().reform()  # the set-up is over: calls are no longer kept for newcomers
    rank, world = dist.get_rank(), dist.get_world_size()
    if rank == 0:
        print(f"# all_reduce, float32, {world} ranks, torch {torch.__version__}")
        print(f"{'bytes':>12} {'gloo us':>12} {'regroup us':>12} {'ratio':>8}")
    size = args.begin
    while size <= args.end:
        tensor = torch.ones(max(1, size // 4))
        wanted = torch.full_like(tensor, float(world))
        calls = max(1, min(200, (8 << 20) // size))
        seconds = {name: [] for name in groups}
        for turn in range(args.blocks + 1):
            for name, group in groups.items():
                spent = block(group, tensor, wanted, calls)
                if turn > 0:  # the first one warms up
                    seconds[name].append(spent)
        gloo, ours = (statistics.median(seconds[name]) * 1e6 for name in ("gloo", "regroup"))
        if rank == 0:
            print(f"{size:>12} {gloo:>12.1f} {ours:>12.1f} {gloo / ours:>8.2f}", flush=True)
        size *= args.factor
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
