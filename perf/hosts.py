#!/usr/bin/env python3
"""Figures of jobs on several hosts, which are namespaces joined by virtual wires of a known rate.

  sweep   all_reduce on 2 hosts with 2 ranks each, in turns with Open MPI over the same wires; the
          share of the wire's bandwidth
  schedules  a collective with each algorithm that carries it, in turns
  loss    a host is cut off in silence: how long until the view is without it
  heal    a newcomer's state over the wire: the share of its bandwidth
  pauses  4 busy processes for each core, and processes of the job stopped for 200 ms: who is
          removed from the view though nobody was lost

Prints Markdown. Needs root, and for `sweep` perf/rivals/setup.sh openmpi4 openmpi5.
"""

import argparse
import contextlib
import datetime
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support" / "hosts"))
import namespaces  # noqa: E402
from processes import command_line, until  # noqa: E402

import tables  # noqa: E402

LOSS_TARGET_MS = 1500
HEAL_TARGET = 0.8
PAUSE_S = 0.2
BUSY_A_CORE = 4
SERVE = "example_05_serve"
ENDLESS = 10**9
MPI_FLAGS = {
    "openmpi4": ("--mca", "plm_rsh_agent", "{rsh}", "--mca", "oob_tcp_if_include", "eth0",
                 "--mca", "btl", "tcp,vader,self", "--mca", "btl_tcp_if_include", "eth0"),
    "openmpi5": ("--prtemca", "plm_ssh_agent", "{rsh}", "--prtemca", "prte_if_include", "eth0",
                 "--mca", "pml", "ob1", "--mca", "btl", "tcp,sm,self",
                 "--mca", "btl_tcp_if_include", "eth0"),
}


class Failed(Exception):
    """It cannot be measured here."""


def seconds_of(stamp):
    """Of an event's time, since 1970."""
    whole, fraction = stamp.rstrip("Z").split(".")
    moment = datetime.datetime.strptime(whole, "%Y-%m-%dT%H:%M:%S")
    return moment.replace(tzinfo=datetime.timezone.utc).timestamp() + float("0." + fraction)


