#!/usr/bin/env python3
"""From the kill of a rank to the survivor's next update of its weights: Regroup beside torchft.

    python perf/torch/kill_to_step.py --regroup build/release/bin/regroup --side regroup
    python perf/torch/kill_to_step.py --regroup build/release/bin/regroup --side torchft

Two ranks train a small network; again and again one of them is killed by SIGKILL. Sides:
  regroup          stock DDP with attach(), one warm spare: the step is done again by both ranks
  torchft          torchft's Manager, DDP and Gloo group; the killed replica is started again
  torchft-regroup  the same with the group of regroup.torchft, and a warm spare of Regroup
torchft goes on without the lost replica, so its next update has half the batch. A side that ends
by itself is reported with the last words of its survivor.
"""

import argparse
import importlib
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

PATIENCE_S = 90


# ---- a rank


def network():
    import torch

    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 1))


class Diary:
    """A line an update, in a file of this process's own: "NANOSECONDS STEP"."""

    def __init__(self, directory, rank):
        self.file = open(f"{directory}/updates.{rank}.{os.getpid()}", "w", buffering=1)

    def add(self, step):
        self.file.write(f"{time.monotonic_ns()} {step}\n")


def announce_spare(directory):
    """Whoever is to take over a seat has imported what it needs."""
    if os.environ.get("REGROUP_SPARE") == "1":
        importlib.import_module("torch._dynamo")
        Path(directory, f"ready.{os.getpid()}").touch()


def train_on_regroup(directory):
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    import regroup.torch as rg

    announce_spare(directory)
    dist.init_process_group("regroup")
    model = DistributedDataParallel(network())
    optim = torch.optim.AdamW(model.parameters())
    job = rg.attach(model=model, optim=optim)
    diary = Diary(directory, dist.get_rank())
    for step, _ in job.steps(lambda step: None, 1 << 30):
        with job.step(step):
            model(torch.randn(16, 64)).square().mean().backward()
            optim.step()
            optim.zero_grad()
            diary.add(step)
            time.sleep(0.002)


def train_with_torchft(directory, on_regroup, average):
    import torch
    import torch.distributed as dist
    from torchft import DistributedDataParallel, Manager, Optimizer
    from torchft.process_group import ProcessGroupGloo

    if on_regroup:
        import regroup.torch as rg
        from regroup.torchft import ProcessGroupRegroup

        announce_spare(directory)
        rank = rg._C.attach().rank
        group = ProcessGroupRegroup(timeout=timedelta(seconds=30))
    else:
        rank = int(os.environ["REPLICA"])
        group = ProcessGroupGloo(timeout=timedelta(seconds=30))
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    model = network()
    optim = torch.optim.AdamW(model.parameters())

    def state():
        return {"model": model.state_dict(), "optim": optim.state_dict()}

    def load(given):
        model.load_state_dict(given["model"])
        optim.load_state_dict(given["optim"])

    manager = Manager(pg=group, load_state_dict=load, state_dict=state, min_replica_size=1,
                      timeout=timedelta(seconds=30), quorum_timeout=timedelta(seconds=60), rank=0,
                      world_size=1, store_addr="localhost", store_port=store.port,
                      replica_id=f"replica{rank}")
    wrapped = DistributedDataParallel(manager, model) if average == "ddp" else model
    managed = Optimizer(manager, optim)
    diary = Diary(directory, rank)
    while True:
        before = manager.current_step()
        managed.zero_grad()
        wrapped(torch.randn(16, 64)).square().mean().backward()
        if average == "manager":
            for work in [manager.allreduce(param.grad) for param in model.parameters()]:
                work.wait()
        managed.step()
        if manager.current_step() > before:
            diary.add(manager.current_step())
        time.sleep(0.002)


def be_the_lighthouse():
    """Until its input ends."""
    from torchft.coordination import LighthouseServer

    server = LighthouseServer("0.0.0.0:0", 1, join_timeout_ms=1000)
    print(server.address(), flush=True)
    sys.stdin.read()
    server.shutdown()


# ---- the kills


