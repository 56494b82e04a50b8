#!/usr/bin/env python3
"""Answers requests with a network that is spread over the ranks (tensor parallel, DTensor), and
goes on while ranks are killed.

    regroup run -n 2 --spares 1 --on-loss replace -- python serve.py WEIGHTS ANSWERS

There are no steps: an answer that a loss ended is worked out again, once the newcomer is there. It
reads its own share of the weights from the file; nobody sends it any.
"""

import argparse
import os
import signal
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import regroup.torch as rg
from questions import BATCH, question
from safetensors_file import Reader


class Layer(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=False, dtype=torch.float64)
        self.down = nn.Linear(hidden, width, bias=False, dtype=torch.float64)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


def load(reader, layers):
    """The network, of which each rank has its share of the hidden units."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    hidden, width = reader.shape("0.up.weight")
    with torch.device("meta"):
        net = nn.Sequential(*(Layer(width, hidden) for _ in range(layers)))
    for layer in net:
        parallelize_module(layer, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()},
                           src_data_rank=None)
    net.to_empty(device="cpu")
    with torch.no_grad():
        for name, param in net.named_parameters():
            ranges = [(0, length) for length in param.shape]
            (placement,) = param.placements
            assert isinstance(placement, Shard), name
            share = param.to_local()
            length = share.shape[placement.dim]
            first = mesh.get_local_rank() * length
            ranges[placement.dim] = (first, first + length)
            share.copy_(reader.part(name, *ranges))
    return net


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("weights", help="a Safetensors file")
    options.add_argument("answers", help="file for the answers and when each was ready")
    options.add_argument("--layers", type=int, default=2)
    options.add_argument("--requests", type=int, default=60)
    options.add_argument("--kill-every", type=int, default=0, metavar="N",
                         help="every Nth request kills a rank by SIGKILL, another one each time")
    args = options.parse_args()

    dist.init_process_group("regroup")
    rank, world = dist.get_rank(), dist.get_world_size()
    reader = Reader(args.weights)
    net = load(reader, args.layers)
    width = reader.shape("0.up.weight")[1]
    answers = os.open(args.answers, os.O_WRONLY) if rank == 0 else None
    served = torch.zeros(1, dtype=torch.int64)  # what a newcomer has to be told
    job = rg.attach(state={"served": served})
    print(f"rank {rank}: read {reader.bytes_read} bytes of weights", flush=True)

    job.reform()
    spared = served.item() if job.is_replacement else -1  # the request its predecessor died of
    while (number := served.item()) < args.requests:
        turn = number // args.kill_every if args.kill_every else 0
        dies = (args.kill_every and number % args.kill_every == args.kill_every - 1
                and turn % world == rank and number != spared)
        try:
            x = question(number, width) if rank == 0 else torch.empty(BATCH, width).double()
            dist.broadcast(x, 0)
            if dies and turn % 2 == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            with torch.no_grad():
                y = net(x)
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)
            if rank == 0:
                moment = torch.tensor([time.monotonic()], dtype=torch.float64)
                record = moment.numpy().tobytes() + y.numpy().tobytes()
                os.pwrite(answers, record, number * len(record))
            dist.barrier()  # it is written: all count it, or nobody
            served += 1
        except rg.RankLostError as lost:
            print(f"rank {rank} request {number}: {lost}", flush=True)
            job.reform()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
