"""Runs a training twice, once with ranks killed on the way, and compares the final weights.

Ends with 0 if they have the same bits; --plot draws both loss curves with the kills marked.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path


def train(regroup, program, steps, directory, faults):
    """Runs it on three ranks. Returns their digests in one text, the loss of each step, and how
    many ranks were killed."""
    environment = os.environ | {"REGROUP_FAULTS": faults, "OMP_NUM_THREADS": "1"}
    words = [regroup, "run", "-n", "3", "--spares", "1", "--timeout", "300s",
             "--log-dir", str(directory), "--", sys.executable, str(program), "--steps", str(steps)]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    digests = sorted(re.findall(r"rank (\d) digest=(\w+)", ended.stdout))
    if ended.returncode != 0 or [rank for rank, _ in digests] != ["0", "1", "2"]:
        sys.exit(f"{program.name} ended with {ended.returncode}\n{ended.stdout}\n{ended.stderr}")
    losses = dict(re.findall(r"step (\d+) loss (\S+)", ended.stdout))
    killed = len(re.findall(r"lost.*SIGKILL", ended.stderr))
    digest = " ".join(dict.fromkeys(digest[:16] for _, digest in digests))
    return digest, {int(s): float(v) for s, v in losses.items()}, killed


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


def compare(program, all_kills):
    """all_kills: (rank, step, what it is doing) of each rank that is killed by SIGKILL from inside
    the runtime, at exactly this place."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--regroup", default="regroup", help="the regroup command")
    options.add_argument("--steps", type=int, default=120)
    options.add_argument("--plot", metavar="PNG", help="needs matplotlib")
    args = options.parse_args()

    kills = [kill for kill in all_kills if kill[1] < args.steps]
    faults = ";".join(f"rank={r},inc=0,step={s},{what}:kill" for r, s, what in kills)
    with tempfile.TemporaryDirectory(prefix="regroup-compare.") as directory:
        digest, curve, _ = train(args.regroup, program, args.steps,
                                 Path(directory) / "undisturbed", "")
        print(f"nobody killed:  loss {curve[0]:.3f} -> {curve[args.steps - 1]:.3f}  {digest}")
        again, with_kills, killed = train(args.regroup, program, args.steps,
                                          Path(directory) / "killed", faults)
        print(f"{killed} ranks killed: loss {with_kills[0]:.3f} -> "
              f"{with_kills[args.steps - 1]:.3f}  {again}")
    if args.plot:
        plot(args.plot, curve, with_kills, kills)
    if killed != len(kills):
        sys.exit(f"{len(kills)} ranks were to be killed, {killed} were")
    if again != digest or with_kills != curve:
        sys.exit("the runs differ")
    print("the weights have the same bits")
