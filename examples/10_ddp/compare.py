#!/usr/bin/env python3
"""Runs train.py twice, once with ranks killed on the way, and compares the final weights.

Ends with 0 if they have the same bits; --plot draws both loss curves with the kills marked.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
# (rank, step, what it is doing): killed by SIGKILL from inside the runtime, at exactly this place.
KILLS = (
    (0, 30, "op=all_reduce,phase=after_publish"),
    (2, 61, "op=commit,phase=after_prepare"),
    (1, 90, "op=all_reduce,phase=before_complete"),
)


def train(regroup, steps, directory, faults):
    environment = os.environ | {"REGROUP_FAULTS": faults, "OMP_NUM_THREADS": "1"}
    words = [regroup, "run", "-n", "3", "--spares", "1", "--timeout", "300s",
             "--log-dir", str(directory), "--", sys.executable, str(HERE / "train.py"),
             "--steps", str(steps)]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    digests = re.findall(r"digest=(\w+)", ended.stdout)
    if ended.returncode != 0 or len(digests) != 3 or len(set(digests)) != 1:
        sys.exit(f"train.py ended with {ended.returncode}\n{ended.stdout}\n{ended.stderr}")
    losses = dict(re.findall(r"step (\d+) loss (\S+)", ended.stdout))
    killed = len(re.findall(r"lost.*SIGKILL", ended.stderr))
    return digests[0], {int(s): float(v) for s, v in losses.items()}, killed


def plot(path, undisturbed, killed, kills):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    axes.plot(*zip(*sorted(undisturbed.items())), lw=5, color="#c9d7e8", label="nobody killed")
    axes.plot(*zip(*sorted(killed.items())), lw=1.2, color="#1f4e79", label="ranks killed")
    for rank, step, _ in kills:
        axes.axvline(step, color="#b03030", lw=1, ls="--")
        axes.annotate(f"rank {rank} killed", (step, 0.97), rotation=90, fontsize=8, ha="right",
                      va="top", color="#b03030", xycoords=axes.get_xaxis_transform())
    axes.set_xlabel("step")
    axes.set_ylabel("mean loss of the ranks (nats a letter)")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--regroup", default="regroup", help="the regroup command")
    options.add_argument("--steps", type=int, default=120)
    options.add_argument("--plot", metavar="PNG", help="needs matplotlib")
    args = options.parse_args()

    kills = [kill for kill in KILLS if kill[1] < args.steps]
    faults = ";".join(f"rank={r},inc=0,step={s},{what}:kill" for r, s, what in kills)
    with tempfile.TemporaryDirectory(prefix="regroup-10-ddp.") as directory:
        digest, curve, _ = train(args.regroup, args.steps, Path(directory) / "undisturbed", "")
        print(f"nobody killed:  loss {curve[0]:.3f} -> {curve[args.steps - 1]:.3f}  {digest[:16]}")
        again, with_kills, killed = train(args.regroup, args.steps, Path(directory) / "killed",
                                          faults)
        print(f"{killed} ranks killed: loss {with_kills[0]:.3f} -> "
              f"{with_kills[args.steps - 1]:.3f}  {again[:16]}")
    if args.plot:
        plot(args.plot, curve, with_kills, kills)
    if killed != len(kills):
        sys.exit(f"{len(kills)} ranks were to be killed, {killed} were")
    if again != digest or with_kills != curve:
        sys.exit("the runs differ")
    print("the weights have the same bits")


if __name__ == "__main__":
    main()
