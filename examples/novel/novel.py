"""A novel, and a small transformer that learns to write like Jane Austen, letter by letter."""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

RAW = (Path(__file__).parent / "persuasion.txt").read_text(encoding="utf-8")
LETTERS = sorted(set(RAW))


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
    """Guesses, a row a letter, what comes next."""

    def __init__(self, length, width=64, heads=4, blocks=2, dropout=0.1):
        super().__init__()
        self.letter = nn.Embedding(len(LETTERS), width)
        self.place = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(blocks)))
        self.last = nn.LayerNorm(width)
        self.guess = nn.Linear(width, len(LETTERS))

    def forward(self, x):
        places = torch.arange(x.shape[1])
        hidden = self.last(self.blocks(self.letter(x) + self.place(places)))
        return self.guess(hidden.flatten(0, 1))


def loss_of(model, batch):
    x, y = batch
    return functional.cross_entropy(model(x), y.flatten())


def excerpts(rank, world, batch, length):
    """The batch of each step, as a function of its number: nothing else has to travel."""
    text = torch.tensor([LETTERS.index(c) for c in RAW])

    def of_step(step):
        generator = torch.Generator().manual_seed(step * world + rank)
        starts = torch.randint(len(text) - length - 1, (batch,), generator=generator)
        rows = torch.stack([text[s : s + length + 1] for s in starts])
        return rows[:, :-1], rows[:, 1:]

    return of_step