class Hosts:
    """So many hosts a, b, ..., and a job on them. Use it in a `with`."""

    def __init__(self, options, count, rate_mbit=None):
        self.options = options
        self.names = [chr(ord("a") + number) for number in range(count)]
        self.directory = tempfile.TemporaryDirectory(prefix="regroup-perf-hosts.")
        self.network = namespaces.Network(self.names)
        for name in self.names if rate_mbit else ():
            self.network.limit(name, rate_mbit)
        self.network.know_each_other(self.directory.name)
        self.starter = self.network.starter(self.directory.name)
        self.logs = Path(self.directory.name) / "logs"
        self.process = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.network.close()  # and with it all that runs there
        if self.process is not None:
            self.process.wait()
            self.process.stdout.close()
        self.directory.cleanup()

    def start(self, slots, *words, tuning=""):
        """`regroup run` on host a, with so many slots a host."""
        hosts = ",".join(f"{name}:{slots}" for name in self.names)
        command = [*self.network["a"].enter(self.directory.name), self.options.bin_dir / "regroup",
                   "run", "-q", "--log-dir", self.logs, "--hosts", hosts, "--interface", "eth0",
                   "--starter", self.starter, *words]
        environment = {"UCX_TLS": "tcp", **os.environ}
        if tuning:
            environment["REGROUP_TUNING"] = tuning
        self.process = subprocess.Popen([str(word) for word in command], env=environment,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def finish(self):
        """Waits for the job; what it printed."""
        out = self.process.communicate()[0]
        if self.process.returncode not in (0, 69):
            raise Failed(f"the job ended with {self.process.returncode}:\n{out}")
        return out

    def events(self, kind):
        with contextlib.suppress(FileNotFoundError):
            lines = (self.logs / "events.jsonl").read_text(encoding="utf-8").splitlines()
            found = [json.loads(line) for line in lines if line.endswith("}")]
            return [event for event in found if event["kind"] == kind]
        return []

    def await_event(self, kind, fits, what):
        def found():
            if self.process.poll() is not None:
                raise Failed(f"the job ended with {self.process.returncode} before {what}")
            return [event for event in self.events(kind) if fits(event)]
        return until(found, what, 60)[0]

    def pids(self):
        return [pid for name in self.names for pid in self.network[name].pids()]


def serving(hosts, options, ranks, spares):
    """Starts a program that serves requests for ever, and waits until it does."""
    hosts.start(2, "-n", ranks, "--spares", spares, "--on-loss", "replace", "--",
                options.bin_dir / SERVE, ENDLESS)
    hosts.await_event("view_installed", lambda event: event["epoch"] == 1, "the first view")


# ---- sweep


def rivals_of(options, hosts):
    """A folder that describes the Open MPIs that are there, to run on these hosts."""
    folder = Path(hosts.directory.name) / "rivals"
    folder.mkdir()
    rsh = folder / "rsh"
    rsh.write_text('#!/bin/sh\nhost=$1\nshift\nexec ' + hosts.starter.replace("{host}", '"$host"')
                   + ' sh -c "$*"\n', encoding="utf-8")
    rsh.chmod(0o755)
    names = []
    for name, flags in MPI_FLAGS.items():
        path = options.rivals / f"{name}.json"
        if not path.exists() or name not in options.compare:
            continue
        rival = json.loads(path.read_text(encoding="utf-8"))
        at = rival["command"].index("-n")
        there = ["--host", ",".join(f"{host}:2" for host in hosts.names), "-N", "2",
                 *(flag.format(rsh=rsh) for flag in flags)]
        rival["command"][at:at] = there
        (folder / path.name).write_text(json.dumps(rival), encoding="utf-8")
        names.append(name)
    return folder, names


def sweep(options):
    documents = []
    for launch in range(options.launches):
        with Hosts(options, 2, options.rate) as hosts:
            folder, names = rivals_of(options, hosts)
            result = Path(hosts.directory.name) / "sweep.json"
            compare = ["--compare", ",".join(names), "--rivals", folder] if names else []
            hosts.start(2, "-n", 4, "--", options.bin_dir / "regroup-perf", "all_reduce",
                        "--inplace", "out", "--sizes", options.sizes, "--time", options.time,
                        "--blocks", options.blocks, "--json", result, *compare)
            out = hosts.finish()
            if options.verbose:
                print(out, file=sys.stderr)
            documents.append(json.loads(result.read_text(encoding="utf-8")))
            print(f"launch {launch + 1} of {options.launches} is done", file=sys.stderr)
    launches = tables.Launches(documents)
    link = options.rate / 8  # MB/s
    names = launches.implementations()
    mpi = [name for name in names if name != "regroup"]
    print(f"### 2 hosts, 2 ranks each, {options.rate} Mbit/s\n")
    print("| size | " + " | ".join(f"{name}, us | of the wire" for name in names)
          + " | best Open MPI / ours |\n" + "|---" * (2 * len(names) + 2) + "|")
    for size in launches.sizes():
        cells = []
        for name in names:
            times = launches.times(size, name)
            # Each host has to send the other one its sum of everything, once.
            share = size / statistics.median(times) / link if times else 0
            cells += [launches.cell(size, name), f"{share:.0%}"]
        ratio = launches.ratio(size, mpi)
        cells.append("-" if ratio is None else f"{ratio:.2f}")
        print(f"| {tables.size_text(size)} | " + " | ".join(cells) + " |")
    print()
    for note in launches.notes:
        print(note)
    print(tables.verdict(launches.wrong() == 0, f"{launches.wrong()} wrong values"))


# ---- schedules


def schedules(options):
    """Launches of all algorithms in turns: what changes in the machine meets them alike."""
    names = ["auto", *options.algorithms]
    times = {}
    wrong = 0
    with Hosts(options, 2, options.rate) as hosts:
        tuning = Path(hosts.directory.name) / "tuning"
        hosts.start(options.slots, "-n", 2 * options.slots, "--", options.bin_dir / "regroup-perf",
                    "--tune", tuning)
        hosts.finish()
        constants = " ".join(line for line in tuning.read_text(encoding="utf-8").splitlines()
                             if not line.startswith("#"))
    for launch in range(options.launches):
        for name in names:
            with Hosts(options, options.count, options.rate) as hosts:
                result = Path(hosts.directory.name) / "result.json"
                algo = [] if name == "auto" else ["--algo", name]
                hosts.start(options.slots, "-n", options.count * options.slots, "--",
                            options.bin_dir / "regroup-perf", options.collective, "-d",
                            options.dtype, "--inplace", "out", "--sizes", options.sizes, "--time",
                            options.time, "--blocks", options.blocks, "--json", result, *algo,
                            tuning=constants)
                hosts.finish()
                for row in json.loads(result.read_text(encoding="utf-8"))["results"]:
                    cell = times.setdefault(row["bytes"], {}).setdefault(name, [])
                    cell.append((row["time_us"], row["algorithm"]))
                    wrong += row["wrong"]
        print(f"launch {launch + 1} of {options.launches} is done", file=sys.stderr)
    print(f"### {options.collective} of {options.dtype}, {options.count} hosts, {options.slots} "
          f"ranks each, {options.rate} Mbit/s\n\n`{constants}`\n")
    print("| size | " + " | ".join(f"{name}, us" for name in names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for size, row in sorted(times.items()):
        cells = []
        for name in names:
            middle = statistics.median(us for us, _ in row[name])
            used = row[name][0][1]
            if name != "auto" and used != name:
                cells.append("-")  # it cannot carry that
            else:
                cells.append(f"{middle:.0f}" + (f" ({used})" if name == "auto" else ""))
        print(f"| {tables.size_text(size)} | " + " | ".join(cells) + " |")
    print("\n" + tables.verdict(wrong == 0, f"{wrong} wrong values"))


# ---- loss


def loss(options):
    took_ms = []
    for number in range(options.samples):
        with Hosts(options, 3) as hosts:
            serving(hosts, options, 4, 2)
            # Hosts a and b have two ranks each, host c the spares.
            threading.Event().wait(random.uniform(0, 0.3))
            cut_at = hosts.network.cut("b")
            view = hosts.await_event("view_installed", lambda e: e["epoch"] == 2, "a second view")
            took_ms.append((seconds_of(view["time"]) - cut_at) * 1e3)
            print(f"{number + 1}: {took_ms[-1]:.0f} ms", file=sys.stderr)
    print("| a host is cut off, until the view is without it | n | p50 ms | p99 ms | max ms |")
    print("|---|---|---|---|---|")
    p50, p99 = (tables_percentile(took_ms, share) for share in (0.5, 0.99))
    print(f"| 3 hosts, 4 ranks, 2 spares | {len(took_ms)} | {p50:.0f} | {p99:.0f} | "
          f"{max(took_ms):.0f} |\n")
    print(tables.verdict(p99 <= LOSS_TARGET_MS,
                         f"p99 {p99:.0f} ms (target <= {LOSS_TARGET_MS})"))


def tables_percentile(values, share):
    """The smallest measured value that `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(1, -(-int(share * 100) * len(ordered) // 100)) - 1]


# ---- heal


def heal(options):
    with Hosts(options, 3, options.rate) as hosts:
        hosts.start(1, "-n", 2, "--spares", 1, "--", options.bin_dir / "regroup-perf",
                    "all_reduce", "-b", 8, "-e", 8, "--kill", "1@3", "--kills", options.samples,
                    "--state", options.state)
        hosts.finish()
        # A newcomer on host a has the donor beside it.
        healed = [e for e in hosts.events("entered") if e.get("bytes_from") and e.get("host")]
    if not healed:
        raise Failed("no newcomer was healed from another host")
    link = options.rate / 8 * 1e6
    shares = [sum(part["bytes"] for part in event["bytes_from"]) / (event["heal_ns"] / 1e9) / link
              for event in healed]
    size = sum(part["bytes"] for part in healed[0]["bytes_from"])
    print("| heal from another host | n | MB | share of the wire, p50 | least |")
    print("|---|---|---|---|---|")
    middle = statistics.median(shares)
    print(f"| {options.rate} Mbit/s, one donor | {len(shares)} | {size / 1e6:.1f} | {middle:.0%} | "
          f"{min(shares):.0%} |\n")
    print(tables.verdict(middle >= HEAL_TARGET, f"{middle:.0%} (target >= {HEAL_TARGET:.0%})"))


# ---- pauses


def pause_one(hosts, marks):
    """Stops a process of the job for a while; what it was."""
    pid = random.choice(hosts.pids())
    words = b" ".join(command_line(pid)[:2])
    what = next((name for mark, name in marks if mark in words), None)
    if what is None:
        return None
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        threading.Event().wait(PAUSE_S)
        os.kill(pid, signal.SIGCONT)
    return what


def pauses(options):
    marks = ((SERVE.encode(), "ranks"), (b"regroup agent", "agents"),
             (b"regroup coordinator", "coordinator"), (b"regroup run", "launcher"))
    count = {name: 0 for _, name in marks}
    busy = []
    with Hosts(options, 3) as hosts:
        try:
            for _ in range(BUSY_A_CORE * os.cpu_count()):
                busy.append(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            serving(hosts, options, 6, 0)
            end = time.monotonic() + options.seconds
            while time.monotonic() < end and hosts.process.poll() is None:
                what = pause_one(hosts, marks)
                if what:
                    count[what] += 1
            alive = hosts.process.poll() is None
            views = len(hosts.events("view_installed")) - 1
            lost = len(hosts.events("lost"))
        finally:
            for process in busy:
                process.kill()
                process.wait()
    stopped = ", ".join(f"{number} of {name}" for name, number in count.items())
    print(f"3 hosts, 6 ranks, {len(busy)} busy processes on {os.cpu_count()} cores, "
          f"{options.seconds} s; stopped for {PAUSE_S * 1e3:.0f} ms each: {stopped}\n")
    good = alive and views == 0 and lost == 0
    print(tables.verdict(good, f"{views} views too many, {lost} losses (target: none)"
                         + ("" if alive else "; the job ended")))


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("sweep", "schedules", "loss", "heal", "pauses"))
    parser.add_argument("--rate", type=int, default=1000, help="Mbit/s of each wire, both ways")
    parser.add_argument("--sizes", default="1K,4K,16K,64K,256K,1M,4M,16M,64M")
    parser.add_argument("--launches", type=int, default=3, help="of sweep")
    parser.add_argument("--time", type=float, default=0.2, help="of sweep: seconds a block")
    parser.add_argument("--blocks", type=int, default=3, help="of sweep")
    parser.add_argument("--compare", default="openmpi4,openmpi5", help="of sweep")
    parser.add_argument("--collective", default="all_reduce", help="of schedules")
    parser.add_argument("--dtype", default="f32", help="of schedules")
    parser.add_argument("--count", type=int, default=4, help="of schedules: hosts")
    parser.add_argument("--slots", type=int, default=1, help="of schedules: ranks a host")
    parser.add_argument("--algorithms", default="oneshot,twoshot,rails,doubling,halving,ring,tree",
                        help="of schedules")
    parser.add_argument("--samples", type=int, default=100, help="of loss, heal")
    parser.add_argument("--state", default="64M", help="of heal")
    parser.add_argument("--seconds", type=float, default=120, help="of pauses")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--bin-dir", type=Path, default=ROOT / "build/release/bin")
    parser.add_argument("--rivals", type=Path, default=ROOT / "build/rivals")
    options = parser.parse_args()
    options.bin_dir = options.bin_dir.resolve()
    options.compare = options.compare.split(",")
    options.algorithms = options.algorithms.split(",")
    return options


def main():
    options = parse_arguments()
    random.seed(options.seed)
    reason = namespaces.why_not()
    if options.part in ("sweep", "schedules", "heal") and not reason and shutil.which("tc") is None:
        reason = "needs tc (iproute2)"
    if reason:
        print(f"hosts.py: {reason}", file=sys.stderr)
        return 77
    try:
        globals()[options.part](options)
    except (Failed, AssertionError) as why:
        print(f"hosts.py: {why}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
