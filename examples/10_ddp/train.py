#!/usr/bin/env python3
"""A small transformer learns to write like Jane Austen, letter by letter, under stock DDP.

Whatever is killed meanwhile, the weights at the end are those of a run without losses.
"""

import argparse
import hashlib
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel as DDP

import regroup.torch as rg

TEXT = Path(__file__).parent / "data" / "persuasion.txt"


class Block(nn.Module):
    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        self.before_network = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.network = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x):
        batch, length, width = x.shape
        parts = self.qkv(self.before_attention(x)).view(batch, length, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.network(self.before_network(x))


class Writer(nn.Module):
    def __init__(self, letters, length, width=64, heads=4, blocks=2, dropout=0.1):
        super().__init__()
        self.letter = nn.Embedding(letters, width)
        self.place = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(blocks)))
        self.last = nn.LayerNorm(width)
        self.guess = nn.Linear(width, letters)

    def forward(self, x):
        places = torch.arange(x.shape[1])
        return self.guess(self.last(self.blocks(self.letter(x) + self.place(places))))


def excerpts(text, rank, world, batch, length):
    """The batch of each step, as a function of its number: nothing else has to travel."""

    def of_step(step):
        generator = torch.Generator().manual_seed(step * world + rank)
        starts = torch.randint(len(text) - length - 1, (batch,), generator=generator)
        rows = torch.stack([text[s : s + length + 1] for s in starts])
        return rows[:, :-1], rows[:, 1:]

    return of_step


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=120)
    options.add_argument("--batch", type=int, default=8, help="excerpts a rank and step")
    options.add_argument("--length", type=int, default=64, help="letters of an excerpt")
    args = options.parse_args()

    raw = TEXT.read_text(encoding="utf-8")
    letters = sorted(set(raw))
    text = torch.tensor([letters.index(c) for c in raw])

    dist.init_process_group("regroup")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(1)  # equal weights everywhere
    model = DDP(Writer(len(letters), args.length))
    torch.manual_seed(1000 + rank)  # each rank drops out units of its own
    optim = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    warm = torch.optim.lr_scheduler.LinearLR(optim, start_factor=0.1, total_iters=20)

    job = rg.attach(model=model, optim=optim, state={"warm": warm})
    batches = excerpts(text, rank, world, args.batch, args.length)
    for step, (x, y) in job.steps(batches, args.steps):
        with job.step(step):
            loss = functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
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
