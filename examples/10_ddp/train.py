#!/usr/bin/env python3
"""A small transformer learns to write like Jane Austen, letter by letter, under stock DDP.

Whatever is killed meanwhile, the weights at the end are those of a run without losses.
"""

import argparse
import hashlib
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

import regroup.torch as rg

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "novel"))
from novel import Writer, excerpts, loss_of  # noqa: E402


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=120)
    options.add_argument("--batch", type=int, default=8, help="excerpts a rank and step")
    options.add_argument("--length", type=int, default=64, help="letters of an excerpt")
    args = options.parse_args()

    dist.init_process_group("regroup")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(1)  # equal weights everywhere
    model = DDP(Writer(args.length))
    torch.manual_seed(1000 + rank)  # each rank drops out units of its own
    optim = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    warm = torch.optim.lr_scheduler.LinearLR(optim, start_factor=0.1, total_iters=20)

    job = rg.attach(model=model, optim=optim, state={"warm": warm})
    batches = excerpts(rank, world, args.batch, args.length)
    for step, batch in job.steps(batches, args.steps):
        with job.step(step):
            loss = loss_of(model, batch)
            loss.backward()
            mean = loss.detach().clone()
            dist.all_reduce(mean, dist.ReduceOp.AVG)
            optim.step()  # commits the step first: until here it can be done again
            optim.zero_grad()
            warm.step()
            if rank == 0:
                print(f"step {step} loss {mean.item():.6f}", flush=True)

    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters()))
    print(f"rank {rank} digest={digest.hexdigest()}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