class Side:
    """The processes of one side, and what they wrote."""

    def __init__(self, options, directory):
        self.options, self.directory = options, directory
        self.processes = {}  # torchft's replicas
        self.environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.lighthouse = None
        if options.side != "regroup":
            self.lighthouse = subprocess.Popen(
                [sys.executable, __file__, "--lighthouse"], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            self.environment["TORCHFT_LIGHTHOUSE"] = self.lighthouse.stdout.readline().strip()

    def start(self):
        rank = self.rank_words()
        if self.options.side == "torchft":
            for replica in (0, 1):
                self.start_replica(replica)
            return
        policy = "replay" if self.options.side == "regroup" else "replace"
        words = [self.options.regroup, "run", "-q", "-n", "2", "--spares", "1", "--on-loss", policy,
                 "--log-dir", f"{self.directory}/logs", "--", *rank]
        self.processes["job"] = self.popen(words, "job", {})

    def rank_words(self):
        return [sys.executable, __file__, "--side", self.options.side, "--average",
                self.options.average, "--rank", self.directory]

    def start_replica(self, replica):
        self.processes[replica] = self.popen(self.rank_words(), f"replica{replica}",
                                             {"REPLICA": str(replica)})

    def popen(self, words, name, more):
        log = open(f"{self.directory}/{name}.{len(os.listdir(self.directory))}.log", "w")
        return subprocess.Popen(words, env=self.environment | more, stdin=subprocess.DEVNULL,
                                stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def updates(self):
        """By (rank, process): the moments of its updates."""
        found = {}
        for path in Path(self.directory).glob("updates.*"):
            rank, pid = map(int, path.name.split(".")[1:])
            lines = path.read_text().splitlines()
            found[rank, pid] = [int(line.split()[0]) for line in lines if " " in line]
        return found

    def newest(self, rank):
        """The living process of the rank, and its updates."""
        alive = {pid: at for (r, pid), at in self.updates().items()
                 if r == rank and at and Path(f"/proc/{pid}").exists()}
        return max(alive.items(), key=lambda one: one[1][-1], default=(None, []))

    def has_spare(self):
        """A warm one, which trains nothing yet."""
        busy = {pid for _, pid in self.updates()}
        ready = {int(path.name.split(".")[1]) for path in Path(self.directory).glob("ready.*")}
        return any(Path(f"/proc/{pid}").exists() for pid in ready - busy)

    def ended(self):
        """Why the side cannot go on, or None."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                logs = sorted(Path(self.directory).glob(f"*{name}*.log"), key=os.path.getmtime)
                words = [line for line in logs[-1].read_text().splitlines() if line.strip()]
                return f"{name} ended with {process.returncode}: {words[-1] if words else ''}"
        return None

    def stop(self):
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if self.lighthouse is not None:
            self.lighthouse.stdin.close()
            self.lighthouse.wait()


class Ended(Exception):
    pass


def wait_for(side, what, condition):
    until = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        if reason := side.ended():
            raise Ended(reason)
        if time.monotonic() > until:
            raise Ended(f"{PATIENCE_S} s without {what}")
        time.sleep(0.005)
    return found


def both_train(side):
    """Both ranks update their weights, and have done so for a while."""
    now = time.monotonic_ns()
    rows = [side.newest(rank)[1] for rank in (0, 1)]
    return all(len(row) > 20 and now - row[-1] < 200_000_000 for row in rows)


def kill_once(side, victim):
    """Milliseconds to the survivor's next update."""
    wait_for(side, "both ranks' training", lambda: both_train(side))
    if side.options.side != "torchft":
        wait_for(side, "a spare", side.has_spare)
    time.sleep(side.options.pause)
    pid, _ = side.newest(victim)
    killed_at = time.monotonic_ns()
    os.kill(pid, signal.SIGKILL)
    if side.options.side == "torchft":
        side.processes.pop(victim).wait()

    def next_update():
        # An update that was all but done when the kill came is not the next one.
        later = [at for at in side.newest(1 - victim)[1] if at > killed_at]
        gaps = [b - a for a, b in zip([killed_at, *later], later)]
        return later and (max(gaps), later)

    wait_for(side, "an update by the survivor", lambda: len((next_update() or (0, []))[1]) > 5)
    gap, _ = next_update()
    if side.options.side == "torchft":
        side.start_replica(victim)
    return gap / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regroup", default="regroup", help="the regroup command")
    parser.add_argument("--side", default="regroup",
                        choices=("regroup", "torchft", "torchft-regroup"))
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--pause", type=float, default=1.0,
                        help="seconds of training between two kills")
    parser.add_argument("--average", default="ddp", choices=("ddp", "manager"),
                        help="torchft's: by its DDP, or by Manager.allreduce of each gradient")
    parser.add_argument("--rank", metavar="DIRECTORY", help=argparse.SUPPRESS)
    parser.add_argument("--lighthouse", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.lighthouse:
        be_the_lighthouse()
    elif options.rank and options.side == "regroup":
        train_on_regroup(options.rank)
    elif options.rank:
        train_with_torchft(options.rank, options.side == "torchft-regroup", options.average)
    else:
        measure(options)


def measure(options):
    gaps = []
    with tempfile.TemporaryDirectory(prefix="regroup-kill-to-step.") as directory:
        side = Side(options, directory)
        try:
            side.start()
            for kill in range(options.kills):
                gaps.append(kill_once(side, kill % 2))
                print(f"kill {kill}: rank {kill % 2}, {gaps[-1]:.1f} ms", flush=True)
        except Ended as why:
            reason = re.sub(r"\s+", " ", str(why))
            print(f"{options.side} did not go on after {len(gaps)} kills: {reason}")
        finally:
            side.stop()
    if gaps:
        print(f"{options.side}: {len(gaps)} kills, ms to the next update: "
              f"median {statistics.median(gaps):.1f}, largest {max(gaps):.1f}")
    if len(gaps) < options.kills:
        sys.exit(1)


if __name__ == "__main__":
    main()
