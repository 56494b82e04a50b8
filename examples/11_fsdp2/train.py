#!/usr/bin/env python3
"""The transformer of the novel under FSDP2: no rank holds all weights, and any may be killed.

Each step ends with a copy of every rank's shards in the process of its neighbour, and is committed
behind that. Whatever is killed meanwhile, the weights at the end are those of a run without losses.
"""

import argparse
import hashlib
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import regroup.torch as rg

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "novel"))
from buddies import Buddies  # noqa: E402
from novel import Writer, excerpts, loss_of  # noqa: E402


class Trainer:
    """Model and optimizer, whose state can be taken out and put in as one row of numbers."""

    def __init__(self, mesh, length):
        with torch.random.fork_rng():
            torch.manual_seed(1)  # equal weights everywhere, before they are sharded
            self.model = Writer(length)
        for block in self.model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        self.optim = torch.optim.AdamW(self.model.parameters(), lr=3e-3, weight_decay=0.01)
        for param in self.model.parameters():  # what AdamW would make in its first step
            self.optim.state[param] = {"step": torch.zeros(()), "exp_avg": torch.zeros_like(param),
                                       "exp_avg_sq": torch.zeros_like(param)}

    def _parts(self):
        for param, state in self.optim.state.items():
            yield state["step"].view(1)
            for tensor in (param.detach(), state["exp_avg"], state["exp_avg_sq"]):
                yield tensor.to_local().view(-1)

    def state(self):
        return torch.cat(list(self._parts()))

    def load(self, state):
        at = 0
        for part in self._parts():
            part.copy_(state[at : at + part.numel()])
            at += part.numel()


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=120)
    options.add_argument("--batch", type=int, default=8, help="excerpts a rank and step")
    options.add_argument("--length", type=int, default=64, help="letters of an excerpt")
    args = options.parse_args()

    dist.init_process_group("regroup")
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    trainer = Trainer(mesh, args.length)
    initial = trainer.state()
    buddies = Buddies(initial.numel())
    torch.manual_seed(1000 + rank)  # each rank drops out units of its own

    job = rg.attach()  # the random numbers; the shards are the buddies' business
    ready = 0  # the step whose beginning the trainer is at; None inside a step
    for step, batch in job.steps(excerpts(rank, world, args.batch, args.length), args.steps):
        with job.step(step):
            state = buddies.at(step, initial)
            if ready != step:  # a newcomer, or an attempt was cut short, which FSDP2 cannot mend
                trainer = Trainer(mesh, args.length)
                trainer.load(state)
            ready = None
            loss = loss_of(trainer.model, batch)
            loss.backward()
            mean = loss.detach().clone()
            dist.all_reduce(mean, dist.ReduceOp.AVG)
            trainer.optim.step()
            trainer.optim.zero_grad()
            buddies.keep(step + 1, trainer.state())
            ready = step + 1  # the step is committed as the `with` ends
        if ready == step + 1 and rank == 0:
            print(f"step {step} loss {mean.item():.6f}", flush=True)

    print(f"rank {rank} digest={hashlib.sha256(trainer.state().numpy().tobytes()).hexdigest()}",
          flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
