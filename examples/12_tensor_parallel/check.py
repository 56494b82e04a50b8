#!/usr/bin/env python3
"""Makes weights, has serve.py answer requests while ranks are killed, and checks every answer.

The weights are whole numbers, so that the order of a sum does not show: an answer is right only if
it has the bits that the whole network gives in this process.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from questions import BATCH, question
from safetensors_file import save

HERE = Path(__file__).resolve().parent
WIDTH, HIDDEN, LAYERS = 64, 256, 2


def weights():
    generator = torch.Generator().manual_seed(1)

    def some(*shape):
        return torch.randint(-2, 3, shape, generator=generator).to(torch.float64)

    return {f"{layer}.{name}.weight": some(*shape) for layer in range(LAYERS)
            for name, shape in (("up", (HIDDEN, WIDTH)), ("down", (WIDTH, HIDDEN)))}


def answer(tensors, x):
    for layer in range(LAYERS):
        hidden = torch.relu(x @ tensors[f"{layer}.up.weight"].T)
        x = x + hidden @ tensors[f"{layer}.down.weight"].T
    return x


def serve(args, directory):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [args.regroup, "run", "-n", str(args.ranks), "--spares", "1", "--on-loss", "replace",
             "--timeout", "300s", "--log-dir", f"{directory}/logs", "--", sys.executable,
             str(HERE / "serve.py"), f"{directory}/weights.safetensors", f"{directory}/answers",
             "--layers", str(LAYERS), "--requests", str(args.requests),
             "--kill-every", str(args.kill_every)]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        sys.exit(f"serve.py ended with {ended.returncode}\n{ended.stdout}\n{ended.stderr}")
    return ended


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--regroup", default="regroup", help="the regroup command")
    options.add_argument("--ranks", type=int, default=2)
    options.add_argument("--requests", type=int, default=60)
    options.add_argument("--kill-every", type=int, default=12)
    args = options.parse_args()

    tensors = weights()
    size = sum(tensor.nbytes for tensor in tensors.values())
    with tempfile.TemporaryDirectory(prefix="regroup-12.") as directory:
        save(f"{directory}/weights.safetensors", tensors)
        Path(directory, "answers").touch()
        ended = serve(args, directory)
        raw = bytearray(Path(directory, "answers").read_bytes())
    records = torch.frombuffer(raw, dtype=torch.float64).view(-1, 1 + BATCH * WIDTH)
    if len(records) != args.requests:
        sys.exit(f"{len(records)} answers to {args.requests} requests")
    right = (answer(tensors, question(number, WIDTH)) for number in range(args.requests))
    wrong = sum(not torch.equal(record[1:].view(BATCH, WIDTH), one)
                for record, one in zip(records, right, strict=True))
    killed = len(re.findall(r"lost.*SIGKILL", ended.stderr))
    shares = {int(n) for n in re.findall(r"read (\d+) bytes", ended.stdout)}
    gap_ms = (records[1:, 0] - records[:-1, 0]).max().item() * 1e3
    print(f"{len(records)} answers, {wrong} wrong, {killed} ranks killed; the longest gap between "
          f"two was {gap_ms:.0f} ms")
    print(f"of {size} bytes of weights each rank read {', '.join(map(str, sorted(shares)))}")
    if shares != {size // args.ranks}:
        sys.exit("a rank read more or less than its share")
    due = args.requests // args.kill_every if args.kill_every else 0
    if wrong or killed != due:
        sys.exit(f"{wrong} wrong answers, {killed} ranks killed instead of {due}")
    print("every answer is right")


if __name__ == "__main__":
    main()
